"""Reading raw records, in the private zone only: CSV, Parquet or Arrow IPC files, refused unless whole.

No message of a parser is passed on: they quote the row they failed on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from fabric.errors import InvalidInput, Reason, nearest
from sanitize.recipe import Recipe

SUFFIXES = (".arrow", ".csv", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTable:
    """Raw records and the digest of the file they came from."""

    table: pa.Table
    version: str


def read_records(path: Path, *, name: str) -> RawTable:
    """Read records whole.

    In a CSV file, a column whose values have leading zeros stays text, so that no code becomes another code.

    Raises:
        InvalidInput: `RECORDS_MISSING`, `RECORDS_EMPTY`, `RECORDS_TRUNCATED` or `RECORDS_UNREADABLE`.
    """
    if not path.is_file():
        files = [p.name for p in path.parent.glob("*") if p.is_file()] if path.parent.is_dir() else []
        raise InvalidInput(
            Reason.RECORDS_MISSING, f"records {name!r}: there is no file {path}", nearest(path.name, files)
        )
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInput(
            Reason.RECORDS_UNREADABLE,
            f"records {name!r}: {path.name} is of no known kind",
            f"use a file that ends in {', '.join(SUFFIXES)}",
        )
    try:
        version = _digest(path)
        if path.stat().st_size == 0:
            raise _empty(name)
        table = _READERS[path.suffix.lower()](path, name)
    except OSError:
        raise InvalidInput(
            Reason.RECORDS_UNREADABLE, f"records {name!r}: {path.name} cannot be read", "check its permissions"
        ) from None
    if table.num_rows == 0:
        raise _empty(name)
    if len(set(table.column_names)) != table.num_columns:
        raise InvalidInput(Reason.RECORDS_UNREADABLE, f"records {name!r}: two columns have the same name", "rename one")
    return RawTable(table=table, version=version)


def join_records(raw: Mapping[str, RawTable], recipe: Recipe) -> tuple[pa.Table, dict[str, int]]:
    """Return the recipe's records with the joined ones beside them, and how many rows each join found no match for.

    Raises:
        InvalidInput: `COLUMN_MISSING` for a key column; `RECIPE_INVALID` if a right key is not unique.
    """
    table = raw[recipe.records].table
    unmatched = {}
    for name, join in recipe.join.items():
        other = raw[name].table
        for side, column, names in (("left", join.left, table.column_names), ("right", join.right, other.column_names)):
            if column not in names:
                raise InvalidInput(
                    Reason.COLUMN_MISSING, f"join {name!r}: no {side} column {column!r}", nearest(column, names)
                )
        keys = other.column(join.right)
        if pc.count_distinct(keys, mode="all").as_py() != len(keys):
            raise InvalidInput(
                Reason.RECIPE_INVALID, f"join {name!r}: column {join.right!r} is not unique", "join on a unique key"
            )
        index = pc.index_in(table.column(join.left).cast(keys.type), value_set=keys.combine_chunks())
        unmatched[name] = index.null_count
        for column in other.column_names:
            table = table.append_column(f"{name}.{column}", other.column(column).take(index))
    return table, unmatched


def _read_csv(path: Path, name: str) -> pa.Table:
    with path.open("rb") as file:
        file.seek(-1, 2)
        if file.read(1) not in (b"\n", b"\r"):
            raise _truncated(name, "its last line does not end", "if it is whole, end it with a newline")
    short: list[int] = []

    def invalid(row: csv.InvalidRow) -> str:
        short.append(row.number or 0)
        return "error"

    parse = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=invalid)
    try:
        # Single-threaded, so that Arrow knows the row's number.
        text = csv.read_csv(
            path,
            read_options=csv.ReadOptions(use_threads=False),
            parse_options=parse,
            convert_options=csv.ConvertOptions(strings_can_be_null=True),
        )
    except (pa.ArrowException, UnicodeDecodeError):
        where = f"row {short[0]} has another number of columns" if short else "it is cut off or no CSV in UTF-8"
        raise _truncated(name, where, "export it again") from None
    padded = _padded_columns(path, text)
    if not padded:
        return text
    options = csv.ConvertOptions(strings_can_be_null=True, column_types={column: pa.string() for column in padded})
    return csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=options)


def _padded_columns(path: Path, table: pa.Table) -> list[str]:
    """Return the integer columns whose text has leading zeros: codes, not numbers."""
    integers = [f.name for f in table.schema if pa.types.is_integer(f.type)]
    if not integers:
        return []
    options = csv.ConvertOptions(include_columns=integers, column_types={column: pa.string() for column in integers})
    text = csv.read_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=options)
    return [
        column for column in integers if pc.any(pc.match_substring_regex(text.column(column), r"^\s*[-+]?0\d")).as_py()
    ]


def _read_parquet(path: Path, name: str) -> pa.Table:
    try:
        return parquet.read_table(path)
    except pa.ArrowException:
        raise _truncated(name, "it is cut off or no Parquet file", "copy it again") from None


def _read_arrow(path: Path, name: str) -> pa.Table:
    try:
        with pa.OSFile(str(path)) as file:
            return pa.ipc.open_file(file).read_all()
    except pa.ArrowException:
        raise _truncated(name, "it is cut off or no Arrow IPC file", "copy it again") from None


_READERS = {".csv": _read_csv, ".parquet": _read_parquet, ".arrow": _read_arrow}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


def _empty(name: str) -> InvalidInput:
    return InvalidInput(Reason.RECORDS_EMPTY, f"records {name!r} hold no row", "check the export that made the file")


def _truncated(name: str, where: str, way_out: str) -> InvalidInput:
    return InvalidInput(Reason.RECORDS_TRUNCATED, f"records {name!r} are not whole: {where}", way_out)
