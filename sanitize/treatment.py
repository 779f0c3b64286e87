"""Treatment: from raw columns to columns of numbers, as the recipe says.

Whole numbers become int32 or int64, other numbers float64; a missing number is NaN in a float column. A failure names
the column and how many cells failed, never a cell.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fabric.errors import InvalidInput, Reason
from sanitize.recipe import Age, Bin, Clip, Duration, Encode, Keep, Recipe, Round, Year

Floats = np.ndarray[Any, np.dtype[np.float64]]
OTHER = "(other)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Treated:
    """One outgoing column.

    Attributes:
        levels: of an encoded column, by code; code 0 is what is rare or missing. Stays inside.
        missing: cells without a value.
        folded: rows whose level was too rare for a code of its own.
    """

    values: pa.Array
    levels: tuple[str, ...] = ()
    missing: int = 0
    folded: int = 0


def treat(recipe: Recipe, table: pa.Table) -> dict[str, Treated]:
    """Make every outgoing column of the recipe from `table`.

    Raises:
        InvalidInput: `COLUMN_MISSING`; `RECIPE_INVALID` if a column does not fit its treatment.
    """
    recipe.check(table.column_names)
    return {name: _TREATMENTS[type(column)](name, column, table) for name, column in recipe.columns.items()}


def _keep(name: str, column: Keep, table: pa.Table) -> Treated:
    kind = table.schema.field(column.source).type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        values = table.column(column.source)
        if values.null_count == 0:
            return Treated(values=values.cast(pa.int64()).combine_chunks())
    return _numbers(_floats(name, column.source, table))


def _round(name: str, column: Round, table: pa.Table) -> Treated:
    values = _clipped(_floats(name, column.source, table), column.low, column.high)
    return _numbers(np.round(values / column.to) * column.to)


def _clip(name: str, column: Clip, table: pa.Table) -> Treated:
    return _numbers(_clipped(_floats(name, column.source, table), column.low, column.high))


def _bin(name: str, column: Bin, table: pa.Table) -> Treated:
    values = _floats(name, column.source, table)
    bins = np.digitize(values, sorted(column.edges)).astype(np.float64)
    return _numbers(np.where(np.isnan(values), np.nan, bins))


def _year(name: str, column: Year, table: pa.Table) -> Treated:
    return _numbers(_of_timestamps(pc.year(_timestamps(name, column.source, table))))


def _age(name: str, column: Age, table: pa.Table) -> Treated:
    born = _timestamps(name, column.source, table)
    fixed = column.fixed_date
    at = (
        pa.scalar(datetime(fixed.year, fixed.month, fixed.day), pa.timestamp("s"))
        if fixed
        else _timestamps(name, column.at, table)
    )
    had_birthday = pc.greater_equal(_day_of_year(at), _day_of_year(born))
    years = pc.subtract(pc.subtract(pc.year(at), pc.year(born)), pc.if_else(had_birthday, 0, 1))
    ages = _of_timestamps(years)
    bad = int(np.sum(ages < 0))
    if bad:
        raise InvalidInput(
            Reason.RECIPE_INVALID, f"column {name!r}: {bad} births lie after the date of the age", "mend the records"
        )
    # 45 CFR 164.514(b)(2)(i)(C): ages over 89 may only be one category of 90 or older.
    return _numbers(np.minimum(ages, 90))


def _duration(name: str, column: Duration, table: pa.Table) -> Treated:
    start, end = _timestamps(name, column.source, table), _timestamps(name, column.until, table)
    minutes = _of_timestamps(pc.seconds_between(start, end)) / 60
    return _numbers(np.round(minutes / column.to) * column.to)


def _encode(name: str, column: Encode, table: pa.Table) -> Treated:
    values = table.column(column.source)
    if pa.types.is_nested(values.type):
        raise _unfit(name, "it is nested")
    texts = values.cast(pa.string()).combine_chunks()
    counted = {entry["values"]: entry["counts"] for entry in pc.value_counts(texts.drop_null()).to_pylist()}
    common = sorted(level for level, count in counted.items() if count >= column.min_count)
    codes = pc.add(pc.fill_null(pc.index_in(texts, value_set=pa.array(common, pa.string())), -1), 1)
    folded = sum(count for count in counted.values() if count < column.min_count)
    return Treated(values=codes.cast(pa.int32()), levels=(OTHER, *common), missing=texts.null_count, folded=folded)


_TREATMENTS: Mapping[type, Callable[[str, Any, pa.Table], Treated]] = {
    Keep: _keep,
    Round: _round,
    Clip: _clip,
    Bin: _bin,
    Year: _year,
    Age: _age,
    Duration: _duration,
    Encode: _encode,
}


def _floats(name: str, source: str, table: pa.Table) -> Floats:
    values = table.column(source)
    kind = values.type
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise _unfit(name, f"{source!r} is no column of numbers")
    numbers: Floats = values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False).astype(np.float64)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _timestamps(name: str, source: str, table: pa.Table) -> pa.ChunkedArray:
    values = table.column(source)
    kind = values.type
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return values.cast(pa.timestamp("s"), safe=False)
    if not pa.types.is_string(kind) and not pa.types.is_large_string(kind):
        raise _unfit(name, f"{source!r} is no column of dates")
    try:
        return values.cast(pa.timestamp("s", "UTC")).cast(pa.timestamp("s"))
    except pa.ArrowInvalid:
        raise _unfit(name, f"{source!r} has cells that are no ISO 8601 dates") from None


def _day_of_year(when: Any) -> Any:
    return pc.add(pc.multiply(pc.month(when), 100), pc.day(when))


def _of_timestamps(values: pa.ChunkedArray) -> Floats:
    numbers: Floats = values.cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    return numbers


def _clipped(values: Floats, low: float | None, high: float | None) -> Floats:
    return np.clip(values, -np.inf if low is None else low, np.inf if high is None else high)


def _numbers(values: Floats) -> Treated:
    missing = int(np.isnan(values).sum())
    if not missing and np.all(values == np.floor(values)) and np.all(np.abs(values) < 2**53):
        return Treated(values=pa.array(values.astype(np.int64)))
    return Treated(values=pa.array(values, from_pandas=False), missing=missing)


def _unfit(name: str, why: str) -> InvalidInput:
    return InvalidInput(
        Reason.RECIPE_INVALID, f"column {name!r} cannot be made: {why}", "choose another treatment or column"
    )
