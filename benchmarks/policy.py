"""Decisions per second on one core: of distinct requests, of distinct requests over all zones at once, and remembered.

    python benchmarks/policy.py

CPU seconds of this process, the best of five rounds, so that other work on the machine counts little.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from fabric.labels import Classification, ExportControl, Labels
from fabric.policy import Decision, Policy
from fabric.requests import MoveRequest, Risk
from fabric.zones import Zone, ZoneKind

ROUNDS = 5
DISTINCT = 4_000
ZONES = tuple(
    Zone(name=name, kind=kind, jurisdiction="EU", cpus=2 if kind is ZoneKind.PRIVATE else 0)
    for name, kind in (("private", ZoneKind.PRIVATE), ("public", ZoneKind.PUBLIC), ("edge", ZoneKind.EDGE))
)
LABELS = Labels(
    data_classification=Classification.RESTRICTED,
    allowed_execution_zone=frozenset({"private", "public"}),
    burst_eligible=True,
    purpose="cost-forecast",
    residency=frozenset({"EU"}),
    export_control=ExportControl.NONE,
)
REQUEST = MoveRequest(
    person="p-0",
    zone=ZONES[1],
    labels=LABELS,
    purpose="cost-forecast",
    justification="queue",
    artifact="matrix",
    inspected=True,
    expired=False,
    statement_purpose="cost-forecast",
    risk=Risk(k=20, k_required=11),
)


def distinct(zones: Sequence[Zone]) -> list[MoveRequest]:
    """Return requests of which no two are equal."""
    return [
        replace(REQUEST, person=f"p-{number}", zone=zone, labels=replace(LABELS, project=f"x{number % 97}"))
        for number in range(DISTINCT // len(zones))
        for zone in zones
    ]


def rate(decide: Callable[[Policy], int], policy: Callable[[], Policy]) -> float:
    """Return the decisions per CPU second of the best round; a round starts with what `policy` returns."""
    best = 0.0
    for _ in range(ROUNDS):
        fresh = policy()
        start = time.process_time()
        count = decide(fresh)
        best = max(best, count / (time.process_time() - start))
    return best


def one_by_one(requests: Sequence[MoveRequest]) -> Callable[[Policy], int]:
    """Return what decides each request by itself."""
    return lambda policy: len([policy.decide(request) for request in requests])


def together(requests: Sequence[MoveRequest], size: int) -> Callable[[Policy], int]:
    """Return what decides the requests in batches of `size`."""

    def decide(policy: Policy) -> int:
        decided: list[Decision] = []
        for start in range(0, len(requests), size):
            decided += policy.decide_all(requests[start : start + size])
        return len(decided)

    return decide


def main() -> None:
    """Measure and print a table."""
    single, spread = distinct(ZONES[1:2]), distinct(ZONES)
    warm = Policy.default()
    warm.decide_all(single)
    again = [replace(request) for request in single]  # equal, but not the same objects
    measured = {
        "distinct, one by one": rate(one_by_one(single), Policy.default),
        f"distinct, {len(ZONES)} zones at once": rate(together(spread, len(ZONES)), Policy.default),
        "remembered": rate(lambda policy: sum(one_by_one(again)(policy) for _ in range(20)), lambda: warm),
    }
    for name, per_s in measured.items():
        print(f"{name:<26} {per_s:>10,.0f} decisions per CPU second")


if __name__ == "__main__":
    main()
