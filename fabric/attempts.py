"""One attempt of work in one zone: its words, and the journal by which whoever waits for it follows it.

An attempt runs in the Ray cluster of the process that starts it: the private driver's in a stretched cluster, the
zone's own where every zone is a cluster of its own. What runs is the same code, so that both give the same model.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

from fabric.errors import FabricError, Reason, RemoteFailure

ASK_EVERY_S = 0.5
"""How often a training that may be moved is asked whether it should leave."""


ANSWER_FILE, CONTENT_FILE, PROGRESS_FILE = "answer.json", "content", "progress.json"
"""What comes back of an attempt in a cluster of its own, beside the files of a checkpoint and the chunks of a table."""


class Left(Exception):
    """An attempt ended at a checkpoint because the training was asked to leave its zone. No failure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many workers an attempt has, and what each asks Ray for."""

    workers: int
    use_gpu: bool
    resources: Mapping[str, float]
    selector: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Return the room as plain JSON."""
        return {**asdict(self), "resources": dict(self.resources), "selector": dict(self.selector)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one trial ended: its last validation loss and the folder of its last checkpoint; None where it failed."""

    number: int
    validation: float | None
    folder: Path | None


def reraise(error: BaseException) -> NoReturn:
    """Raise what a worker's error may say outside its zone: our own errors whole, of others the class's name only.

    Raises:
        FabricError: the error itself, or `REMOTE_FAILED`.
    """
    if isinstance(error, FabricError):
        raise error from None
    raise RemoteFailure(
        Reason.REMOTE_FAILED,
        f"the work in the other zone failed with {type(error).__name__}",
        "its message stays there, because messages carry data",
    ) from None


# The journal: a file of lines that a callback of Ray's writes, and a thread follows.


def lines_of(journal: Path) -> list[str]:
    """Return the lines that were written so far."""
    return journal.read_text().splitlines() if journal.exists() else []


@contextmanager
def followed(journal: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Call `tell` with each line of the journal while the block runs, and remove it afterwards."""
    done = threading.Event()

    def follow() -> None:
        seen = 0
        while True:
            last = done.wait(0.2)
            lines = lines_of(journal)
            for line in lines[seen:]:
                tell(line)
            seen = len(lines)
            if last:
                return

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    try:
        yield
    finally:
        done.set()
        follower.join()
        journal.unlink(missing_ok=True)


@contextmanager
def flagged(flag: Path, asked: Callable[[], bool]) -> Iterator[None]:
    """Put a flag down once `asked` says yes while the block runs, and remove it afterwards; no answer is a no."""
    done = threading.Event()

    def ask() -> None:
        while not done.wait(ASK_EVERY_S):
            with suppress(FabricError):
                if asked():
                    flag.touch(mode=0o600)
                    return

    asker = threading.Thread(target=ask, daemon=True)
    asker.start()
    try:
        yield
    finally:
        done.set()
        asker.join()
        flag.unlink(missing_ok=True)
