"""Comparison: several rules over one trace, side by side, and the frontier of ours over what a miss may cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fabric.baselines import RULES, rule_named
from fabric.dispatch_rules import Rules, Spill
from fabric.errors import InvalidInput, Reason, nearest
from fabric.fleet import HOUR_S, MICROS
from fabric.labels import WorkloadClass
from fabric.policy import Policy
from fabric.simulation import Result, Simulation, World
from fabric.traces import TraceJob

FRONTIER = (0, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000)
"""Micros that a missed deadline may cost before the job stays inside; beyond the last there is no limit."""
NAMES = ("ours", *RULES, *(f"{name}+strict" for name in RULES))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run in numbers; times in seconds, money in micros.

    Attributes:
        missed_that_stay: missed deadlines of jobs that may not leave.
        latest_s: how long after its deadline the latest job ended; a shed one does not end.
        starved: jobs that policy lets run somewhere and that never ended.
    """

    rule: str
    jobs: int
    ended: int
    shed: int
    with_deadline: int
    missed: int
    missed_that_stay: int
    cost_micros: int
    inside_gpu_hours: float
    outside_gpu_hours: float
    wait_mean_s: float
    wait_p50_s: float
    wait_p95_s: float
    wait_max_s: float
    latest_s: float
    moves: int
    violations: int
    starved: int

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def summary(result: Result) -> Summary:
    """Return a run in numbers."""
    outcomes = list(result.outcomes.values())
    waits = sorted(one.first_start_s - one.submitted_s for one in outcomes if one.first_start_s == one.first_start_s)
    due = [one for one in outcomes if one.deadline_s is not None]
    missed = [one for one in due if one.missed]
    return Summary(
        rule=result.rule,
        jobs=len(outcomes),
        ended=sum(one.end_s == one.end_s for one in outcomes),
        shed=sum(one.shed for one in outcomes),
        with_deadline=len(due),
        missed=len(missed),
        missed_that_stay=sum(one.stays for one in missed),
        cost_micros=sum(one.micros for one in outcomes),
        inside_gpu_hours=round(sum(one.inside_s for one in outcomes) / HOUR_S, 1),
        outside_gpu_hours=round(sum(one.outside_s for one in outcomes) / HOUR_S, 1),
        wait_mean_s=round(sum(waits) / len(waits), 1) if waits else 0.0,
        wait_p50_s=_at(waits, 0.5),
        wait_p95_s=_at(waits, 0.95),
        wait_max_s=_at(waits, 1.0),
        latest_s=round(
            max((one.end_s - one.deadline_s for one in missed if one.deadline_s is not None), default=0.0), 1
        ),
        moves=sum(one.moves for one in outcomes),
        violations=sum(count for kind, count in result.violations.items() if kind != "starved"),
        starved=result.violations.get("starved", 0),
    )


def check_rules(names: Iterable[str]) -> None:
    """Refuse the name of a rule that there is not.

    Raises:
        InvalidInput: `CONFIG_INVALID`, with the nearest right name.
    """
    for name in names:
        if name not in NAMES:
            raise InvalidInput(Reason.CONFIG_INVALID, f"there is no rule {name!r}", nearest(name, NAMES))


def compare(
    trace: Callable[[], Iterable[TraceJob]], names: Sequence[str], world: World, rules: Rules, policy: Policy
) -> list[Result]:
    """Run every rule over the trace; `trace` returns the same jobs each time."""
    check_rules(names)
    return [Simulation(world, rule_named(name, rules), policy, name).run(trace()) for name in names]


def frontier(
    trace: Callable[[], Iterable[TraceJob]], world: World, rules: Rules, policy: Policy
) -> list[tuple[int, Summary]]:
    """Run ours over what a missed deadline may cost: from never renting to renting whatever it costs."""
    found = []
    for miss_price in FRONTIER:
        spills = {each: replace(rules.spill.get(each, Spill()), miss_price=miss_price) for each in WorkloadClass}
        knob = replace(rules, spill=spills)
        name = f"ours, a miss costs {miss_price / MICROS:g}"
        result = Simulation(world, rule_named("ours", knob), policy, name).run(trace())
        found.append((miss_price, summary(result)))
    return found


def table(rows: Sequence[Summary]) -> str:
    """Return summaries as a table for people."""
    head = (
        "rule",
        "missed",
        "of",
        "cost",
        "GPU-h in",
        "GPU-h out",
        "wait p50",
        "p95",
        "latest by",
        "moves",
        "violations",
        "starved",
    )
    lines = [head]
    lines += [
        (
            row.rule, f"{row.missed:,}", f"{row.with_deadline:,}", f"{row.cost_micros / MICROS:,.2f}",
            f"{row.inside_gpu_hours:,.0f}", f"{row.outside_gpu_hours:,.0f}",
            _time(row.wait_p50_s), _time(row.wait_p95_s), _time(row.latest_s),
            str(row.moves), str(row.violations), str(row.starved),
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if not n else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / HOUR_S:.1f} h"


def _at(ordered: Sequence[float], share: float) -> float:
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1) if ordered else 0.0
