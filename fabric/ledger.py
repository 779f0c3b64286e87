"""The ledger: append-only evidence of what was decided and what was done.

An effect is recorded twice: an intent before it and an outcome after it, so a crash leaves an open intent and never
an unrecorded effect. A commit writes records, their tree nodes and a signed checkpoint in one transaction; when a
method returns, its record is on the disk. Threads that append at once share a commit. Nothing is ever changed or
removed. Several processes may append at once. Bodies hold what `fabric.records` allows, never personal data.
"""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fabric import merkle
from fabric.artifacts import digest
from fabric.drafts import Draft, Known, compose, make_draft
from fabric.errors import EvidenceInvalid, FabricError, Reason
from fabric.ledger_store import DATABASE_NAME, LedgerStore, SQLiteStore
from fabric.notes import Checkpoint, key_id, last_signer, open_checkpoint, sign_again, sign_checkpoint
from fabric.records import CROSSING, ROTATION, digests_in, read_record
from fabric.rotation import read_rotation, state_rotation
from fabric.statements import PublicKey, SigningKey, timestamp
from fabric.verification import BUNDLE_VERSION, MAX_DOCUMENT_BYTES, RECEIPT_VERSION, Receipt
from fabric.witness import Watch

__all__ = ["CLOCK_TOLERANCE", "DATABASE_NAME", "Entry", "Ledger"]

# Clocks of machines that share a log differ a little; a record is then dated like the one before it.
CLOCK_TOLERANCE = timedelta(seconds=2)
MAX_GROUP = 512
"""How many records one commit takes at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record at its place in the log."""

    index: int
    record: dict[str, Any]


class Ledger:
    """An append-only log in a store, signed by one key at a time. Safe to share between threads."""

    def __init__(
        self,
        store: LedgerStore,
        *,
        key: SigningKey,
        origin: str,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
        actor: str,
        owner: str,
        watch: Watch | None,
    ) -> None:
        self._store = store
        self._key = key
        self._origin = origin
        self._clock = clock
        self._new_id = new_id
        self._by = {"actor": actor, "owner": owner}
        self._watch = watch
        self._seen = Checkpoint(origin=origin, size=0, root=merkle.EMPTY_ROOT)
        self._note = ""
        self._waiting: list[Draft] = []
        self._turn = threading.Condition()
        self._busy = False

    def __repr__(self) -> str:
        return f"Ledger(origin={self._origin!r}, records={self._seen.size}, keyid={self._key.public.keyid[:8]!r})"

    @classmethod
    def open(
        cls,
        where: Path | LedgerStore,
        *,
        key: SigningKey,
        origin: str,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
        actor: str = "",
        owner: str = "",
        watch: Watch | None = None,
    ) -> Ledger:
        """Open the log in a store, or start one there, and prove that it can be written.

        Args:
            where: a folder for SQLite, created with mode 0700 if it is not there; or a store.
            key: signs every checkpoint from now on; after a rotation, the key it named.
            origin: the log's name, written into every checkpoint; no space and no '+'.
            clock: the time, for each commit.
            new_id: a random id, for each record.
            actor: pseudonym of whoever acts, for each record.
            owner: token of the process that its intents belong to, for `reconcile`.
            watch: the witness that is shown every checkpoint, if there is one.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`; `KEY_UNKNOWN` if another key signed the log; `EVIDENCE_INVALID` if
                its rows do not match its last checkpoint; `CONFIG_INVALID` for an unusable origin.
        """
        store = SQLiteStore(where) if isinstance(where, Path) else where
        ledger = cls(store, key=key, origin=origin, clock=clock, new_id=new_id, actor=actor, owner=owner, watch=watch)
        try:
            with store.transaction(write=True):
                store.prove_writable()
                if store.head()[:2] == (0, None):
                    store.add([], [], 0, sign_checkpoint(origin, 0, merkle.EMPTY_ROOT, key))
                ledger._seen = ledger._head().checkpoint
        except BaseException:
            store.close()
            raise
        return ledger

    def attach(self, content: bytes) -> str:
        """Store a document (a DSSE envelope) and return its digest; storing it twice is the same as once.

        A bundle carries the documents whose digests are values in a record's body.

        Raises:
            FabricError: `EVIDENCE_INVALID` if it is too large to be verified, `EVIDENCE_UNWRITABLE`.
        """
        if len(content) > MAX_DOCUMENT_BYTES:
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, f"the document is larger than {MAX_DOCUMENT_BYTES} bytes")
        name = digest(content)
        with self._store.transaction(write=True):
            if not self._store.held([name]):
                self._store.add_document(name, content)
        return name

    def intend(self, action: str, body: Mapping[str, object], *, record_id: str = "") -> Receipt:
        """Record that an effect is about to happen; only its return allows the effect.

        Args:
            action: what it is.
            body: what the action may say.
            record_id: id of the record, for an effect that is asked for again after a crash; by default a random one.

        Raises:
            FabricError: `EVIDENCE_INVALID` if the record would not verify later, `EVIDENCE_UNWRITABLE`,
                `CLOCK_SET_BACK`; `EVIDENCE_UNWITNESSED` if a witness is required and has seen too little.
        """
        if self._watch is not None:
            self._watch.check(self._store, self._origin, self._clock())
        return self._append("intent", _writable(action), None, body, record_id)

    def conclude(
        self, intent: Receipt | str, status: str, body: Mapping[str, object], *, record_id: str = ""
    ) -> Receipt:
        """Record how an intended effect ended: `done`, `refused` or `failed`; it goes into the body as `status`.

        Args:
            intent: the receipt of the intent, or its id, for an effect that outlives the process that intended it.
            status: how it ended.
            body: what the action may say.
            record_id: as for `intend`.

        Raises:
            FabricError: `EVIDENCE_INVALID` if there is no such open intent, or the record would not verify later;
                `EVIDENCE_UNWRITABLE`, `CLOCK_SET_BACK`.
        """
        if "status" in body:
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "the outcome's body has a status of its own")
        name = intent if isinstance(intent, str) else intent.id
        return self._append("outcome", "", name, {**body, "status": status}, record_id)

    def find(self, record_id: str) -> dict[str, Any] | None:
        """Return the record of this id, if the log has one.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`, `EVIDENCE_INVALID` if it is malformed.
        """
        with self._store.transaction(write=False):
            found = self._store.find([record_id])
        return read_record(found[record_id]) if record_id in found else None

    def is_concluded(self, intent_id: str) -> bool:
        """Say whether an intent has an outcome.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        with self._store.transaction(write=False):
            return intent_id in self._store.concluded([intent_id])

    def observe(self, action: str, body: Mapping[str, object]) -> Receipt:
        """Record what has no effect: a refusal, a decision.

        Raises:
            FabricError: `EVIDENCE_INVALID` if the record would not verify later, `EVIDENCE_UNWRITABLE`,
                `CLOCK_SET_BACK`.
        """
        return self._append("observation", _writable(action), None, body)

    def rotate(self, new: SigningKey) -> Receipt:
        """Let `new` sign from now on: the old key and the new one both sign that it does, and the checkpoint over it.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`, `CLOCK_SET_BACK`, `KEY_UNKNOWN` if the key was rotated already.
        """
        old = self._key
        envelope = state_rotation(old, new, origin=self._origin, now=self._clock())
        body = {
            "old_key": old.public.keyid,
            "new_key": new.public.keyid,
            "statements": [self.attach(envelope)],
        }
        draft = make_draft(self._new_id(), "observation", ROTATION, None, body)
        with self._leading():
            self._commit([draft], successor=new)
            receipt = draft.result()
            self._key = new
        self._show()
        return receipt

    def reconcile(self, is_gone: Callable[[str], bool]) -> list[Entry]:
        """Close as `abandoned` every open intent whose owner is gone, and return them.

        Abandoned means that nobody is left who could say whether the effect took place.

        Args:
            is_gone: says of an owner's token whether that process is known to be gone.

        Raises:
            FabricError: as `conclude`.
        """
        closed = []
        for entry in self.open_intents():
            if is_gone(entry.record["by"]["owner"]):
                self._append("outcome", "", entry.record["id"], {"status": "abandoned", "code": "owner-gone"})
                closed.append(entry)
        return closed

    def entries(self) -> Iterator[Entry]:
        """Return all records in their order.

        Raises:
            FabricError: `EVIDENCE_INVALID` if a stored record is malformed, `EVIDENCE_UNWRITABLE`.
        """
        with self._store.transaction(write=False):
            contents = self._store.records()
        return (Entry(index=index, record=read_record(content)) for index, content in enumerate(contents))

    def open_intents(self) -> list[Entry]:
        """Return the intents without an outcome: effects under way, or cut off by a crash.

        Raises:
            FabricError: as `entries`.
        """
        entries = list(self.entries())
        concluded = {entry.record["intent"] for entry in entries}
        return [e for e in entries if e.record["phase"] == "intent" and e.record["id"] not in concluded]

    def bundle(self) -> dict[str, Any]:
        """Return all that an offline verifier needs, as plain JSON values (see `fabric.verification`).

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE` if the database cannot be read.
        """
        with self._store.transaction(write=False):
            records, checkpoints = self._store.records(), self._store.checkpoints()
            cosignatures = self._store.cosignatures()
            documents = self._store.documents(sorted({name for content in records for name in _named(content)}))
            keys = self._keys(records, documents)
        return {
            "version": BUNDLE_VERSION,
            "origin": self._origin,
            "public_key": keys[0].to_text(),
            "records": [content.decode(errors="replace") for content in records],
            "documents": {name: base64.b64encode(content).decode() for name, content in documents.items()},
            "checkpoints": checkpoints,
            "cosignatures": cosignatures,
        }

    def record(self, receipt: Receipt) -> bytes:
        """Return the record that a receipt is of, so that both can be shown to whoever must believe them.

        Raises:
            FabricError: `EVIDENCE_INVALID` if the log has no such record, `EVIDENCE_UNWRITABLE`.
        """
        with self._store.transaction(write=False):
            found = self._store.find([receipt.id]).get(receipt.id, b"")
        if digest(found) != receipt.digest:
            raise EvidenceInvalid(
                Reason.EVIDENCE_INVALID, "the log has no such record", "`fabric evidence` lists their ids"
            )
        return found

    def receipt_file(self, record_id: str) -> dict[str, Any]:
        """Return a receipt that stands alone: the record, its proof, a checkpoint (a witnessed one if there is).

        Raises:
            FabricError: `EVIDENCE_INVALID` if the log has no such record, `EVIDENCE_UNWRITABLE`.
        """
        with self._store.transaction(write=False):
            records = self._store.records()
            wanted = [i for i, content in enumerate(records) if _is(content, record_id)]
            if not wanted:
                raise EvidenceInvalid(
                    Reason.EVIDENCE_INVALID, "the log has no such record", "`fabric evidence` lists their ids"
                )
            index, cosigned = wanted[0], self._store.cosigned()
            note = cosigned[1] if cosigned is not None and cosigned[0] > index else self._store.head()[1] or ""
            documents = self._store.documents({name for content in records for name in _rotations(content)})
            keys = self._keys(records, documents)
            signer = next(key for key in reversed(keys) if key_id(self._origin, key) == last_signer(note, self._origin))
            size = open_checkpoint(note, self._origin, keys).size
            proof = merkle.inclusion_proof(index, size, self._node)
        return {
            "receipt": RECEIPT_VERSION,
            "origin": self._origin,
            "public_key": signer.to_text(),
            "index": index,
            "record": records[index].decode(errors="replace"),
            "checkpoint": note,
            "proof": [step.hex() for step in proof],
            "rotations": [base64.b64encode(content).decode() for content in documents.values()],
        }

    @property
    def keys(self) -> tuple[PublicKey, ...]:
        """Return every key that signed the log, in the order of their use; the last one signs now.

        Raises:
            FabricError: `EVIDENCE_INVALID`, `EVIDENCE_UNWRITABLE`.
        """
        with self._store.transaction(write=False):
            records = self._store.records()
            named = {name for content in records for name in _rotations(content)}
            return self._keys(records, self._store.documents(named))

    def show_witness(self) -> int:
        """Show the witness the newest checkpoint, and return how many records it has seen; 0 without a witness.

        Raises:
            FabricError: `EVIDENCE_UNWITNESSED` if it cannot be reached; `EVIDENCE_INVALID` if it saw another log.
        """
        return self._watch.show(self._store, self._origin) if self._watch is not None else 0

    def close(self) -> None:
        """Close the store; closing twice is the same as once."""
        self._store.close()

    def _append(
        self, phase: str, action: str, intent: str | None, body: Mapping[str, object], record_id: str = ""
    ) -> Receipt:
        draft = make_draft(record_id or self._new_id(), phase, action, intent, body)
        with self._turn:
            self._waiting.append(draft)
        # Whoever finds nobody writing writes for all that wait; the others wait to find their record written.
        while not draft.settled:
            with self._leading(draft) as group:
                self._commit(group)
        receipt = draft.result()
        self._show()
        return receipt

    @contextmanager
    def _leading(self, draft: Draft | None = None) -> Iterator[list[Draft]]:
        """Wait until nobody else writes, and yield what waits to be written: nothing if `draft` was, meanwhile."""
        with self._turn:
            try:
                self._turn.wait_for(lambda: not self._busy or (draft is not None and draft.settled))
            except BaseException:
                self._waiting = [one for one in self._waiting if one is not draft]
                raise
            group = [] if draft is None or draft.settled else self._waiting[:MAX_GROUP]
            self._waiting = self._waiting[len(group) :]
            leads = draft is None or not draft.settled
            self._busy = self._busy or leads
        try:
            yield group
        finally:
            if leads:
                with self._turn:
                    self._busy = False
                    self._turn.notify_all()

    def _show(self) -> None:
        if self._watch is not None:
            self._watch.try_show(self._store, self._origin, self._clock())

    def _commit(self, group: Sequence[Draft], successor: SigningKey | None = None) -> None:
        """Write a group of drafts in one transaction, and settle each: by its receipt, or by what refused it."""
        if not group:
            return
        try:
            with self._store.transaction(write=True):
                # 1. Go on only from what this key signed.
                head = self._head()
                at = self._time(head.at)
                # 2. The records, each read back as a verifier will read it; one that is refused keeps no other back.
                accepted = self._accepted(group, head, at)
                if not accepted:
                    return
                # 3. Records, nodes and checkpoint become durable together.
                grown, note = self._write(accepted, head, successor)
            self._seen, self._note = grown, note
            for draft in accepted:
                draft.receipt = Receipt(
                    id=draft.id, index=draft.index, digest=digest(draft.content), checkpoint=note, proof=draft.proof
                )
        except Exception as error:  # noqa: BLE001 - each thread raises it for its own record
            for draft in group:
                draft.error = draft.error or error
        finally:
            for draft in group:
                draft.settled = True

    def _accepted(self, group: Sequence[Draft], head: _Head, at: str) -> list[Draft]:
        intents = [draft.intent for draft in group if draft.intent is not None]
        found = self._store.find({*intents, *(draft.id for draft in group)})
        known = Known(
            records=found,
            taken=self._store.concluded(intents) | {draft.id for draft in group if draft.id in found},
            documents=self._store.held({name for draft in group for name in draft.statements()}),
            moving=self._store.documents(
                {name for draft in group if draft.action == CROSSING for name in draft.statements()}
            ),
        )
        accepted: list[Draft] = []
        for draft in group:
            try:
                draft.content = compose(draft, known, after=head.checkpoint.size, at=at, by=self._by)
            except FabricError as error:
                draft.error = error
                continue
            known.taken.update({draft.id} if draft.intent is None else {draft.id, draft.intent})
            draft.index = head.checkpoint.size + len(accepted)
            accepted.append(draft)
        return accepted

    def _write(self, accepted: Sequence[Draft], head: _Head, successor: SigningKey | None) -> tuple[Checkpoint, str]:
        nodes = dict(head.nodes)
        made: list[merkle.Node] = []

        def read(level: int, index: int) -> bytes:
            return nodes[level, index]

        for draft in accepted:
            for node in merkle.append(draft.index, merkle.leaf_hash(draft.content), read):
                nodes[node[:2]] = node[2]
                made.append(node)
        size = head.checkpoint.size + len(accepted)
        grown = Checkpoint(origin=self._origin, size=size, root=merkle.root(size, read))
        note = sign_checkpoint(self._origin, size, grown.root, self._key)
        if successor is not None:
            note = sign_again(note, self._origin, successor)
        for draft in accepted:
            draft.proof = tuple(step.hex() for step in merkle.inclusion_proof(draft.index, size, read))
        rows = [(draft.index, draft.id, draft.intent, draft.content) for draft in accepted]
        self._store.add(rows, made, size, note)
        return grown, note

    def _head(self) -> _Head:
        """Return the last checkpoint, once the rows match it and what this process saw before."""
        size, note, last = self._store.head()
        if note is None:
            raise _rewritten("it has records but no checkpoint")
        if note == self._note:
            checkpoint = self._seen
        else:
            checkpoint = open_checkpoint(note, self._origin, [self._key.public])
            if last_signer(note, self._origin) != key_id(self._origin, self._key.public):
                raise EvidenceInvalid(
                    Reason.KEY_UNKNOWN, "the log's key was rotated, and this is the old one", "open the ledger again"
                )
        seen = self._seen
        if size < seen.size:
            raise _rewritten(f"it no longer extends the {seen.size} records seen before")
        wanted = {*merkle.frontier(checkpoint.size), *merkle.frontier(seen.size)}
        if size:
            wanted.add((0, size - 1))
        nodes = self._store.nodes(wanted)
        if len(nodes) < len(wanted):
            raise _rewritten("it lacks a node of its tree")

        def read(level: int, index: int) -> bytes:
            return nodes[level, index]

        if checkpoint.size != size or checkpoint.root != merkle.root(size, read):
            raise _rewritten(f"its rows do not match its checkpoint of {checkpoint.size} records")
        if merkle.root(seen.size, read) != seen.root:
            raise _rewritten(f"it no longer extends the {seen.size} records seen before")
        if last is not None and merkle.leaf_hash(last) != nodes[0, size - 1]:
            raise _rewritten("its last record is not the one that was signed")
        at = datetime.fromisoformat(read_record(last)["at"]) if last is not None else None
        return _Head(checkpoint=checkpoint, nodes=nodes, at=at)

    def _time(self, last: datetime | None) -> str:
        """Return the time of a commit: never before the last record's.

        Raises:
            FabricError: `CLOCK_SET_BACK`.
        """
        now = self._clock()
        if last is not None and now < last - CLOCK_TOLERANCE:
            raise FabricError(
                Reason.CLOCK_SET_BACK,
                f"the clock is {(last - now).total_seconds():.0f} s behind the log's last record",
                "set this machine's clock right (chronyc makestep); nothing moves before it is",
            )
        return timestamp(now if last is None else max(now, last))

    def _node(self, level: int, index: int) -> bytes:
        found = self._store.nodes([(level, index)])
        if not found:
            raise _rewritten("it lacks a node of its tree")
        return found[level, index]

    def _keys(self, records: Sequence[bytes], documents: Mapping[str, bytes]) -> tuple[PublicKey, ...]:
        keys: list[PublicKey] = []
        for name in (name for content in records for name in _rotations(content)):
            if name in documents:
                keys += read_rotation(documents[name], origin=self._origin)
        return tuple(dict.fromkeys([*keys, self._key.public]))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    checkpoint: Checkpoint
    nodes: Mapping[tuple[int, int], bytes] = field(repr=False)
    at: datetime | None


def _writable(action: str) -> str:
    # A rotation without its checkpoint of two keys would leave a log that never verifies again.
    if action == ROTATION:
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "only `rotate` records a rotation of the key", "call it")
    return action


def _named(content: bytes) -> list[str]:
    # A record that was tampered with must still reach the verifier, who says what is wrong with it.
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        return list(digests_in(json.loads(content)["body"]))
    return []


def _rotations(content: bytes) -> list[str]:
    if f'"action":"{ROTATION}"'.encode() in content:
        with suppress(ValueError, TypeError, KeyError, RecursionError):
            return _named(content) if json.loads(content)["action"] == ROTATION else []
    return []


def _is(content: bytes, record_id: str) -> bool:
    with suppress(ValueError, TypeError, KeyError, RecursionError):
        return bool(json.loads(content)["id"] == record_id)
    return False


def _rewritten(why: str) -> EvidenceInvalid:
    return EvidenceInvalid(
        Reason.EVIDENCE_INVALID,
        f"the ledger was changed from outside: {why}",
        "keep the files as they are for examination, and restore the ledger from a copy that verifies",
    )
