"""Where the ledger's rows lie: the protocol, and SQLite for one machine.

Rows go in and never change. A store commits what a block writes all or nothing, and durably, before the block ends.
SQLite is spoken to through the standard library: importing SQLAlchemy alone takes 0.25 of the 0.5 CPU seconds that a
command may take. PostgreSQL, for more than one machine, is in `fabric.postgres_store`.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from fabric.errors import EvidenceInvalid, FabricError, Reason

DATABASE_NAME = "ledger.sqlite3"
SCHEMA_VERSION = 2
BUSY_TIMEOUT_S = 30.0
BUSY_POLL_S = 0.01

Node = tuple[int, int, bytes]
NewRecord = tuple[int, str, str | None, bytes]
"""Index, id, the intent it concludes if it is an outcome, and the record's bytes."""


class LedgerStore(Protocol):
    """The rows of one ledger. Every method but `transaction` and `close` is called inside a transaction."""

    def transaction(self, *, write: bool) -> AbstractContextManager[None]:
        """Commit what the block writes; without `write`, read one snapshot and wait for no writer.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """

    def prove_writable(self) -> None:
        """Show that rows can be added; a store of one machine makes its tables here."""

    def head(self) -> tuple[int, str | None, bytes | None]:
        """Return the number of records, the last checkpoint and the last record's bytes."""

    def add(self, records: Sequence[NewRecord], nodes: Sequence[Node], size: int, checkpoint: str) -> None:
        """Add records, their tree nodes and the checkpoint over them."""

    def nodes(self, wanted: Iterable[tuple[int, int]]) -> Mapping[tuple[int, int], bytes]:
        """Return the tree nodes at these levels and indices, those that there are."""

    def find(self, ids: Iterable[str]) -> dict[str, bytes]:
        """Return the records of these ids, those that there are."""

    def concluded(self, intents: Iterable[str]) -> set[str]:
        """Return those of these intents that have an outcome."""

    def record_at(self, index: int) -> bytes | None:
        """Return a record by its place."""

    def records(self) -> list[bytes]:
        """Return all records in their order."""

    def checkpoints(self) -> list[str]:
        """Return all checkpoints in their order."""

    def held(self, names: Iterable[str]) -> set[str]:
        """Return those of these documents that are stored."""

    def add_document(self, name: str, content: bytes) -> None:
        """Store a document under its digest."""

    def documents(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return those of the named documents that are stored."""

    def cosigned(self) -> tuple[int, str] | None:
        """Return the largest size that a witness has seen, with its note."""

    def cosignatures(self) -> list[str]:
        """Return the witness's notes in their order."""

    def add_cosigned(self, size: int, note: str) -> None:
        """Store a witness's note; the first of a size stays."""

    def close(self) -> None:
        """Close the store; closing twice is the same as once."""


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
    (
        "cosigned",
        "size INTEGER PRIMARY KEY, note TEXT NOT NULL",
        "EXISTS (SELECT 1 FROM cosigned WHERE size = NEW.size)",
    ),
)


class SQLiteStore:
    """A ledger's rows in a file of one machine: WAL, `synchronous=FULL`, triggers that refuse every change.

    Reads cast, because SQLite lets someone with the file put any type into any column.
    """

    def __init__(self, folder: Path) -> None:
        """Open the database in `folder`, made with mode 0700 if it is not there.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        self._folder = folder
        # Re-entrant, so that a callback that appends fails with an error and does not hang.
        self._lock = threading.RLock()
        try:
            path = _private_file(folder)
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise _unwritable(folder, error) from None
        try:
            mode = write_ahead(self._db, until=time.monotonic() + BUSY_TIMEOUT_S)
            self._db.execute("PRAGMA synchronous=FULL")
            if mode != "wal":
                raise sqlite3.NotSupportedError
        except sqlite3.Error as error:
            self._db.close()
            raise _unwritable(folder, error) from None

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[None]:
        """Commit what the block writes, all or nothing; without `write`, read one snapshot."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE" if write else "BEGIN DEFERRED")
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
            raise EvidenceInvalid(
                Reason.EVIDENCE_INVALID,
                f"the ledger's format {version} is not {SCHEMA_VERSION}",
                "read it with the version that wrote it, keep its bundle, and start a new one",
            )
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

    def head(self) -> tuple[int, str | None, bytes | None]:
        """Return the number of records, the last checkpoint and the last record's bytes."""
        note = self._row("SELECT CAST(note AS TEXT) FROM checkpoint ORDER BY size DESC LIMIT 1")
        last = self._row("SELECT idx, CAST(content AS BLOB) FROM record ORDER BY idx DESC LIMIT 1")
        return (int(last[0]) + 1 if last else 0), (note[0] if note else None), (bytes(last[1]) if last else None)

    def add(self, records: Sequence[NewRecord], nodes: Sequence[Node], size: int, checkpoint: str) -> None:
        """Add records, their tree nodes and the checkpoint over them."""
        self._db.executemany("INSERT INTO node VALUES (?, ?, ?)", nodes)
        self._db.executemany("INSERT INTO record VALUES (?, ?, ?, ?)", records)
        self._db.execute("INSERT INTO checkpoint VALUES (?, ?)", (size, checkpoint))

    def nodes(self, wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """Return the tree nodes at these levels and indices, those that there are."""
        found = {}
        for name in wanted:
            row = self._row("SELECT CAST(hash AS BLOB) FROM node WHERE level = ? AND idx = ?", *name)
            if row is not None:
                found[name] = bytes(row[0])
        return found

    def find(self, ids: Iterable[str]) -> dict[str, bytes]:
        """Return the records of these ids, those that there are."""
        rows = ((name, self._row("SELECT CAST(content AS BLOB) FROM record WHERE id = ?", name)) for name in ids)
        return {name: bytes(row[0]) for name, row in rows if row is not None}

    def concluded(self, intents: Iterable[str]) -> set[str]:
        """Return those of these intents that have an outcome."""
        return {name for name in intents if self._row("SELECT 1 FROM record WHERE intent = ?", name) is not None}

    def record_at(self, index: int) -> bytes | None:
        """Return a record by its place."""
        row = self._row("SELECT CAST(content AS BLOB) FROM record WHERE idx = ?", index)
        return None if row is None else bytes(row[0])

    def records(self) -> list[bytes]:
        """Return all records in their order."""
        return [content for (content,) in self._db.execute("SELECT CAST(content AS BLOB) FROM record ORDER BY idx")]

    def checkpoints(self) -> list[str]:
        """Return all checkpoints in their order."""
        return [note for (note,) in self._db.execute("SELECT CAST(note AS TEXT) FROM checkpoint ORDER BY size")]

    def held(self, names: Iterable[str]) -> set[str]:
        """Return those of these documents that are stored."""
        return {name for name in names if self._row("SELECT 1 FROM document WHERE digest = ?", name) is not None}

    def add_document(self, name: str, content: bytes) -> None:
        """Store a document under its digest."""
        self._db.execute("INSERT INTO document VALUES (?, ?)", (name, content))

    def documents(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return those of the named documents that are stored."""
        found = {}
        for name in names:
            row = self._row("SELECT CAST(content AS BLOB) FROM document WHERE digest = ?", name)
            if row is not None:
                found[name] = bytes(row[0])
        return found

    def cosigned(self) -> tuple[int, str] | None:
        """Return the largest size that a witness has seen, with its note."""
        row = self._row("SELECT size, CAST(note AS TEXT) FROM cosigned ORDER BY size DESC LIMIT 1")
        return None if row is None else (int(row[0]), str(row[1]))

    def cosignatures(self) -> list[str]:
        """Return the witness's notes in their order."""
        return [note for (note,) in self._db.execute("SELECT CAST(note AS TEXT) FROM cosigned ORDER BY size")]

    def add_cosigned(self, size: int, note: str) -> None:
        """Store a witness's note; the first of a size stays."""
        if self._row("SELECT 1 FROM cosigned WHERE size = ?", size) is None:
            self._db.execute("INSERT INTO cosigned VALUES (?, ?)", (size, note))

    def close(self) -> None:
        """Close the database; closing twice is the same as once."""
        with self._lock:
            self._db.close()

    def _row(self, statement: str, *values: object) -> tuple[Any, ...] | None:
        row: tuple[Any, ...] | None = self._db.execute(statement, values).fetchone()
        return row


def write_ahead(db: sqlite3.Connection, *, until: float) -> str:
    """Turn the write-ahead log on and return the mode; SQLite's own timeout does not hold for this statement."""
    while True:
        try:
            (mode,) = db.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            # The low byte is the primary code: another process that opens, or recovers after a crash, is at it.
            if (error.sqlite_errorcode & 0xFF) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(BUSY_POLL_S)
        else:
            return str(mode)


def _private_file(folder: Path) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / DATABASE_NAME
    # An existing file is not opened here: closing a second descriptor would drop SQLite's locks in this process.
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    return path


def _unwritable(folder: Path, error: Exception) -> FabricError:
    why = getattr(error, "sqlite_errorname", "") or type(error).__name__
    return FabricError(
        Reason.EVIDENCE_UNWRITABLE,
        f"the evidence folder {str(folder)!r} cannot be written ({why})",
        "let this user write there, on a local disk with room; without evidence nothing moves",
    )
