"""Treatment: from raw columns to columns of numbers, as the recipe says.

What comes out is float64 (measures; NaN is missing) or int32 (codes); text never comes out. A cell that does not fit
its treatment refuses the column: named is the column and how many cells, never a value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fabric.errors import Reason, Refused
from sanitize.recipe import Age, Bin, Clip, Column, Duration, Encode, Recipe, Round, Year

OTHER, MISSING = "(other)", "(missing)"
_EXACT = 2.0**53
_OLDEST = 90  # HIPAA 164.514(b)(2)(i)(C): ages over 89 may be aggregated into a single category of age 90 or older

Reals = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Codes = np.ndarray[Any, np.dtype[np.int32]]
Times = np.ndarray[Any, np.dtype[np.datetime64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a treatment did to a column, in counts and words.

    Attributes:
        grain: the step between values; None where there is no fixed one.
        levels: number of codes, or 0 for a measure.
    """

    why: str
    nulls: int
    clipped: int = 0
    folded: int = 0
    levels: int = 0
    grain: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Treated:
    """The outgoing columns as numbers, with what stays inside.

    Attributes:
        subjects: whose row each is, as numbers from 0.
        dictionaries: for each encoded column the level behind each code; never crosses.
    """

    table: pa.Table = field(repr=False)
    subjects: Ints = field(repr=False)
    dictionaries: Mapping[str, tuple[str, ...]] = field(repr=False)
    notes: Mapping[str, Note]


def apply(recipe: Recipe, table: pa.Table) -> Treated:
    """Return the columns that `recipe` lets out of `table`, treated.

    Raises:
        Refused: `COLUMN_REFUSED` if cells do not fit their treatment.
    """
    subjects = _subjects(recipe, table)
    columns: dict[str, Any] = {}
    notes: dict[str, Note] = {}
    dictionaries: dict[str, tuple[str, ...]] = {}
    for column in recipe.columns:
        if isinstance(column.treatment, Encode):
            codes, levels, note = _encode(column, column.treatment, table, subjects)
            dictionaries[column.name] = levels
            columns[column.name], notes[column.name] = codes, note
        elif isinstance(column.treatment, Bin):
            columns[column.name], notes[column.name] = _bin(column, column.treatment, table)
        else:
            columns[column.name], notes[column.name] = _measure(column, table)
    return Treated(table=pa.table(columns), subjects=subjects, dictionaries=dictionaries, notes=notes)


def _subjects(recipe: Recipe, table: pa.Table) -> Ints:
    if not recipe.subject:
        return np.arange(table.num_rows, dtype=np.int64)
    return _indices(table.column(recipe.subject))[0]


def _measure(column: Column, table: pa.Table) -> tuple[Reals, Note]:
    treatment, clipped, grain = column.treatment, 0, None
    if isinstance(treatment, Year):
        values, why, grain = _year(column, table), "the year only", 1.0
    elif isinstance(treatment, Age):
        values, why, grain = _age(column, treatment, table), f"whole years at {treatment.at}, over 89 as 90", 1.0
    elif isinstance(treatment, Duration):
        minutes = _minutes(column, treatment, table)
        values, grain = _rounded(minutes, treatment.to), float(treatment.to)
        why = f"minutes until {treatment.until}, rounded to {_short(treatment.to)}"
    elif isinstance(treatment, Round | Clip):
        values = _reals(column, table)
        values, clipped = _clipped(values, treatment.low, treatment.high)
        why = _within(treatment.low, treatment.high)
        if isinstance(treatment, Round):
            values, grain = _rounded(values, treatment.to), float(treatment.to)
            why = ", ".join(filter(None, (f"rounded to {_short(treatment.to)}", why)))
    else:
        values, why = _reals(column, table), "kept as it is: a number"
    return values, Note(why=why, nulls=int(np.isnan(values).sum()), clipped=clipped, grain=grain)


def _bin(column: Column, treatment: Bin, table: pa.Table) -> tuple[Codes, Note]:
    values = _reals(column, table)
    missing = np.isnan(values)
    codes = np.searchsorted([float(edge) for edge in treatment.edges], values, side="right") + 1
    codes[missing] = 0
    count = len(treatment.edges) + 2
    why = f"codes of {count - 1} intervals, 0 for missing"
    return codes.astype(np.int32), Note(why=why, nulls=int(missing.sum()), levels=count)


def _encode(column: Column, treatment: Encode, table: pa.Table, subjects: Ints) -> tuple[Codes, tuple[str, ...], Note]:
    source = table.column(column.source)
    try:
        index, levels = _indices(source.cast(pa.string()))
    except (pa.ArrowException, ValueError):
        raise _refused(column, f"cells of type {source.type} have no levels") from None
    kept = _levels_of_many(index, len(levels), subjects, treatment.min_count)
    code_of = np.zeros(len(levels), dtype=np.int32)
    named = sorted((level, i) for i, level in enumerate(levels) if level is not None and i in kept)
    for code, (_, i) in enumerate(named, start=2):
        code_of[i] = code
    for i in kept:
        if levels[i] is None:
            code_of[i] = 1
    names = (OTHER, MISSING, *(level for level, _ in named))
    folded = len(levels) - len(kept)
    why = f"codes of {len(names)} levels, whose dictionary stays inside; {folded} rare levels as one"
    nulls = source.null_count
    return code_of[index], names, Note(why=why, nulls=nulls, folded=folded, levels=len(names))


def _levels_of_many(index: Ints, count: int, subjects: Ints, min_count: int) -> list[int]:
    """Return the levels that `min_count` subjects share, such that all the others together are shared by as many."""
    people = int(subjects.max(initial=0)) + 1
    holders = np.bincount(np.unique(index * people + subjects) // people, minlength=count)
    kept = sorted((i for i in range(count) if holders[i] >= min_count), key=lambda i: int(holders[i]))
    rest = sorted({*range(count)} - {*kept})
    while rest and kept and len(np.unique(subjects[np.isin(index, rest)])) < min_count:
        rest.append(kept.pop(0))
    return kept


def _indices(column: pa.ChunkedArray) -> tuple[Ints, list[str | None]]:
    """Return each cell's place in the list of distinct values, and that list; null is a value."""
    coded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.combine_chunks()
    return coded.indices.to_numpy(zero_copy_only=False).astype(np.int64), coded.dictionary.to_pylist()


def _reals(column: Column, table: pa.Table) -> Reals:
    cells = table.column(column.source)
    kind = cells.type
    if pa.types.is_boolean(kind):
        cells = cells.cast(pa.int8())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        raise _refused(column, _not_numbers(cells))
    filled = cells.cast(pa.float64(), safe=False)
    values: Reals = np.array(filled.to_numpy(), dtype=np.float64)
    bad = int((np.abs(values) > _EXACT).sum())
    if bad:
        raise _refused(column, f"{bad:,} cells are infinite or larger than 2^53")
    return values


def _not_numbers(cells: pa.ChunkedArray) -> str:
    if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
        numbers = pc.sum(pc.match_substring_regex(cells, r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$")).as_py() or 0
        return f"{len(cells) - cells.null_count - numbers:,} of {len(cells):,} cells are text, not numbers"
    return f"its cells are {cells.type}, not numbers"


def _days(column: Column, cells: pa.ChunkedArray, source: str) -> Times:
    return _moments(column, cells, source).astype("datetime64[D]")


def _moments(column: Column, cells: pa.ChunkedArray, source: str) -> Times:
    if not (pa.types.is_date(cells.type) or pa.types.is_timestamp(cells.type)):
        raise _refused(column, f"{len(cells) - cells.null_count:,} cells of {source!r} are not dates in ISO 8601")
    return np.array(cells.cast(pa.timestamp("us"), safe=False).to_numpy(), dtype="datetime64[us]")


def _year(column: Column, table: pa.Table) -> Reals:
    days = _days(column, table.column(column.source), column.source)
    return _or_nan(days, days.astype("datetime64[Y]").astype(np.int64) + 1970)


def _age(column: Column, treatment: Age, table: pa.Table) -> Reals:
    born = _days(column, table.column(column.source), column.source)
    if isinstance(treatment.at, date):
        at: Times = np.full(len(born), np.datetime64(treatment.at, "D"))
    else:
        at = _days(column, table.column(treatment.at), treatment.at)
    years = _part(at, "Y") - _part(born, "Y")
    before = (_month_day(at) < _month_day(born)).astype(np.int64)
    ages = _or_nan(at, _or_nan(born, years - before))
    if unborn := int((ages < 0).sum()):
        raise _refused(column, f"{unborn:,} cells lie before the birth date")
    return np.minimum(ages, float(_OLDEST))


def _part(days: Times, unit: str) -> Ints:
    return days.astype(f"datetime64[{unit}]").astype(np.int64)


def _month_day(days: Times) -> Ints:
    months = days.astype("datetime64[M]")
    in_month = (days - months.astype("datetime64[D]")).astype(np.int64)
    codes: Ints = (_part(days, "M") % 12) * 32 + in_month
    return codes


def _minutes(column: Column, treatment: Duration, table: pa.Table) -> Reals:
    ends = [table.column(column.source), table.column(treatment.until)]
    zones = {getattr(cells.type, "tz", None) is not None for cells in ends}
    if len(zones) > 1:
        raise _refused(column, f"one of {column.source!r} and {treatment.until!r} has a time zone, the other has none")
    start, end = (_moments(column, c, s) for c, s in zip(ends, (column.source, treatment.until), strict=True))
    minutes = _or_nan(start, _or_nan(end, (end - start).astype(np.int64) / 60e6))
    if backwards := int((minutes < 0).sum()):
        raise _refused(column, f"{backwards:,} cells end before they begin")
    return minutes


def _or_nan(known: Times, values: Any) -> Reals:
    return np.where(np.isnat(known), np.nan, values)


def _clipped(values: Reals, low: Decimal | None, high: Decimal | None) -> tuple[Reals, int]:
    bottom = -np.inf if low is None else float(low)
    top = np.inf if high is None else float(high)
    return np.clip(values, bottom, top), int(((values < bottom) | (values > top)).sum())


def _rounded(values: Reals, to: Decimal) -> Reals:
    places = max(0, -int(to.normalize().as_tuple().exponent))
    return np.round(np.rint(values / float(to)) * float(to), places) + 0.0


def _within(low: Decimal | None, high: Decimal | None) -> str:
    bounds = (("at least", low), ("at most", high))
    return ", ".join(f"{word} {_short(bound)}" for word, bound in bounds if bound is not None)


def _short(number: Decimal) -> str:
    return format(number.normalize(), "f")


def _refused(column: Column, what: str) -> Refused:
    return Refused(
        Reason.COLUMN_REFUSED,
        f"column {column.name!r} (from {column.source!r}, {column.action}): {what}",
        "mend the records, choose another treatment, or leave the column inside",
    )
