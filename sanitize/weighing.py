"""The stage that measures the risk of the whole, and leaves rows in small cells out where the recipe says so."""

from __future__ import annotations

import numpy as np

from sanitize import risk
from sanitize.bench import KEPT, SUBJECT, Bench, Facts
from sanitize.recipe import Role
from sanitize.ways_out import ways_out


def weigh(bench: Bench, turn: str) -> Facts:
    """Measure the risk of the whole; on the first turn, mark rows in small cells where the recipe lets them go."""
    if turn == "first":
        bench.spool.remove(KEPT)
    limits = bench.limits
    quasi = _quasi(bench)
    kept = np.flatnonzero(bench.spool.column(KEPT, np.bool_)) if bench.spool.has(KEPT) else slice(None)
    # Without a quasi-identifier all rows are one cell.
    whole = {"": np.broadcast_to(np.zeros(1), bench.rows)}
    arrays = {name: values[kept] for name, values in ({n: bench.values(n) for n in quasi} or whole).items()}
    who = bench.spool.column(SUBJECT, np.uint64)[kept] if bench.task.recipe.subject else None
    sensitive = {name: bench.values(name)[kept] for name in bench.task.recipe.sensitive}
    measured = risk.measure(arrays, sensitive=sensitive, subjects=who, k=limits.k)
    left_out = bench.rows - (len(kept) if isinstance(kept, np.ndarray) else bench.rows)
    against = risk.objections(measured, limits)
    allowed = float(bench.task.recipe.risk.suppress)
    if turn == "first" and against and allowed and measured.k < limits.k:
        small = risk.small(arrays, who, limits.k)
        if small.sum() <= allowed * bench.rows:
            bench.spool.put(KEPT, 0, ~small)
            bench.spool.sync()
            return {"again": True}
    facts: Facts = {
        "again": False,
        "quasi": list(quasi),
        "risk": measured.to_json() | {"quasi": list(quasi)},
        "suppressed": left_out,
    }
    if against:
        ways = ways_out(arrays, who, limits)
        facts |= {"against": list(against), "ways": [str(way) for way in ways]}
    return facts


def _quasi(bench: Bench) -> tuple[str, ...]:
    """Return the columns that together may single somebody out: declared, suspected, and of earlier releases."""
    declared = {c.name for c in bench.task.recipe.columns if c.role is Role.QUASI_IDENTIFIER}
    notes = {
        name: {"from": column.source, "treatment": column.action, "role": column.role.value}
        for column in bench.task.recipe.columns
        for name in column.outgoing
    }
    suspected = risk.suspected({name: bench.values(name) for name in notes}, notes)
    return (*(name for name in notes if name in declared or name in suspected), *bench.phantoms)
