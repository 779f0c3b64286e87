"""Spillover: when a job that may leave the private zone does.

Waiting is free until it costs something, so a job leaves at its last call: the last moment at which it still meets its
deadline outside. It leaves earlier when an hour of waiting is declared to cost more than the rent, or when the expected
wait exceeds the slack that is left while the queue is deep; both thresholds let go later than they took hold, so that
the answer does not flap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fabric.dispatch_rules import Spill
from fabric.fleet import HOUR_S
from fabric.labels import WorkloadClass

_SMOOTHED_OVER = 4.0
_MOST = 4.0
_LEAST_S = 30.0
"""Least time between two looks at the same job."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """How a waiting job stands.

    Attributes:
        since_s: when it began to wait.
        call_s: its last call.
        wait_s: how long it is thought to wait inside; infinite if there is no room for it at all.
        depth: how many jobs wait inside.
        rent: what it would cost outside; None where it was not asked for.
    """

    now_s: float
    since_s: float
    call_s: float
    wait_s: float
    depth: int
    rent: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether to leave and why; else when to look again."""

    leave: str = ""
    again_s: float = math.inf


class Pressure:
    """Which workload classes are spilling.

    What single jobs feel is smoothed, a threshold lets go later than it took hold, and neither change comes within
    `dwell_s` of the one before: the answer does not flap.
    """

    __slots__ = ("_changed_s", "_dwell_s", "_level", "_on", "changes")

    def __init__(self, dwell_s: float) -> None:
        """Start with none; a class changes at most once in `dwell_s`."""
        self._dwell_s = dwell_s
        self._on: set[WorkloadClass] = set()
        self._level: dict[WorkloadClass, float] = {}
        self._changed_s: dict[WorkloadClass, float] = {}
        self.changes = 0

    def feel(self, workload: WorkloadClass, spill: Spill, outlook: Outlook, release: float) -> bool:
        """Take in one job's outlook and say whether its class is spilling."""
        felt = min(_MOST * spill.pressure, outlook.wait_s / max(1.0, outlook.call_s - outlook.now_s))
        level = self._level.get(workload, 0.0)
        level = self._level[workload] = level + (felt - level) / _SMOOTHED_OVER
        on = workload in self._on
        if outlook.now_s - self._changed_s.get(workload, -math.inf) < self._dwell_s:
            return on
        rises = not on and outlook.depth >= spill.queue_depth and level >= spill.pressure
        falls = on and (outlook.depth < spill.queue_depth * release or level < spill.pressure * release)
        if rises or falls:
            self._on ^= {workload}
            self._changed_s[workload] = outlook.now_s
            self.changes += 1
        return workload in self._on


def needs_rent(spill: Spill) -> bool:
    """Say whether the answer depends on the rent."""
    return spill.wait_price > 0 or spill.miss_price is not None


def answer(spill: Spill, outlook: Outlook, *, spilling: bool) -> Answer:
    """Say whether a job leaves now, or when to look again."""
    now_s = outlook.now_s
    rent = outlook.rent
    worth = spill.miss_price is None or (rent is not None and rent <= spill.miss_price)
    # 1. Its last call: after it, only the private zone could meet the deadline.
    if now_s >= outlook.call_s:
        return Answer(leave="last-call") if worth else Answer()
    # 2. Waiting costs more than renting.
    if spill.wait_price and rent is not None and outlook.wait_s * spill.wait_price >= rent * HOUR_S:
        return Answer(leave="waiting-costs-more")
    # 3. Under pressure, once it has waited its share.
    ripe_s = outlook.since_s + spill.wait_share * (outlook.call_s - outlook.since_s)
    if spilling and now_s >= ripe_s and worth:
        return Answer(leave="pressure")
    if spill.wait_share >= 1.0 and not spill.wait_price:
        return Answer(again_s=outlook.call_s)
    later_s = max(ripe_s, now_s + (outlook.call_s - now_s) / 2, now_s + _LEAST_S)
    return Answer(again_s=min(outlook.call_s, later_s))
