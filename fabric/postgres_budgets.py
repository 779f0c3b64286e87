"""The budgets of several machines in PostgreSQL, through SQLAlchemy Core.

The application's role may insert, and update the columns in which a reservation and its meters go on, and nothing
else: what was reserved, by whom and at which prices stays. The tables are made by an administrator from `schema_sql`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from fabric.errors import FabricError, InvalidInput, Reason
from fabric.ledger_store import BUSY_TIMEOUT_S
from fabric.postgres_store import CONNECT_TIMEOUT_S, checked_role

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
    checked_role(role)
    dialect = sa.create_mock_engine("postgresql+psycopg://", lambda *_: None).dialect
    made = [str(sa.schema.CreateTable(table).compile(dialect=dialect)).strip() for table in _METADATA.sorted_tables]
    made += [str(sa.schema.CreateIndex(index).compile(dialect=dialect)) for index in _RESERVATION.indexes]
    tables = ", ".join(table.fullname for table in _METADATA.sorted_tables)
    return "\n".join(
        [
            "BEGIN;",
            f"CREATE SCHEMA {SCHEMA};",
            *(f"{statement};" for statement in made),
            f"REVOKE ALL ON SCHEMA {SCHEMA} FROM PUBLIC;",
            f"REVOKE ALL ON {tables} FROM PUBLIC;",
            f"GRANT USAGE ON SCHEMA {SCHEMA} TO {role};",
            f"GRANT SELECT, INSERT ON {tables} TO {role};",
            *(
                f"GRANT UPDATE ({', '.join(columns)}) ON {SCHEMA}.{name} TO {role};"
                for name, columns in _GOES_ON.items()
            ),
            "COMMIT;",
            "",
        ]
    )


class PostgresBudgets:
    """The budgets' rows in PostgreSQL. Safe to share between threads: they take turns."""

    def __init__(self, url: str) -> None:
        """Prepare to connect to `url`; nothing is sent yet.

        Raises:
            InvalidInput: `CONFIG_INVALID` if it is no PostgreSQL URL.
        """
        try:
            parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
            self._place = parsed.set(username=None, password=None, query={}).render_as_string()
            options = f"-c lock_timeout={int(BUSY_TIMEOUT_S * 1000)} -c search_path={SCHEMA}"
            self._engine = sa.create_engine(
                parsed,
                pool_size=1,
                max_overflow=0,
                connect_args={"connect_timeout": CONNECT_TIMEOUT_S, "options": options},
            )
        except (SQLAlchemyError, ImportError, ValueError):
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                "evidence.database is not a PostgreSQL URL, or psycopg is not installed",
                "postgresql://user@host/database, and `pip install zonefabric[postgres]`",
            ) from None
        self._lock = threading.RLock()
        self._open: sa.Connection | None = None
        self._proven = False

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[None]:
        """Commit what the block writes, all or nothing, durably; rows are locked by the updates themselves."""
        with self._lock:
            if self._open is not None:
                raise self._unwritable("a transaction is open already")
            try:
                with self._engine.connect() as connection, connection.begin():
                    if not write:
                        connection.execute(_READING)
                    elif not self._proven:
                        self._prove(connection)
                    self._open = connection
                    yield
            except SQLAlchemyError as error:
                raise self._unwritable(type(getattr(error, "orig", None) or error).__name__) from None
            finally:
                self._open = None

    def run(self, statement: str, **values: object) -> tuple[int, list[tuple[Any, ...]]]:
        """Run one statement."""
        if self._open is None:
            raise self._unwritable("no transaction is open")
        result = self._open.execute(_text(statement), values)
        return result.rowcount, [tuple(row) for row in result] if result.returns_rows else []

    def close(self) -> None:
        """Close the connection; closing twice is the same as once."""
        with self._lock:
            self._engine.dispose()

    def _prove(self, connection: sa.Connection) -> None:
        """Show that commits are durable, and that the role may not rewrite what was reserved."""
        fsync, durable, may_rewrite = connection.execute(_PROOF).one()
        if fsync != "on" or durable == "off":
            raise self._unwritable("fsync or synchronous_commit is off, so a commit would not be durable")
        if may_rewrite:
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                f"the database role may rewrite or remove rows of {_RESERVATION.fullname}",
                "connect as the role that `fabric evidence schema --role ROLE` sets up",
            )
        self._proven = True

    def _unwritable(self, why: str) -> FabricError:
        return FabricError(
            Reason.EVIDENCE_UNWRITABLE,
            f"the budgets' database {self._place!r} cannot be used: {why}",
            "start it or let this role in; `fabric evidence schema` makes its tables. Nothing is spent unreserved",
        )


_READING = sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
_PROOF = sa.text(
    "SELECT current_setting('fsync'), current_setting('synchronous_commit'), "
    "has_table_privilege(to_regclass(:t), 'DELETE, TRUNCATE') OR "
    "has_column_privilege(to_regclass(:t), 'amount', 'UPDATE')"
).bindparams(t=_RESERVATION.fullname)


@lru_cache(maxsize=64)
def _text(statement: str) -> sa.TextClause:
    return sa.text(statement)
