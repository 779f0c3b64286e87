"""The budgets of several machines in PostgreSQL, through SQLAlchemy Core.

The application's role may insert, and update the columns in which a reservation and its meters go on, and nothing
else: what was reserved, by whom and at which prices stays. The tables are made by an administrator from `schema_sql`.
"""

from __future__ import annotations

import sqlalchemy as sa

from fabric.postgres_database import PostgresDatabase, granting_sql

SCHEMA = "fabric_budgets"

_METADATA = sa.MetaData(schema=SCHEMA)
_METER = sa.Table(
    "meter",
    _METADATA,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("unit", sa.Text, primary_key=True),
    sa.Column("starts", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("reserved", sa.BigInteger, sa.CheckConstraint("reserved >= 0"), nullable=False),
    sa.Column("spent", sa.BigInteger, sa.CheckConstraint("spent >= 0"), nullable=False),
)
_RESERVATION = sa.Table(
    "reservation",
    _METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    *(
        sa.Column(name, sa.Text, nullable=False)
        for name in ("job", "state", "team", "project", "classification", "workload", "zone")
    ),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("amount", "gpus", "gpu_seconds")),
    sa.Column("terms", sa.Text),
    sa.Column("at", sa.BigInteger, nullable=False, index=True),
    sa.Column("spent", sa.BigInteger),
    sa.Column("used", sa.Text),
    sa.Column("ended", sa.BigInteger),
)
_HOLD = sa.Table(
    "hold",
    _METADATA,
    sa.Column("reservation", sa.Text, sa.ForeignKey(_RESERVATION.c.id), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("unit", sa.Text, primary_key=True),
    sa.Column("starts", sa.BigInteger, nullable=False),
    sa.Column("amount", sa.BigInteger, sa.CheckConstraint("amount > 0"), nullable=False),
)
_GOES_ON = {_METER.name: ("reserved", "spent"), _RESERVATION.name: ("state", "spent", "used", "ended")}


def schema_sql(role: str) -> str:
    """Return the SQL by which an administrator makes the tables and lets `role` use them.

    Raises:
        InvalidInput: `CONFIG_INVALID` if the role's name needs quoting.
    """
    return granting_sql(role, SCHEMA, _METADATA, _GOES_ON)


class PostgresBudgets(PostgresDatabase):
    """The budgets' rows in PostgreSQL."""

    def __init__(self, url: str) -> None:
        """Prepare to connect to `url`; nothing is sent yet.

        Raises:
            InvalidInput: `CONFIG_INVALID` if it is no PostgreSQL URL.
        """
        super().__init__(url, schema=SCHEMA, guarded=(_RESERVATION.fullname, "amount"))
