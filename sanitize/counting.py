"""Counting of distinct things in columns that may be longer than memory: exact, in several passes where need be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sanitize.ordering import Words, mixed

BUDGET = 16_000_000
"""How many distinct words are in memory at a time; 8 bytes each, and as many again to sort them."""

Values = np.ndarray[Any, Any]
Stream = Callable[[], Iterator[Values]]


def distinct(stream: Stream, rows: int) -> Iterator[Values]:
    """Yield the distinct values of a column of numbers, NaN left out, in sorted arrays that have no value in common.

    Args:
        stream: gives the column's values in pieces; called once for each pass.
        rows: how many there are at most.
    """
    passes = -(-rows // BUDGET)
    for turn in range(passes):
        found: list[Values] = []
        held = 0
        for values in stream():
            # A hash table is quicker than sorting where few values recur.
            few = pc.unique(pa.array(values)).to_numpy()
            few = few[~np.isnan(few)] if few.dtype.kind == "f" else few
            if passes > 1:
                few = few[mixed(words_of(few)) % np.uint64(passes) == turn]
            found.append(few)
            held += len(few)
            if held > BUDGET // 2:
                found = [np.unique(np.concatenate(found))]
                held = len(found[0])
        yield np.unique(np.concatenate(found)) if found else np.empty(0)


def distinct_count(stream: Callable[[], Iterator[Words]], rows: int) -> int:
    """Return how many distinct words a stream has."""
    return sum(len(words) for words in distinct(stream, rows))


def words_of(values: Values) -> Words:
    """Return numbers as 64-bit words, equal where they are equal."""
    if values.dtype.kind == "f":
        return (values.astype(np.float64) + 0.0).view(np.uint64)
    return values.astype(np.int64).view(np.uint64) if values.dtype.kind == "i" else values.astype(np.uint64)


def pairs_of(values: Values, who: Words) -> Words:
    """Return a word for each pair of a value and a subject.

    Two pairs share a word about once in 2^64: then one holder too few is counted, which only makes a verdict stricter.
    """
    return mixed(mixed(words_of(values) + np.uint64(0x9E3779B97F4A7C15)) ^ who)


def holders_of_levels(stream: Callable[[], Iterator[tuple[Values, Words]]], count: int, rows: int) -> Values:
    """Return how many distinct subjects have each of `count` levels.

    Args:
        stream: gives pieces of levels (from 0 to `count` - 1) and of the subjects that have them.
        rows: how many rows there are.
    """
    passes = -(-rows // BUDGET)
    total = np.zeros(count, dtype=np.int64)
    for turn in range(passes):
        words: list[Words] = []
        levels: list[Values] = []
        for level, who in stream():
            pair = pairs_of(level, who)
            mine = pair % np.uint64(passes) == turn
            unique, first = np.unique(pair[mine], return_index=True)
            words.append(unique)
            levels.append(level[mine][first])
        if words:
            _, first = np.unique(np.concatenate(words), return_index=True)
            total += np.bincount(np.concatenate(levels)[first], minlength=count)
    return total
