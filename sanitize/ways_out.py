"""Ways out of a table whose cells are too small: which quasi-identifier to make coarser, or to leave inside.

Every claim is measured on all rows. The work is bounded by a number of trials, so a way may be missed; none is made up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product

import numpy as np

from sanitize.cells import Reading, Table, alike, grouped, table_of
from sanitize.risk import BUDGET_ROWS, Limits
from sanitize.scales import Numbers, Words, levels_of

_FACTORS = {"twice as coarse": 2, "five times as coarse": 5}
_INSIDE = "left inside"
_GRID = 4_096
_OFF_GRID = 1e-6
_TRIALS = 60
_WANTED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One change of one column: "twice as coarse", "five times as coarse" or "left inside"."""

    column: str
    change: str

    def __str__(self) -> str:
        return f"{self.column!r} {self.change}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOut:
    """Changes after which no cell is too small.

    Attributes:
        k_then: subjects in the smallest cell of the same rows after the changes.
        loss: share of the quasi-identifiers' entropy (the sum over columns) that the changes cost, as text.
    """

    steps: tuple[Step, ...]
    k_then: int
    loss: str

    def __str__(self) -> str:
        changes = " and ".join(map(str, self.steps))
        return f"{changes}: the smallest cell then holds {self.k_then:,} subjects; costs {self.loss} of the detail"


def ways_out(
    quasi: Mapping[str, Numbers],
    subjects: Words | None,
    limits: Limits,
    *,
    grains: Mapping[str, float] | None = None,
    budget_rows: int = BUDGET_ROWS,
) -> tuple[WayOut, ...]:
    """Return up to three ways to reach `limits.k`, cheapest loss first: of one step, or of two where none of one does.

    Nothing is returned if the table reaches it already, or if no two steps do.

    A coarser column is the same numbers on a grid of more steps, counted from 0. A treatment that starts again from the
    raw values may put a value that lies near an edge on its other side: sanitizing measures again.

    Args:
        grains: step between the values of a column; None finds it for reals that lie on a grid of their own.

    Raises:
        Refused: `INSPECTION_FAILED`, as `sanitize.risk.measure`.
    """
    table = table_of(quasi, subjects, budget_rows)
    if grains is None:
        grains = {name: grain for name, values in quasi.items() if (grain := _grain(values))}
    options = _options(table, tuple(quasi), grains)
    trials = _Trials.of(table, tuple(quasi))
    if trials.smallest({}) >= limits.k:
        return ()
    for size in (1, 2):
        found = trials.reaching(_choices(options, size), limits.k)
        if found:
            return found
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    """A step that may be tried: how the column would then be read (None: not at all), and what it costs."""

    step: Step
    reading: Reading | None
    loss: float


@dataclass(slots=True, kw_only=True)
class _Trials:
    """Measures changes of a table, a bounded number of times.

    Attributes:
        rows: a row of each pair of a cell and a subject, and how many subjects it stands for; None: too many to hold.
    """

    table: Table
    names: tuple[str, ...]
    rows: tuple[Numbers, Numbers] | None
    left: int = _TRIALS

    @classmethod
    def of(cls, table: Table, names: tuple[str, ...]) -> _Trials:
        """Return the trials of a table; rows that no change can tell apart are counted once."""
        pairs = table
        if table.subjects is not None:
            pairs = replace(table, quasi=(*table.quasi, Reading(values=table.subjects)), subjects=None)
        members, sizes, held = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
        for cells, _ in pairs.units():
            held += len(cells.members)
            if held > table.budget_rows:
                return cls(table=table, names=names, rows=None)
            members.append(cells.members)
            sizes.append(cells.sizes)
        return cls(table=table, names=names, rows=(np.concatenate(members), np.concatenate(sizes)))

    def reaching(self, choices: Sequence[tuple[_Option, ...]], k: int) -> tuple[WayOut, ...]:
        """Return the first choices after which the smallest cell holds `k` subjects.

        Leaving a column inside joins more cells than any coarser reading of it, so where that fails, all fail.
        """
        found: list[WayOut] = []
        most: dict[tuple[str, ...], int] = {}
        for choice in choices:
            columns = tuple(option.step.column for option in choice)
            if len(found) == _WANTED or self.left <= 0:
                break
            if columns not in most:
                most[columns] = self.smallest(dict.fromkeys(columns))
            if most[columns] < k:
                continue
            inside = all(option.reading is None for option in choice)
            then = {option.step.column: option.reading for option in choice}
            if (reached := most[columns] if inside else self.smallest(then)) >= k:
                loss = f"{sum(option.loss for option in choice):.3f}"
                found.append(WayOut(steps=tuple(option.step for option in choice), k_then=reached, loss=loss))
        return tuple(found)

    def smallest(self, changed: Mapping[str, Reading | None]) -> int:
        """Return how many subjects the smallest cell would hold."""
        self.left -= 1
        readings = [changed.get(name, was) for name, was in zip(self.names, self.table.quasi, strict=True)]
        quasi = tuple(reading for reading in readings if reading is not None)
        table = replace(self.table, quasi=quasi)
        if self.rows is None:
            return min((int(cells.sizes.min()) for cells, _ in table.units()), default=0)
        members, sizes = self.rows
        if self.table.subjects is not None:
            return int(grouped(table, members)[0].sizes.min(initial=len(members)))
        place, count = alike(quasi, members)
        return int(np.bincount(place, weights=sizes, minlength=count).min(initial=self.table.rows))


def _options(table: Table, names: Sequence[str], grains: Mapping[str, float]) -> list[list[_Option]]:
    """Return what may be done to each column, with its share of the entropy of all columns together."""
    before = [_entropy(table, reading) for reading in table.quasi]
    total = sum(before) or 1.0
    options = []
    for name, reading, entropy in zip(names, table.quasi, before, strict=True):
        own = [_Option(step=Step(column=name, change=_INSIDE), reading=None, loss=entropy / total)]
        for change, factor in _FACTORS.items() if grains.get(name) else ():
            coarser = replace(reading, grain=float(grains[name]), factor=factor)
            loss = (entropy - _entropy(table, coarser)) / total
            own.append(_Option(step=Step(column=name, change=change), reading=coarser, loss=loss))
        options.append(own)
    return options


def _choices(options: Sequence[Sequence[_Option]], size: int) -> list[tuple[_Option, ...]]:
    some = [choice for columns in combinations(options, size) for choice in product(*columns)]
    return sorted(some, key=lambda choice: sum(option.loss for option in choice))


def _entropy(table: Table, reading: Reading) -> float:
    """Return the entropy of a column over rows, in nats."""
    alone = replace(table, quasi=(reading,), subjects=None)
    shares = (cells.sizes / table.rows for cells, _ in alone.units())
    return sum(float(-(share * np.log(share)).sum()) for share in shares)


def _grain(values: Numbers) -> float:
    """Return the step between the values of a column of reals, or 0 if they lie on no grid that starts at 0."""
    if values.dtype.kind != "f":
        return 0.0
    levels = levels_of(values, _GRID)
    if not 1 < len(levels) <= _GRID or not np.isfinite(levels).all():
        return 0.0
    grain = float(np.diff(levels).min())
    steps = levels / grain
    return grain if float(np.abs(steps - np.rint(steps)).max()) < _OFF_GRID else 0.0
