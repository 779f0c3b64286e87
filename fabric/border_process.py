"""The border service as a process: limits, readiness, a clean end, and another start after a crash.

Two processes: one that serves, within limits of the operating system, and one that starts it again when it is gone. The
one that serves ends when the other does. Where it listens stands in `border/service.json` of the home folder, so that a
service that was started again is found where it was.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from fabric.border_refusals import Recorder, Refusal
from fabric.border_service import BorderService
from fabric.certificates import Authority
from fabric.config import Config, Environment, load_config
from fabric.errors import FabricError, Reason
from fabric.inbox import Inbox
from fabric.recording import new_id, now, open_ledger
from fabric.staging import Staging
from fabric.stores import Home

READY = "border ready"
GRACE_S = 5.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_REFUSED_BELOW = {b"Handshake failed": "border:handshake", b"Compression algorithm": "border:compressed"}
_STEADY_S = 30.0  # a service that stood so long starts again at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a service listens.

    Attributes:
        address: host and port under which other zones reach it.
        started: when the process began, by the operating system, to know it from another one with its number.
    """

    pid: int
    started: float
    host: str
    port: int
    address: str

    @property
    def alive(self) -> bool:
        """Say whether that process is there."""
        try:
            process = psutil.Process(self.pid)
            return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - self.started) < 1.0
        except psutil.Error:
            return False


def standing(home: Home) -> Standing | None:
    """Return where the service of a home folder listens, or did before it ended; None if none ever has."""
    try:
        return Standing(**json.loads(_place(home).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def serve(config_path: Path) -> None:
    """Serve until a signal, or until whoever started this is gone. Runs in a process of its own.

    Raises:
        FabricError: `PORT_TAKEN`, `EVIDENCE_UNWRITABLE`, or what is wrong with `fabric.toml`.
    """
    config = load_config(config_path)
    _limit(config.border.memory_mib)
    transport = _log_json()
    home = Home.open(config.state)
    told, tell = _signalled(lambda: None)
    key = home.signing_key()
    ledger = open_ledger(config, home, key)
    service = BorderService(
        fabric=config.name,
        terms=config.border,
        key=home.token_key(),
        authority=Authority.open(home, now=now()),
        staging=Staging.of(home, ledger.keys),
        inbox=Inbox.of(home, most=config.border.return_mib << 20),
        recorder=Recorder(ledger, time.monotonic),
        clock=now,
        new_id=new_id,
    )
    threading.Thread(target=_listen, args=(transport, service.recorder), daemon=True).start()
    before = standing(home)
    port = service.start(config.border.port or (before.port if before else 0))
    _tell(home, config, port)
    threading.Thread(target=_until_alone, args=(tell,), daemon=True).start()
    os.read(told, 4_096)
    # However a call that is under way takes it: it was asked to end.
    threading.Thread(target=_end_at_last, daemon=True).start()
    service.stop(GRACE_S)
    ledger.close()


def supervise(config_path: Path) -> int:
    """Start the service, and start it again whenever it is gone; return its status once it ends as it should.

    What was wrong before it was ever ready is not tried again.
    """
    stopping = False

    def stop() -> None:
        nonlocal stopping
        stopping = True

    told, tell = _signalled(stop)
    pause, ever_ready = _FIRST_PAUSE_S, False
    while True:
        began = time.monotonic()
        child = subprocess.Popen(
            _command(config_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
        )
        lines = _Forwarded(child, tell)
        while not lines.over:
            if stopping:
                child.terminate()
            os.read(told, 4_096)
        status, ever_ready = child.wait(), ever_ready or lines.ready
        if stopping or status == 0:
            return 0
        if not ever_ready:
            return status
        pause = _FIRST_PAUSE_S if time.monotonic() - began > _STEADY_S else min(2 * pause, _LONGEST_PAUSE_S)
        until = time.monotonic() + pause
        while (left := until - time.monotonic()) > 0:
            if select.select([told], [], [], left)[0]:
                os.read(told, 4_096)
            if stopping:
                return 0


class _Forwarded(threading.Thread):
    """Prints what a child prints, notes whether it was ready, and tells when it ends."""

    def __init__(self, child: subprocess.Popen[str], tell: int) -> None:
        super().__init__(daemon=True)
        self._child, self._tell, self.ready, self.over = child, tell, False, False
        self.start()

    def run(self) -> None:
        """Read until the child's standard output ends."""
        assert self._child.stdout is not None  # noqa: S101 - it is a pipe
        for line in self._child.stdout:
            self.ready = self.ready or line.startswith(READY)
            sys.stdout.write(line)
            sys.stdout.flush()
        self.over = True
        os.write(self._tell, b".")


def _signalled(stop: Callable[[], None]) -> tuple[int, int]:
    """Have `stop` called on a signal to end; return the end of a pipe that can be read then, and its other one.

    The kernel may give a signal to any thread. Python's handlers run in the main one, which a signal to another does
    not wake from a system call; what is written to the pipe does.
    """
    told, tell = os.pipe()
    os.set_blocking(tell, False)
    signal.set_wakeup_fd(tell, warn_on_full_buffer=False)
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, lambda *_: stop())
    return told, tell


def _command(config_path: Path) -> Sequence[str]:
    code = "import sys; from fabric.border_process import main; main(sys.argv[1])"
    return [sys.executable, "-c", code, str(config_path)]


def _environment() -> dict[str, str]:
    # Arrow's own allocator takes a gibibyte of addresses at once, which the limit would count.
    # gRPC says only in its log, and only at this level, that a handshake failed.
    return {**Environment.read().variables, "ARROW_DEFAULT_MEMORY_POOL": "system", "GRPC_VERBOSITY": "INFO"}


def main(config_path: str) -> None:
    """Serve, as the process that `supervise` starts; what is wrong goes to standard error, as everywhere."""
    status = 0
    try:
        serve(Path(config_path))
    except FabricError as error:
        sys.stderr.write(f"Error: {error}\n")
        status = error.exit_status
    # Neither gRPC's threads nor the one that reads standard input are waited for: all that counts is written.
    os._exit(status)


def _tell(home: Home, config: Config, port: int) -> None:
    terms, this = config.border, psutil.Process()
    told = Standing(
        pid=this.pid,
        started=this.create_time(),
        host=terms.host,
        port=port,
        address=f"{terms.advertise or terms.host}:{port}",
    )
    home.write(_place(home), json.dumps(asdict(told)).encode())
    sys.stdout.write(f"{READY} {told.address}\n")
    sys.stdout.flush()


def _place(home: Home) -> Path:
    return home.border_folder("tls").parent / "service.json"


def _until_alone(tell: int) -> None:
    """Wait until standard input ends: whoever started this is gone, or let go."""
    while os.read(0, 4_096):
        pass
    os.write(tell, b".")


def _end_at_last() -> None:
    time.sleep(3 * GRACE_S)
    os._exit(0)


def _limit(memory_mib: int) -> None:
    """Ask the operating system for limits that no message can pass, and for no copy of the memory, keys and all."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (memory_mib << 20, memory_mib << 20))


class _Lines(logging.Formatter):
    """Records as JSON lines, without the text of anything that came from outside."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        told = getattr(record, "fabric", {})
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        return json.dumps({"at": at, "level": record.levelname.lower(), "event": record.msg, **told})


def _log_json() -> int:
    """Log to standard error as JSON; return a descriptor to read what gRPC itself logs, which goes there no more."""
    # What gRPC logs may hold what clients sent, so nobody is shown it.
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    ours = logging.getLogger("fabric.border")
    ours.handlers, ours.propagate = [handler], False
    ours.setLevel(logging.INFO)
    # gRPC's own logger would print what clients sent, in tracebacks.
    logging.getLogger("grpc").handlers = [logging.NullHandler()]
    logging.getLogger("grpc").propagate = False
    return reading


def _listen(transport: int, recorder: Recorder) -> None:
    """Record what the transport refused before any of our code was asked: its log is the only place that tells."""
    with os.fdopen(transport, "rb") as lines:
        while line := lines.readline(4_096):
            for mark, what in _REFUSED_BELOW.items():
                if mark in line:
                    recorder.refused(Refusal(zone="", what=what, code=Reason.BORDER_REFUSED.value))
