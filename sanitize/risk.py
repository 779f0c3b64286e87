"""Risk of the whole: how well the rows that would leave can be told apart. Pure: numbers in, figures out.

A cell is all rows that share every quasi-identifier. Counted are subjects, not rows: a hundred visits of one person
hide nobody. What is claimed here is always exact, whatever the budget of rows: no sample, no hash that could merge two
cells. NaN (missing) is a value of its own.

    k            the fewest subjects in a cell (Samarati & Sweeney 1998; Sweeney 2002)
    l            the fewest distinct sensitive values in a cell (distinct l-diversity: Machanavajjhala et al. 2007);
                 1 also where one value is common to all subjects of a cell, whatever other values they have
    entropy l    e to the lowest entropy of the sensitive values of a cell (entropy l-diversity, the same)
    t            the farthest that a cell's sensitive values lie from the whole table's (Li, Li & Venkatasubramanian
                 2007): all distances equal for codes, ordered distance for numbers
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import numpy as np

from fabric.labels import Classification
from sanitize.cells import Cells, Table, mixed, table_of
from sanitize.diversity import Diversity, equal_distance, lowest, ordered_distance, six_digits
from sanitize.scales import Numbers, Reals, Scale, Words, blocks, distinct, scale, words

USUAL_K = 11
BUDGET_ROWS = 4_000_000
_BINS = 64
_SIZES = (("1", 1), ("2-4", 2), ("5-10", 5), ("11-19", 11), ("20+", 20))
_SMALL, _ALONE = 1, 2
_TELLING = frozenset(
    {
        *("age", "sex", "gender", "race", "ethnicity", "ethnic", "marital", "married", "nationality", "citizenship"),
        *("zip", "zipcode", "postcode", "postal", "region", "state", "county", "province", "district", "city", "town"),
        *("municipality", "country", "tract", "lat", "latitude", "lon", "lng", "longitude"),
        *("year", "birth", "birthdate", "birthday", "birthplace", "born", "dob", "death", "deceased"),
        *("religion", "language", "occupation", "profession", "employer", "education", "household", "veteran"),
    }
)
_TELLING_TREATMENTS = frozenset({"age", "year", "prefix", "grid"})
_WORD = re.compile(r"[a-z]+|[A-Z]+(?![a-z])|[A-Z][a-z]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """How well the rows of a table can be told apart by their quasi-identifiers.

    Attributes:
        k: fewest subjects in a cell; 0 without a row.
        under: the size below which a cell counts as small.
        small_cells: how many cells are small.
        small_subjects: subjects with a row in a small cell.
        alone: subjects who are the only one of some cell.
        histogram: cells by how many subjects they hold.
    """

    quasi: tuple[str, ...]
    rows: int
    subjects: int
    cells: int
    k: int
    under: int
    small_cells: int
    small_subjects: int
    alone: int
    histogram: tuple[tuple[str, int], ...]
    sensitive: tuple[Diversity, ...]

    @property
    def l(self) -> int:  # noqa: E743 - the literature's name
        """Return the lowest l of all sensitive columns; 0 if none was named."""
        return min((each.l for each in self.sensitive), default=0)

    @property
    def t(self) -> Decimal | None:
        """Return the highest t of all sensitive columns; None if none was named."""
        return max((each.t for each in self.sensitive), default=None)

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON without floats: counts, and shares as text of six digits."""
        return {
            "quasi": list(self.quasi),
            "rows": self.rows,
            "subjects": self.subjects,
            "cells": self.cells,
            "k": self.k,
            "l": self.l,
            "t": "" if self.t is None else str(self.t),
            "uniqueness": str(_share(self.alone, self.subjects)),
            "small": {
                "under": self.under,
                "cells": self.small_cells,
                "subjects": self.small_subjects,
                "share": str(_share(self.small_subjects, self.subjects)),
            },
            "histogram": [{"subjects": size, "cells": cells} for size, cells in self.histogram],
            "sensitive": [each.to_json() for each in self.sensitive],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a release must reach: at least `k` and `l`, at most `t` (None: any)."""

    k: int = 1
    l: int = 1  # noqa: E741 - the literature's name
    t: Decimal | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the limits as JSON without floats; an empty `t` asks nothing."""
        return {"k": self.k, "l": self.l, "t": "" if self.t is None else format(self.t, "f")}


NO_LIMITS = Limits()

# 11: no cell of the Centers for Medicare & Medicaid Services' releases shows fewer (CMS cell size suppression policy),
# a risk of at most 0.09 (El Emam, Guide to the De-Identification of Personal Health Information, 2013); 5: the usual
# smallest cell where whoever gets the data is bound by agreement (El Emam, the same; a risk of at most 0.2).
LIMITS: Mapping[Classification, Limits] = MappingProxyType(
    {
        Classification.RESTRICTED: Limits(k=11, l=2),
        Classification.CONFIDENTIAL: Limits(k=11, l=2),
        Classification.INTERNAL: Limits(k=5, l=1),
        Classification.PUBLIC: Limits(k=1, l=1),
    }
)


def measure(
    quasi: Mapping[str, Numbers],
    *,
    sensitive: Mapping[str, Numbers],
    subjects: Words | None,
    k: int = USUAL_K,
    budget_rows: int = BUDGET_ROWS,
) -> Risk:
    """Return the risk of a table, exactly.

    Args:
        quasi: quasi-identifiers by name, one number a row, in memory or mapped; none: all rows are one cell.
        sensitive: columns not to be learnt of a subject; whole numbers are codes, reals are numbers in order.
        subjects: keyed id of whose row each is; None: each row is another subject.
        k: cells of fewer subjects count as small.
        budget_rows: about how many rows are held at once, beside five bytes for each row of the table.

    Raises:
        Refused: `INSPECTION_FAILED`: columns of differing length, or of no numbers.
    """
    plain = table_of(quasi, subjects, budget_rows, beside=sensitive)
    scales = tuple(scale(values, _BINS) for values in sensitive.values())
    table = Table(quasi=plain.quasi, scales=scales, subjects=subjects, rows=plain.rows, budget_rows=budget_rows)
    marks = np.zeros(0 if subjects is None else table.rows, np.uint8)
    tally, held = _Tally.empty(scales), _Held(room=budget_rows)
    for cells, places in table.units():
        tally = tally.plus(cells, k)
        held = held.plus(cells)
        if subjects is not None and int(cells.sizes.min()) < k:
            mark = (cells.sizes < k) * _SMALL + (cells.sizes == 1) * _ALONE
            for rows, place in places:
                marks[rows] = mark[place]
    people, small_subjects, alone = tally.size, tally.in_small, tally.alone
    if subjects is not None:
        people, small_subjects, alone = _people(subjects, marks, budget_rows)
    return Risk(
        quasi=tuple(quasi),
        rows=table.rows,
        subjects=people,
        cells=sum(tally.histogram),
        k=tally.k,
        under=k,
        small_cells=tally.small_cells,
        small_subjects=small_subjects,
        alone=alone,
        histogram=tuple((name, count) for (name, _), count in zip(_SIZES, tally.histogram, strict=True)),
        sensitive=_diversities(table, tuple(sensitive), tally, held),
    )


def small(
    quasi: Mapping[str, Numbers], subjects: Words | None, k: int, *, budget_rows: int = BUDGET_ROWS
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return which rows lie in a cell of fewer than `k` subjects.

    A small cell is marked whole and no row of any other cell is, so without the marked rows every cell that is left has
    all its subjects still: at least `k`. It need not be done twice. Whoever removes a marked subject's other rows too
    must measure again.

    Raises:
        Refused: `INSPECTION_FAILED`, as `measure`.
    """
    table = table_of(quasi, subjects, budget_rows)
    marked = np.zeros(table.rows, np.bool_)
    for cells, places in table.units():
        under = cells.sizes < k
        if under.any():
            for rows, place in places:
                marked[rows] = under[place]
    return marked


def stricter(first: Limits, *others: Limits) -> Limits:
    """Return limits that hold only where all of these hold."""
    every = (first, *others)
    bounds = [each.t for each in every if each.t is not None]
    return Limits(k=max(each.k for each in every), l=max(each.l for each in every), t=min(bounds, default=None))


def objections(risk: Risk, limits: Limits) -> tuple[str, ...]:
    """Return what speaks against releasing a table of this risk; nothing if it is within `limits`.

    Where no sensitive column is named, nothing is known of l and t, and neither objects.
    """
    against = []
    if risk.k < limits.k:
        few = f"; {risk.small_cells:,} of {risk.cells:,} cells are under {risk.under}" if risk.under == limits.k else ""
        among = ", ".join(risk.quasi) or "no quasi-identifier"
        against.append(f"the smallest cell of {among} holds {risk.k:,} subjects, {limits.k:,} are needed{few}")
    for each in risk.sensitive:
        if each.l < limits.l:
            against.append(
                f"a cell tells {each.column!r} of its subjects: it has {each.l:,} distinct values there, "
                f"{limits.l:,} are needed"
            )
        if limits.t is not None and each.t > limits.t:
            against.append(f"{each.column!r} in a cell is {each.t} away from the whole, at most {limits.t} may be")
    return tuple(against)


def suspected(columns: Mapping[str, Numbers | int], notes: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Return the columns that tell people apart though they are not declared as quasi-identifiers.

    Args:
        columns: outgoing columns, or how many distinct values they have; one without two values tells nobody apart.
        notes: what the statement says of each: `from`, `treatment`, `role`.
    """
    return tuple(name for name, values in columns.items() if _tells(name, notes.get(name, {})) and _varies(values))


def _tells(name: str, note: Mapping[str, Any]) -> bool:
    if note.get("role") == "quasi-identifier":
        return False
    source = str(note.get("from", "")).rsplit(".", 1)[-1]
    found = {word.lower() for text in (name, source) for word in _WORD.findall(text)}
    return bool(found & _TELLING) or note.get("treatment") in _TELLING_TREATMENTS


def _varies(values: Numbers | int) -> bool:
    if isinstance(values, int):
        return values > 1
    first = words(np.asarray(values[:1]))
    return any(bool((words(np.asarray(values[block])) != first).any()) for block in blocks(len(values)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tally:
    """Figures of the cells seen so far. A sum of sizes counts a subject once for each of its cells."""

    k: int
    size: int
    small_cells: int
    in_small: int
    alone: int
    histogram: tuple[int, ...]
    lows: tuple[tuple[int, float], ...]
    masses: tuple[Reals, ...]

    @classmethod
    def empty(cls, scales: tuple[Scale, ...]) -> _Tally:
        lows = tuple((0, math.inf) for _ in scales)
        masses = tuple(np.zeros(each.size) for each in scales)
        nothing = (0,) * len(_SIZES)
        return cls(k=0, size=0, small_cells=0, in_small=0, alone=0, histogram=nothing, lows=lows, masses=masses)

    def plus(self, cells: Cells, k: int) -> _Tally:
        sizes = cells.sizes
        under = sizes[sizes < k]
        binned = np.bincount(
            np.searchsorted([low for _, low in _SIZES], sizes, side="right"), minlength=len(_SIZES) + 1
        )
        lows = [lowest(spread, sizes) for spread in cells.spreads]
        return _Tally(
            k=_least(self.k, int(sizes.min())),
            size=self.size + int(sizes.sum()),
            small_cells=self.small_cells + len(under),
            in_small=self.in_small + int(under.sum()),
            alone=self.alone + int((sizes == 1).sum()),
            histogram=tuple(a + int(b) for a, b in zip(self.histogram, binned[1:], strict=True)),
            lows=tuple((_least(a, b), min(c, d)) for (a, c), (b, d) in zip(self.lows, lows, strict=True)),
            masses=tuple(
                mass + np.bincount(spread.code, weights=spread.weight, minlength=len(mass))
                for mass, spread in zip(self.masses, cells.spreads, strict=True)
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Held:
    """The cells seen so far, or None if they are too many to hold: they are grouped again then."""

    room: int
    cells: tuple[Cells, ...] | None = ()

    def plus(self, cells: Cells) -> _Held:
        room = self.room - sum(len(spread.cell) for spread in cells.spreads)
        kept = None if self.cells is None or room < 0 else (*self.cells, cells)
        return _Held(room=room, cells=kept)


def _least(known: int, new: int) -> int:
    return min(known, new) if known else new


def _diversities(table: Table, names: tuple[str, ...], tally: _Tally, held: _Held) -> tuple[Diversity, ...]:
    wholes = [mass / max(tally.size, 1) for mass in tally.masses]
    farthest = [0.0] * len(names)
    for cells in held.cells if held.cells is not None else (each for each, _ in table.units()):
        for i, (spread, codes, whole) in enumerate(zip(cells.spreads, table.scales, wholes, strict=True)):
            distance = ordered_distance if codes.ordered else equal_distance
            farthest[i] = max(farthest[i], distance(spread, cells.sizes, whole))
    return tuple(
        Diversity(
            column=name,
            values=codes.size,
            ordered=codes.ordered,
            binned=codes.binned,
            l=low,
            entropy_l=six_digits(math.exp(entropy) if low else 0.0),
            t=six_digits(away),
        )
        for name, codes, (low, entropy), away in zip(names, table.scales, tally.lows, farthest, strict=True)
    )


def _people(subjects: Words, marks: Numbers, budget_rows: int) -> tuple[int, int, int]:
    """Return how many subjects there are, have a row in a small cell, are alone in a cell."""
    passes = -(-len(subjects) // budget_rows)
    counts = np.zeros(3, np.int64)
    for number in range(passes):
        who, mark = _chosen(subjects, marks, number, passes)
        counts += [len(distinct(some)) for some in (who, who[mark & _SMALL > 0], who[mark & _ALONE > 0])]
    return int(counts[0]), int(counts[1]), int(counts[2])


def _chosen(subjects: Words, marks: Numbers, number: int, passes: int) -> tuple[Words, Numbers]:
    if passes == 1:
        return np.asarray(subjects), marks
    who, mark = [], []
    for block in blocks(len(subjects)):
        part = np.asarray(subjects[block])
        mine = (mixed(part) >> np.uint64(32)) * np.uint64(passes) >> np.uint64(32) == number
        who.append(part[mine])
        mark.append(marks[block][mine])
    return np.concatenate(who), np.concatenate(mark)


def _share(part: int, whole: int) -> Decimal:
    return six_digits(part / whole if whole else 0.0)
