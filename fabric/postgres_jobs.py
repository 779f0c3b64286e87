"""The queue of several machines in PostgreSQL.

The application's role may insert jobs and attempts, and update the columns in which they go on: what was submitted, and
what an attempt was given, stay as they were.
"""

from __future__ import annotations

import sqlalchemy as sa

from fabric.postgres_database import PostgresDatabase, granting_sql

SCHEMA = "fabric_queue"

_METADATA = sa.MetaData(schema=SCHEMA)


def _texts(*names: str) -> list[sa.Column]:
    return [sa.Column(name, sa.Text, nullable=False) for name in names]


def _numbers(*names: str, nullable: bool = False) -> list[sa.Column]:
    return [sa.Column(name, sa.BigInteger, nullable=nullable) for name in names]


_JOB = sa.Table(
    "job",
    _METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("token", sa.Text, nullable=False, unique=True),
    *_texts("body", "state", "driver", "matrix", "zone", "pool", "reservation", "hold", "leave", "code", "result"),
    *_texts("intent"),
    sa.Column("submitted", sa.BigInteger, nullable=False, index=True),
    *_numbers("priority", "own_driver", "attempt", "workers", "reserved", "cancel", "lost", "preparing"),
    *_numbers("deadline", "started", "left_over", "ended", nullable=True),
)
_ATTEMPT = sa.Table(
    "attempt",
    _METADATA,
    sa.Column("job", sa.Text, sa.ForeignKey(_JOB.c.id), primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    *_texts("zone", "pool", "reservation", "outcome"),
    *_numbers("workers", "reserved", "placed"),
    *_numbers("started", "ended", "spent", nullable=True),
)
_SIGN = sa.Table(
    "sign",
    _METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("at", sa.BigInteger, nullable=False),
)
_STAYS = {"id", "token", "body", "submitted", "priority", "deadline"}
_GOES_ON = {
    _JOB.name: [column.name for column in _JOB.columns if column.name not in _STAYS],
    _ATTEMPT.name: ["reserved", "started", "ended", "outcome", "spent"],
    _SIGN.name: ["at"],
}


def schema_sql(role: str) -> str:
    """Return the SQL by which an administrator makes the tables and lets `role` use them.

    Raises:
        InvalidInput: `CONFIG_INVALID` if the role's name needs quoting.
    """
    return granting_sql(role, SCHEMA, _METADATA, _GOES_ON)


class PostgresJobs(PostgresDatabase):
    """The queue's rows in PostgreSQL."""

    def __init__(self, url: str) -> None:
        """Prepare to connect to `url`; nothing is sent yet.

        Raises:
            InvalidInput: `CONFIG_INVALID` if it is no PostgreSQL URL.
        """
        super().__init__(url, schema=SCHEMA, guarded=(_JOB.fullname, "body"))
