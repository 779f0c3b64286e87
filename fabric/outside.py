"""The program that a job outside runs: `python -m fabric.outside`, in the driver's place of a zone's own cluster.

It comes with the image and knows nothing of the private side: its node was given the zone, the keys to believe and
papers for the border; the job brings tokens of one crossing, and what is to be done. It starts that work in its own
cluster, by the same code as a driver of a stretched cluster, and returns bounded files through the border: safetensors,
JSON, Arrow. Of an error a token of ours or a class's name goes back, and nothing is printed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from fabric.attempts import ANSWER_FILE, CONTENT_FILE, PROGRESS_FILE, Room, followed
from fabric.border_client import BorderTicket, Held
from fabric.config import PAPERS_FILE, Environment
from fabric.errors import ClusterUnavailable, FabricError, InvalidInput, Reason
from fabric.results import encode_error
from fabric.specs import SweepSpec

TELL_EVERY_S = 0.5


@dataclass(slots=True)
class Returning:
    """What goes back of one crossing: deliveries, numbered one by one."""

    held: Held
    _slot: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def give(self, files: Mapping[str, bytes | Path]) -> None:
        """Return files as the next delivery.

        Raises:
            FabricError: the border refused it, or is out of reach.
        """
        with self._lock:
            self.held.deliver(self._slot, files)
            self._slot += 1


def main() -> int:
    """Do what the job was started for and return its exit status: 0 if an answer went back."""
    node = Environment.read()
    if not node.outside or not node.ticket or not node.order:
        raise InvalidInput(
            Reason.CONFIG_INVALID, "this is no job of a fabric's outside", "jobs are started from inside"
        )
    given = {} if node.given is None else {"papers": json.loads((node.given / PAPERS_FILE).read_text())}
    ticket = BorderTicket.from_json({**json.loads(node.ticket), **given})
    order = json.loads(node.order)
    with ticket.held() as held:
        returning = Returning(held)
        try:
            answer = _work(order, held, returning)
        except BaseException as error:  # noqa: BLE001 - a message of any class may carry data
            kind, content = encode_error(error)
            answer = {ANSWER_FILE: _json({"kind": kind}), CONTENT_FILE: content}
        returning.give(answer)
        if node.given is not None and held.fetching.papers != ticket.papers:
            # The border renewed the certificate: the zone's next job shows the new one.
            part = node.given / f".{PAPERS_FILE}.{ticket.crossing}"
            with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(_json(held.fetching.papers.to_json()))
            part.replace(node.given / PAPERS_FILE)
    return 0


def _work(order: Mapping[str, Any], held: Held, returning: Returning) -> dict[str, bytes | Path]:
    """Do the work in this process's cluster and return the files of its answer."""
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        answer = _WORKS[order["kind"]](order, held.ticket, Path(folder), returning)
        # Read before the folder goes.
        return {
            name: content if isinstance(content, bytes) else content.read_bytes() for name, content in answer.items()
        }


def _train(order: Mapping[str, Any], ticket: BorderTicket, folder: Path, returning: Returning) -> dict[str, Any]:
    from fabric.fitting import Fitting, fit  # noqa: PLC0415 - each kind of work waits for its own libraries only
    from fabric.learning import CHECKPOINT_FILES  # noqa: PLC0415
    from fabric.reports import Report  # noqa: PLC0415

    attempt = Fitting(
        name="train",
        ticket=ticket,
        spec=order["spec"],
        room=Room(**order["room"]),
        storage=folder,
        journal=folder / "journal",
        flag=folder / "never",  # from outside nobody asks; the private zone stops the job
    )

    def send(line: str) -> None:
        report = Report.of(line)
        epoch = report.epoch
        told = {"epoch": epoch.epoch, "training": epoch.training, "validation": epoch.validation}
        files: dict[str, bytes | Path] = {name: (Path(report.folder) / name).read_bytes() for name in CHECKPOINT_FILES}
        returning.give({**files, PROGRESS_FILE: _json({**told, "files": dict(report.files)})})

    reports: list[Report] = []
    with followed(attempt.journal, _until_refused(send)):
        fit(attempt, reports)
    return {ANSWER_FILE: _json({"kind": "done"})}


def _sweep(order: Mapping[str, Any], ticket: BorderTicket, folder: Path, returning: Returning) -> dict[str, Any]:
    from fabric.learning import MODEL_FILE, STATE_FILE  # noqa: PLC0415 - as above
    from fabric.searching import Searching, search  # noqa: PLC0415

    trials = SweepSpec.model_validate(order["spec"]).trials()
    attempt = Searching(
        name="sweep",
        ticket=ticket,
        specs=[trial.model_dump() for trial in trials],
        room=Room(**order["room"]),
        storage=folder,
        journal=folder / "journal",
    )
    ended = 0

    def count(_: str) -> None:
        nonlocal ended
        ended += 1
        returning.give({PROGRESS_FILE: _json({"ended": ended})})

    with followed(attempt.journal, _until_refused(count)):
        outcomes = search(attempt)
    losses: list[float | None] = [None] * len(trials)
    for outcome in outcomes:
        losses[outcome.number] = outcome.validation
    done = [outcome for outcome in outcomes if outcome.validation is not None]
    best = min(done, key=lambda outcome: (outcome.validation, outcome.number), default=None)
    files: dict[str, Any] = {}
    if best is not None and best.folder is not None:
        files = {name: best.folder / name for name in (MODEL_FILE, STATE_FILE)}
    told = {"ended": len(trials), "validation": losses, "best": best.number if best else None}
    return {**files, PROGRESS_FILE: _json(told), ANSWER_FILE: _json({"kind": "done"})}


def _burst(order: Mapping[str, Any], ticket: BorderTicket, folder: Path, returning: Returning) -> dict[str, Any]:
    from fabric.calling import call  # noqa: PLC0415 - as above

    kind, content, *chunks = call(ticket, Room(**order["room"]))
    named = {f"chunk-{index:06d}": chunk for index, chunk in enumerate(chunks)}
    return {ANSWER_FILE: _json({"kind": kind}), CONTENT_FILE: content, **named}


_WORKS = {"training": _train, "sweep": _sweep, "burst": _burst}


def _until_refused(send: Callable[[str], None]) -> Callable[[str], None]:
    """Return a follower that goes quiet once the border will take no more, and passes over what it cannot return.

    Once the crossing is closed nobody waits for the work: the program is ended.
    Ray keeps the last two checkpoints: while the link is away longer, older ones go, and the newest are what counts.
    """
    refused = False

    def tell(line: str) -> None:
        nonlocal refused
        if refused:
            return
        try:
            send(line)
        except (FileNotFoundError, ClusterUnavailable):
            return
        except FabricError as error:
            refused = True
            if error.reason is Reason.CROSSING_CLOSED:
                os.kill(os.getpid(), signal.SIGTERM)

    return tell


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode()


if __name__ == "__main__":
    raise SystemExit(main())
