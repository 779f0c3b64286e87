"""A small database that processes of several machines change, in PostgreSQL, through SQLAlchemy Core.

The application's role may insert, and update the columns in which a row goes on, and nothing else. The tables are made
by an administrator from printed SQL, never by the application.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from fabric.errors import FabricError, InvalidInput, Reason
from fabric.ledger_store import BUSY_TIMEOUT_S
from fabric.postgres_store import CONNECT_TIMEOUT_S, checked_role


def granting_sql(role: str, schema: str, tables: sa.MetaData, goes_on: Mapping[str, Sequence[str]]) -> str:
    """Return the SQL by which an administrator makes `tables` and lets `role` use them.

    Args:
        goes_on: by table, the columns that the role may update.

    Raises:
        InvalidInput: `CONFIG_INVALID` if the role's name needs quoting.
    """
    checked_role(role)
    dialect = sa.create_mock_engine("postgresql+psycopg://", lambda *_: None).dialect
    made = [str(sa.schema.CreateTable(table).compile(dialect=dialect)).strip() for table in tables.sorted_tables]
    indexes = [
        index for table in tables.sorted_tables for index in sorted(table.indexes, key=lambda one: str(one.name))
    ]
    made += [str(sa.schema.CreateIndex(index).compile(dialect=dialect)) for index in indexes]
    names = ", ".join(table.fullname for table in tables.sorted_tables)
    return "\n".join(
        [
            "BEGIN;",
            f"CREATE SCHEMA {schema};",
            *(f"{statement};" for statement in made),
            f"REVOKE ALL ON SCHEMA {schema} FROM PUBLIC;",
            f"REVOKE ALL ON {names} FROM PUBLIC;",
            f"GRANT USAGE ON SCHEMA {schema} TO {role};",
            f"GRANT SELECT, INSERT ON {names} TO {role};",
            *(
                f"GRANT UPDATE ({', '.join(columns)}) ON {schema}.{name} TO {role};"
                for name, columns in goes_on.items()
            ),
            "COMMIT;",
            "",
        ]
    )


class PostgresDatabase:
    """Rows in one schema. Safe to share between threads: they take turns."""

    def __init__(self, url: str, *, schema: str, guarded: tuple[str, str]) -> None:
        """Prepare to connect to `url`; nothing is sent yet.

        Args:
            guarded: a table whose rows the role must not remove, and a column of it that it must not rewrite.

        Raises:
            InvalidInput: `CONFIG_INVALID` if it is no PostgreSQL URL.
        """
        self._guarded = guarded
        try:
            parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
            self._place = parsed.set(username=None, password=None, query={}).render_as_string()
            options = f"-c lock_timeout={int(BUSY_TIMEOUT_S * 1000)} -c search_path={schema}"
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
        """Show that commits are durable, and that the role may not rewrite what must stay."""
        table, column = self._guarded
        fsync, durable, may_rewrite = connection.execute(_PROOF.bindparams(t=table, c=column)).one()
        if fsync != "on" or durable == "off":
            raise self._unwritable("fsync or synchronous_commit is off, so a commit would not be durable")
        if may_rewrite:
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                f"the database role may rewrite or remove rows of {table}",
                "connect as the role that `fabric evidence schema --role ROLE` sets up",
            )
        self._proven = True

    def _unwritable(self, why: str) -> FabricError:
        table = self._guarded[0]
        return FabricError(
            Reason.EVIDENCE_UNWRITABLE,
            f"the database {self._place!r} with table {table} cannot be used: {why}",
            "start it or let this role in; `fabric evidence schema` makes its tables. Nothing is done unrecorded",
        )


_READING = sa.text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
_PROOF = sa.text(
    "SELECT current_setting('fsync'), current_setting('synchronous_commit'), "
    "has_table_privilege(to_regclass(:t), 'DELETE, TRUNCATE') OR "
    "has_column_privilege(to_regclass(:t), :c, 'UPDATE')"
)


@lru_cache(maxsize=64)
def _text(statement: str) -> sa.TextClause:
    return sa.text(statement)
