"""Explaining: why a job waits, in every pool, by the same checks that decide."""

from __future__ import annotations

import math

from fabric.books import full
from fabric.errors import Reason
from fabric.filling import Filling
from fabric.fleet import (
    Hold,
    Obstacle,
)
from fabric.lines import Waiting
from fabric.offers import offer
from fabric.rooms import Room


class Explaining(Filling):
    """Says why not."""

    def explain(self, job_id: str, now_s: float) -> Hold | None:
        """Say why a job waits and what stands in its way in every pool; None if it does not wait."""
        one = self._books.waiting.get(job_id)
        if one is None:
            return None
        if now_s < self._now_s:
            return Hold(job=job_id, reason=Reason.CLOCK_SET_BACK, until_s=self._now_s)
        found = [(room, self._why_not(one, room)) for room in self._books.rooms.values()]
        obstacles = tuple(o for _, o in found if o is not None)
        reason = one.said or (obstacles[0].reason if obstacles else Reason.WAITS_ITS_TURN)
        rooms = [self._books.rooms[name] for name in one.inside]
        waits_s = [room.expected_wait_s(one.gpus, one.cpus, one.rank, now_s) for room in rooms]
        times = [now_s + wait_s for wait_s in waits_s if wait_s < math.inf]
        if one.outside and not one.late:
            times += [at_s for at_s in [self._call_s(one)] if at_s >= now_s]
        return Hold(
            job=job_id,
            reason=reason,
            until_s=min(times) if times else None,
            numbers=obstacles[0].numbers if obstacles else (),
            obstacles=obstacles,
        )

    def _no_pool(self, one: Waiting) -> Obstacle:
        """Say why no pool is open to a job at all."""
        found = [self._why_not(one, room) for room in self._books.rooms.values()]
        reasons = [o for o in found if o is not None]
        denied = [o for o in reasons if o.reason is Reason.POLICY_DENIED]
        return next(iter(denied or reasons), Obstacle(pool="", reason=Reason.POLICY_DENIED))

    def _why_not(self, one: Waiting, room: Room) -> Obstacle | None:
        """Say what keeps a job from one pool now."""
        books, now_s = self._books, self._now_s
        if not books.permitted(one.job, room.pool, now_s):
            return books.denied(one.job, room.pool)
        if one.job.need.gpu_model not in ("", room.pool.gpu_model):
            return Obstacle(pool=room.name, reason=Reason.GPU_MODEL_UNKNOWN)
        if not room.pool.inside:
            found = offer(books, one, room, now_s).obstacle
            return found or Obstacle(pool=room.name, reason=Reason.WAITING_IS_CHEAPER)
        sick = books.unhealthy(room, now_s)
        if sick is not None:
            return sick
        if not books.could_hold(one.job, room) or not room.fits(one.gpus, one.cpus):
            return full(one, room)
        numbers = (("free", max(0, room.free_gpus if room.pool.gpus_total else room.free_cpus)),)
        return self._may_not_now(one, room) or Obstacle(
            pool=room.name, reason=Reason.WAITS_ITS_TURN, numbers=numbers
        )  # fmt: skip
