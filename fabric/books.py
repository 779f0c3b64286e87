"""Books: all that the decision keeps. Rooms, lines, what is held, money, shares; and the one way to take and give back.

`take` is the only place where a job comes to hold anything. It asks policy's verdict, room, quota and budget again, so
that no rule about when or where can start what may not start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fabric.accounts import Accounts, Promise
from fabric.dispatch_rules import Rules
from fabric.errors import Reason
from fabric.failover import OF_HEALTH
from fabric.fairness import Shares
from fabric.fleet import GIGABYTE, HOUR_S, Health, Job, Obstacle, Pool, cost_micros
from fabric.lines import Waiting
from fabric.rooms import Room
from fabric.zones import ZoneKind

MEGABYTE = 1_000_000


@dataclass(slots=True, eq=False)
class Holding:
    """A job that holds GPUs.

    Attributes:
        was: how it waited before, to wait so again if the start is refused.
        until_s: when it is thought to end.
        work_s: how long it works with the workers it has.
        paid_until_s: until when its reservation pays; infinite inside.
        longer_s: by how much it was paid for longer last.
        extends: whether it may be paid for longer; not once the budget store said no.
        watched_s: when its payment is looked at next.
        leaving: "" or why it was asked to stop: "preempt", "home", "spent"; "stopped" once it was not asked any more.
        home: the private pool that keeps room for it.
    """

    was: Waiting
    room: Room
    workers: int
    gpus: int
    cpus: int
    started_s: float
    work_s: float
    until_s: float
    promise: Promise | None = None
    paid_until_s: float = math.inf
    longer_s: float = 0.0
    extends: bool = True
    watched_s: float = math.inf
    checkpoint_s: float | None = None
    leaving: str = ""
    home: Room | None = None

    @property
    def job(self) -> Job:
        """Return the job."""
        return self.was.job

    @property
    def movable(self) -> bool:
        """Say whether it can be asked to stop at a checkpoint."""
        return self.job.checkpointed and not self.leaving


class Books:
    """The state of the decision. Mutable; one owner; the same events make the same books."""

    def __init__(self, rules: Rules) -> None:
        """Start with no pool, no account and no job."""
        self.rules = rules
        self.rooms: dict[str, Room] = {}
        self.inside: list[Room] = []
        self.outside: list[Room] = []
        self.accounts = Accounts(required=rules.budget_required, stale_s=rules.stale_s)
        self.shares = Shares(rules.weights, rules.fair_s)
        self.waiting: dict[str, Waiting] = {}
        self.held: dict[str, Holding] = {}
        self.away: dict[str, Holding] = {}
        self.egress: dict[str, tuple[bool, float]] = {}

    def see(self, pool: Pool) -> tuple[Room, bool]:
        """Take in a pool as observed; say whether its size or kind is another than before."""
        room = self.rooms.get(pool.name)
        before = room.pool if room is not None else None
        if room is None or room.pool.kind is not pool.kind:
            room = self.rooms[pool.name] = Room(pool)
            ordered = [self.rooms[name] for name in sorted(self.rooms)]
            self.inside = [one for one in ordered if one.pool.inside]
            self.outside = [one for one in ordered if not one.pool.inside]
        room.see(pool, self.rules.price_jump, self.rules.price_settles_s)
        resized = before is None or (before.gpus_total, before.cpus_total, before.gpus_taken, before.cpus_taken) != (
            pool.gpus_total, pool.cpus_total, pool.gpus_taken, pool.cpus_taken
        )  # fmt: skip
        if pool.inside and resized:
            self.shares.size(
                sum(one.pool.gpus_total for one in self.inside), sum(one.pool.cpus_total for one in self.inside)
            )
        return room, resized or before is None or before.kind is not pool.kind

    # Where a job may run.

    def permitted(self, job: Job, pool: Pool, now_s: float) -> bool:
        """Say whether policy lets the job run in the pool's zone now; what is absent or stale says no."""
        verdict = job.verdicts.get(pool.zone)
        if verdict is None or not verdict.permitted or not now_s < verdict.until_s:
            return False
        return pool.kind is ZoneKind.PRIVATE or job.justified

    def denied(self, job: Job, pool: Pool) -> Obstacle:
        """Return policy's no, with its rules and numbers."""
        verdict = job.verdicts.get(pool.zone)
        facts, rules = ((), ()) if verdict is None or verdict.permitted else (verdict.facts, verdict.rules)
        return Obstacle(pool=pool.name, reason=Reason.POLICY_DENIED, numbers=facts, rules=rules)

    def unhealthy(self, room: Room, now_s: float) -> Obstacle | None:
        """Say what of the pool's health stands in the way."""
        health = room.health(now_s, self.rules.stale_s)
        if health is Health.HEALTHY:
            return None
        age_s = now_s - room.pool.observed_s
        if health is Health.UNKNOWN and not room.pool.inside and age_s > self.rules.gone_s and room.pool.observed_s:
            return Obstacle(pool=room.name, reason=Reason.ZONE_DOWN)
        return Obstacle(pool=room.name, reason=OF_HEALTH[health])

    def runs_s(self, one: Waiting, room: Room, workers: int) -> float:
        """Return how long a job holds the pool: outside, its start and its data's way come first."""
        work_s = one.left_s * one.job.need.workers / workers
        return work_s if room.pool.inside else work_s + self.overhead_s(one.job)

    def overhead_s(self, job: Job) -> float:
        """Return how long it takes outside before work begins."""
        return self.rules.startup_s + job.egress_bytes / (self.rules.egress_mb_s * MEGABYTE)

    def cover_s(self, job: Job) -> float:
        """Return for how much longer than its estimate a job is paid: time to extend it, or to stop at a checkpoint."""
        return self.rules.margin_s + (self.rules.checkpoint_s if job.checkpointed else 0.0)

    def rent(self, one: Waiting, room: Room, workers: int) -> int | None:
        """Return what is to be reserved for a job outside; None if a price is unknown."""
        seconds = self.runs_s(one, room, workers) + self.cover_s(one.job)
        need = one.job.need
        return cost_micros(room.pool, need, workers=workers, seconds=seconds, egress_bytes=one.job.egress_bytes)

    # Taking and giving back.

    def refusal(self, one: Waiting, room: Room, workers: int, micros: int | None, now_s: float) -> Obstacle | None:
        """Say why a job may not hold so much of a pool now, by policy, model, room, quota or budget."""
        job = one.job
        if not self.permitted(job, room.pool, now_s):
            return self.denied(job, room.pool)
        model, asked = room.pool.gpu_model, job.need.gpu_model
        if asked not in ("", model) and (room.pool.inside or model not in self.rules.models.get(asked, ())):
            return Obstacle(pool=room.name, reason=Reason.GPU_MODEL_UNKNOWN)
        gpus, cpus = workers * job.need.gpus, workers * job.need.cpus
        if not room.fits(gpus, cpus):
            return full(one, room)
        over = self.accounts.over_quota(job, room.pool.zone, gpus, room.name)
        if over is not None or room.pool.inside:
            return over
        return self.accounts.refusal(job, micros, room.name, now_s)

    def take(self, one: Waiting, room: Room, workers: int, micros: int, now_s: float) -> Holding | None:
        """Let a waiting job hold its part of a pool; None, and nothing changes, if it may not."""
        need = one.job.need
        least = need.min_workers or need.workers
        if not least <= workers <= need.workers or self.refusal(one, room, workers, micros, now_s) is not None:
            return None
        holds_s = self.runs_s(one, room, workers)
        holding = Holding(
            was=one,
            room=room,
            workers=workers,
            gpus=workers * need.gpus,
            cpus=workers * need.cpus,
            started_s=now_s,
            work_s=one.left_s * need.workers / workers,
            until_s=now_s + holds_s,
        )
        if not room.pool.inside:
            holding.promise = Promise(one.job, micros, now_s)
            holding.paid_until_s = now_s + holds_s + self.cover_s(one.job)
            self.accounts.promise(holding.promise)
        self._wait_no_more(one)
        self.restore(holding)
        return holding

    def paid_until_s(self, holding: Holding, reserved_micros: int) -> float:
        """Return until when a reservation pays, at the price that is seen now; as estimated where none is."""
        price, _ = holding.room.price(spot=holding.job.need.spot)
        each = self.units(holding) * (price or 0)
        if not each:
            return holding.until_s + self.cover_s(holding.job)
        moved = -(-(holding.room.pool.egress or 0) * holding.job.egress_bytes // GIGABYTE)
        return holding.started_s + max(0, reserved_micros - moved) * HOUR_S / each

    def units(self, holding: Holding) -> int:
        """Return how many units of a pool's price a job takes: GPUs, or CPUs where it has none."""
        return holding.gpus if holding.room.pool.gpu_model else holding.gpus or holding.cpus

    def restore(self, holding: Holding) -> None:
        """Count what a job holds already."""
        room, job = holding.room, holding.job
        room.hold(job.id, holding.gpus, holding.cpus, holding.until_s)
        self.accounts.take(job, room.pool.zone, holding.gpus)
        self.held[job.id] = holding
        if room.pool.inside:
            self.shares.takes(job.team, holding.gpus, holding.cpus)
        else:
            self.away[job.id] = holding

    def give_back(self, holding: Holding, spent: int) -> None:
        """Count that a job holds nothing more, and what it cost."""
        room, job = holding.room, holding.job
        room.free(job.id, holding.gpus, holding.cpus, holding.until_s)
        self.accounts.give_back(job)
        del self.held[job.id]
        if room.pool.inside:
            self.shares.takes(job.team, -holding.gpus, -holding.cpus)
        else:
            del self.away[job.id]
        if holding.promise is not None:
            self.accounts.settle(holding.promise, spent)
        if holding.home is not None:
            holding.home.free(f"home:{job.id}", job.need.total_gpus, job.need.total_cpus, math.inf)
            holding.home = None

    def expect(self, holding: Holding, until_s: float) -> None:
        """Change when a job is thought to end."""
        room = holding.room
        room.free(holding.job.id, holding.gpus, holding.cpus, holding.until_s)
        holding.until_s = until_s
        room.hold(holding.job.id, holding.gpus, holding.cpus, until_s)

    def keep_home(self, holding: Holding, room: Room) -> None:
        """Keep room inside for a job that was asked to come home."""
        holding.home = room
        room.hold(f"home:{holding.job.id}", holding.job.need.total_gpus, holding.job.need.total_cpus, math.inf)

    # Waiting.

    def join(self, one: Waiting, now_s: float) -> None:
        """Put a job among those that wait, in the line of every private pool that could hold it."""
        self.waiting[one.job.id] = one
        for name in one.inside:
            self.rooms[name].line.add(one, now_s)

    def drop(self, one: Waiting) -> None:
        """Take a job from among those that wait."""
        self._wait_no_more(one)

    def _wait_no_more(self, one: Waiting) -> None:
        one.waits = False
        del self.waiting[one.job.id]
        for name in one.inside:
            room = self.rooms[name]
            room.line.remove(one)
            room.promised.pop(one.job.id, None)

    def could_hold(self, job: Job, room: Room) -> bool:
        """Say whether the pool has the GPUs that the job asks for, and enough of them when it is empty.

        What other work holds there now, which this queue did not start, it may give back.
        """
        need, pool = job.need, room.pool
        least = need.min_workers or need.workers
        return (
            need.gpu_model in ("", pool.gpu_model)
            and least * need.gpus <= pool.gpus_total
            and (not pool.counts_cpus or least * need.cpus <= pool.cpus_total)
        )


def full(one: Waiting, room: Room) -> Obstacle:
    """Return that a pool has no room now, or never has."""
    in_gpus = one.gpus > 0
    needs, free = (one.gpus, room.free_gpus) if in_gpus else (one.cpus, room.free_cpus)
    total = room.pool.gpus_total if in_gpus else room.pool.cpus_total
    reason = Reason.WAITS_FOR_ROOM if room.pool.inside else Reason.POOL_FULL
    if needs > total and not one.job.need.min_workers:
        reason = Reason.ZONE_HAS_NO_ROOM
    numbers = (("needs", needs), ("free", max(0, free)), ("total", total))
    return Obstacle(pool=room.name, reason=reason, numbers=numbers)
