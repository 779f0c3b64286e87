"""A worker's place at a task, and what the stages share. It holds no result: those are in the spool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa

from fabric.errors import Reason, Refused
from sanitize import risk
from sanitize.inspection import ColumnFindings, Inspector
from sanitize.ordering import derived
from sanitize.recipe import Column
from sanitize.spool import Spool
from sanitize.task import Rights, Task, rights_of
from sanitize.treatment import Note, dtype_of, note

SUBJECT, KEPT = "@subject", "@kept"
FIRST, AGAIN = -1, -2  # under which unit a settled dictionary lies

Values = np.ndarray[Any, Any]
Facts = dict[str, Any]


def again(name: str) -> str:
    """Return under which name a column lies whose codes were settled again."""
    return f"{name}@again"


class Bench:
    """One worker's place at a task: does pieces of it. Holds no result; those are in the spool."""

    def __init__(self, task: Task, spool: Spool, inspector: Callable[[], Inspector]) -> None:
        self.task = task
        self.spool = spool
        self._make_inspector = inspector
        recipe = task.recipe
        self.main = task.main
        self.firsts = [0, *accumulate(self.main.units)]
        self.rows = self.firsts[-1]
        # "@" is in no name of a recipe, so that no column of the matrix is ever taken for one of an earlier release.
        phantoms = [replace(c, name=f"@earlier_{i}") for i, c in enumerate(task.earlier)]
        self.columns: dict[str, Column] = {c.name: c for c in (*recipe.columns, *phantoms)}
        self.phantoms = tuple(c.name for c in phantoms)
        self.key = derived(self.main.order_key, f"{task.seed} {recipe.digest} {recipe.purpose}")

    @cached_property
    def inspector(self) -> Inspector:
        """Return the inspector, which takes a second to make and to prove."""
        return self._make_inspector()

    @cached_property
    def rights(self) -> Rights:
        """Return the records that are joined in, in memory."""
        return rights_of(self.task)

    def facts(self, stage: str, item: str) -> Facts:
        """Return what a stage found.

        Raises:
            Refused: `INSPECTION_FAILED`: it was not done.
        """
        found = self.spool.facts(stage, item)
        if found is None:
            raise Refused(Reason.INSPECTION_FAILED, f"the stage {stage!r} was not done", "sanitize again")
        return found

    def weighed(self) -> Facts:
        """Return the risk of the rows that are kept."""
        return self.spool.facts("weigh", "again") or self.facts("weigh", "first")

    def note_of(self, column: Column) -> Note:
        """Return what was done to a column."""
        settled = self.spool.facts("resettle", column.name) or self.spool.facts("settle", column.name)
        return Note(**settled["note"]) if settled else self.note_with(column, None)

    def column_of(self, outgoing: str) -> Column:
        """Return the recipe's column that an outgoing column is made by."""
        return next(column for column in self.columns.values() if outgoing in (*column.outgoing, column.name))

    def type_of(self, outgoing: str) -> str:
        """Return the Arrow type of an outgoing column."""
        return str(pa.from_numpy_dtype(self.dtype(outgoing)))

    def findings(self, outgoing: str) -> ColumnFindings:
        """Return what inspection found in an outgoing column."""
        return _findings_from(self.facts("inspect", outgoing)["findings"])

    def values(self, outgoing: str) -> Values:
        """Return a column of all rows, read from disk where it is touched."""
        return self.spool.column(self._file(outgoing), self.dtype(outgoing))

    def strides(self, outgoing: str) -> Iterator[tuple[int, Values]]:
        """Yield a column of all rows in pieces, each with its first row."""
        return self.spool.strides(self._file(outgoing), self.dtype(outgoing))

    def dictionary(self, column: str) -> list[str]:
        """Return the level behind each code of a column."""
        return [str(level) for level in self.spool.levels(column, AGAIN if self.spool.has(again(column)) else FIRST)]

    def _file(self, outgoing: str) -> str:
        return again(outgoing) if self.spool.has(again(outgoing)) else outgoing

    def dtype(self, outgoing: str) -> np.dtype[Any]:
        """Return the type of an outgoing column's numbers."""
        return np.dtype(dtype_of(self.column_of(outgoing)))

    def kept(self, rows: slice) -> Any:
        """Return which of some rows are kept: all, unless some are left out."""
        if not self.spool.has(KEPT):
            return slice(None)
        return self.spool.column(KEPT, np.bool_)[rows]

    @cached_property
    def limits(self) -> risk.Limits:
        """Return the stricter of the fabric's limits and the recipe's."""
        own = self.task.recipe.risk
        return risk.stricter(self.task.limits, risk.Limits(k=own.k, l=own.l, t=own.t))

    def note_with(self, column: Column, settled: Any) -> Note:
        """Return what a treatment did, with the counts of all units."""
        marks = [self.spool.facts("treat", str(unit)) or {} for unit in range(len(self.main.units))]
        nulls, clipped = (sum(mark[what][column.name] for mark in marks) for what in ("nulls", "clipped"))
        return note(column, settled, nulls=nulls, clipped=clipped)

    def pieces(self, outgoing: str) -> Iterator[Values]:
        """Yield a column of the rows that are kept, in pieces."""
        for first, values in self.strides(outgoing):
            yield values[self.kept(slice(first, first + len(values)))]

    def words(self, name: str) -> Iterator[Values]:
        """Yield a column of words of the rows that are kept, in pieces."""
        for first, values in self.spool.strides(name, np.uint64):
            yield values[self.kept(slice(first, first + len(values)))]


def _findings_from(facts: Facts) -> ColumnFindings:
    entities = {name: (int(strong), int(weak)) for name, (strong, weak) in facts["entities"].items()}
    return ColumnFindings(**{**facts, "entities": entities})
