"""The ledger: append-only evidence of what was decided and what was done.

An effect is recorded twice: an intent before it and an outcome after it, so a crash leaves an open intent and never
an unrecorded effect. Every commit writes one record, its tree nodes and a signed checkpoint in one transaction; when
a method returns, its record is on the disk. Nothing is ever changed or removed. Several processes may append at once.
Bodies hold columns, digests and counts as JSON without floats, never personal data: a record cannot be erased.
"""

from __future__ import annotations

import base64
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fabric import merkle
from fabric.artifacts import canonical, digest
from fabric.errors import EvidenceInvalid, FabricError, Reason
from fabric.notes import Checkpoint, open_checkpoint, sign_checkpoint
from fabric.statements import SigningKey, timestamp
from fabric.verification import (
    BUNDLE_VERSION,
    MAX_DEPTH,
    MAX_DOCUMENT_BYTES,
    RECORD_VERSION,
    Receipt,
    digests_in,
    documents_named,
    read_record,
)

DATABASE_NAME = "ledger.sqlite3"
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One record at its place in the log."""

    index: int
    record: dict[str, Any]


class Ledger:
    """An append-only log in a folder, signed by one key. Safe to share between threads."""

    def __init__(
        self, rows: _Rows, *, key: SigningKey, origin: str, clock: Callable[[], datetime], new_id: Callable[[], str]
    ) -> None:
        self._rows = rows
        self._key = key
        self._origin = origin
        self._clock = clock
        self._new_id = new_id
        self._seen = Checkpoint(origin=origin, size=0, root=merkle.EMPTY_ROOT)

    def __repr__(self) -> str:
        return f"Ledger(origin={self._origin!r}, records={self._seen.size}, keyid={self._key.public.keyid[:8]!r})"

    @classmethod
    def open(
        cls, folder: Path, *, key: SigningKey, origin: str, clock: Callable[[], datetime], new_id: Callable[[], str]
    ) -> Ledger:
        """Open the log in `folder`, or start one there, and prove that it can be written.

        Args:
            folder: created with mode 0700 if it is not there.
            key: signs every checkpoint of the log, from its first to its last.
            origin: the log's name, written into every checkpoint; no space and no '+'.
            clock: the time, for each record.
            new_id: a random id, for each record.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`; `KEY_UNKNOWN` if another key signed the log; `EVIDENCE_INVALID` if
                its rows do not match its last checkpoint; `CONFIG_INVALID` for an unusable origin.
        """
        rows = _Rows(folder)
        ledger = cls(rows, key=key, origin=origin, clock=clock, new_id=new_id)
        try:
            with rows.transaction():
                rows.prove_writable()
                if rows.last_checkpoint() is None:
                    rows.add_checkpoint(0, sign_checkpoint(origin, 0, merkle.EMPTY_ROOT, key))
                head = ledger._head()
        except BaseException:
            rows.close()
            raise
        ledger._seen = head
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
        with self._rows.transaction():
            if not self._rows.has_document(name):
                self._rows.add_document(name, content)
        return name

    def intend(self, action: str, body: Mapping[str, object]) -> Receipt:
        """Record that an effect is about to happen; only its return allows the effect.

        Raises:
            FabricError: `EVIDENCE_INVALID` if the record would not verify later, `EVIDENCE_UNWRITABLE`.
        """
        return self._append("intent", action, None, body)

    def conclude(self, intent: Receipt, status: str, body: Mapping[str, object]) -> Receipt:
        """Record how an intended effect ended: `done`, `refused` or `failed`; it goes into the body as `status`.

        Raises:
            FabricError: `EVIDENCE_INVALID` if there is no such open intent, or the record would not verify later;
                `EVIDENCE_UNWRITABLE`.
        """
        if "status" in body:
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "the outcome's body has a status of its own")
        return self._append("outcome", None, intent.id, {**body, "status": status})

    def observe(self, action: str, body: Mapping[str, object]) -> Receipt:
        """Record what has no effect: a refusal, a decision.

        Raises:
            FabricError: `EVIDENCE_INVALID` if the record would not verify later, `EVIDENCE_UNWRITABLE`.
        """
        return self._append("observation", action, None, body)

    def entries(self) -> Iterator[Entry]:
        """Return all records in their order.

        Raises:
            FabricError: `EVIDENCE_INVALID` if a stored record is malformed, `EVIDENCE_UNWRITABLE`.
        """
        with self._rows.transaction("DEFERRED"):
            contents = self._rows.records()
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
        with self._rows.transaction("DEFERRED"):
            records, checkpoints, documents = self._rows.records(), self._rows.checkpoints(), self._rows.documents()
        named = {name for content in records for name in _named(content)}
        return {
            "version": BUNDLE_VERSION,
            "origin": self._origin,
            "public_key": self._key.public.to_text(),
            "records": [content.decode(errors="replace") for content in records],
            "documents": {n: base64.b64encode(content).decode() for n, content in documents if n in named},
            "checkpoints": checkpoints,
        }

    def close(self) -> None:
        """Close the database; closing twice is the same as once."""
        self._rows.close()

    def _append(self, phase: str, action: str | None, intent: str | None, body: Mapping[str, object]) -> Receipt:
        plain = _plain(body)
        with self._rows.transaction():
            # 1. Go on only from what this key signed.
            head = self._head()
            # 2. The record, read back as a verifier will read it.
            record = {
                "v": RECORD_VERSION,
                "id": self._new_id(),
                "phase": phase,
                "action": action if intent is None else self._open_intent(intent),
                "intent": intent,
                "at": timestamp(self._clock()),
                "body": plain,
            }
            content = _content(record)
            self._check_new(read_record(content))
            # 3. Record, nodes and checkpoint become durable together.
            for level, index, value in merkle.append(head.size, merkle.leaf_hash(content), self._rows.node):
                self._rows.add_node(level, index, value)
            self._rows.add_record(head.size, str(record["id"]), intent, content)
            size = head.size + 1
            grown = Checkpoint(origin=self._origin, size=size, root=merkle.root(size, self._rows.node))
            note = sign_checkpoint(self._origin, size, grown.root, self._key)
            self._rows.add_checkpoint(size, note)
            proof = tuple(step.hex() for step in merkle.inclusion_proof(head.size, size, self._rows.node))
        self._seen = grown
        return Receipt(id=str(record["id"]), index=head.size, digest=digest(content), checkpoint=note, proof=proof)

    def _head(self) -> Checkpoint:
        """Return the last checkpoint, once the rows match it and what this process saw before."""
        note = self._rows.last_checkpoint()
        if note is None:
            raise _rewritten("it has records but no checkpoint")
        head = open_checkpoint(note, self._origin, [self._key.public])
        if head.size != self._rows.size() or head.root != merkle.root(head.size, self._rows.node):
            raise _rewritten(f"its rows do not match its checkpoint of {head.size} records")
        seen = self._seen
        if head.size < seen.size or merkle.root(seen.size, self._rows.node) != seen.root:
            raise _rewritten(f"it no longer extends the {seen.size} records seen before")
        return head

    def _open_intent(self, intent: str) -> str:
        """Return the action of an intent that has no outcome yet."""
        content = self._rows.record(intent)
        record = read_record(content) if content is not None else None
        if record is None or record["phase"] != "intent":
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "the log has no such intent")
        if self._rows.has_outcome(intent):
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "the intent has an outcome already")
        return str(record["action"])

    def _check_new(self, record: Mapping[str, Any]) -> None:
        if self._rows.record(record["id"]) is not None:
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "the record's id is taken", "make ids at random")
        if not all(self._rows.has_document(name) for name in documents_named(record["body"])):
            raise EvidenceInvalid(
                Reason.EVIDENCE_INVALID, "the record rests on a statement that the log does not hold", "attach it first"
            )


# Each table with its columns and with the condition under which a row's key is taken.
_TABLES = (
    (
        "record",
        "idx INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, intent TEXT UNIQUE, content BLOB NOT NULL",
        "EXISTS (SELECT 1 FROM record WHERE idx = NEW.idx OR id = NEW.id OR intent = NEW.intent)",
    ),
    (
        "node",
        "level INTEGER, idx INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, idx)",
        "EXISTS (SELECT 1 FROM node WHERE level = NEW.level AND idx = NEW.idx)",
    ),
    (
        "checkpoint",
        "size INTEGER PRIMARY KEY, note TEXT NOT NULL",
        "EXISTS (SELECT 1 FROM checkpoint WHERE size = NEW.size)",
    ),
    (
        "document",
        "digest TEXT PRIMARY KEY, content BLOB NOT NULL",
        "EXISTS (SELECT 1 FROM document WHERE digest = NEW.digest)",
    ),
)


class _Rows:
    """Every SQL statement of the ledger, and the only code that knows SQLite. Rows go in and never change.

    Reads cast, because SQLite lets someone with the file put any type into any column.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Re-entrant, so that a callback that appends fails with an error and does not hang.
        self._lock = threading.RLock()
        try:
            path = _private_file(folder)
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise _unwritable(folder, error) from None
        try:
            (mode,) = self._db.execute("PRAGMA journal_mode=WAL").fetchone()
            self._db.execute("PRAGMA synchronous=FULL")
            if mode != "wal":
                raise sqlite3.NotSupportedError
        except sqlite3.Error as error:
            self._db.close()
            raise _unwritable(folder, error) from None

    @contextmanager
    def transaction(self, mode: str = "IMMEDIATE") -> Iterator[None]:
        """Commit what the block writes, all or nothing; `DEFERRED` reads one snapshot without waiting for writers."""
        with self._lock:
            try:
                self._db.execute(f"BEGIN {mode}")
                yield
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise _unwritable(self._folder, error) from None
            finally:
                with suppress(sqlite3.Error):
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")

    def prove_writable(self) -> None:
        """Write to the database, and make its tables if they are not there."""
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version not in (0, SCHEMA_VERSION):
            raise EvidenceInvalid(Reason.EVIDENCE_INVALID, f"the ledger's format {version} is not {SCHEMA_VERSION}")
        for table, columns, taken in _TABLES:
            self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} ({columns})")
            # INSERT OR REPLACE deletes without firing a DELETE trigger, so a taken key is refused before it.
            for verb, when in (("UPDATE", "TRUE"), ("DELETE", "TRUE"), ("INSERT", taken)):
                self._db.execute(
                    f"CREATE TRIGGER IF NOT EXISTS {table}_{verb} BEFORE {verb} ON {table} WHEN {when} "
                    "BEGIN SELECT RAISE(ABORT, 'append-only'); END"
                )
        # Setting the version writes a page, even when the value stays the same.
        self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def size(self) -> int:
        return int(self._db.execute("SELECT coalesce(max(idx) + 1, 0) FROM record").fetchone()[0])

    def add_record(self, index: int, record_id: str, intent: str | None, content: bytes) -> None:
        self._db.execute("INSERT INTO record VALUES (?, ?, ?, ?)", (index, record_id, intent, content))

    def record(self, record_id: str) -> bytes | None:
        row = self._row("SELECT CAST(content AS BLOB) FROM record WHERE id = ?", record_id)
        return None if row is None else bytes(row[0])

    def has_outcome(self, intent: str) -> bool:
        return self._row("SELECT 1 FROM record WHERE intent = ?", intent) is not None

    def records(self) -> list[bytes]:
        return [content for (content,) in self._db.execute("SELECT CAST(content AS BLOB) FROM record ORDER BY idx")]

    def add_node(self, level: int, index: int, value: bytes) -> None:
        self._db.execute("INSERT INTO node VALUES (?, ?, ?)", (level, index, value))

    def node(self, level: int, index: int) -> bytes:
        row = self._row("SELECT CAST(hash AS BLOB) FROM node WHERE level = ? AND idx = ?", level, index)
        if row is None:
            raise _rewritten("it lacks a node of its tree")
        return bytes(row[0])

    def add_checkpoint(self, size: int, note: str) -> None:
        self._db.execute("INSERT INTO checkpoint VALUES (?, ?)", (size, note))

    def last_checkpoint(self) -> str | None:
        row = self._row("SELECT note FROM checkpoint ORDER BY size DESC LIMIT 1")
        return None if row is None else str(row[0])

    def checkpoints(self) -> list[str]:
        return [note for (note,) in self._db.execute("SELECT CAST(note AS TEXT) FROM checkpoint ORDER BY size")]

    def add_document(self, name: str, content: bytes) -> None:
        self._db.execute("INSERT INTO document VALUES (?, ?)", (name, content))

    def has_document(self, name: str) -> bool:
        return self._row("SELECT 1 FROM document WHERE digest = ?", name) is not None

    def documents(self) -> list[tuple[str, bytes]]:
        return list(self._db.execute("SELECT digest, CAST(content AS BLOB) FROM document ORDER BY digest"))

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _row(self, statement: str, *values: object) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._db.execute(statement, values).fetchone()
        return row


def _private_file(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / DATABASE_NAME
    # An existing file is not opened here: closing a second descriptor would drop SQLite's locks in this process.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    return path


def _plain(value: object, levels: int = MAX_DEPTH) -> object:
    """Return `value` as plain JSON values, or refuse it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if levels and isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {str(name): _plain(item, levels - 1) for name, item in value.items()}
    if levels and isinstance(value, list | tuple):
        return [_plain(item, levels - 1) for item in value]
    raise EvidenceInvalid(
        Reason.EVIDENCE_INVALID,
        f"a record cannot hold a {type(value).__name__} at this place",
        f"use null, booleans, integers, text, lists and maps of at most {MAX_DEPTH} levels; write a ratio as text",
    )


def _content(record: Mapping[str, Any]) -> bytes:
    try:
        return canonical(record)
    except ValueError:
        raise EvidenceInvalid(
            Reason.EVIDENCE_INVALID, "the record has no canonical JSON", "integers up to 2**53 - 1, Unicode text"
        ) from None


def _named(content: bytes) -> list[str]:
    # A record that was tampered with must still reach the verifier, who says what is wrong with it.
    with suppress(EvidenceInvalid):
        return list(digests_in(read_record(content)["body"]))
    return []


def _rewritten(why: str) -> EvidenceInvalid:
    return EvidenceInvalid(
        Reason.EVIDENCE_INVALID,
        f"the ledger was changed from outside: {why}",
        "keep the files as they are for examination, and restore the ledger from a copy that verifies",
    )


def _unwritable(folder: Path, error: Exception) -> FabricError:
    why = getattr(error, "sqlite_errorname", "") or type(error).__name__
    return FabricError(
        Reason.EVIDENCE_UNWRITABLE,
        f"the evidence folder {str(folder)!r} cannot be written ({why})",
        "let this user write there, on a local disk with room; without evidence nothing moves",
    )
