"""The stage that gives levels their codes, once the levels of all rows are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import numpy as np

from fabric.errors import Reason, Refused
from sanitize.bench import AGAIN, FIRST, SUBJECT, Bench, Facts, Values, again
from sanitize.counting import distinct_count, holders_of_levels
from sanitize.recipe import Column, Encode, Prefix, Pseudonymise
from sanitize.spool import STRIDE
from sanitize.treatment import settle

MAX_LEVELS = 2_000_000


def settle_first(bench: Bench, name: str) -> Facts:
    """Give the levels of one column their codes."""
    return _settle(bench, name, name, FIRST)


def settle_again(bench: Bench, name: str) -> Facts:
    """Give them again, counting only the rows that are kept."""
    return _settle(bench, name, again(name), AGAIN)


def _settle(bench: Bench, name: str, target: str, dictionary: int) -> Facts:
    column = _held(bench.columns[name], bench.limits.k)
    levels, tables = _levels(bench, name)
    holders = _holders(bench, name, tables, len(levels))

    def rest(some: Sequence[int]) -> int:
        wanted = np.zeros(len(levels), dtype=bool)
        wanted[list(some)] = True
        if not bench.task.recipe.subject:
            return int(holders[wanted].sum())
        return distinct_count(
            lambda: (who[wanted[level]] for level, who in _leveled_rows(bench, name, tables)), bench.rows
        )

    def draw(values: Sequence[str]) -> Sequence[int]:
        return bench.task.surrogates(f"{bench.task.recipe.purpose}/{column.source}", values)

    settled = settle(column, levels, holders, rest, draw)
    for unit, table in enumerate(tables):
        first, last = bench.firsts[unit], bench.firsts[unit + 1]
        positions = bench.spool.column(f"{name}.level", np.int32)[first:last]
        bench.spool.put(target, first, settled.codes[table][positions])
    bench.spool.sync()
    if not isinstance(column.treatment, Pseudonymise):
        bench.spool.put_levels(name, dictionary, settled.names)
    return {"note": asdict(bench.note_with(column, settled))}


def _held(column: Column, k: int) -> Column:
    """Return the column with levels of fewer than `k` subjects folded: a recipe can only be stricter."""
    treatment = column.treatment
    if not isinstance(treatment, Encode | Prefix) or treatment.min_count >= k:
        return column
    return replace(column, treatment=replace(treatment, min_count=k))


def _levels(bench: Bench, name: str) -> tuple[list[str | None], list[Values]]:
    """Return all levels of a column, sorted, and for each unit their places in it."""
    by_unit = [bench.spool.levels(name, unit) for unit in range(len(bench.main.units))]
    known = {level for levels in by_unit for level in levels}
    check_levels(bench.columns[name], len(known))
    levels: list[str | None] = [*sorted(level for level in known if level is not None), *({None} & known)]
    place = {level: index for index, level in enumerate(levels)}
    return levels, [np.array([place[level] for level in unit], dtype=np.int64) for unit in by_unit]


def _leveled_rows(bench: Bench, name: str, tables: Sequence[Values]) -> Iterator[tuple[Values, Values]]:
    """Yield the level and the subject of every row that is kept."""
    positions, who = bench.spool.column(f"{name}.level", np.int32), bench.spool.column(SUBJECT, np.uint64)
    for unit, table in enumerate(tables):
        for first in range(bench.firsts[unit], bench.firsts[unit + 1], STRIDE):
            rows = slice(first, min(first + STRIDE, bench.firsts[unit + 1]))
            kept = bench.kept(rows)
            yield table[positions[rows][kept]], who[rows][kept]


def _holders(bench: Bench, name: str, tables: Sequence[Values], count: int) -> Values:
    if bench.task.recipe.subject:
        return holders_of_levels(lambda: _leveled_rows(bench, name, tables), count, bench.rows)
    total = np.zeros(count, dtype=np.int64)
    for level, _ in _leveled_rows(bench, name, tables):
        total += np.bincount(level, minlength=count)
    return total


def check_levels(column: Column, count: int) -> None:
    """Refuse a column with more levels than fit into memory: it is no category.

    Raises:
        Refused: `COLUMN_REFUSED`.
    """
    if count > MAX_LEVELS:
        raise Refused(
            Reason.COLUMN_REFUSED,
            f"column {column.name!r} (from {column.source!r}, {column.action}): more than {MAX_LEVELS:,} distinct "
            "values are not a category",
            "vectorise it, pseudonymise it by hmac, or leave it inside",
        )
