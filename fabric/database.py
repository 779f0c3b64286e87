"""A small database that several processes change: the protocol, and SQLite for one machine.

Unlike the ledger's, its rows change, each by one conditional statement. SQL is written once, with `:name` parameters,
in what SQLite and PostgreSQL both speak. PostgreSQL is in a module of its own: importing SQLAlchemy takes long.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from fabric.errors import FabricError, Reason
from fabric.ledger_store import BUSY_TIMEOUT_S, write_ahead


class Database(Protocol):
    """A connection; threads take turns."""

    def transaction(self, *, write: bool) -> AbstractContextManager[None]:
        """Commit what the block writes, all or nothing, durably.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """

    def run(self, statement: str, **values: object) -> tuple[int, list[tuple[Any, ...]]]:
        """Run one statement and return how many rows it changed, and the rows that it returned."""

    def close(self) -> None:
        """Close it; closing twice is the same as once."""


class SQLiteDatabase:
    """A file of one machine, mode 0600: write-ahead log, `synchronous=FULL`."""

    def __init__(self, path: Path, schema: Sequence[str]) -> None:
        """Open the file, made if it is not there, and make the tables of `schema` in it.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        self._path = path
        self._lock = threading.RLock()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise self._unwritable(error) from None
        try:
            if write_ahead(self._db, until=time.monotonic() + BUSY_TIMEOUT_S) != "wal":
                raise sqlite3.NotSupportedError
            self._db.execute("PRAGMA synchronous=FULL")
            with self.transaction(write=True):
                for statement in schema:
                    self._db.execute(statement)
        except sqlite3.Error as error:
            self._db.close()
            raise self._unwritable(error) from None

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[None]:
        """Commit what the block writes, all or nothing, durably."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE" if write else "BEGIN DEFERRED")
                yield
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise self._unwritable(error) from None
            finally:
                with suppress(sqlite3.Error):
                    if self._db.in_transaction:
                        self._db.execute("ROLLBACK")

    def run(self, statement: str, **values: object) -> tuple[int, list[tuple[Any, ...]]]:
        """Run one statement."""
        cursor = self._db.execute(statement, values)
        return cursor.rowcount, cursor.fetchall()

    def close(self) -> None:
        """Close the file; closing twice is the same as once."""
        with self._lock:
            self._db.close()

    def _unwritable(self, error: Exception) -> FabricError:
        why = getattr(error, "sqlite_errorname", "") or type(error).__name__
        return FabricError(
            Reason.EVIDENCE_UNWRITABLE,
            f"{str(self._path)!r} cannot be written ({why})",
            "let this user write there, on a local disk with room; what is not written down does not start",
        )
