"""Random surrogates: numbers drawn by lot that stand for values, and the map back, which stays inside.

A surrogate is not derived from what it stands for (45 CFR 164.514(c)(1)), so nobody without the map can go back, and
two domains can never be joined: each draws its own. The map is one SQLite file of mode 0600 in the private zone.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fabric.errors import FabricError, Reason

LARGEST = 2**52
_TABLE = """
CREATE TABLE IF NOT EXISTS surrogate (
    domain TEXT NOT NULL, value TEXT NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (domain, value), UNIQUE (domain, number)
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Surrogates:
    """The map in one file."""

    path: Path

    def draw(self, domain: str, values: Sequence[str]) -> list[int]:
        """Return the surrogate of each value, drawn now where there was none.

        Args:
            domain: what keeps surrogates apart: a purpose and a column.
            values: the values, each once.

        Raises:
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            connection = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            try:
                return self._draw(connection, domain, values)
            finally:
                connection.close()
        except (OSError, sqlite3.Error):
            raise FabricError(
                Reason.EVIDENCE_UNWRITABLE, f"the map of surrogates {self.path} cannot be written", "make it writable"
            ) from None

    def _draw(self, connection: sqlite3.Connection, domain: str, values: Sequence[str]) -> list[int]:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute(_TABLE)
        connection.execute("BEGIN IMMEDIATE")
        for value in values:
            while not connection.execute(
                "SELECT 1 FROM surrogate WHERE domain = ? AND value = ?", (domain, value)
            ).fetchone():
                connection.execute(
                    "INSERT OR IGNORE INTO surrogate VALUES (?, ?, ?)", (domain, value, 1 + secrets.randbelow(LARGEST))
                )
        connection.execute("COMMIT")
        find = "SELECT number FROM surrogate WHERE domain = ? AND value = ?"
        return [int(connection.execute(find, (domain, value)).fetchone()[0]) for value in values]
