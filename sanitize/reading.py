"""Reading of raw records that fit into memory, in the private zone only, and joins between them.

What is read is read whole or refused. `sanitize.sources` reads the files; here they become tables.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fabric.errors import InvalidInput, Reason, nearest
from sanitize.sources import BLOCK_ROWS, UNIT_ROWS, Source, open_source


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


@dataclass(frozen=True, slots=True)
class TableSource:
    """Records in memory, as a source."""

    raw: RawTable
    unit_rows: int = UNIT_ROWS
    block_rows: int = BLOCK_ROWS

    @property
    def name(self) -> str:
        """Return the records' name."""
        return self.raw.name

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the names of the columns."""
        return tuple(self.raw.table.column_names)

    @property
    def version(self) -> str:
        """Return the digest of the bytes it was read from."""
        return self.raw.version

    @property
    def order_key(self) -> bytes:
        """Return the secret part of the order of rows."""
        return self.raw.order_key

    @property
    def units(self) -> tuple[int, ...]:
        """Return the rows of each unit."""
        return tuple(min(self.unit_rows, self.raw.rows - at) for at in range(0, self.raw.rows, self.unit_rows))

    def read(self, unit: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the unit's rows in blocks."""
        first = unit * self.unit_rows
        table = self.raw.table.select(list(columns)).slice(first, self.units[unit])
        for start in range(0, table.num_rows, self.block_rows):
            yield table.slice(start, self.block_rows)


def read_records(path: Path, *, name: str) -> RawTable:
    """Read the records called `name` from a .csv, .parquet or .arrow file.

    Raises:
        InvalidInput: `RECORDS_MISSING`, `RECORDS_EMPTY`, `RECORDS_TRUNCATED` or `RECORDS_UNREADABLE`.
    """
    with tempfile.TemporaryDirectory(prefix="fabric-stage-") as stage:
        return read_whole(open_source(path, name=name, stage=Path(stage)))


def read_whole(source: Source, columns: Sequence[str] | None = None) -> RawTable:
    """Return a source's rows as one table in memory, of all its columns or the named ones."""
    wanted = source.columns if columns is None else columns
    table = pa.concat_tables(block for unit in range(len(source.units)) for block in source.read(unit, wanted))
    return RawTable(name=source.name, table=table, version=source.version, order_key=source.order_key)


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
        raise InvalidInput(
            Reason.RECORDS_UNREADABLE,
            f"records {right.name!r}: the key {right_key!r} occurs more than once",
            "join on a column whose values are unique",
        )
    index = pc.index_in(wanted, value_set=offered, skip_nulls=True)
    joined = right.table.take(index)
    for column in joined.column_names:
        left = left.append_column(f"{right.name}.{column}", joined.column(column))
    return left, int(index.null_count)
