"""The ledger's rows in PostgreSQL, through SQLAlchemy Core.

The application's role may select and insert and nothing else; triggers refuse every change even to the tables' owner,
until the owner drops them, which is what the witness is for. One advisory lock orders the writers. The tables are made
by an administrator from `schema_sql`, never by the application. Only this module imports SQLAlchemy.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from fabric.errors import FabricError, InvalidInput, Reason
from fabric.ledger_store import BUSY_TIMEOUT_S, NewRecord, Node

SCHEMA = "fabric_evidence"
CONNECT_TIMEOUT_S = 10

_METADATA = sa.MetaData(schema=SCHEMA)
_RECORD = sa.Table(
    "record",
    _METADATA,
    sa.Column("idx", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("id", sa.Text, nullable=False, unique=True),
    sa.Column("intent", sa.Text, unique=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
_NODE = sa.Table(
    "node",
    _METADATA,
    sa.Column("level", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("idx", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
)
_CHECKPOINT = sa.Table(
    "checkpoint",
    _METADATA,
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("note", sa.Text, nullable=False),
)
_DOCUMENT = sa.Table(
    "document",
    _METADATA,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("content", sa.LargeBinary, nullable=False),
)
_COSIGNED = sa.Table(
    "cosigned",
    _METADATA,
    sa.Column("size", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("note", sa.Text, nullable=False),
)
# The number of the advisory lock that orders writers: the first bytes of SHA-256("fabric_evidence").
_LOCK = 0x3F6E1D20
_HEAD = sa.select(
    sa.select(_CHECKPOINT.c.note).order_by(_CHECKPOINT.c.size.desc()).limit(1).scalar_subquery(),
    sa.select(_RECORD.c.idx).order_by(_RECORD.c.idx.desc()).limit(1).scalar_subquery(),
    sa.select(_RECORD.c.content).order_by(_RECORD.c.idx.desc()).limit(1).scalar_subquery(),
)
# One round trip for a whole commit, however many records are in it.
_ADD = sa.text(
    "WITH n AS (INSERT INTO fabric_evidence.node (level, idx, hash) SELECT * FROM unnest(:levels, :places, :hashes)), "
    "r AS (INSERT INTO fabric_evidence.record (idx, id, intent, content) "
    "SELECT * FROM unnest(:indices, :ids, :intents, :contents)) "
    "INSERT INTO fabric_evidence.checkpoint (size, note) VALUES (:size, :note)"
).bindparams(
    sa.bindparam("levels", type_=sa.ARRAY(sa.SmallInteger)),
    sa.bindparam("places", type_=sa.ARRAY(sa.BigInteger)),
    sa.bindparam("hashes", type_=sa.ARRAY(sa.LargeBinary)),
    sa.bindparam("indices", type_=sa.ARRAY(sa.BigInteger)),
    sa.bindparam("ids", type_=sa.ARRAY(sa.Text)),
    sa.bindparam("intents", type_=sa.ARRAY(sa.Text)),
    sa.bindparam("contents", type_=sa.ARRAY(sa.LargeBinary)),
)
_ROLE = re.compile(r"[a-z_][a-z0-9_]{0,62}\Z")


def checked_role(role: str) -> str:
    """Return the name of a role that can stand in SQL as it is.

    Raises:
        InvalidInput: `CONFIG_INVALID` if it needs quoting.
    """
    if not _ROLE.match(role):
        raise InvalidInput(
            Reason.CONFIG_INVALID, "the role's name is not usable", "lower-case letters, digits and '_', up to 63"
        )
    return role


def schema_sql(role: str) -> str:
    """Return the SQL by which an administrator makes the tables and lets `role` select and insert.

    Raises:
        InvalidInput: `CONFIG_INVALID` if the role's name needs quoting.
    """
    checked_role(role)
    dialect = sa.create_mock_engine("postgresql+psycopg://", lambda *_: None).dialect
    made = [
        f"{str(sa.schema.CreateTable(table).compile(dialect=dialect)).strip()};" for table in _METADATA.sorted_tables
    ]
    guard = (
        f"CREATE FUNCTION {SCHEMA}.refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'append-only'; END $$;"
    )
    triggers = [
        f"CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table.fullname} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {SCHEMA}.refuse();"
        for table in _METADATA.sorted_tables
    ]
    tables = ", ".join(table.fullname for table in _METADATA.sorted_tables)
    return "\n".join(
        [
            "BEGIN;",
            f"CREATE SCHEMA {SCHEMA};",
            *made,
            guard,
            *triggers,
            f"REVOKE ALL ON SCHEMA {SCHEMA} FROM PUBLIC;",
            f"REVOKE ALL ON {tables} FROM PUBLIC;",
            f"GRANT USAGE ON SCHEMA {SCHEMA} TO {role};",
            f"GRANT SELECT, INSERT ON {tables} TO {role};",
            "COMMIT;",
            "",
        ]
    )


class PostgresStore:
    """A ledger's rows in PostgreSQL. Safe to share between threads: they take turns."""

    def __init__(self, url: str) -> None:
        """Prepare to connect to `url` (`postgresql://user@host/database`); nothing is sent yet.

        Raises:
            InvalidInput: `CONFIG_INVALID` if it is no such URL.
        """
        try:
            parsed = sa.make_url(url).set(drivername="postgresql+psycopg")
            self._place = parsed.set(username=None, password=None, query={}).render_as_string()
            self._engine = sa.create_engine(
                parsed,
                pool_size=1,
                max_overflow=0,
                connect_args={
                    "connect_timeout": CONNECT_TIMEOUT_S,
                    "options": f"-c lock_timeout={int(BUSY_TIMEOUT_S * 1000)}",
                },
            )
        except (SQLAlchemyError, ImportError, ValueError):
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                "evidence.database is not a PostgreSQL URL, or psycopg is not installed",
                "postgresql://user@host/database, and `pip install zonefabric[postgres]`",
            ) from None
        self._lock = threading.RLock()
        self._open: sa.Connection | None = None
        self._closed = False

    @contextmanager
    def transaction(self, *, write: bool) -> Iterator[None]:
        """Commit what the block writes, all or nothing; without `write`, read one snapshot."""
        with self._lock:
            if self._open is not None or self._closed:
                raise self._unwritable("it is closed, or a transaction is open already")
            try:
                with self._engine.connect() as connection, connection.begin():
                    connection.execute(sa.text(_BEGIN_WRITE if write else _BEGIN_READ))
                    self._open = connection
                    yield
            except SQLAlchemyError as error:
                raise self._unwritable(type(getattr(error, "orig", None) or error).__name__) from None
            finally:
                self._open = None

    def prove_writable(self) -> None:
        """Show that the role can add rows, cannot change any, and that commits are durable."""
        settings = self._row(
            sa.text("SELECT current_setting('fsync'), current_setting('synchronous_commit'), current_user")
        )
        if settings is None or settings[0] != "on" or settings[1] == "off":
            raise self._unwritable("fsync or synchronous_commit is off, so a commit would not be durable")
        for table in _METADATA.sorted_tables:
            may = self._row(
                sa.text(
                    "SELECT has_table_privilege(to_regclass(:t), 'INSERT'), has_table_privilege(to_regclass(:t), "
                    "'UPDATE, DELETE, TRUNCATE')"
                ).bindparams(t=table.fullname)
            )
            if may is None or not may[0]:
                raise self._unwritable(f"there is no table {table.fullname}, or this role may not insert into it")
            if may[1]:
                raise InvalidInput(
                    Reason.CONFIG_INVALID,
                    f"the database role may change or remove rows of {table.fullname}",
                    "connect as the role that `fabric evidence schema --role ROLE` lets insert and select only",
                )

    def head(self) -> tuple[int, str | None, bytes | None]:
        """Return the number of records, the last checkpoint and the last record's bytes."""
        note, index, content = self._row(_HEAD)
        return (
            0 if index is None else int(index) + 1,
            None if note is None else str(note),
            None if content is None else bytes(content),
        )

    def add(self, records: Sequence[NewRecord], nodes: Sequence[Node], size: int, checkpoint: str) -> None:
        """Add records, their tree nodes and the checkpoint over them."""
        levels, places, hashes = zip(*nodes, strict=True) if nodes else ((), (), ())
        indices, ids, intents, contents = zip(*records, strict=True) if records else ((), (), (), ())
        rows = {"levels": levels, "places": places, "hashes": hashes, "indices": indices, "ids": ids}
        self._execute(
            _ADD,
            {
                **{name: list(values) for name, values in rows.items()},
                "intents": list(intents),
                "contents": list(contents),
                "size": size,
                "note": checkpoint,
            },
        )

    def nodes(self, wanted: Iterable[tuple[int, int]]) -> dict[tuple[int, int], bytes]:
        """Return the tree nodes at these levels and indices, those that there are."""
        names = list(wanted)
        if not names:
            return {}
        asked = sa.select(_NODE).where(sa.tuple_(_NODE.c.level, _NODE.c.idx).in_(names))
        return {(int(row[0]), int(row[1])): bytes(row[2]) for row in self._execute(asked)}

    def find(self, ids: Iterable[str]) -> dict[str, bytes]:
        """Return the records of these ids, those that there are."""
        rows = self._among(sa.select(_RECORD.c.id, _RECORD.c.content), _RECORD.c.id, ids)
        return {str(row[0]): bytes(row[1]) for row in rows}

    def concluded(self, intents: Iterable[str]) -> set[str]:
        """Return those of these intents that have an outcome."""
        return {str(row[0]) for row in self._among(sa.select(_RECORD.c.intent), _RECORD.c.intent, intents)}

    def record_at(self, index: int) -> bytes | None:
        """Return a record by its place."""
        return self._bytes(sa.select(_RECORD.c.content).where(_RECORD.c.idx == index))

    def records(self) -> list[bytes]:
        """Return all records in their order."""
        return [bytes(row[0]) for row in self._execute(sa.select(_RECORD.c.content).order_by(_RECORD.c.idx))]

    def checkpoints(self) -> list[str]:
        """Return all checkpoints in their order."""
        return [str(row[0]) for row in self._execute(sa.select(_CHECKPOINT.c.note).order_by(_CHECKPOINT.c.size))]

    def held(self, names: Iterable[str]) -> set[str]:
        """Return those of these documents that are stored."""
        return {str(row[0]) for row in self._among(sa.select(_DOCUMENT.c.digest), _DOCUMENT.c.digest, names)}

    def add_document(self, name: str, content: bytes) -> None:
        """Store a document under its digest."""
        self._execute(_DOCUMENT.insert(), [{"digest": name, "content": content}])

    def documents(self, names: Iterable[str]) -> dict[str, bytes]:
        """Return those of the named documents that are stored."""
        found = {}
        for name in names:
            content = self._bytes(sa.select(_DOCUMENT.c.content).where(_DOCUMENT.c.digest == name))
            if content is not None:
                found[name] = content
        return found

    def cosigned(self) -> tuple[int, str] | None:
        """Return the largest size that a witness has seen, with its note."""
        row = self._row(sa.select(_COSIGNED).order_by(_COSIGNED.c.size.desc()).limit(1))
        return None if row is None else (int(row[0]), str(row[1]))

    def cosignatures(self) -> list[str]:
        """Return the witness's notes in their order."""
        return [str(row[0]) for row in self._execute(sa.select(_COSIGNED.c.note).order_by(_COSIGNED.c.size))]

    def add_cosigned(self, size: int, note: str) -> None:
        """Store a witness's note; the first of a size stays."""
        if self._row(sa.select(_COSIGNED.c.size).where(_COSIGNED.c.size == size)) is None:
            self._execute(_COSIGNED.insert(), [{"size": size, "note": note}])

    def close(self) -> None:
        """Close the connection; closing twice is the same as once."""
        with self._lock:
            self._closed = True
            self._engine.dispose()

    def _execute(self, statement: Any, rows: Any = None) -> Any:
        if self._open is None:
            raise self._unwritable("no transaction is open")
        return self._open.execute(statement, rows) if rows else self._open.execute(statement)

    def _among(self, statement: Any, column: Any, wanted: Iterable[str]) -> list[Any]:
        """Return the rows whose column is one of those wanted, by one round trip, or by none for nothing."""
        names = list(wanted)
        return (
            list(self._execute(statement.where(column == sa.any_(sa.literal(names, sa.ARRAY(sa.Text))))))
            if names
            else []
        )

    def _row(self, statement: Any) -> Any:
        return self._execute(statement).first()

    def _bytes(self, statement: Any) -> bytes | None:
        row = self._row(statement)
        return None if row is None else bytes(row[0])

    def _unwritable(self, why: str) -> FabricError:
        return FabricError(
            Reason.EVIDENCE_UNWRITABLE,
            f"the evidence database {self._place!r} cannot be used: {why}",
            "start it or let this role in; `fabric evidence schema` makes its tables. Without evidence nothing moves",
        )


# Writers queue for one lock before they read the head; readers see one snapshot and wait for nobody.
_BEGIN_WRITE = f"SELECT pg_advisory_xact_lock({_LOCK})"
_BEGIN_READ = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
