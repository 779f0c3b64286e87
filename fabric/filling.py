"""Filling: which of the jobs that wait inside start, in order, and what is backfilled behind the head."""

from __future__ import annotations

from fabric.desk import Desk
from fabric.errors import Reason
from fabric.fleet import (
    Obstacle,
)
from fabric.lines import Waiting
from fabric.rooms import Room


class Filling(Desk):
    """Starts work in private pools."""

    def _fill(self, room: Room) -> None:
        """Start all that may start in a private pool now, in order, then backfill behind the head."""
        now_s, books = self._now_s, self._books
        if not len(room.line) or (room.free_gpus <= 0 and room.pool.gpus_total) or room.free_cpus <= 0:
            return
        if books.unhealthy(room, now_s) is not None:
            return
        head = self._start_heads(room)
        if head is None:
            return
        while self._backfill(room, head):
            pass

    def _start_heads(self, room: Room) -> Waiting | None:
        """Start heads in order until one does not fit; return that one, for which room is to be reserved."""
        setback_s = self._books.shares.setback_s
        while True:
            # A turn is one job's own, so that the jobs themselves are never compared.
            heads = sorted((one.rank + setback_s(one.job.team), one.turn, one) for one in room.line.heads())
            stays_wait = any(not one.outside for _, _, one in heads)
            for _, _, one in heads:
                # Work that has another way keeps no room from work that has none.
                if stays_wait and one.outside and self._is_reserved(one, room):
                    continue
                if self._may_not_now(one, room) is not None:
                    continue
                if not room.fits(one.gpus, one.cpus):
                    return one
                if self._start(one, room, one.job.need.workers, "inside"):
                    break
            else:
                return None

    def _may_not_now(self, one: Waiting, room: Room) -> Obstacle | None:
        """Say what other than room keeps a job from starting inside now."""
        books, now_s = self._books, self._now_s
        if room.name in one.blocked and now_s < one.blocked[room.name][1]:
            return Obstacle(
                pool=room.name, reason=_reason(one.blocked[room.name][0]), until_s=one.blocked[room.name][1]
            )
        if not books.permitted(one.job, room.pool, now_s):
            return books.denied(one.job, room.pool)
        if one.outside and room.fits(one.gpus, one.cpus) and self._is_reserved(one, room):
            return Obstacle(pool=room.name, reason=Reason.ROOM_RESERVED, numbers=(("free", room.free_gpus),))
        return books.accounts.over_quota(one.job, room.pool.zone, one.gpus, room.name)

    def _is_reserved(self, one: Waiting, room: Room) -> bool:
        """Say whether starting would use up room that is kept for work which may not leave.

        Work that is short or can be stopped may borrow it, and nothing waits for it past its latest start.
        """
        rules = self.rules
        if one.left_s <= rules.reserve_short_s or one.job.checkpointed or self._now_s >= one.start_by_s:
            return False
        if room.pool.gpus_total:
            return room.free_gpus - one.gpus < int(rules.reserve * room.pool.gpus_total)
        return room.free_cpus - one.cpus < int(rules.reserve * room.pool.cpus_total)

    def _backfill(self, room: Room, head: Waiting) -> bool:
        """Start one job behind the head that does not delay it; say whether there was one."""
        now_s = self._now_s
        free_gpus, free_cpus = room.free_gpus, room.free_cpus
        if free_cpus <= 0 or (free_gpus <= 0 and room.pool.gpus_total):
            return False
        shadow = room.shadow(head.gpus, head.cpus, now_s)
        for one in room.line.shortest(free_gpus, free_cpus):
            if one is head or one.gpus > free_gpus:
                continue
            delays = (
                shadow is not None
                and now_s + one.left_s > shadow.at_s
                and (one.gpus > shadow.gpus or one.cpus > shadow.cpus)
            )
            if delays or self._may_not_now(one, room) is not None:
                continue
            if self._start(one, room, one.job.need.workers, "backfill"):
                return True
        return False


def _reason(text: str) -> Reason:
    try:
        return Reason(text)
    except ValueError:
        return Reason.POOL_FULL
