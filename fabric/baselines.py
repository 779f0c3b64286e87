"""Baselines: the common rules that the simulator compares ours with. In order of submission inside; and when to leave.

They stand on the same books, so that they too obey policy, quotas and budgets, and they backfill as ours does unless
told not to: what is compared is when work leaves, not how well the private zone is packed.
"""

from __future__ import annotations

import math
from dataclasses import replace

from fabric.dispatch_rules import Rules
from fabric.errors import Reason
from fabric.fleet import Job
from fabric.lines import Waiting
from fabric.queueing import Dispatch
from fabric.rooms import Room

FIXED_S = 300.0
"""The fixed wait of the common rule: five minutes (Kueue's MultiKueue dispatcher)."""


class Baseline(Dispatch):
    """Jobs in the order of submission; one that may leave does so once it has waited `leaves_after_s`."""

    def __init__(self, rules: Rules, *, leaves_after_s: float, backfills: bool = True) -> None:
        """Infinite `leaves_after_s` keeps all work inside; 0 lets everything leave that finds no room at once."""
        super().__init__(replace(rules, reserve=0.0, fair_s=0.0, stays_s=0.0))
        self._leaves_after_s = leaves_after_s
        self._backfills = backfills

    def _rank(self, job: Job, start_by_s: float, since_s: float, *, stays: bool) -> float:
        return job.submitted_s

    def _decide_waiting(self, one: Waiting) -> None:
        leaves_s = one.since_s + self._leaves_after_s
        if one.outside and self._now_s >= leaves_s:
            self._leave(one, "waited")
        else:
            self._say(one, Reason.WAITS_FOR_ROOM, None)
            if one.outside:
                self._arm(one, leaves_s)

    def _backfill(self, room: Room, head: Waiting) -> bool:
        return self._backfills and super()._backfill(room, head)

    def _bring_home(self, now_s: float) -> None:
        return


def rule_named(name: str, rules: Rules) -> Dispatch:
    """Return a fresh decision by the name of its rule: one of `RULES`, or one of ours."""
    if name == "ours":
        return Dispatch(rules)
    plain, _, strict = name.partition("+")
    return Baseline(rules, leaves_after_s=RULES[plain], backfills=strict != "strict")


RULES = {"fifo": math.inf, "burst-all": 0.0, "fixed-5min": FIXED_S}
"""The baselines, with how long a job waits before it leaves; `+strict` after a name turns backfill off."""
