"""Cells: which rows share all their quasi-identifiers, and how many subjects each cell holds.

Always exact: a hash only says in which pass a row is read, never whether two rows are alike. A table of more rows
than the budget is read in several passes; what is held at once is the budget's rows and four bytes for every row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fabric.errors import Reason, Refused
from sanitize.scales import Ints, Numbers, Reals, Scale, Words, blocks, distinct, words

_BUCKETS = 65_536
_ROOM = 2**62
_PARTS = ("code", "weight", "holders")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A column as words of 64 bits that are equal where its values are; NaN is a value of its own.

    Attributes:
        grain: step between values, where they are read more coarsely; 0 reads them as they are.
        factor: how many steps count as one.
    """

    values: Numbers = field(repr=False)
    grain: float = 0.0
    factor: int = 1

    def at(self, rows: Ints | slice) -> Words:
        """Return the words of some rows."""
        part = np.asarray(self.values[rows])
        if self.grain:
            part = np.floor(np.rint(part.astype(np.float64) / self.grain) / self.factor)
        return words(part)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How a sensitive column's codes lie in cells: one entry for each code that a cell holds.

    Attributes:
        weight: subjects with the code, where a subject with several codes in the cell counts in equal parts for each.
        holders: subjects with the code, each counted whole.
    """

    cell: Ints
    code: Ints
    weight: Reals
    holders: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """Some of a table's cells, whole.

    Attributes:
        members: a row of each cell.
        sizes: distinct subjects of each cell.
        spreads: one for each sensitive column.
    """

    members: Ints = field(repr=False)
    sizes: Ints = field(repr=False)
    spreads: tuple[Spread, ...] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What is measured: quasi-identifiers, sensitive columns, and whose row each is (None: each row its own)."""

    quasi: tuple[Reading, ...]
    scales: tuple[Scale, ...] = ()
    subjects: Words | None = field(repr=False)
    rows: int
    budget_rows: int

    def units(self) -> Iterator[tuple[Cells, Iterable[tuple[Ints, Ints]]]]:
        """Yield all cells in portions: the cells, then rows with the cell of each."""
        plan = _planned(self)
        for parts in plan.units:
            if len(parts) == 1:
                rows = plan.rows(parts[0])
                cells, place = grouped(self, rows)
                yield cells, [(rows, place)]
            else:
                portions = [grouped(self, plan.rows(part))[0] for part in parts]
                cells, place = _merged(self, portions)
                starts = np.cumsum([0, *(len(p.members) for p in portions)])
                yield cells, self._placed_again(plan, parts, place, starts)

    def _placed_again(self, plan: _Plan, parts: range, place: Ints, starts: Ints) -> Iterator[tuple[Ints, Ints]]:
        for part, start in zip(parts, starts.tolist(), strict=False):
            rows = plan.rows(part)
            own, _ = alike(self.quasi, rows)
            yield rows, place[start + own]


@dataclass(frozen=True, slots=True)
class _Plan:
    """In which pass each row is read; the passes of one unit share cells, those of two never do."""

    passes: Numbers | None
    count: int
    units: tuple[range, ...]

    def rows(self, number: int) -> Ints:
        if self.passes is None:
            return np.arange(self.count, dtype=np.int64)
        return np.flatnonzero(self.passes == number)


def table_of(
    quasi: Mapping[str, Numbers],
    subjects: Numbers | None,
    budget_rows: int,
    *,
    beside: Mapping[str, Numbers] | None = None,
) -> Table:
    """Return the table to group, without sensitive columns, once all lengths and types are checked.

    Raises:
        Refused: `INSPECTION_FAILED` if something cannot be measured.
    """
    columns = {**quasi, **(beside or {})}
    lengths = {len(values) for values in columns.values()} | ({len(subjects)} if subjects is not None else set())
    if len(lengths) > 1:
        raise _unmeasured("the columns to measure differ in length")
    for name, values in columns.items():
        if values.ndim != 1 or values.dtype.kind not in "fiub" or values.dtype.itemsize > 8:
            raise _unmeasured(f"column {name!r} is {values.dtype}, not numbers of up to 64 bits")
    if subjects is not None and (subjects.ndim != 1 or subjects.dtype != np.uint64):
        raise _unmeasured(f"the subjects are {subjects.dtype}, not uint64")
    if budget_rows < 1:
        raise _unmeasured("the budget is less than one row")
    return Table(
        quasi=tuple(Reading(values=values) for values in quasi.values()),
        subjects=subjects,
        rows=max(lengths, default=0),
        budget_rows=budget_rows,
    )


def mixed(word: Words) -> Words:
    """Return well-spread words (the finalizer of SplitMix64: Steele, Lea, Flood 2014)."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def dense(values: Numbers) -> tuple[Ints, Numbers]:
    """Return each value's place among the distinct ones, and those; Arrow compares values, not hashes."""
    coded = pc.dictionary_encode(pa.array(values))
    return coded.indices.to_numpy().astype(np.int64), coded.dictionary.to_numpy()


def alike(quasi: Sequence[Reading], rows: Ints) -> tuple[Ints, int]:
    """Return a number for the cell of each of some rows, and how many cells there are; exact."""
    ids, count = np.zeros(len(rows), np.int64), 1
    for reading in quasi:
        codes, levels = dense(reading.at(rows))
        if count * len(levels) > _ROOM:
            ids, places = dense(ids)
            count = len(places)
        ids, count = ids * len(levels) + codes, count * len(levels)
    ids, places = dense(ids)
    return ids, len(places)


def grouped(table: Table, rows: Ints) -> tuple[Cells, Ints]:
    """Return the cells of some rows, held at once, and the cell of each row."""
    ids, count = alike(table.quasi, rows)
    members = np.zeros(count, np.int64)
    members[ids] = rows
    pair_of_row, cell_of_pair = np.arange(len(rows)), ids
    if table.subjects is not None:
        who, people = dense(np.asarray(table.subjects[rows]))
        if len(people) < len(rows):
            pairs = ids * len(people) + who
            pair_of_row, pairs = dense(pairs) if table.scales else (pair_of_row, distinct(pairs))
            cell_of_pair = pairs // len(people)
    sizes = np.bincount(cell_of_pair, minlength=count)
    spreads = tuple(_spread(pair_of_row, cell_of_pair, each.at(rows), each.size) for each in table.scales)
    return Cells(members=members, sizes=sizes, spreads=spreads), ids


def _spread(pair_of_row: Ints, cell_of_pair: Ints, codes: Ints, size: int) -> Spread:
    pair, held = pair_of_row, codes
    if len(cell_of_pair) < len(pair_of_row):
        pair, held = np.divmod(distinct(pair_of_row * size + codes), size)
    weight: Reals = 1.0 / np.bincount(pair, minlength=len(cell_of_pair))[pair]
    return _summed(cell_of_pair[pair], held, weight, np.ones(len(pair), np.float64), size)


def _summed(cell: Ints, code: Ints, weight: Reals, holders: Numbers, size: int) -> Spread:
    place, keys = dense(cell * size + code)
    return Spread(
        cell=keys // size,
        code=keys % size,
        weight=np.bincount(place, weights=weight, minlength=len(keys)).astype(np.float64),
        holders=np.bincount(place, weights=holders, minlength=len(keys)).astype(np.int64),
    )


def _merged(table: Table, portions: Sequence[Cells]) -> tuple[Cells, Ints]:
    """Return the cells of portions that share cells but no subject of a cell, and where each portion's cells went."""
    members = np.concatenate([p.members for p in portions])
    place, count = alike(table.quasi, members)
    firsts = np.zeros(count, np.int64)
    firsts[place] = members
    sizes = np.bincount(place, weights=np.concatenate([p.sizes for p in portions]), minlength=count).astype(np.int64)
    starts = np.cumsum([0, *(len(p.members) for p in portions)])
    spreads = []
    for i, each in enumerate(table.scales):
        own = [p.spreads[i] for p in portions]
        cell = np.concatenate([place[s.cell + start] for s, start in zip(own, starts.tolist(), strict=False)])
        code, weight, holders = (np.concatenate([getattr(s, part) for s in own]) for part in _PARTS)
        spreads.append(_summed(cell, code, weight, holders, each.size))
    return Cells(members=firsts, sizes=sizes, spreads=tuple(spreads)), place


def _planned(table: Table) -> _Plan:
    """Spread the rows over passes by a hash of their cell; a bucket over the budget by a hash of the subject too."""
    if table.rows <= table.budget_rows:
        return _Plan(None, table.rows, (range(1),) if table.rows else ())
    passes = np.zeros(table.rows, np.uint32)
    counts = np.zeros(_BUCKETS, np.int64)
    for block in blocks(table.rows):
        bucket = _hashed(table.quasi, block) >> np.uint64(48)
        passes[block] = bucket
        counts += np.bincount(bucket.astype(np.int64), minlength=_BUCKETS)
    first, splits, units = _packed(counts, table.budget_rows)
    for block in blocks(table.rows):
        bucket = passes[block]
        chosen = first[bucket]
        heavy = np.flatnonzero(splits[bucket] > 1)
        if len(heavy):
            rows = heavy + block.start
            who = rows.astype(np.uint64) if table.subjects is None else np.asarray(table.subjects[rows])
            share = mixed(mixed(who)) >> np.uint64(32)
            chosen[heavy] += (share * splits[bucket[heavy]] >> np.uint64(32)).astype(np.uint32)
        passes[block] = chosen
    return _Plan(passes, table.rows, units)


def _packed(counts: Ints, budget: int) -> tuple[Numbers, Numbers, tuple[range, ...]]:
    """Return the first pass and the number of passes of each bucket, and the passes that belong together."""
    first, splits = np.zeros(len(counts), np.uint32), np.ones(len(counts), np.uint64)
    units: list[range] = []
    following, room = 0, 0
    for bucket in np.flatnonzero(counts).tolist():
        count = int(counts[bucket])
        if count > room:
            needed = -(-count // budget)
            units.append(range(following, following + needed))
            following += needed
            splits[bucket] = needed
            room = budget
        first[bucket] = units[-1].start
        room -= min(count, room)
    return first, splits, tuple(units)


def _hashed(quasi: Sequence[Reading], block: slice) -> Words:
    word = np.zeros(block.stop - block.start, np.uint64)
    for reading in quasi:
        word = mixed(word ^ mixed(reading.at(block) + np.uint64(1)))
    return word


def _unmeasured(what: str) -> Refused:
    return Refused(Reason.INSPECTION_FAILED, f"the risk cannot be measured: {what}", "leave the column inside")
