"""Leaving: work that may leave. When and where it does, what is tried again, and what is late."""

from __future__ import annotations

import heapq
import math

from fabric.dispatch_rules import Failure, Late, Step
from fabric.errors import Reason
from fabric.explaining import Explaining
from fabric.failover import Choice, choose
from fabric.lines import Waiting
from fabric.offers import offer
from fabric.spillover import Answer, Outlook, answer, needs_rent

_RETRY_S = 30.0
"""Least time between two rounds of what wanted to leave and could not."""
_STUCK_LOOKED_AT = 8


class Leaving(Explaining):
    """Decides about work that may leave the private zone."""

    def _may_leave(self, one: Waiting) -> None:
        now_s, spill = self._now_s, self.rules.of(one.job.workload)
        deadline = one.job.deadline_s is not None
        call_s = self._call_s(one)
        missed = deadline and not one.late and now_s > one.start_by_s - self._books.overhead_s(one.job)
        if not one.inside and not (missed and spill.late is Late.SHED):
            self._leave(one, "only-outside")
            return
        if missed and one.inside and now_s <= one.start_by_s:
            # Only the private zone could still meet it.
            self._say(one, Reason.WAITS_FOR_ROOM, None)
            self._arm(one, math.nextafter(one.start_by_s, math.inf))
            return
        if missed and self._be_late(one, spill.late):
            return
        outlook = self._outlook(one, call_s)
        spilling = self._pressure.feel(one.job.workload, spill, outlook, self.rules.release)
        if needs_rent(spill):
            outlook = Outlook(now_s, outlook.since_s, call_s, outlook.wait_s, outlook.depth, self._rent(one))
        found = answer(spill, outlook, spilling=spilling)
        if found.leave:
            self._leave(one, found.leave)
        elif found.again_s < math.inf and self._leaves_shrunk(one, call_s):
            self._leave(one, "shrunk")
        else:
            self._wait_on(one, found, outlook)

    def _shrunk_call_s(self, one: Waiting, call_s: float) -> float:
        """Return the last moment at which as few workers as a job allows still meet its deadline outside."""
        need = one.job.need
        if not 0 < need.min_workers < need.workers or one.job.deadline_s is None or one.late:
            return math.inf
        return call_s - one.left_s * (need.workers / need.min_workers - 1)

    def _leaves_shrunk(self, one: Waiting, call_s: float) -> bool:
        """Say whether a job should leave with fewer workers now, since there is no room outside for all of them."""
        if self._now_s < self._shrunk_call_s(one, call_s):
            return False
        return 0 < self._choice(one).workers < one.job.need.workers

    def _wait_on(self, one: Waiting, found: Answer, outlook: Outlook) -> None:
        starts_s = self._now_s + outlook.wait_s
        until_s = min(starts_s, outlook.call_s if found.again_s < math.inf else math.inf)
        self._say(one, Reason.WAITING_IS_CHEAPER, until_s if until_s < math.inf else None)
        # Once its call is over it stays inside, until it is late.
        late_s = (
            math.nextafter(one.start_by_s, math.inf) if one.job.deadline_s is not None and not one.late else math.inf
        )
        again_s = found.again_s if found.again_s < math.inf else late_s if late_s > self._now_s else math.inf
        shrunk_s = self._shrunk_call_s(one, outlook.call_s)
        if shrunk_s < again_s:
            again_s = min(again_s, max(shrunk_s, self._now_s + self.rules.margin_s))
        self._arm(one, again_s)

    def _private_failed(self, one: Waiting) -> None:
        obstacle = self._books.unhealthy(self._books.rooms[one.inside[0]], self._now_s)
        assert obstacle is not None  # noqa: S101 - the caller asked
        failure = {Reason.ZONE_DOWN: Failure.PRIVATE_DOWN, Reason.ZONE_DEGRADED: Failure.PRIVATE_DEGRADED}.get(
            obstacle.reason
        )
        steps = self.rules.steps(failure) if failure is not None else ()
        allowed = one.job.classification.rank <= self.rules.fail_over_up_to.rank
        for step in steps:
            if step is Step.SHED:
                self._shed(one, obstacle.reason)
                return
            if step is Step.FAIL_OVER and one.outside and allowed:
                self._leave(one, "fail-over")
                return
        self._say(one, obstacle.reason, None)

    def _leave(self, one: Waiting, why: str) -> None:
        now_s, books = self._now_s, self._books
        choice = self._choice(one)
        if choice.shed and choice.obstacle is not None:
            self._shed(one, choice.obstacle.reason)
            return
        if choice.offer is not None:
            shrunk = choice.workers < one.job.need.workers
            cost = choice.offer.shrunk_cost if shrunk else choice.offer.cost
            room = books.rooms[choice.offer.pool.name]
            if cost is not None and self._start(one, room, choice.workers, "shrunk" if shrunk else why, cost):
                return
        obstacle = choice.obstacle or self._no_pool(one)
        self._say(one, obstacle.reason, obstacle.until_s, obstacle.numbers)
        key = (one.job.team, one.job.project, one.job.classification.value, one.job.workload.value, one.gpus)
        if not one.stuck:
            one.stuck = True
            heapq.heappush(self._stuck.setdefault(key, []), (one.rank, one.turn, one))
        if one.job.deadline_s is not None and not one.late:
            late_s = math.nextafter(one.start_by_s, math.inf)
            self._arm(one, late_s if late_s > now_s else now_s + self.rules.margin_s)
        else:
            self._arm(one, now_s + max(_RETRY_S, self.rules.late_s))

    def _rent(self, one: Waiting) -> int | None:
        chosen = self._choice(one).offer
        return chosen.cost if chosen is not None else None

    def _choice(self, one: Waiting) -> Choice:
        offers = [offer(self._books, one, self._books.rooms[name], self._now_s) for name in one.outside]
        return choose(one.job.need, offers, self.rules)

    def _retry(self) -> None:
        """Let what is stuck try again: the heads of each kind, until one of them cannot."""
        self._outside_changed = False
        self._retry_s = self._now_s + _RETRY_S
        stuck, self._stuck = self._stuck, {}
        for key in sorted(stuck):
            heap = stuck[key]
            for _ in range(_STUCK_LOOKED_AT):
                while heap and not self._is_timely(heap[0]):
                    heapq.heappop(heap)
                if not heap:
                    break
                one = heapq.heappop(heap)[2]
                one.stuck = False
                self._leave(one, "last-call")
                if one.waits:
                    break
            if heap:
                merged = self._stuck.setdefault(key, [])
                merged.extend(heap)
                heapq.heapify(merged)

    def _be_late(self, one: Waiting, late: Late) -> bool:
        """Treat a job whose deadline cannot be met as the rules say; it goes behind what still can meet its own."""
        if late is Late.SHED:
            self._shed(one, Reason.DEADLINE_MISSED)
            return True
        one.late = True
        since_s = one.start_by_s
        one.start_by_s = max(self._now_s, since_s) + (
            0.0 if late is Late.LEAVE else self.rules.of(one.job.workload).patience_s
        )
        self._rerank(one, since_s + self.rules.late_s - one.job.priority * self.rules.priority_s)
        if late is Late.LEAVE and one.outside:
            self._leave(one, "late")
            return True
        self._say(one, Reason.DEADLINE_MISSED, None)
        self._arm(one, one.start_by_s)
        return True
