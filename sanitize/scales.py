"""Columns of numbers as words of 64 bits, and as small codes whose order may say how near values are.

Nothing here holds more than a block of a column at once, but for its distinct values where they are few.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Numbers = np.ndarray[Any, np.dtype[Any]]
Words = np.ndarray[Any, np.dtype[np.uint64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Reals = np.ndarray[Any, np.dtype[np.float64]]

_BLOCK = 262_144
_DIGITS = 65_536
_CODES = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A sensitive column as small codes.

    Attributes:
        edges: for numbers, the lowest value of each code but the first; for codes, their sorted words.
        ordered: the values are numbers, whose order says how near they are.
        missing: some number is NaN; it takes code 0, below all others.
        size: how many codes there are.
        binned: the numbers had too many values, so a code is a range of them.
    """

    values: Numbers = field(repr=False)
    edges: Numbers = field(repr=False)
    ordered: bool
    missing: bool
    size: int
    binned: bool

    def at(self, rows: Ints) -> Ints:
        """Return the codes of some rows, from 0 to `size` - 1."""
        part = np.asarray(self.values[rows])
        if not self.ordered:
            return np.searchsorted(self.edges, words(part)).astype(np.int64)
        part = part.astype(np.float64)
        codes = np.searchsorted(self.edges, part, side="right").astype(np.int64) + self.missing
        codes[np.isnan(part)] = 0
        return codes


def blocks(rows: int) -> Iterator[slice]:
    """Yield slices that cover `rows` rows."""
    for start in range(0, rows, _BLOCK):
        yield slice(start, min(start + _BLOCK, rows))


def words(part: Numbers) -> Words:
    """Return numbers as words of 64 bits: the same word for the same value, one for every NaN, one for both zeros."""
    if part.dtype.kind == "f":
        reals = part.astype(np.float64) + 0.0
        reals[np.isnan(reals)] = np.nan
        return reals.view(np.uint64)
    return part.astype(np.uint64) if part.dtype.kind == "u" else part.astype(np.int64).view(np.uint64)


def distinct(values: Numbers) -> Numbers:
    """Return the distinct values, sorted; for whole numbers, where nearly all are distinct, faster than `dense`."""
    ordered = np.sort(values)
    firsts: Numbers = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]]
    return firsts


def scale(values: Numbers, most: int) -> Scale:
    """Return a sensitive column as codes: whole numbers each a code of its own, reals in at most `most` bins.

    Whole numbers of more than 4,096 distinct values are no category; they are read as reals.
    """
    if values.dtype.kind != "f":
        seen = _levels((words(np.asarray(values[block])) for block in blocks(len(values))), _CODES)
        if len(seen) <= _CODES:
            return Scale(values=values, edges=seen, ordered=False, missing=False, size=len(seen), binned=False)
    known = sum(len(_known(values[block])) for block in blocks(len(values)))
    levels = levels_of(values, most)
    binned = len(levels) > most
    if binned:
        ranks = np.arange(most, dtype=np.int64) * known // most
        levels = np.unique(_at_ranks(values, ranks))
    missing = known < len(values)
    size = len(levels) + missing
    return Scale(values=values, edges=levels[1:], ordered=True, missing=missing, size=size, binned=binned)


def levels_of(values: Numbers, most: int) -> Numbers:
    """Return the distinct numbers of a column, sorted, without NaN; once they are more than `most`, some of them."""
    return _levels((_known(values[block]) for block in blocks(len(values))), most)


def _levels(parts: Iterable[Numbers], most: int) -> Numbers:
    """Return the distinct values, sorted; once they are more than `most`, some of them."""
    seen: Numbers | None = None
    for part in parts:
        seen = np.unique(part if seen is None else np.concatenate([seen, part]))
        if len(seen) > most:
            break
    return np.zeros(0) if seen is None else seen


def _known(part: Numbers) -> Reals:
    reals = np.asarray(part).astype(np.float64) + 0.0
    return reals[~np.isnan(reals)]


def _at_ranks(values: Numbers, ranks: Ints) -> Reals:
    """Return the values at `ranks` of the sorted column, by counting 16 bits at a time from the highest down."""
    head, left = np.zeros(len(ranks), np.uint64), ranks.copy()
    for shift in (48, 32, 16, 0):
        heads = np.unique(head)
        counts = np.zeros(len(heads) * _DIGITS, np.int64)
        for block in blocks(len(values)):
            above = _sortable(_known(values[block])) >> np.uint64(shift)
            place = np.minimum(np.searchsorted(heads, above >> np.uint64(16)), len(heads) - 1)
            near = heads[place] == above >> np.uint64(16)
            digits = (above & np.uint64(_DIGITS - 1)).astype(np.int64)
            counts += np.bincount(place[near] * _DIGITS + digits[near], minlength=len(counts))
        upto = np.cumsum(counts.reshape(len(heads), _DIGITS), axis=1)
        for i, row in enumerate(np.searchsorted(heads, head)):
            digit = int(np.searchsorted(upto[row], left[i], side="right"))
            left[i] -= upto[row][digit - 1] if digit else 0
            head[i] = (head[i] << np.uint64(16)) | np.uint64(digit)
    signed = head >> np.uint64(63) == 1
    return np.where(signed, head ^ np.uint64(1 << 63), ~head).view(np.float64)


def _sortable(reals: Reals) -> Words:
    """Return words in the order of the numbers (IEEE 754: negative ones are turned over)."""
    raw = reals.view(np.uint64)
    return np.where(raw >> np.uint64(63) == 1, ~raw, raw | np.uint64(1 << 63))
