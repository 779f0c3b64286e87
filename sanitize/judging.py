"""The stages that inspect each outgoing column by its distinct values, and judge whether all of it may cross."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fabric.errors import Reason, Refused
from sanitize.bench import SUBJECT, Bench, Facts, Values
from sanitize.counting import distinct, distinct_count, pairs_of
from sanitize.inspection import ColumnFindings
from sanitize.recipe import Clip, Column, Duration, Keep, Pseudonymise, Vectorise
from sanitize.verdict import Shape, Thresholds, is_code, objections


def inspect(bench: Bench, outgoing: str) -> Facts:
    """Inspect the distinct values of one outgoing column, and the levels behind its codes."""
    column = bench.column_of(outgoing)
    tokens = isinstance(column.treatment, Pseudonymise)
    found: list[ColumnFindings] = []
    count, ends, decimals = 0, [], 0
    for values in distinct(lambda: bench.pieces(outgoing), bench.rows):
        if not len(values):
            continue
        count += len(values)
        ends += [float(values[0]), float(values[-1])]
        decimals = max(decimals, _decimals(values) if isinstance(column.treatment, Keep | Clip) else 0)
        if not tokens:  # drawn by lot or by a key: what they look like says nothing
            found.append(_findings(bench, outgoing, column, values))
    return {
        "distinct": count,
        "holders": _holding(bench, outgoing, count),
        "span": [min(ends, default=0.0), max(ends, default=0.0)],
        "decimals": decimals,
        "key": _matches_key(bench, outgoing, column),
        "digits": _digits(bench, outgoing, column, count),
        "findings": asdict(ColumnFindings.merge(*found)),
        "levels": _levels(bench, column),
    }


def _digits(bench: Bench, outgoing: str, column: Column, count: int) -> float:
    """Return how many decimal digits a column tells whose values are all about as frequent, as those of a number are.

    It is the entropy of its values to the base 10. Measures are not spread evenly: they count nothing.
    """
    if isinstance(column.treatment, Pseudonymise | Vectorise) or not 8 <= count <= min(10_000, bench.rows // 2):
        return 0.0
    held: Counter[float] = Counter()
    for values in bench.pieces(outgoing):
        counted = pc.value_counts(pa.array(values[_known(values)]))
        held.update(dict(zip(*(counted.field(part).to_pylist() for part in (0, 1)), strict=True)))
    shares = np.array([*held.values()]) / held.total()
    told = float(-(shares * np.log10(shares)).sum())
    return told if told >= Thresholds().even * np.log10(count) else 0.0


def _levels(bench: Bench, column: Column) -> Facts | None:
    """Return what is found in the levels behind a column's codes."""
    if not is_code(column) or not column.leveled:
        return None
    names = bench.dictionary(column.name)[2:]  # after "other" and "missing"
    return {"entities": dict(bench.inspector.inspect_texts(names)), "distinct": len(names)}


def _holding(bench: Bench, outgoing: str, count: int) -> int:
    """Return how many distinct pairs there are of a value and a subject that has it.

    Where the first subjects already show that the column's `count` values are far fewer than its holders, and more hold
    one than the verdict asks for, that is enough: the verdict is the same, and the pairs need not be counted.
    """
    if not bench.task.recipe.subject:
        return sum(len(values[_known(values)]) for values in bench.pieces(outgoing))
    who = bench.spool.column(SUBJECT, np.uint64)
    for first, values in bench.strides(outgoing):
        rows = slice(first, first + len(values))
        kept = bench.kept(rows)
        some = len(np.unique(who[rows][kept][_known(values[kept])]))
        if some >= max(Thresholds().min_holders, 2 * count):
            return some
        break

    def pairs() -> Iterator[Values]:
        for first, values in bench.strides(outgoing):
            rows = slice(first, first + len(values))
            kept = bench.kept(rows)
            mine, whose = values[kept], who[rows][kept]
            yield pairs_of(mine[_known(mine)], whose[_known(mine)])

    return distinct_count(pairs, bench.rows)


def _matches_key(bench: Bench, outgoing: str, column: Column) -> bool:
    """Say whether the column's numbers are those of some joined records' key, where that cannot be chance."""
    keys = [key for key, _ in bench.rights.values() if pa.types.is_integer(key.type) and _sparse(key)]
    if not keys or not isinstance(column.treatment, Keep | Clip):
        return False
    values = [values for values in distinct(lambda: bench.pieces(outgoing), bench.rows) if len(values)]
    count = sum(len(some) for some in values)
    for key in keys:
        there = key.cast(pa.float64(), safe=False)
        hits = sum(pc.sum(pc.is_in(pa.array(some, pa.float64()), value_set=there)).as_py() or 0 for some in values)
        if count >= Thresholds().sparse_distinct and hits >= Thresholds().unique_share * count:
            return True
    return False


def _findings(bench: Bench, outgoing: str, column: Column, values: Values) -> ColumnFindings:
    def row_of(position: int) -> int:
        wanted = values[position]
        for first, cells in bench.strides(outgoing):
            if len(where := np.flatnonzero(cells == wanted)):
                return first + int(where[0])
        return 0

    return bench.inspector.inspect_column(outgoing, pa.array(values), also_called=(column.source,), row_of=row_of)


def judge(bench: Bench, _: str) -> Facts:
    """Refuse everything if one column, or all of them together, may not cross."""
    limits, against = Thresholds(), []
    subjects = distinct_count(lambda: bench.words(SUBJECT), bench.rows)
    if subjects < limits.min_subjects:
        raise Refused(
            Reason.COLUMN_REFUSED,
            f"the records hold {subjects} subjects: rows of fewer than {limits.min_subjects} can be told apart by eye",
            "sanitize more records at once",
        )
    for outgoing in bench.task.recipe.outgoing:
        column, found = bench.column_of(outgoing), bench.facts("inspect", outgoing)
        wrong = objections(
            column,
            bench.findings(outgoing),
            _shape(bench, column, found),
            levels=_levels_from(found["levels"]),
            subject_known=bool(bench.task.recipe.subject),
            limits=limits,
        )
        wrong += _anchored(bench, column, limits.few_days)
        against += [f"column {outgoing!r} (from {column.source!r}): {reason}" for reason in wrong]
    against += _spelt(bench, subjects, limits)
    if against:
        raise Refused(Reason.COLUMN_REFUSED, "; ".join(against), "change the recipe; nothing was sealed")
    weighed = bench.weighed()
    if weighed.get("against"):
        raise Refused(
            Reason.RISK_TOO_HIGH,
            f"together the columns {', '.join(weighed['quasi'])} single people out: {'; '.join(weighed['against'])}",
            "; or ".join(weighed["ways"])
            or "make the quasi-identifiers coarser, the sensitive columns finer, or leave one inside",
        )
    return {}


def _spelt(bench: Bench, subjects: int, limits: Thresholds) -> list[str]:
    """Return what speaks against columns that side by side are the digits, or the words, of one number."""
    parts = [name for name in bench.task.recipe.outgoing if bench.facts("inspect", name)["digits"]]
    digits = sum(bench.facts("inspect", name)["digits"] for name in parts)
    if len(parts) < 2 or digits < limits.digits:
        return []

    def rows() -> Iterator[Values]:
        for several in zip(*(bench.pieces(name) for name in parts), strict=True):
            words = np.zeros(len(several[0]), dtype=np.uint64)
            for values in several:
                words = pairs_of(values, words)
            yield words

    if distinct_count(rows, bench.rows) <= limits.unique_share * subjects:
        return []
    return [
        f"the columns {', '.join(map(repr, parts))} side by side tell rows apart as {digits:.0f} digits of a number "
        "would; round one more coarsely, or leave one inside"
    ]


def _anchored(bench: Bench, column: Column, few_days: int) -> tuple[str, ...]:
    """Return what speaks against a duration of which one end is always on the same few days: it tells the other."""
    if not isinstance(column.treatment, Duration):
        return ()
    units = [bench.facts("treat", str(unit))["days"][column.name] for unit in range(len(bench.main.units))]
    few = [len({day for unit in units for day in unit[end]}) < few_days for end in (0, 1)]
    if few[0] == few[1]:
        return ()
    fixed, told = (column.source, column.treatment.until) if few[0] else (column.treatment.until, column.source)
    return (f"{fixed!r} lies on fewer than {few_days} days, so the minutes tell {told!r} itself; use year or age",)


def _shape(bench: Bench, column: Column, found: Facts) -> Shape:
    low, high = found["span"]
    return Shape(
        distinct=found["distinct"],
        holders=found["holders"],
        steps=round((high - low) / (bench.note_of(column).grain or 1.0)),
        decimals=found["decimals"],
        key=found["key"] or column.source in _join_keys(bench),
    )


def _join_keys(bench: Bench) -> set[str]:
    joins = bench.task.recipe.joins
    return {bench.task.recipe.subject, *(j.left for j in joins.values()), *(f"{n}.{j.right}" for n, j in joins.items())}


def _known(values: Values) -> Any:
    return ~np.isnan(values) if values.dtype.kind == "f" else slice(None)


def _sparse(key: pa.Array) -> bool:
    """Say whether whole numbers lie so far apart that others are not among them by chance."""
    ends = pc.min_max(key).as_py()
    return ends["min"] is not None and ends["max"] - ends["min"] > 10 * len(key)


def _decimals(values: Values) -> int:
    """Return the most digits after the point in any of the values."""
    if values.dtype.kind != "f":
        return 0
    for places in range(17):
        if np.array_equal(np.round(values, places), values):
            return places
    return 17


def _levels_from(facts: Facts | None) -> ColumnFindings | None:
    if facts is None:
        return None
    entities = {name: (hits, 0) for name, hits in facts["entities"].items()}
    count = facts["distinct"]
    return ColumnFindings(entities=entities, respelled={}, distinct=count, cells=count, audited=0)
