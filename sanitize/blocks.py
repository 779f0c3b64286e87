"""Blocks: the cells of one column in one block of rows, as numbers, times, texts or levels.

A cell that does not fit refuses its column: named are the column, how many cells of the block and the row of the
first, never a value. What the cells of a block become depends on these cells alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fabric.errors import Reason, Refused
from sanitize.recipe import Column
from sanitize.treatments import Age, Duration, Prefix

Reals = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Places = np.ndarray[Any, np.dtype[np.int32]]
Marks = np.ndarray[Any, np.dtype[np.bool_]]
Times = np.ndarray[Any, np.dtype[np.datetime64]]

_EXACT = 2.0**53  # from here on neighbouring whole numbers are one real
_OLDEST = 90  # HIPAA 164.514(b)(2)(i)(C): ages over 89 may be aggregated into a single category of age 90 or older
_FIRST_DAY, _LAST_DAY = np.datetime64("0001-01-01"), np.datetime64("9999-12-31")
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$"
_ZIP = r"^([0-9]{3}|[0-9]{5}([- ]?[0-9]{4})?)$"  # three digits: cut off before
_POSTCODE = r"^[0-9A-Z][0-9A-Z -]{0,11}$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """The cells that one outgoing column is made from.

    Attributes:
        first_row: number of the block's first row among all rows.
    """

    column: Column
    table: pa.Table = field(repr=False)
    first_row: int

    def reals(self) -> Reals:
        """Return the cells as numbers, NaN where one is missing.

        Raises:
            Refused: `COLUMN_REFUSED`: they are no numbers, or no real holds them.
        """
        cells = self._cells(self.column.source)
        kind = cells.type
        if cells.null_count == len(cells):
            return np.full(len(cells), np.nan)
        if pa.types.is_boolean(kind):
            cells = cells.cast(pa.int8())
        elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
            raise self._no_numbers(cells)
        values: Reals = np.asarray(cells.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
        bad = np.abs(values) >= _EXACT
        if bad.any():
            raise self.misfit(bad, "are infinite, or 2^53 and more")
        return values

    def texts(self) -> pa.LargeStringArray:
        """Return the cells, which must be text.

        Raises:
            Refused: `COLUMN_REFUSED`.
        """
        cells = self._cells(self.column.source)
        if not (_is_string(cells.type) or _is_bytes(cells.type) or cells.null_count == len(cells)):
            raise refused(self.column, f"its cells are {type_name(cells.type)}, not text")
        try:
            return _whole(cells.cast(pa.large_string()))
        except pa.ArrowException:
            raise refused(self.column, "its cells are bytes, not text") from None

    def levels(self) -> tuple[Places, pa.LargeStringArray]:
        """Return each cell's place among the distinct values, and these as text; a missing one is a null.

        Raises:
            Refused: `COLUMN_REFUSED`: such cells have no levels.
        """
        cells = self._cells(self.column.source)
        try:
            return distinct(cells)
        except (pa.ArrowException, ValueError):
            raise refused(self.column, f"cells of type {type_name(cells.type)} have no levels") from None

    def years(self) -> Reals:
        """Return the year of each date.

        Raises:
            Refused: `COLUMN_REFUSED`.
        """
        days = self.days(self.column.source)
        return _or_nan(days, _calendar(days) // 10_000)

    def ages(self, treatment: Age) -> Reals:
        """Return whole years from each date to `at`, the oldest together, or the lowest of their band.

        Raises:
            Refused: `COLUMN_REFUSED`.
        """
        born = self.days(self.column.source)
        if isinstance(treatment.at, date):
            at: Times = np.full(len(born), np.datetime64(treatment.at, "D"))
        else:
            at = self.days(treatment.at)
        ages = _or_nan(at, _or_nan(born, (_calendar(at) - _calendar(born)) // 10_000))
        if (unborn := ages < 0).any():
            raise self.misfit(unborn, "lie before the birth date")
        banded = ages if treatment.band is None else np.floor(ages / treatment.band) * treatment.band
        return np.where(ages >= _OLDEST, float(_OLDEST), banded)

    def days(self, source: str) -> Times:
        """Return the days of `source`, those of times with a zone in UTC.

        Raises:
            Refused: `COLUMN_REFUSED`.
        """
        return self._moments(source).astype("datetime64[D]")

    def minutes(self, treatment: Duration) -> Reals:
        """Return the minutes from each time to the other.

        Raises:
            Refused: `COLUMN_REFUSED`.
        """
        sources = (self.column.source, treatment.until)
        if len({getattr(self._cells(source).type, "tz", None) is None for source in sources}) > 1:
            raise refused(self.column, f"one of {sources[0]!r} and {sources[1]!r} has a time zone, the other has none")
        start, end = (self._moments(source) for source in sources)
        minutes = _or_nan(start, _or_nan(end, (end - start).astype(np.int64) / 60e6))
        if (backwards := minutes < 0).any():
            raise self.misfit(backwards, "end before they begin")
        return minutes

    def prefixes(self, treatment: Prefix) -> tuple[Places, pa.LargeStringArray]:
        """Return each cell's place among the distinct beginnings of postcodes, and these.

        Raises:
            Refused: `COLUMN_REFUSED`.
        """
        kind = self._cells(self.column.source).type
        places, levels = self.levels()
        codes = pc.utf8_upper(pc.utf8_trim_whitespace(levels))
        if treatment.restricted and (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            codes = _with_lost_zeros(codes)
        sound = pc.match_substring_regex(codes, _ZIP if treatment.restricted else _POSTCODE)
        codes = pc.replace_substring_regex(codes, "[ -]", "")
        sound = pc.and_(sound, pc.greater_equal(pc.utf8_length(codes), treatment.digits))
        bad = _marks(pc.invert(sound))[places]
        if bad.any():
            what = "ZIP codes" if treatment.restricted else "postcodes"
            raise self.misfit(bad, f"are not {what} of {treatment.digits} digits and more")
        starts = pc.utf8_slice_codeunits(codes, 0, treatment.digits)
        short = [start for start in treatment.restricted if len(start) <= treatment.digits]
        for length in sorted({len(start) for start in short}):
            begins = pa.array([start for start in short if len(start) == length], pa.large_string())
            few = pc.is_in(pc.utf8_slice_codeunits(codes, 0, length), value_set=begins)
            starts = pc.if_else(few, pa.scalar("0" * treatment.digits, pa.large_string()), starts)
        return merged(places, starts)

    def rewritten(self, rewrite: Callable[[Sequence[str]], Sequence[str]]) -> tuple[Places, pa.LargeStringArray]:
        """Return each text's place among the distinct texts that `rewrite` makes of them, and these.

        Raises:
            Refused: `COLUMN_REFUSED`.
        """
        places, levels = distinct(pa.chunked_array([self.texts()]))
        known = [level for level in levels.to_pylist() if level is not None]
        try:
            written = dict(zip(known, rewrite(known), strict=True))
        except Refused as wrong:
            raise Refused(wrong.reason, f"column {self.column.name!r}: {wrong.message}", wrong.hint) from None
        again = [None if level is None else written[level] for level in levels.to_pylist()]
        return merged(places, pa.array(again, pa.large_string()))

    def misfit(self, bad: Marks, what: str) -> Refused:
        """Return the refusal of the column for the cells in `bad`."""
        first = self.first_row + int(np.argmax(bad))
        return refused(self.column, f"{int(bad.sum()):,} cells {what}, the first in row {first:,}")

    def _cells(self, source: str) -> pa.ChunkedArray:
        cells = self.table.column(source)
        return cells.cast(cells.type.value_type) if pa.types.is_dictionary(cells.type) else cells

    def _no_numbers(self, cells: pa.ChunkedArray) -> Refused:
        if not _is_string(cells.type):
            return refused(self.column, f"its cells are {type_name(cells.type)}, not numbers")
        text = _marks(pc.invert(pc.match_substring_regex(cells.cast(pa.large_string()), _NUMBER)))
        if not text.any():
            return refused(self.column, "its cells are numbers written as text")
        first = self.first_row + int(np.argmax(text))
        what = f"{int(text.sum()):,} of {len(cells):,} cells are text, not numbers, the first in row {first:,}"
        return refused(self.column, what)

    def _moments(self, source: str) -> Times:
        """Return the times of `source` to the microsecond, those with a zone in UTC."""
        cells = self._cells(source)
        if cells.null_count == len(cells):
            return np.full(len(cells), np.datetime64("NaT", "us"))
        if not (pa.types.is_date(cells.type) or pa.types.is_timestamp(cells.type)):
            raise self.misfit(_marks(cells.is_valid()), f"of {source!r} are not dates in ISO 8601")
        times: Times = np.asarray(cells.to_numpy())
        days = times.astype("datetime64[D]")
        if (bad := (days < _FIRST_DAY) | (days > _LAST_DAY)).any():
            raise self.misfit(bad, f"of {source!r} lie outside the years 1 to 9999")
        return times.astype("datetime64[us]")


def distinct(cells: pa.ChunkedArray) -> tuple[Places, pa.LargeStringArray]:
    """Return each cell's place among the distinct values, and these as text; a null, or a NaN, is a value.

    Raises:
        pyarrow.ArrowException: such cells have no text form. Its message may quote one.
    """
    kind = cells.type
    if pa.types.is_float16(kind):
        cells = cells.cast(pa.float32())
    if pa.types.is_floating(kind):
        cells = pc.if_else(pc.is_nan(cells), None, cells)
    elif not (pa.types.is_integer(kind) or pa.types.is_temporal(kind)):
        cells = cells.cast(pa.large_string())
    coded = _whole(cells).dictionary_encode(null_encoding="encode")
    return coded.indices.to_numpy(), coded.dictionary.cast(pa.large_string())


def type_name(kind: pa.DataType) -> str:
    """Return a type's name without what its writer put into it: names of fields, a time zone, an extension's name."""
    return re.split(r"[<\[(]", str(kind), maxsplit=1)[0]


def merged(places: Places, texts: pa.Array) -> tuple[Places, pa.LargeStringArray]:
    """Return places among the distinct `texts`, and these, for places among texts that may be alike."""
    coded = texts.cast(pa.large_string()).dictionary_encode(null_encoding="encode")
    return coded.indices.to_numpy()[places], coded.dictionary


def refused(column: Column, what: str) -> Refused:
    """Return the refusal of `column`; `what` names counts and types, never a value."""
    return Refused(
        Reason.COLUMN_REFUSED,
        f"column {column.name!r} (from {column.source!r}, {column.action}): {what}",
        "mend the records, choose another treatment, or leave the column inside",
    )


def _is_string(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _whole(cells: pa.ChunkedArray) -> pa.Array:
    whole = cells.combine_chunks()
    return pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole


def _marks(cells: pa.Array | pa.ChunkedArray) -> Marks:
    """Return which cells are true; a null is not."""
    marks: Marks = np.asarray(pc.fill_null(cells, False), dtype=np.bool_)
    return marks


def _with_lost_zeros(codes: pa.Array) -> pa.Array:
    """Return ZIP codes of five or nine digits that were read as numbers as they were written."""
    whole = pc.replace_substring_regex(codes, r"\.0$", "")
    return pc.if_else(pc.less_equal(pc.utf8_length(whole), 5), pc.utf8_lpad(whole, 5, "0"), pc.utf8_lpad(whole, 9, "0"))


def _calendar(days: Times) -> Ints:
    """Return each day as the number that its year, month and day spell (20240229), 0 where it is missing."""
    known, numbers = ~np.isnat(days), days.astype(np.int64)
    if not known.any():
        return np.zeros(len(days), dtype=np.int64)
    first, last = int(numbers[known].min()), int(numbers[known].max())
    if last - first >= len(days):
        return np.where(known, _spelled(days), 0)
    table = _spelled(np.arange(first, last + 1).astype("datetime64[D]"))  # many rows, few days
    return np.where(known, table[np.where(known, numbers - first, 0)], 0)


def _spelled(days: Times) -> Ints:
    months = days.astype("datetime64[M]")
    in_month: Ints = (days - months.astype("datetime64[D]")).astype(np.int64) + 1
    since_1970 = months.astype(np.int64)
    return (since_1970 // 12 + 1970) * 10_000 + (since_1970 % 12 + 1) * 100 + in_month


def _or_nan(known: Times, values: Any) -> Reals:
    return np.where(np.isnat(known), np.nan, values)
