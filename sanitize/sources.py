"""Sources: records read in blocks, so that memory stays bounded however many rows there are.

A source knows the digest of its file and reads it again block by block; a file that changed since is refused. A unit
is a range of rows that one worker reads by itself: row groups of Parquet, record batches of Arrow. CSV cannot be
entered in the middle, so it is written once, as text, into a folder of the private zone, every cell having its say on
its column's type; from there it is read like Arrow. pyarrow's messages quote cells, so none is passed on.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from fabric.errors import InvalidInput, Reason, nearest

UNIT_ROWS = 524_288
"""About how many rows one worker takes at a time; a row group is never split between workers."""

BLOCK_ROWS = 131_072
"""How many rows are in memory at a time."""

Identity = tuple[int, int, int, int, int]
"""A file's device, inode, size, and the times when its content and its inode changed; the last cannot be set back."""

_READ = 8 << 20
_SUFFIXES = (".csv", ".parquet", ".arrow")
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


class Source(Protocol):
    """Records that can be read again, block by block.

    Attributes:
        columns: the name of each column.
        version: digest of the file's bytes.
        order_key: derived from the file's bytes, for a row order that nobody without them can work out.
        units: rows of each unit; they follow one another.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def columns(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def order_key(self) -> bytes: ...  # noqa: D102
    @property
    def units(self) -> tuple[int, ...]: ...  # noqa: D102

    def read(self, unit: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the unit's rows, in order, in blocks.

        Raises:
            InvalidInput: `RECORDS_UNREADABLE`: the file is damaged, or changed since it was opened.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSource:
    """Records in a file that can be entered in the middle.

    Attributes:
        parts: for each unit, the row groups or record batches that are in it.
        types: for text that is numbers or times, its place in the list of types.
        identity: of the file as it was opened.
    """

    name: str
    path: Path
    kind: str
    columns: tuple[str, ...]
    version: str
    order_key: bytes = field(repr=False)
    units: tuple[int, ...]
    parts: tuple[tuple[int, int], ...]
    types: Mapping[str, int]
    identity: Identity

    def read(self, unit: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the unit's rows in blocks.

        Raises:
            InvalidInput: `RECORDS_UNREADABLE`.
        """
        first, last = self.parts[unit]
        rows = 0
        try:
            with self.path.open("rb") as file:
                if _stat(os.fstat(file.fileno())) != self.identity:
                    raise _changed(self.name)
                blocks = _parquet_blocks if self.kind == "parquet" else _arrow_blocks
                for block in blocks(file, range(first, last), list(columns)):
                    rows += block.num_rows
                    yield _plain(self._typed(block))
        except (pa.ArrowException, ValueError, KeyError, OSError):
            raise _unreadable(self.name, "the file cannot be read to its end", "write it again") from None
        # A file that is mapped shows what is written into it while it is read.
        if rows != self.units[unit] or identity(self.path) != self.identity:
            raise _changed(self.name)

    def _typed(self, block: pa.Table) -> pa.Table:
        if not self.types:
            return block
        return pa.table({name: self._cast(name, block.column(name)) for name in block.column_names})

    def _cast(self, name: str, cells: pa.ChunkedArray) -> pa.ChunkedArray:
        return cells.cast(_TYPES[self.types[name]][1]) if name in self.types else cells


def open_source(path: Path, *, name: str, stage: Path) -> FileSource:
    """Open the records called `name`: a .csv, .parquet or .arrow file.

    Args:
        stage: folder of the private zone where a CSV file is written again as Arrow.

    Raises:
        InvalidInput: `RECORDS_MISSING`, `RECORDS_EMPTY`, `RECORDS_TRUNCATED` or `RECORDS_UNREADABLE`.
    """
    kind = path.suffix.lower()
    if kind not in _SUFFIXES:
        raise _unreadable(name, f"{path.name} has an unknown suffix", nearest(path.suffix, _SUFFIXES))
    try:
        with path.open("rb") as file:
            identity = _stat(os.fstat(file.fileno()))
            facts = _facts(file)
    except FileNotFoundError:
        raise _no_file(path, name) from None
    except OSError as error:
        raise _unreadable(name, f"{path.name} cannot be read ({type(error).__name__})", "check the path") from None
    if facts.blank:
        raise _wrong(Reason.RECORDS_EMPTY, name, f"{path.name} is empty", "name a file with rows in it")
    opened = _open_csv(path, name, facts, stage) if kind == ".csv" else _open_binary(path, name, kind, facts, identity)
    if not sum(opened.units):
        raise _wrong(Reason.RECORDS_EMPTY, name, f"{path.name} has no rows", "name a file with rows in it")
    _check_header(list(opened.columns), name)
    return opened


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """What one reading of a file's bytes tells."""

    version: str
    order_key: bytes
    blank: bool
    quotes: int
    has_nul: bool
    head: bytes
    tail: bytes
    size: int


def _facts(file: io.BufferedReader) -> _Facts:
    sha, order = hashlib.sha256(), hashlib.blake2b(digest_size=32, person=b"row order")
    blank, quotes, has_nul, head, tail, size = True, 0, False, b"", b"", 0
    while block := file.read(_READ):
        sha.update(block)
        order.update(block)
        blank = blank and not block.strip()
        quotes += block.count(b'"')
        has_nul = has_nul or b"\0" in block
        head = head or block[:8]
        tail = (tail + block)[-8:]
        size += len(block)
    return _Facts(
        version="sha256:" + sha.hexdigest(), order_key=order.digest(), blank=blank, quotes=quotes, has_nul=has_nul,
        head=head, tail=tail, size=size,
    )  # fmt: skip


def identity(path: Path) -> Identity:
    """Return what changes when a file is written to, or zeros if it is not there."""
    try:
        return _stat(path.stat())
    except OSError:
        return (0, 0, 0, 0, 0)


def _stat(found: os.stat_result) -> Identity:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _open_binary(path: Path, name: str, kind: str, facts: _Facts, identity: Identity) -> FileSource:
    marks = (b"PAR1", b"PAR1", "Parquet") if kind == ".parquet" else (b"ARROW1\0\0", b"ARROW1", "an Arrow file")
    head, foot, called = marks
    if not facts.head.startswith(head):
        raise _unreadable(name, f"the file is not {called}", "check its suffix")
    if not facts.tail.endswith(foot) or facts.size < len(head) + len(foot):
        raise _truncated(name, "its footer is missing")
    try:
        columns, rows = (_parquet_shape if kind == ".parquet" else _arrow_shape)(path)
    except (pa.ArrowException, ValueError, OSError):
        raise _unreadable(name, f"the file is not {called}", "write it again") from None
    units, parts = _grouped(rows)
    return FileSource(
        name=name, path=path, kind=kind[1:], columns=tuple(columns), version=facts.version, order_key=facts.order_key,
        units=units, parts=parts, types={}, identity=identity,
    )  # fmt: skip


def _grouped(rows: Sequence[int]) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """Return the rows of each unit, and the groups that are in it, as (first, after the last)."""
    units: list[int] = []
    parts: list[tuple[int, int]] = []
    for index, count in enumerate(rows):
        if units and units[-1] + count <= UNIT_ROWS:
            units[-1] += count
            parts[-1] = (parts[-1][0], index + 1)
        else:
            units.append(count)
            parts.append((index, index + 1))
    return tuple(units), tuple(parts)


def _cut(rows: int, size: int) -> Iterator[int]:
    for start in range(0, rows, size):
        yield min(size, rows - start)


def _parquet_shape(path: Path) -> tuple[list[str], list[int]]:
    with pq.ParquetFile(path) as file:
        about = file.metadata
        return file.schema_arrow.names, [about.row_group(group).num_rows for group in range(about.num_row_groups)]


def _parquet_blocks(file: Any, groups: range, columns: list[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as parquet:
        for batch in parquet.iter_batches(
            batch_size=BLOCK_ROWS, row_groups=list(groups), columns=columns, use_threads=False
        ):
            yield pa.Table.from_batches([batch]).select(columns)


def _arrow_shape(path: Path) -> tuple[list[str], list[int]]:
    with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
        rows = [reader.get_batch(index).num_rows for index in range(reader.num_record_batches)]
        return reader.schema.names, rows


def _arrow_blocks(file: Any, batches: range, columns: list[str]) -> Iterator[pa.Table]:
    with pa.memory_map(file.name) as mapped, pa.ipc.open_file(mapped) as reader:
        for index in batches:
            batch = reader.get_batch(index)
            batch.validate(full=True)
            table = pa.Table.from_batches([batch]).select(columns)
            for start in range(0, table.num_rows, BLOCK_ROWS):
                yield table.slice(start, BLOCK_ROWS)


def _open_csv(path: Path, name: str, facts: _Facts, stage: Path) -> FileSource:
    """Write the file again as Arrow, unless that was done before, and open it there."""
    if facts.quotes % 2:
        raise _truncated(name, "a quote is opened and never closed")
    if facts.tail[-1:] not in (b"\n", b"\r"):
        raise _truncated(name, "the last line does not end", "; end it with a newline if nothing is missing")
    if facts.has_nul:
        raise _unreadable(name, "the file holds NUL bytes", "write it as UTF-8 text")
    staged = stage / f"{facts.version.removeprefix('sha256:')}.arrow"
    about = staged.with_suffix(".json")
    if not about.exists():
        _stage(path, name, facts, staged)
    types = json.loads(about.read_text())
    columns, rows = _arrow_shape(staged)
    units, parts = _grouped(rows)
    with staged.open("rb") as file:
        identity = _stat(os.fstat(file.fileno()))
    return FileSource(
        name=name, path=staged, kind="arrow", columns=tuple(columns), version=facts.version,
        order_key=facts.order_key, units=units, parts=parts, types=types, identity=identity,
    )  # fmt: skip


def _stage(path: Path, name: str, facts: _Facts, staged: Path) -> None:
    part = staged.with_suffix(f".{os.getpid()}.part")
    about = part.with_suffix(".json")
    try:
        with path.open("rb") as file:
            header = next(csv.reader(io.TextIOWrapper(io.BytesIO(_first_line(file)), "utf-8-sig", newline="")))
            _check_header(header, name)
            file.seek(0)
            hashing = _Hashing(file)
            types = _write_staged(hashing, header, part)
        if hashing.version() != facts.version:
            raise _changed(name)
        about.write_text(json.dumps(types))  # names of columns and kinds, no cell
        part.replace(staged)
        about.replace(staged.with_suffix(".json"))
    except (pa.ArrowException, ValueError, csv.Error, StopIteration) as error:
        raise _told(error, name) from None
    finally:
        part.unlink(missing_ok=True)
        about.unlink(missing_ok=True)


def _first_line(file: io.BufferedReader) -> bytes:
    """Return what the header is in: lines until every quote is closed."""
    line = file.readline()
    while line.count(b'"') % 2 and (more := file.readline()):
        line += more
    return line


class _Hashing(io.RawIOBase):
    """A file that remembers the digest of what was read of it."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._sha = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._sha.update(memoryview(buffer)[:count])
        return count

    def version(self) -> str:
        """Return the digest of what was read."""
        return "sha256:" + self._sha.hexdigest()


def _write_staged(file: Any, header: list[str], part: Path) -> dict[str, int]:
    """Write the rows as text and return each column's type: the first that all of its cells are written as."""
    left = {column: list(range(len(_TYPES))) for column in header}
    known = dict.fromkeys(header, False)
    schema = pa.schema([pa.field(column, pa.string()) for column in header])
    with (
        pacsv.open_csv(file, **_csv_options(header)) as reader,
        open(os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600), "wb") as sink,
        pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer,
    ):
        for batch in reader:
            writer.write_batch(pa.record_batch(batch.columns, schema=schema))
            for column in header:
                cells = batch.column(column).drop_null()
                known[column] = known[column] or len(cells) > 0
                left[column] = [kind for kind in left[column] if _fits(cells, kind)]
    return {column: kinds[0] for column, kinds in left.items() if kinds and known[column]}


def _fits(cells: pa.Array, kind: int) -> bool:
    pattern, target = _TYPES[kind]
    if not len(cells):
        return True
    if not pc.all(pc.match_substring_regex(cells, pattern)).as_py():
        return False
    try:
        cells.cast(target)
    except pa.ArrowInvalid:  # 30 February: it stays text, which no treatment of dates accepts
        return False
    return True


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


def _plain(table: pa.Table) -> pa.Table:
    """Decode dictionaries, and forget what the writer said of the schema."""
    _unique(table.column_names)
    columns = {name: table.column(name) for name in table.column_names}
    decoded = {n: c.cast(c.type.value_type) if pa.types.is_dictionary(c.type) else c for n, c in columns.items()}
    return pa.table(decoded)


def _unique(names: list[str]) -> None:
    if len(set(names)) != len(names):
        raise ValueError("two columns share a name")


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


def _unreadable(name: str, what: str, hint: str) -> InvalidInput:
    return _wrong(Reason.RECORDS_UNREADABLE, name, what, hint)


def _changed(name: str) -> InvalidInput:
    return _unreadable(name, "the file changed while it was read", "leave it as it is until sanitizing is done")


def _no_file(path: Path, name: str) -> InvalidInput:
    near = [p.name for p in path.parent.glob("*") if p.suffix.lower() in _SUFFIXES]
    return _wrong(Reason.RECORDS_MISSING, name, f"there is no file {path.name}", nearest(path.name, near))


def _csv_options(header: list[str]) -> dict[str, Any]:
    return {
        "read_options": pacsv.ReadOptions(use_threads=False, block_size=_READ),
        "parse_options": pacsv.ParseOptions(newlines_in_values=True),
        "convert_options": pacsv.ConvertOptions(
            column_types=dict.fromkeys(header, pa.string()), null_values=[""], strings_can_be_null=True
        ),
    }
