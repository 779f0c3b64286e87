"""Staying: work that may not leave. It is held, shrunk, or room is made for it."""

from __future__ import annotations

import math

from fabric.errors import Reason
from fabric.fleet import (
    Preempt,
)
from fabric.leaving import Leaving
from fabric.lines import Waiting
from fabric.moving import victims


class Staying(Leaving):
    """Decides about work that has no other way."""

    def _must_stay(self, one: Waiting) -> None:
        """Hold a job that may not leave; near its latest start, shrink it or make room for it."""
        now_s, rules = self._now_s, self.rules
        if not one.inside:
            self._say(one, self._no_pool(one).reason, None)
            return
        if one.job.deadline_s is None or one.late:
            # Nothing is lost any more by waiting, but patience ends: what must stay has no other way.
            if now_s >= one.start_by_s:
                one.start_by_s = now_s + max(rules.margin_s, rules.of(one.job.workload).patience_s)
                if self._shrink_inside(one) or self._make_room(one):
                    return
            self._say(one, Reason.DEADLINE_MISSED if one.late else Reason.WAITS_FOR_ROOM, None)
            self._arm(one, one.start_by_s)
            return
        start_by_s = one.start_by_s - rules.overrun_share * one.left_s
        press_s = start_by_s - rules.checkpoint_s - 2 * rules.margin_s
        if now_s > one.start_by_s:
            self._be_late(one, rules.of(one.job.workload).late)
            return
        wait_s = self._outlook(one, one.start_by_s).wait_s
        pressed = now_s >= press_s and wait_s > start_by_s - now_s - rules.margin_s
        if pressed and (self._shrink_inside(one) or self._make_room(one)):
            return
        self._say(one, Reason.WAITS_FOR_ROOM, now_s + wait_s if wait_s < math.inf else None)
        again_s = press_s if now_s < press_s else now_s + rules.margin_s
        self._arm(one, again_s if again_s < one.start_by_s else math.nextafter(one.start_by_s, math.inf))

    def _shrink_inside(self, one: Waiting) -> bool:
        need, job = one.job.need, one.job
        if not need.min_workers:
            return False
        for room in (self._books.rooms[name] for name in one.inside):
            if self._books.unhealthy(room, self._now_s) is not None or self._may_not_now(one, room) is not None:
                continue
            for workers in range(need.workers - 1, need.min_workers - 1, -1):
                ends_s = self._now_s + one.left_s * need.workers / workers
                if job.deadline_s is not None and not one.late and ends_s > job.deadline_s:
                    break
                if room.fits(workers * need.gpus, workers * need.cpus) and self._start(one, room, workers, "shrunk"):
                    return True
        return False

    def _make_room(self, one: Waiting) -> bool:
        """Ask checkpointed work to stop in favour of a job that must stay and would be late."""
        for room in (self._books.rooms[name] for name in one.inside):
            if self._books.unhealthy(room, self._now_s) is not None:
                continue
            if self._books.accounts.over_quota(one.job, room.pool.zone, one.gpus, room.name) is not None:
                continue
            found = victims(one, room, self._books.held.values(), self.rules, self._now_s)
            for holding in found:
                holding.leaving = "preempt"
                stops_s = max(self._now_s, (holding.checkpoint_s or holding.started_s)) + self.rules.checkpoint_s
                self._books.expect(holding, min(holding.until_s, stops_s))
                self._out.append(Preempt(job=holding.job.id, for_job=one.job.id, reason="makes-room"))
            if found:
                # What is freed is for the one that it was freed for.
                start_by_s = one.start_by_s
                self._rerank(one, min(one.rank, self._now_s - self.rules.late_s))
                until_s = max(holding.until_s for holding in found) + self.rules.margin_s
                room.promised[one.job.id] = (one.gpus, one.cpus, until_s)
                self._say(one, Reason.WAITS_FOR_ROOM, start_by_s)
                self._arm(one, math.nextafter(start_by_s, math.inf))
                return True
        return False
