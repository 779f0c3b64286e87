"""A witness: someone outside the ledger's administration who sees every checkpoint and cosigns it.

Whoever holds the ledger's key and its database can rewrite both, and no reader of them alone can tell. A witness that
keeps the last checkpoint it saw refuses the rewritten one (C2SP tlog-witness). It is a service over HTTP, or a folder
that is mounted from elsewhere and takes new files only. Here is the fabric's side; `fabric.witness_service` is the
witness's. Where one is required, no effect is announced once it is too far behind.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import NoReturn, Protocol

from fabric import merkle
from fabric.errors import EvidenceInvalid, FabricError, Reason
from fabric.ledger_store import LedgerStore
from fabric.notes import MAX_NOTE_CHARACTERS, Checkpoint, WitnessKey, cosigned_at, stated_checkpoint
from fabric.records import read_record

MAX_PROOF_LINES = 63
PAUSE_AFTER_FAILURE = timedelta(seconds=15)

REQUEST, COSIGNED = ".request", ".cosigned"

_OLD = re.compile(r"old (0|[1-9][0-9]{0,15})\Z")
_PROOF = re.compile(r"[A-Za-z0-9+/]{43}=\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A checkpoint shown to a witness, with the proof that it continues what the witness saw (tlog-witness).

    Attributes:
        old: the size that the witness is believed to have seen last; 0 if nothing yet.
        proof: consistency proof from there; empty from 0.
        checkpoint: the signed note.
    """

    old: int
    proof: tuple[bytes, ...]
    checkpoint: str

    def to_text(self) -> str:
        """Return the request as the body of `add-checkpoint`."""
        proof = "".join(f"{base64.b64encode(step).decode()}\n" for step in self.proof)
        return f"old {self.old}\n{proof}\n{self.checkpoint}"

    @classmethod
    def from_text(cls, text: str) -> Request:
        """Read a request.

        Raises:
            EvidenceInvalid: `EVIDENCE_INVALID`.
        """
        head, blank, checkpoint = text.partition("\n\n")
        first, *lines = head.split("\n")
        match = _OLD.match(first)
        well_formed = match and blank and len(lines) <= MAX_PROOF_LINES and len(text) <= 2 * MAX_NOTE_CHARACTERS
        if match is None or not well_formed or not all(map(_PROOF.match, lines)):
            _refuse("a request to a witness is malformed")
        return cls(old=int(match[1]), proof=tuple(map(base64.b64decode, lines)), checkpoint=checkpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a witness said: its newest note of the log, or the size it has seen when that was not the one named."""

    note: str = ""
    has: int | None = None


class Witness(Protocol):
    """Someone who is shown checkpoints."""

    def add(self, request: Request) -> Answer:
        """Show a checkpoint.

        Raises:
            FabricError: `EVIDENCE_UNWITNESSED` if it cannot be reached; `EVIDENCE_INVALID` if it refuses the log.
        """


def continues(last: Checkpoint | None, shown: Checkpoint, proof: Sequence[bytes]) -> bool:
    """Say whether `shown` continues the last checkpoint that a witness saw (RFC 6962, 2.1.2)."""
    if last is None or last.size == 0:
        return not proof
    return merkle.consistency_holds(last.size, shown.size, last.root, shown.root, proof)


def log_folder(origin: str) -> str:
    """Return the name of the folder of a log's checkpoints: origins hold characters that file names cannot."""
    return hashlib.sha256(origin.encode()).hexdigest()[:16]


class FolderWitness:
    """A folder under other administration that takes new files and changes none, such as an object store with locks.

    It is shown a file for each checkpoint; `fabric witness cosign`, run by its owner, puts a cosigned note beside it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def add(self, request: Request) -> Answer:
        """Show a checkpoint by a new file."""
        shown = stated_checkpoint(request.checkpoint)
        folder = self._folder / log_folder(shown.origin)
        try:
            folder.mkdir(exist_ok=True)
            last = max(numbered(folder, REQUEST), default=None)
            size = last[0] if last else 0
            if size != request.old:
                return Answer(has=size)
            seen = stated_checkpoint(Request.from_text(last[1].read_text("utf-8")).checkpoint) if last else None
            if not continues(seen, shown, request.proof):
                refuse_shown(422)
            if last is None or size < shown.size:
                write_once(folder / f"{shown.size:016d}{REQUEST}", request.to_text())
            cosigned = max(numbered(folder, COSIGNED), default=None)
            return Answer(note=cosigned[1].read_text("utf-8") if cosigned else request.checkpoint)
        except FileExistsError:
            return Answer(has=shown.size)
        except (OSError, UnicodeDecodeError) as error:
            raise unreachable(str(self._folder), type(error).__name__) from None


class Watch:
    """What a ledger holds its witness to. Safe to share between threads."""

    def __init__(
        self, witness: Witness, *, key: WitnessKey | None, required: bool, max_records: int, max_age: timedelta
    ) -> None:
        self._witness = witness
        self._key = key
        self._required = required
        self._max_records = max_records
        self._max_age = max_age
        self._lock = threading.Lock()
        self._failed_at: datetime | None = None
        self._alarm: EvidenceInvalid | None = None
        self._believed = (0, "")

    def check(self, store: LedgerStore, origin: str, now: datetime) -> None:
        """Refuse an effect if the witness saw another log, or is required and too far behind.

        Raises:
            FabricError: `EVIDENCE_INVALID` or `EVIDENCE_UNWITNESSED`.
        """
        if self._alarm is not None:
            raise self._alarm
        if not self._required:
            return
        behind = self._behind(store, origin, now)
        if not behind:
            return
        self.try_show(store, origin, now)
        behind = self._behind(store, origin, now)
        if self._alarm is not None:
            raise self._alarm
        if behind:
            raise FabricError(
                Reason.EVIDENCE_UNWITNESSED,
                f"the witness is behind: {behind}",
                "bring the witness back; `fabric evidence witness` shows it the log. Without it nothing moves",
            )

    def try_show(self, store: LedgerStore, origin: str, now: datetime) -> None:
        """Show the witness the newest checkpoint; a failure is remembered for `check`, and the next try waits."""
        if self._failed_at is not None and abs(now - self._failed_at) < PAUSE_AFTER_FAILURE:
            return
        try:
            self.show(store, origin)
            self._failed_at = None
        except EvidenceInvalid as error:
            self._alarm = error
        except FabricError:
            self._failed_at = now

    def show(self, store: LedgerStore, origin: str) -> int:
        """Show the witness the newest checkpoint and return how many records it has seen.

        Raises:
            FabricError: `EVIDENCE_UNWITNESSED`; `EVIDENCE_INVALID` if it saw another log.
        """
        with self._lock:
            seen = self._seen(store, origin)
            for _ in range(3):
                with store.transaction(write=False):
                    size, note, _last = store.head()
                    if seen > size:
                        refuse_shown(409)
                    proof = merkle.consistency_proof(seen, size, _reader(store)) if 0 < seen < size else []
                if seen == size and self._seen(store, origin) == size:
                    return size
                answer = self._witness.add(Request(old=seen, proof=tuple(proof), checkpoint=note or ""))
                if answer.has is None:
                    return self._keep(store, origin, answer.note)
                if answer.has == seen:
                    # The size was the one that it has seen, so it is the root that differs.
                    refuse_shown(409)
                seen = answer.has
            raise unreachable("the witness", "it is shown checkpoints by others at the same time")

    def _keep(self, store: LedgerStore, origin: str, note: str) -> int:
        """Store the witness's note once it is known to be of this log, and return its size."""
        shown = stated_checkpoint(note)
        if self._key is not None and cosigned_at(note, self._key) is None:
            return self._seen(store, origin)
        with store.transaction(write=True):
            size = store.head()[0]
            same = shown.origin == origin and shown.size <= size
            if not same or merkle.root(shown.size, _reader(store)) != shown.root:
                refuse_shown(422)
            store.add_cosigned(shown.size, note)
        return shown.size

    def _seen(self, store: LedgerStore, origin: str) -> int:
        """Return how many records the witness is known to have seen: the store's word counts only with its proof."""
        with store.transaction(write=False):
            held = store.cosigned()
            if held is None:
                return 0
            if held == self._believed:
                return held[0]
            shown = stated_checkpoint(held[1])
            cosigned = self._key is None or cosigned_at(held[1], self._key) is not None
            if shown.size > store.head()[0] or merkle.root(shown.size, _reader(store)) != shown.root:
                refuse_shown(422)
            if not cosigned or shown.origin != origin or shown.size != held[0]:
                return 0
        self._believed = held
        return held[0]

    def _behind(self, store: LedgerStore, origin: str, now: datetime) -> str:
        """Say by how much the witness is too far behind, or nothing."""
        seen = self._seen(store, origin)
        with store.transaction(write=False):
            size = store.head()[0]
            first = store.record_at(seen) if seen < size else None
        if size - seen > self._max_records:
            return f"{size - seen} records unseen, {self._max_records} may be"
        if first is not None and now - datetime.fromisoformat(read_record(first)["at"]) > self._max_age:
            return f"a record has been unseen for longer than {self._max_age}"
        return ""


def numbered(folder: Path, suffix: str) -> Iterator[tuple[int, Path]]:
    """Yield the size and path of every checkpoint file of a folder."""
    for path in folder.glob(f"*{suffix}"):
        if path.stem.isdigit():
            yield int(path.stem), path


def write_once(path: Path, text: str) -> None:
    """Write a new file durably, and whole or not at all.

    Raises:
        OSError: `FileExistsError` if it is there already.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    try:
        with part.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.link(part, path)
    finally:
        part.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def unreachable(where: str, why: str) -> FabricError:
    """Return the error of a witness that cannot be shown a checkpoint."""
    return FabricError(
        Reason.EVIDENCE_UNWITNESSED,
        f"the witness at {where!r} cannot be reached ({why})",
        "bring it back, or name another in [evidence] of fabric.toml",
    )


def _reader(store: LedgerStore) -> merkle.NodeReader:
    def read(level: int, index: int) -> bytes:
        found = store.nodes([(level, index)])
        if not found:
            _refuse("the ledger lacks a node of its tree")
        return found[level, index]

    return read


def refuse_shown(status: int) -> NoReturn:
    """Raise what a witness's refusal means, by the status that it answered with."""
    why = {403: "does not trust the log's key", 404: "does not know the log", 400: "cannot read the request"}
    if status in why:
        raise FabricError(
            Reason.EVIDENCE_UNWITNESSED,
            f"the witness {why[status]}",
            "give its owner the log's origin and key: `fabric evidence keys` prints both",
        )
    if status in (409, 422):
        _refuse("the witness has seen another log than this one: this one was cut back or rewritten")
    raise unreachable("the witness", f"HTTP {status}")


def _refuse(message: str) -> NoReturn:
    raise EvidenceInvalid(
        Reason.EVIDENCE_INVALID, message, "keep database and witness as they are, and compare: fabric verify --kept"
    )
