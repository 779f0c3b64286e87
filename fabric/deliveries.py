"""Deliveries: what a job outside returned through the border, taken out of the inbox and read as untrusted.

A delivery is a folder of plain files under names of a closed list, bounded in size. It is moved into the zone's outbox,
where quarantine looks for models and checkpoints; here only small JSON is read, strictly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fabric.attempts import ANSWER_FILE, CONTENT_FILE, PROGRESS_FILE, Outcome
from fabric.errors import InvalidInput, Reason
from fabric.inbox import RETURN_LIMITS, Inbox
from fabric.learning import CHECKPOINT_FILES, Epoch
from fabric.reports import Report
from fabric.results import MAX_RESULT_BYTES, read_json
from fabric.specs import TrainingSpec
from fabric.stores import read_bounded

KINDS = ("done", "json", "table", "error", "refusal")
_CHUNK_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """Files that came back together.

    Attributes:
        folder: where they lie now, in the zone's outbox.
        sizes: the size of each, by name.
    """

    folder: Path
    sizes: Mapping[str, int]

    def read(self, name: str) -> bytes:
        """Return a file of the delivery, within the limit of its name.

        Raises:
            InvalidInput: `RESULT_REFUSED`.
        """
        limit = RETURN_LIMITS.get(name, _CHUNK_BYTES)
        return read_bounded(self.folder, {name: limit})[name]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Delivery):
    """The last delivery of a job: how it ended."""

    kind: str

    def parts(self) -> tuple[Any, ...]:
        """Return the answer as `results.decode` reads it: its kind and byte strings.

        Raises:
            InvalidInput: `RESULT_REFUSED`: it is too large, or not whole.
        """
        chunks = sorted(name for name in self.sizes if name.startswith("chunk-"))
        names = [CONTENT_FILE, *chunks]
        if sum(self.sizes.get(name, 0) for name in names) > MAX_RESULT_BYTES:
            raise _refused(f"the result is larger than {MAX_RESULT_BYTES} bytes")
        return (self.kind, *(self.read(name) for name in names))


@dataclass(slots=True)
class Deliveries:
    """The deliveries of one crossing, in their order; each is taken once.

    Attributes:
        target: folder in the zone's outbox that they are moved into.
    """

    inbox: Inbox
    crossing: str
    target: Path
    _next: int = 0

    def take(self) -> Iterator[Delivery]:
        """Yield the deliveries that have come since, in the order of their numbers.

        Raises:
            InvalidInput: `RESULT_REFUSED`: an answer that is none.
        """
        while (folder := self.inbox.deliveries(self.crossing).get(self._next)) is not None:
            sizes = {name: one.size for name, one in self.inbox.declared(folder).items()}
            self.target.mkdir(mode=0o700, exist_ok=True)
            kept = self.inbox.take(self.crossing, self._next, self.target)
            self._next += 1
            delivery = Delivery(folder=kept, sizes=sizes)
            if ANSWER_FILE not in sizes:
                yield delivery
                continue
            told = read_json(delivery.read(ANSWER_FILE))
            kind = told.get("kind") if isinstance(told, dict) else None
            if kind not in KINDS:
                raise _refused("the answer is of no known kind")
            yield Answer(folder=kept, sizes=sizes, kind=str(kind))


def read_report(delivery: Delivery, spec: TrainingSpec, *, after: int) -> Report:
    """Return the report of a checkpoint that came back.

    Args:
        after: the epoch of the last report; a report is of a later one.

    Raises:
        InvalidInput: `RESULT_REFUSED`.
    """
    try:
        told = read_json(delivery.read(PROGRESS_FILE))
        epoch = Epoch(epoch=told["epoch"], training=_number(told["training"]), validation=_number(told["validation"]))
        files = {name: told["files"][name] for name in CHECKPOINT_FILES}
        if set(delivery.sizes) != {PROGRESS_FILE, *CHECKPOINT_FILES}:
            raise ValueError("more than a checkpoint")  # it would only fill the disk
        whole = type(epoch.epoch) is int and after < epoch.epoch <= spec.epochs
        if not whole or not all(isinstance(one, str) and len(one) < 80 for one in files.values()):
            raise ValueError("no report")
    except (ValueError, KeyError, TypeError):
        raise _refused("the report of a checkpoint is none") from None
    return Report(epoch=epoch, folder=str(delivery.folder), files=files)


def read_outcomes(delivery: Delivery, trials: int) -> tuple[int, list[Outcome]]:
    """Return how many trials have ended, and, once the sweep is done, how each did.

    Raises:
        InvalidInput: `RESULT_REFUSED`.
    """
    if isinstance(delivery, Answer) and delivery.kind != "done":
        return 0, []
    try:
        told = read_json(delivery.read(PROGRESS_FILE))
        ended = told["ended"]
        if type(ended) is not int or not 0 <= ended <= trials:
            raise ValueError("no count")
        if not isinstance(delivery, Answer):
            return ended, []
        losses = told["validation"]
        if not isinstance(losses, list) or len(losses) != trials:
            raise ValueError("not one for each trial")
        best = told["best"]
        return ended, [
            Outcome(
                number=number,
                validation=None if loss is None else _number(loss),
                folder=delivery.folder if number == best and loss is not None else None,
            )
            for number, loss in enumerate(losses)
        ]
    except (ValueError, KeyError, TypeError):
        raise _refused("the outcome of the sweep is none") from None


def only_answer(delivery: Delivery) -> Answer:
    """Return a delivery that must be the only one.

    Raises:
        InvalidInput: `RESULT_REFUSED`: it is no answer.
    """
    if not isinstance(delivery, Answer):
        raise _refused("what came back is no answer")
    return delivery


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("not a number")  # float("nan") would be one
    return float(value)


def _refused(message: str) -> InvalidInput:
    return InvalidInput(Reason.RESULT_REFUSED, message, "run it again")
