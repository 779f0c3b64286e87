"""The witness's own side: it remembers the last checkpoint of each log, and cosigns only what continues it.

Run it where the ledger's administrators have no rights. Its folder holds a note for each checkpoint it cosigned, never
changed: the copy that an auditor compares a bundle with (`fabric verify BUNDLE --kept FOLDER`). It imports nothing of
the fabric but its words, its notes and its trees.
"""

from __future__ import annotations

import base64
import fcntl
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from fabric.errors import EvidenceInvalid, Reason
from fabric.notes import (
    MAX_NOTE_CHARACTERS,
    Checkpoint,
    WitnessKey,
    cosign,
    open_checkpoint,
    stated_checkpoint,
)
from fabric.statements import PublicKey, SigningKey
from fabric.witness import COSIGNED, REQUEST, Request, continues, log_folder, numbered, write_once

PATH = "/add-checkpoint"
READ_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer in the words of HTTP (C2SP tlog-witness, "add-checkpoint")."""

    status: int
    body: str = ""
    content_type: str = "text/plain; charset=utf-8"


class Notary:
    """A witness: a key, the logs it knows, and a folder of what it cosigned. Safe to share between threads."""

    def __init__(
        self,
        folder: Path,
        *,
        name: str,
        key: SigningKey,
        logs: Mapping[str, Sequence[PublicKey]],
        clock: Callable[[], datetime],
    ) -> None:
        """Open the folder, made with mode 0700 if it is not there.

        Args:
            name: the witness's name in its cosignatures.
            logs: the keys that each known origin signs with.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._name = name
        self._key = key
        self._logs = logs
        self._clock = clock
        self._lock = threading.Lock()

    @property
    def public(self) -> WitnessKey:
        """Return the key that verifiers need."""
        return WitnessKey(name=self._name, key=self._key.public)

    def add(self, text: str) -> Reply:
        """Cosign a checkpoint that continues the last one, or say why not; it is on the disk before the answer."""
        try:
            request = Request.from_text(text)
            stated = stated_checkpoint(request.checkpoint)
        except EvidenceInvalid as error:
            return Reply(status=400, body=f"{error.message}\n")
        if stated.origin not in self._logs:
            return Reply(status=404, body="this witness does not know the log\n")
        try:
            shown = open_checkpoint(request.checkpoint, stated.origin, self._logs[stated.origin])
        except EvidenceInvalid:
            return Reply(status=403, body="no key that this witness trusts signed the checkpoint\n")
        if request.old > shown.size:
            return Reply(status=400, body="the old size is larger than the checkpoint's\n")
        with self._alone():
            return self._judge(request, shown)

    def _judge(self, request: Request, shown: Checkpoint) -> Reply:
        folder = self._folder / log_folder(shown.origin)
        folder.mkdir(exist_ok=True)
        newest = max(numbered(folder, COSIGNED), default=None)
        last = stated_checkpoint(newest[1].read_text("utf-8")) if newest else None
        size = last.size if last else 0
        if request.old != size or (last and size == shown.size and last.root != shown.root):
            return Reply(status=409, body=f"{size}\n", content_type="text/x.tlog.size")
        if last is not None and size == shown.size:
            line = cosign(request.checkpoint, self._name, self._key, self._clock())
            return Reply(status=200, body=line)
        if not continues(last, shown, request.proof):
            return Reply(status=422, body="the checkpoint does not continue the last one\n")
        line = cosign(request.checkpoint, self._name, self._key, self._clock())
        write_once(folder / f"{shown.size:016d}{COSIGNED}", request.checkpoint + line)
        return Reply(status=200, body=line)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        # Checking the last size and writing the next must not be parted (tlog-witness), by threads or processes.
        with self._lock, (self._folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def cosign_folder(notary: Notary, shared: Path) -> tuple[int, tuple[str, ...]]:
    """Cosign every checkpoint that waits in a shared folder; return how many, and what was refused."""
    done, refused = 0, []
    for folder in sorted(path for path in shared.iterdir() if path.is_dir()):
        for size, path in sorted(numbered(folder, REQUEST)):
            beside = path.with_suffix(COSIGNED)
            if beside.exists():
                continue
            text = path.read_text("utf-8")
            reply = notary.add(text)
            if reply.status != 200:
                refused.append(f"{folder.name}/{size}: {reply.status} {reply.body.strip()}")
                break
            write_once(beside, Request.from_text(text).checkpoint + reply.body)
            done += 1
    return done, tuple(refused)


def serve(notary: Notary, host: str, port: int) -> ThreadingHTTPServer:
    """Return a server for the witness, bound and not yet serving; port 0 takes any free one.

    Raises:
        OSError: the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = READ_TIMEOUT_S
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """Answer `add-checkpoint`."""
            length = self.headers.get("Content-Length", "")
            if self.path != PATH or not length.isdigit() or int(length) > 2 * MAX_NOTE_CHARACTERS:
                self._answer(Reply(status=404 if self.path != PATH else 400))
                self.close_connection = True
                return
            try:
                text = self.rfile.read(int(length)).decode()
            except UnicodeDecodeError:
                text = ""
            self._answer(notary.add(text))

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing: what was cosigned is in the folder."""

        def _answer(self, reply: Reply) -> None:
            body = reply.body.encode()
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer((host, port), Handler)


def read_key_file(text: str) -> tuple[str, SigningKey]:
    """Read a witness's private key: `PRIVATE+KEY+name+id+base64` (C2SP signed-note, type 0x04).

    Raises:
        EvidenceInvalid: `KEY_UNKNOWN`.
    """
    parts = text.strip().split("+", 4)
    try:
        raw = base64.b64decode(parts[4], validate=True)
        if parts[:2] != ["PRIVATE", "KEY"] or len(raw) != 33 or raw[:1] != b"\x04":
            raise ValueError
        key = SigningKey.from_seed(raw[1:])
        if WitnessKey(name=parts[2], key=key.public).to_text().split("+")[1] != parts[3]:
            raise ValueError
    except (ValueError, IndexError):
        raise EvidenceInvalid(
            Reason.KEY_UNKNOWN, "the witness's key file is not one", "`fabric witness key --new FILE` makes one"
        ) from None
    return parts[2], key


def write_key_text(name: str, key: SigningKey) -> str:
    """Return a witness's private key as text."""
    stated = WitnessKey(name=name, key=key.public).to_text().split("+")[1]
    return f"PRIVATE+KEY+{name}+{stated}+{base64.b64encode(bytes([4]) + key.seed).decode()}\n"
