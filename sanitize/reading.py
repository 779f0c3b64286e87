"""Reading of raw records, in the private zone only: CSV, Parquet and Arrow files, and joins between them.

What is read is read whole or refused. pyarrow's messages quote cells, so none is passed on: an error names the
records and, where it can be had, the row. CSV columns are typed by a rule over every cell, never by a sample: a
column is numbers only if each cell is written as a number would be, so that `02139` stays text.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from fabric.artifacts import digest
from fabric.errors import InvalidInput, Reason, nearest

_MAX_NAME = 128
_MAX_COLUMNS = 10_000
_ROW = re.compile(r"Row #(\d+)")
_COUNTS = re.compile(r"Expected (\d+) columns, got (\d+)")
_LOOKS_LIKE_DATA = re.compile(
    r"[-+]?[0-9][0-9.,:/ -]*\Z|.*@.*\..*|\d{4}-\d{2}-\d{2}.*|[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-.*"
)

_TIME = r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,6})?)?"
_TYPES: tuple[tuple[str, pa.DataType], ...] = (
    (r"^(true|false|True|False|TRUE|FALSE)$", pa.bool_()),
    (r"^(0|-?[1-9][0-9]{0,17})$", pa.int64()),
    (r"^-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?$", pa.float64()),
    (r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", pa.date32()),
    (rf"^{_TIME}(Z|[-+][0-9]{{2}}:[0-9]{{2}})$", pa.timestamp("us", tz="UTC")),
    (rf"^{_TIME}$", pa.timestamp("us")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTable:
    """Raw records as they were read.

    Attributes:
        version: digest of the file's bytes.
        order_key: derived from the file's bytes, for a row order that nobody without them can work out.
    """

    name: str
    table: pa.Table = field(repr=False)
    version: str
    order_key: bytes = field(repr=False)

    @property
    def rows(self) -> int:
        """Return the number of rows."""
        return int(self.table.num_rows)


def read_records(path: Path, *, name: str) -> RawTable:
    """Read the records called `name` from a .csv, .parquet or .arrow file.

    Raises:
        InvalidInput: `RECORDS_MISSING`, `RECORDS_EMPTY`, `RECORDS_TRUNCATED` or `RECORDS_UNREADABLE`.
    """
    # 1. The bytes, once: what is digested is what is parsed.
    read = _READERS.get(path.suffix.lower())
    if read is None:
        raise _wrong(
            Reason.RECORDS_UNREADABLE, name, f"{path.name} has an unknown suffix", nearest(path.suffix, _READERS)
        )
    content = _content(path, name)
    if not content.strip():
        raise _wrong(Reason.RECORDS_EMPTY, name, f"{path.name} is empty", "name a file with rows in it")
    # 2. The table.
    table = read(content, name)
    _check_header(table.column_names, name)
    if not table.num_rows:
        raise _wrong(Reason.RECORDS_EMPTY, name, f"{path.name} has no rows", "name a file with rows in it")
    return RawTable(
        name=name,
        table=table,
        version=digest(content),
        order_key=hashlib.blake2b(content, digest_size=32, person=b"row order").digest(),
    )


def join_records(left: pa.Table, right: RawTable, *, left_key: str, right_key: str) -> tuple[pa.Table, int]:
    """Return `left` with the columns of `right` added, prefixed, and the number of rows that found no match.

    Every row of `left` stays; one without a match has nulls.

    Raises:
        InvalidInput: `COLUMN_MISSING`, or `RECORDS_UNREADABLE` if a key of `right` occurs twice.
    """
    for key, names in ((left_key, left.column_names), (right_key, right.table.column_names)):
        if key not in names:
            message = f"the join with {right.name!r} needs the column {key!r}"
            raise InvalidInput(Reason.COLUMN_MISSING, message, nearest(key, names))
    wanted, offered = left.column(left_key), right.table.column(right_key)
    if wanted.type != offered.type:
        wanted, offered = wanted.cast(pa.string()), offered.cast(pa.string())
    if pc.count_distinct(offered).as_py() != len(offered) - offered.null_count:
        raise _wrong(
            Reason.RECORDS_UNREADABLE,
            right.name,
            f"the key {right_key!r} occurs more than once",
            "join on a column whose values are unique",
        )
    index = pc.index_in(wanted, value_set=offered, skip_nulls=True)
    joined = right.table.take(index)
    for column in joined.column_names:
        left = left.append_column(f"{right.name}.{column}", joined.column(column))
    return left, int(index.null_count)


def _content(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        near = [p.name for p in path.parent.glob("*") if p.suffix.lower() in _READERS]
        raise _wrong(Reason.RECORDS_MISSING, name, f"there is no file {path.name}", nearest(path.name, near)) from None
    except OSError as error:
        raise _wrong(
            Reason.RECORDS_UNREADABLE, name, f"{path.name} cannot be read ({type(error).__name__})", "check the path"
        ) from None


def _read_csv(content: bytes, name: str) -> pa.Table:
    if content.count(b'"') % 2:
        raise _truncated(name, "a quote is opened and never closed")
    if not content.endswith((b"\n", b"\r")):
        raise _truncated(name, "the last line does not end", "; end it with a newline if nothing is missing")
    if b"\0" in content:
        raise _wrong(Reason.RECORDS_UNREADABLE, name, "the file holds NUL bytes", "write it as UTF-8 text")
    try:
        header = next(csv.reader(io.TextIOWrapper(io.BytesIO(content), "utf-8-sig", newline="")))
        _check_header(header, name)
        table = pacsv.read_csv(
            io.BytesIO(content),
            read_options=pacsv.ReadOptions(use_threads=False),  # with threads pyarrow does not know the row
            parse_options=pacsv.ParseOptions(newlines_in_values=True),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(header, pa.string()), null_values=[""], strings_can_be_null=True
            ),
        )
    except (pa.ArrowException, ValueError, csv.Error) as error:
        raise _told(error, name) from None
    return pa.table({column: _typed(table.column(column)) for column in table.column_names})


def _told(error: Exception, name: str) -> InvalidInput:
    """Say what of pyarrow's message is safe to say: the row, and whether cells are missing."""
    row = _ROW.search(str(error))
    where = f" in row {row.group(1)}" if row else ""
    counts = _COUNTS.search(str(error))
    if counts and int(counts.group(2)) < int(counts.group(1)):
        return _truncated(name, f"cells are missing{where}")
    return _wrong(
        Reason.RECORDS_UNREADABLE, name, f"the file is not CSV in UTF-8{where}", "check separators, quotes and encoding"
    )


def _typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.null_count == len(column):
        return column
    for pattern, kind in _TYPES:
        if pc.all(pc.match_substring_regex(column, pattern)).as_py():
            try:
                return column.cast(kind)
            except pa.ArrowInvalid:  # 30 February: leave it text, which no treatment of dates accepts
                return column
    return column


def _read_parquet(content: bytes, name: str) -> pa.Table:
    _check_magic(content, b"PAR1", b"PAR1", name, "Parquet")
    try:
        return _plain(pq.read_table(pa.BufferReader(content)))
    except (pa.ArrowException, ValueError, OSError):
        raise _wrong(Reason.RECORDS_UNREADABLE, name, "the file is not Parquet", "write it again") from None


def _read_arrow(content: bytes, name: str) -> pa.Table:
    _check_magic(content, b"ARROW1\0\0", b"ARROW1", name, "an Arrow file")
    try:
        table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
        table.validate(full=True)
        return _plain(table)
    except (pa.ArrowException, ValueError, OSError):
        raise _wrong(Reason.RECORDS_UNREADABLE, name, "the file is not an Arrow file", "write it again") from None


def _plain(table: pa.Table) -> pa.Table:
    """Decode dictionaries, and forget what the writer said of the schema."""
    _unique(table.column_names)
    columns = {name: table.column(name) for name in table.column_names}
    decoded = {n: c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for n, c in columns.items()}
    return pa.table(decoded)


def _unique(names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError("two columns share a name")


def _check_magic(content: bytes, head: bytes, foot: bytes, name: str, kind: str) -> None:
    if not content.startswith(head):
        raise _wrong(Reason.RECORDS_UNREADABLE, name, f"the file is not {kind}", "check its suffix")
    if not content.endswith(foot) or len(content) < len(head) + len(foot):
        raise _truncated(name, "its footer is missing")


def _check_header(names: list[str], name: str) -> None:
    """Refuse a header that may hold data: column names go into statements and messages."""
    if len(names) > _MAX_COLUMNS or len(set(names)) != len(names):
        raise _wrong(
            Reason.RECORDS_UNREADABLE, name, f"more than {_MAX_COLUMNS:,} columns, or two of one name", "rename them"
        )
    for position, column in enumerate(names, start=1):
        if not column or len(column) > _MAX_NAME or not column.isprintable() or _LOOKS_LIKE_DATA.match(column):
            raise _wrong(
                Reason.RECORDS_UNREADABLE,
                name,
                f"the name of column {position} looks like data",
                f"give the file a header line of printable names of at most {_MAX_NAME} characters",
            )


def _truncated(name: str, what: str, or_else: str = "") -> InvalidInput:
    return _wrong(Reason.RECORDS_TRUNCATED, name, f"the file is cut off: {what}", f"fetch the file again{or_else}")


def _wrong(reason: Reason, name: str, what: str, hint: str) -> InvalidInput:
    return InvalidInput(reason, f"records {name!r}: {what}", hint)


_READERS: Mapping[str, Callable[[bytes, str], pa.Table]] = {
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".arrow": _read_arrow,
}
