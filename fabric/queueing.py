"""Queueing: the one decision of where and when each job runs. Live dispatcher and simulator use this same code.

`apply` takes in what happened, `decide` says what is to be done. No clock, no I/O, no randomness: the same events and
times make the same actions. What holds always: a job starts only where a verdict permits it that is not stale, with all
of its workers or as few as it allows, within free room, quotas and balances; whatever is unknown or stale is a no; and
every job that waits has a rank that does not move away, so that what can run is not starved.

Inside, jobs start in the order of their ranks (latest start that meets the deadline, less the head start of priority,
plus a bounded setback for teams above their share); behind a job for which there is no room, shorter ones are
backfilled where they do not delay it (EASY, Lifka 1995; shortest first, Tsafrir et al. 2007). When work leaves is
`spillover`; where to, and what a failure changes, `failover`; what makes room or comes home, `moving`.

A decision looks at heads of lines, at timers that are due and at what just came in, so its cost does not grow with the
queue. `explain` says for any waiting job why, in every pool.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable

from fabric.books import Holding
from fabric.dispatch_rules import Rules
from fabric.errors import Reason
from fabric.fleet import (
    HOUR_S,
    Action,
    DrainBack,
    Event,
    Extend,
    Hold,
    Preempt,
    Shed,
)
from fabric.hearing import Hearing
from fabric.lines import Waiting
from fabric.moving import homecomers

_EXTENSION_S = 600.0


class Dispatch(Hearing):
    """The queue and its decision. Mutable; one owner; not for two threads."""

    def decide(self, now_s: float) -> tuple[Action, ...]:
        """Say what is to be done now. A clock that was set back starts nothing until it has caught up."""
        if not now_s >= self._now_s:
            held = [Hold(job=one.job.id, reason=Reason.CLOCK_SET_BACK, until_s=self._now_s) for one in self._new]
            return tuple(held)
        self._now_s = now_s
        self._out = []
        new, self._new = self._new, []
        # 1. What comes home takes the room that was kept for it.
        home, self._home = self._home, []
        for one, room in home:
            if one.waits and self._books.unhealthy(room, now_s) is None:
                self._start(one, room, one.job.need.workers, "came-home")
        # 2. Fill the private pools in which something changed; then look at what is new or due.
        due = [*new, *self._due(now_s, new)]
        for room in self._books.inside:
            if room.name in self._dirty:
                self._fill(room)
        self._dirty.clear()
        for one in due:
            if one.waits:
                self._look_at(one)
        # 3. What wanted to leave and could not tries again where something changed outside.
        if self._outside_changed and self._stuck and now_s >= self._retry_s:
            self._retry()
        # 4. Pay for longer, and fetch home what may come.
        unpaid = []
        while self._paid and self._paid[0][0] <= now_s:
            at_s, _, _, holding = heapq.heappop(self._paid)
            if at_s == holding.watched_s:
                unpaid.append(holding)
        for holding in unpaid:
            self._extend(holding)
        self._bring_home(now_s)
        return tuple(self._out)

    def _due(self, now_s: float, new: list[Waiting]) -> list[Waiting]:
        due = []
        while self._timers and self._timers[0][0] <= now_s:
            item = heapq.heappop(self._timers)
            if self._is_timely(item):
                due.append(item[2])
                self._dirty.update(item[2].inside if now_s >= item[2].start_by_s else ())
        if self._anew:
            self._anew = False
            seen = {id(one) for one in [*due, *new]}
            due += [one for one in self._books.waiting.values() if id(one) not in seen]
        return due

    def _look_at(self, one: Waiting) -> None:
        """Decide about a job that is new, or whose time has come: start, leave, make room, be late, or hold."""
        books, now_s = self._books, self._now_s
        if not one.late:
            for name in one.inside:
                room = books.rooms[name]
                if room.fits(one.gpus, one.cpus) and self._may_not_now(one, room) is None:
                    self._fill(room)
                    if not one.waits:
                        return
        if one.inside and all(books.unhealthy(books.rooms[name], now_s) is not None for name in one.inside):
            self._private_failed(one)
        else:
            self._decide_waiting(one)

    def _decide_waiting(self, one: Waiting) -> None:
        if one.outside:
            self._may_leave(one)
        else:
            self._must_stay(one)

    def _extend(self, holding: Holding) -> None:
        """Pay for a job outside that outlives its estimate, or have it stop while it is still paid for."""
        books, now_s = self._books, self._now_s
        if books.held.get(holding.job.id) is not holding or holding.leaving == "stopped" or holding.promise is None:
            return
        job, room = holding.job, holding.room
        if holding.leaving == "spent":
            # It was asked to stop at its next checkpoint, and what paid for that is over.
            holding.leaving = "stopped"
            self._out.append(Shed(job=job.id, reason=Reason.BUDGET_SPENT))
            return
        longer_s = max(_EXTENSION_S, 0.1 * holding.work_s)
        price, _ = room.price(spot=job.need.spot)
        if self.rules.extend and holding.extends and price is not None:
            micros = -(-price * books.units(holding) * math.ceil(longer_s) // HOUR_S)
            if books.accounts.refusal(job, micros, room.name, now_s) is None:
                books.accounts.promise_more(holding.promise, micros)
                holding.longer_s = longer_s
                holding.paid_until_s += longer_s
                books.expect(holding, max(holding.until_s, now_s + longer_s / 2))
                self._watch_payment(holding)
                self._out.append(Extend(job=job.id, cost_micros=micros, until_s=holding.paid_until_s))
                return
        if job.checkpointed:
            holding.leaving = "spent"
            self._out.append(Preempt(job=job.id, for_job="", reason=Reason.BUDGET_SPENT.value))
            self._watch(holding, max(now_s, holding.paid_until_s))
        else:
            holding.leaving = "stopped"
            self._out.append(Shed(job=job.id, reason=Reason.BUDGET_SPENT))

    def _bring_home(self, now_s: float) -> None:
        """Ask work outside to come home where a private pool has had room for a while and nothing waits for it."""
        while self._calm and self._calm[0][0] <= now_s:
            heapq.heappop(self._calm)
        if not self._books.away:
            return
        for room in self._books.inside:
            if len(room.line) or room.free_gpus <= 0 < room.pool.gpus_total or room.free_cpus <= 0:
                room.calm_since_s = math.inf
            elif room.calm_since_s == math.inf:
                room.calm_since_s = now_s
                heapq.heappush(self._calm, (now_s + self.rules.calm_s, room.name))
            elif now_s >= room.calm_since_s + self.rules.calm_s and self._books.unhealthy(room, now_s) is None:
                for holding in homecomers(room, self._books, now_s):
                    holding.leaving = "home"
                    self._books.keep_home(holding, room)
                    self._out.append(DrainBack(job=holding.job.id, reason="room-inside"))
                # What could not come now may later: look again when as much time has passed.
                room.calm_since_s = now_s
                heapq.heappush(self._calm, (now_s + self.rules.calm_s, room.name))


def replay(rules: Rules, steps: Iterable[tuple[float, tuple[Event, ...]]]) -> list[tuple[Action, ...]]:
    """Decide recorded steps again: the same events at the same times make the same actions."""
    dispatch = Dispatch(rules)
    made = []
    for now_s, events in steps:
        for event in events:
            dispatch.apply(event)
        made.append(dispatch.decide(now_s))
    return made
