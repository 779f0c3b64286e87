"""Rooms: one pool as the decision keeps it. What is held in it and until when, and what waits for it."""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass
from itertools import islice

from fabric.fleet import Health, Pool
from fabric.lines import Line

_OVERRUN_S = 60.0
"""How long at least a job that has outlived its estimate is thought to go on."""
_WALKED = 64
_UNCOUNTED = 1 << 40


@dataclass(frozen=True, slots=True)
class Shadow:
    """The reservation of the job at the head: when enough is free, and what is free beside it then."""

    at_s: float
    gpus: int
    cpus: int


class Room:
    """A pool, what the queue's own jobs hold of it, and its line. Mutable; one owner."""

    __slots__ = (
        "calm_since_s",
        "cpus_held",
        "free_cpus",
        "free_gpus",
        "gpus_held",
        "line",
        "name",
        "pool",
        "promised",
        "running",
        "usual",
    )

    def __init__(self, pool: Pool) -> None:
        """Start with nothing held."""
        self.name = pool.name
        self.pool = pool
        self.gpus_held = 0
        self.cpus_held = 0
        self.free_gpus = 0
        self.free_cpus = 0
        self._count()
        self.promised: dict[str, tuple[int, int, float]] = {}
        """What room was made for and not taken yet: GPUs, CPUs, and until when it is kept apart."""
        self.running: list[tuple[float, str, int, int]] = []
        self.line = Line(
            in_gpus=pool.gpus_total > 0, origin_s=pool.observed_s if math.isfinite(pool.observed_s) else 0.0
        )
        self.calm_since_s = math.inf
        self.usual: dict[bool, tuple[int | None, float]] = {True: (pool.spot, math.inf), False: (pool.price, math.inf)}

    def _count(self) -> None:
        """Work out what nobody holds; negative when capacity went away under running work."""
        pool = self.pool
        self.free_gpus = pool.gpus_total - pool.gpus_taken - self.gpus_held
        self.free_cpus = pool.cpus_total - pool.cpus_taken - self.cpus_held if pool.counts_cpus else _UNCOUNTED

    def fits(self, gpus: int, cpus: int) -> bool:
        """Say whether so much is free."""
        return gpus <= self.free_gpus and cpus <= self.free_cpus

    def hold(self, job: str, gpus: int, cpus: int, until_s: float) -> None:
        """Count what a job takes, until it is thought to end."""
        self.gpus_held += gpus
        self.cpus_held += cpus
        self._count()
        insort(self.running, (until_s, job, gpus, cpus))

    def free(self, job: str, gpus: int, cpus: int, until_s: float) -> None:
        """Count what a job gives back; it was held until `until_s`."""
        self.gpus_held -= gpus
        self.cpus_held -= cpus
        self._count()
        self.running.remove((until_s, job, gpus, cpus))

    def health(self, now_s: float, stale_s: float) -> Health:
        """Return what is known of the pool now; what was seen too long ago, or is yet to be seen, is unknown."""
        if not 0.0 <= now_s - self.pool.observed_s <= stale_s and self.pool.observed_s != math.inf:
            return Health.UNKNOWN
        return self.pool.health

    def see(self, pool: Pool, jump: float, settles_s: float) -> None:
        """Take in the pool as observed; a price that jumped becomes the usual one when it has held for so long."""
        self.pool = pool
        self._count()
        at_s = pool.observed_s if pool.priced_s is None else pool.priced_s
        for spot, price in ((True, pool.spot), (False, pool.price)):
            usual, since_s = self.usual[spot]
            if price is None:
                continue
            if usual is None or price <= usual * (1 + jump) or at_s - since_s >= settles_s:
                self.usual[spot] = (price, math.inf)
            elif since_s == math.inf:
                self.usual[spot] = (usual, at_s)

    def price(self, *, spot: bool) -> tuple[int | None, int | None]:
        """Return the price that applies and the usual one."""
        as_spot = spot and self.pool.spot is not None
        return (self.pool.spot if as_spot else self.pool.price), self.usual[as_spot][0]

    def shadow(self, gpus: int, cpus: int, now_s: float) -> Shadow | None:
        """Return when so much will be free, by what running jobs are thought to end; None if never."""
        free_gpus, free_cpus = self.free_gpus, self.free_cpus
        if gpus <= free_gpus and cpus <= free_cpus:
            return Shadow(now_s, free_gpus - gpus, free_cpus - cpus)
        at_s = now_s
        for end_s, _, held_gpus, held_cpus in self.running:
            at_s = max(at_s, _thought_end_s(end_s, now_s))
            free_gpus += held_gpus
            free_cpus += held_cpus
            if gpus <= free_gpus and cpus <= free_cpus:
                return Shadow(at_s, free_gpus - gpus, free_cpus - cpus)
        return None

    def expected_wait_s(self, gpus: int, cpus: int, rank: float, now_s: float) -> float:
        """Return how long a job of this rank is thought to wait: until what is ahead of it has had its turn.

        The GPU-seconds that running jobs give back are filled with the work ahead first; an estimate, since what fits
        beside what is not known before. Infinite if the pool can never hold it.
        """
        in_gpus = self.pool.gpus_total > 0
        need, free = (gpus, self.free_gpus) if in_gpus else (cpus, self.free_cpus)
        ahead = self.line.work.ahead(rank)
        served, at_s = 0.0, now_s
        for end_s, _, held_gpus, held_cpus in islice(self.running, _WALKED):
            if end_s <= now_s:
                end_s = _thought_end_s(end_s, now_s)
            end_s = end_s if end_s > at_s else at_s
            if free > 0:
                serves = free * (end_s - at_s)
                if free >= need and served + serves >= ahead:
                    return at_s + max(0.0, ahead - served) / free - now_s
                served += serves
            at_s = end_s
            free += held_gpus if in_gpus else held_cpus
        if len(self.running) > _WALKED:
            # The rest of the pool is thought to go on serving as a whole.
            free = self.pool.gpus_total if in_gpus else self.pool.cpus_total
        if need > free or free <= 0:
            return math.inf
        return at_s + max(0.0, ahead - served) / free - now_s


def _thought_end_s(end_s: float, now_s: float) -> float:
    """Return when a job is thought to end: one that has outlived its estimate goes on for as long again.

    Were it thought to end at once, it would keep the head's reservation in the next minute for ever, and nothing could
    be backfilled.
    """
    return end_s if end_s > now_s else now_s + max(_OVERRUN_S, now_s - end_s)
