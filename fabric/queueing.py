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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from fabric.books import Books, Holding, full
from fabric.dispatch_rules import Failure, Late, Rules, Step
from fabric.errors import Reason
from fabric.failover import Choice, choose
from fabric.fleet import (
    AccountsSeen,
    Action,
    Cancelled,
    Checkpointed,
    DrainBack,
    EgressSeen,
    Ended,
    Event,
    Extend,
    Hold,
    Job,
    Left,
    Obstacle,
    PoolSeen,
    Preempt,
    Restored,
    Shed,
    Start,
    StartRefused,
    Submitted,
    Verdict,
    VerdictsSeen,
)
from fabric.lines import Waiting
from fabric.moving import homecomers, victims
from fabric.offers import offer
from fabric.rooms import Room
from fabric.spillover import Answer, Outlook, Pressure, answer, needs_rent

_RETRY_S = 30.0
"""Least time between two rounds of what wanted to leave and could not."""
_STUCK_LOOKED_AT = 8
_EXTENSION_S = 600.0

_StuckKey = tuple[str, str, str, str, int]


class Dispatch:
    """The queue and its decision. Mutable; one owner; not for two threads."""

    def __init__(self, rules: Rules) -> None:
        """Start with an empty queue and no pool."""
        self.rules = rules
        self._books = Books(rules)
        self._pressure = Pressure(rules.calm_s)
        self._now_s = -math.inf
        self._turn = 0
        self._known: set[str] = set()
        self._new: list[Waiting] = []
        self._home: list[tuple[Waiting, Room]] = []
        self._timers: list[tuple[float, int, Waiting]] = []
        self._paid: list[tuple[float, int, str, Holding]] = []
        self._calm: list[tuple[float, str]] = []
        self._dirty: set[str] = set()
        self._stuck: dict[_StuckKey, list[tuple[float, int, Waiting]]] = {}
        self._outside_changed = False
        self._retry_s = -math.inf
        self._anew = False
        self._out: list[Action] = []

    # What can be seen.

    @property
    def waiting(self) -> Mapping[str, Waiting]:
        """Return the jobs that wait, by id."""
        return self._books.waiting

    @property
    def running(self) -> Mapping[str, Holding]:
        """Return the jobs that hold GPUs, by id."""
        return self._books.held

    @property
    def rooms(self) -> Mapping[str, Room]:
        """Return the pools and what is held in them, by name."""
        return self._books.rooms

    def next_s(self) -> float | None:
        """Return when `decide` should be called again though nothing happens; None for not at all."""
        while self._timers and not self._is_timely(self._timers[0]):
            heapq.heappop(self._timers)
        times = [heap[0][0] for heap in (self._timers, self._paid, self._calm) if heap]
        if self._outside_changed and self._stuck:
            times.append(self._retry_s)
        return min(times) if times else None

    # What happened.

    def apply(self, event: Event) -> None:
        """Take in one event. One that names a job which is not there changes nothing."""
        _APPLY[type(event)](self, event)

    def _submitted(self, event: Submitted) -> None:
        job = event.job
        if job.id not in self._known:
            self._known.add(job.id)
            self._wait(job, job.duration_s, job.submitted_s, moves=0)

    def _cancelled(self, event: Cancelled) -> None:
        one = self._books.waiting.get(event.job)
        if one is not None:
            self._books.drop(one)
            self._gone(one)
        elif event.job in self._books.held:
            self._ended(Ended(job=event.job, at_s=event.at_s))

    def _ended(self, event: Ended) -> None:
        holding = self._books.held.get(event.job)
        if holding is not None:
            self._give_back(holding, event.spent_micros)
            self._books.shares.leaves(holding.job.team)

    def _restored(self, event: Restored) -> None:
        running = event.running
        room = self._books.rooms.get(running.pool)
        if room is None or running.job.id in self._books.held:
            return
        job, need = running.job, running.job.need
        waiting = self._books.waiting.get(job.id)
        if waiting is not None:
            self._books.drop(waiting)
        else:
            self._books.shares.joins(job.team)
        self._known.add(job.id)
        was = self._made(job, running.left_s, running.started_s, moves=0)
        was.waits = False
        work_s = running.left_s * need.workers / running.workers
        holding = Holding(
            was=was,
            room=room,
            workers=running.workers,
            gpus=running.workers * need.gpus,
            cpus=running.workers * need.cpus,
            started_s=running.started_s,
            work_s=work_s,
            until_s=running.started_s + self._books.runs_s(was, room, running.workers),
            checkpoint_s=running.checkpoint_s,
        )
        self._books.restore(holding)
        if not room.pool.inside:
            holding.paid_until_s = holding.until_s + self._books.cover_s(job)
            self._watch_payment(holding)

    def _checkpointed(self, event: Checkpointed) -> None:
        holding = self._books.held.get(event.job)
        if holding is not None:
            holding.checkpoint_s = event.at_s
            work_s = max(0.0, event.left_s) * holding.job.need.workers / holding.workers
            self._books.expect(holding, event.at_s + work_s)

    def _left(self, event: Left) -> None:
        holding = self._books.held.get(event.job)
        if holding is None:
            return
        home = holding.home
        self._give_back(holding, event.spent_micros)
        was = holding.was
        left_s = min(max(event.left_s, 1.0), was.left_s)
        self._books.shares.leaves(holding.job.team)
        one = self._wait(holding.job, left_s, event.at_s, moves=was.moves + 1)
        if home is not None:
            self._home.append((one, home))

    def _start_refused(self, event: StartRefused) -> None:
        holding = self._books.held.get(event.job)
        if holding is None or holding.room.name != event.pool:
            return
        was = holding.was
        self._give_back(holding, 0)
        self._books.shares.leaves(holding.job.team)
        one = self._wait(holding.job, was.left_s, was.since_s, moves=was.moves)
        one.blocked = {**was.blocked, event.pool: (event.reason, event.until_s)}
        self._arm(one, event.until_s)

    def _pool_seen(self, event: PoolSeen) -> None:
        before = self._books.rooms.get(event.pool.name)
        health = before.pool.health if before is not None else None
        room, resized = self._books.see(event.pool)
        if resized:
            self._rewire()
        if event.pool.inside:
            self._dirty.add(room.name)
            self._anew = self._anew or health is not event.pool.health
        else:
            self._outside_changed = True

    def _egress_seen(self, event: EgressSeen) -> None:
        self._books.egress[event.zone] = (event.open, event.at_s)
        self._outside_changed = True

    def _accounts_seen(self, event: AccountsSeen) -> None:
        books = self._books
        since = [h.promise for h in books.away.values() if h.promise is not None and h.promise.at_s >= event.at_s]
        if books.accounts.seen(event.accounts, event.quotas, since):
            self._rewire()
        self._outside_changed = True
        self._dirty.update(room.name for room in books.inside)

    def _verdicts_seen(self, event: VerdictsSeen) -> None:
        one = self._books.waiting.get(event.job)
        if one is not None:
            self._books.drop(one)
            self._gone(one)
            self._wait(_with_verdicts(one.job, event.verdicts), one.left_s, one.since_s, moves=one.moves)

    # What is to be done.

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
        due = [*new, *self._due(now_s)]
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
        while self._paid and self._paid[0][0] <= now_s:
            self._extend(heapq.heappop(self._paid)[3])
        self._bring_home(now_s)
        return tuple(self._out)

    def _due(self, now_s: float) -> list[Waiting]:
        due = []
        while self._timers and self._timers[0][0] <= now_s:
            item = heapq.heappop(self._timers)
            if self._is_timely(item):
                due.append(item[2])
                self._dirty.update(item[2].inside if now_s >= item[2].start_by_s else ())
        if self._anew:
            self._anew = False
            seen = {id(one) for one in due}
            due += [one for one in self._books.waiting.values() if id(one) not in seen]
        return due

    def _is_timely(self, item: tuple[float, int, Waiting]) -> bool:
        return item[2].waits and item[2].turn == item[1]

    # Waiting.

    def _wait(self, job: Job, left_s: float, since_s: float, *, moves: int) -> Waiting:
        one = self._made(job, left_s, since_s, moves=moves)
        self._books.shares.joins(job.team)
        self._books.join(one, max(since_s, self._now_s))
        self._new.append(one)
        return one

    def _made(self, job: Job, left_s: float, since_s: float, *, moves: int) -> Waiting:
        books, now_s = self._books, max(since_s, self._now_s)
        inside = [r.name for r in books.inside if books.permitted(job, r.pool, now_s) and books.could_hold(job, r)]
        outside = tuple(r.name for r in books.outside if books.permitted(job, r.pool, now_s))
        if job.deadline_s is None:
            start_by_s = since_s + self.rules.of(job.workload).patience_s
        else:
            start_by_s = job.deadline_s - left_s
        self._turn += 1
        return Waiting(
            job=job,
            left_s=left_s,
            since_s=since_s,
            start_by_s=start_by_s,
            rank=self._rank(job, start_by_s, since_s, stays=not outside),
            turn=self._turn,
            group=(job.team, not outside, books.accounts.names(job)),
            inside=tuple(inside),
            outside=outside,
            gpus=job.need.total_gpus,
            cpus=job.need.total_cpus,
            moves=moves,
        )

    def _rank(self, job: Job, start_by_s: float, since_s: float, *, stays: bool) -> float:
        """Return who goes first: the latest start, less the head starts of priority and of work that must stay."""
        return start_by_s - job.priority * self.rules.priority_s - (self.rules.stays_s if stays else 0.0)

    def _gone(self, one: Waiting) -> None:
        self._books.shares.leaves(one.job.team)
        self._dirty.update(one.inside)

    def _rerank(self, one: Waiting, rank: float) -> None:
        """Give a waiting job another rank; whatever was noted under its old turn is void."""
        self._books.drop(one)
        self._turn += 1
        one.rank, one.turn, one.waits, one.stuck = rank, self._turn, True, False
        self._books.join(one, self._now_s)
        self._dirty.update(one.inside)

    def _rewire(self) -> None:
        """Work out anew where each waiting job could run: pools or quotas are others than before."""
        for one in list(self._books.waiting.values()):
            self._books.drop(one)
            self._books.shares.leaves(one.job.team)
            again = self._wait(one.job, one.left_s, one.since_s, moves=one.moves)
            again.blocked, again.said = one.blocked, one.said
        self._stuck.clear()
        self._dirty.update(room.name for room in self._books.inside)

    def _arm(self, one: Waiting, at_s: float) -> None:
        if at_s < math.inf:
            heapq.heappush(self._timers, (at_s, one.turn, one))

    # Starting inside.

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
        shares = self._books.shares
        while True:
            heads = sorted(
                ((one.rank + shares.setback_s(one.job.team), one.turn, one) for one in room.line.heads()),
                key=lambda item: item[:2],
            )
            stays_wait = any(not one.outside for _, _, one in heads)
            for _, _, one in heads:
                if self._may_not_now(one, room) is not None:
                    continue
                # Work that has another way keeps no room from work that has none.
                if stays_wait and one.outside and self._is_reserved(one, room):
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

    def _start(self, one: Waiting, room: Room, workers: int, why: str, micros: int = 0) -> bool:
        holding = self._books.take(one, room, workers, micros, self._now_s)
        if holding is None:
            return False
        self._out.append(
            Start(job=one.job.id, pool=room.name, zone=room.pool.zone, workers=workers, cost_micros=micros, reason=why)
        )
        room.calm_since_s = math.inf
        if holding.promise is not None:
            self._watch_payment(holding)
        return True

    # Looking at one job that waits.

    def _look_at(self, one: Waiting) -> None:
        """Decide about a job that is new, or whose time has come: start, leave, make room, be late, or hold."""
        books, now_s = self._books, self._now_s
        if not one.late:
            for name in one.inside:
                room = books.rooms[name]
                if room.fits(one.gpus, one.cpus):
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

    def _may_leave(self, one: Waiting) -> None:
        now_s, spill = self._now_s, self.rules.of(one.job.workload)
        deadline = one.job.deadline_s is not None
        call_s = self._call_s(one)
        missed = deadline and not one.late and now_s > one.start_by_s - self._books.overhead_s(one.job)
        if missed and one.inside and now_s <= one.start_by_s:
            # Only the private zone could still meet it.
            self._say(one, Reason.WAITS_FOR_ROOM, None)
            self._arm(one, math.nextafter(one.start_by_s, math.inf))
            return
        if missed and self._be_late(one, spill.late):
            return
        if not one.inside:
            self._leave(one, "only-outside")
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

    def _call_s(self, one: Waiting) -> float:
        """Return the last moment at which a job leaves and meets its deadline; for one without, when patience ends."""
        if one.job.deadline_s is None or one.late:
            return one.start_by_s
        spare_s = self.rules.margin_s + self.rules.overrun_share * one.left_s
        return one.start_by_s - self._books.overhead_s(one.job) - spare_s

    def _outlook(self, one: Waiting, call_s: float) -> Outlook:
        rooms = [self._books.rooms[name] for name in one.inside]
        wait_s = min(room.expected_wait_s(one.gpus, one.cpus, one.rank, self._now_s) for room in rooms)
        return Outlook(self._now_s, one.since_s, call_s, wait_s, max(len(room.line) for room in rooms))

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
                room.promised[one.job.id] = (one.gpus, one.cpus)
                self._say(one, Reason.WAITS_FOR_ROOM, start_by_s)
                self._arm(one, math.nextafter(start_by_s, math.inf))
                return True
        return False

    # Leaving.

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

    def _shed(self, one: Waiting, reason: Reason) -> None:
        self._books.drop(one)
        self._gone(one)
        self._out.append(Shed(job=one.job.id, reason=reason))

    # What runs.

    def _give_back(self, holding: Holding, spent: int) -> None:
        home = holding.home
        self._books.give_back(holding, spent)
        if holding.room.pool.inside:
            self._dirty.add(holding.room.name)
        else:
            self._outside_changed = True
        if home is not None:
            self._dirty.add(home.name)

    def _watch_payment(self, holding: Holding) -> None:
        at_s = holding.paid_until_s - self._books.cover_s(holding.job)
        heapq.heappush(self._paid, (at_s, holding.was.turn, holding.job.id, holding))

    def _extend(self, holding: Holding) -> None:
        """Pay for a job outside that outlives its estimate, or have it stop while it is still paid for."""
        books, now_s = self._books, self._now_s
        if books.held.get(holding.job.id) is not holding or holding.leaving == "spent" or holding.promise is None:
            return
        job, room = holding.job, holding.room
        longer_s = max(_EXTENSION_S, 0.1 * holding.work_s)
        price, _ = room.price(spot=job.need.spot)
        if self.rules.extend and price is not None:
            units = holding.gpus if room.pool.gpu_model else holding.gpus or holding.cpus
            micros = -(-price * units * math.ceil(longer_s) // 3_600)
            if books.accounts.refusal(job, micros, room.name, now_s) is None:
                books.accounts.promise_more(holding.promise, micros)
                holding.paid_until_s += longer_s
                books.expect(holding, max(holding.until_s, now_s + longer_s / 2))
                self._watch_payment(holding)
                self._out.append(Extend(job=job.id, cost_micros=micros, until_s=holding.paid_until_s))
                return
        holding.leaving = "spent"
        if job.checkpointed:
            self._out.append(Preempt(job=job.id, for_job="", reason=Reason.BUDGET_SPENT.value))
        else:
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

    # Saying why.

    def _say(
        self, one: Waiting, reason: Reason, until_s: float | None, numbers: tuple[tuple[str, int], ...] = ()
    ) -> None:
        """Emit a hold where its reason is another than was said last."""
        if one.said is not reason:
            one.said = reason
            self._out.append(Hold(job=one.job.id, reason=reason, until_s=until_s, numbers=numbers))

    def _no_pool(self, one: Waiting) -> Obstacle:
        """Say why no pool is open to a job at all."""
        found = [self._why_not(one, room) for room in self._books.rooms.values()]
        reasons = [o for o in found if o is not None]
        denied = [o for o in reasons if o.reason is Reason.POLICY_DENIED]
        return next(iter(denied or reasons), Obstacle(pool="", reason=Reason.POLICY_DENIED))

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


def replay(rules: Rules, steps: Iterable[tuple[float, tuple[Event, ...]]]) -> list[tuple[Action, ...]]:
    """Decide recorded steps again: the same events at the same times make the same actions."""
    dispatch = Dispatch(rules)
    made = []
    for now_s, events in steps:
        for event in events:
            dispatch.apply(event)
        made.append(dispatch.decide(now_s))
    return made


def _reason(text: str) -> Reason:
    try:
        return Reason(text)
    except ValueError:
        return Reason.POOL_FULL


def _with_verdicts(job: Job, verdicts: Mapping[str, Verdict]) -> Job:
    return replace(job, verdicts=verdicts)


_APPLY: Mapping[type, Callable[[Dispatch, Any], None]] = {
    Submitted: Dispatch._submitted,
    Cancelled: Dispatch._cancelled,
    Restored: Dispatch._restored,
    Ended: Dispatch._ended,
    Checkpointed: Dispatch._checkpointed,
    Left: Dispatch._left,
    StartRefused: Dispatch._start_refused,
    PoolSeen: Dispatch._pool_seen,
    EgressSeen: Dispatch._egress_seen,
    AccountsSeen: Dispatch._accounts_seen,
    VerdictsSeen: Dispatch._verdicts_seen,
}
