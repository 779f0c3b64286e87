"""Desk: what every part of the decision works with. Books, timers, and the actions of the turn that is decided."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping

from fabric.books import Books, Holding
from fabric.dispatch_rules import Rules
from fabric.errors import Reason
from fabric.fleet import (
    Action,
    Hold,
    Job,
    Shed,
    Start,
)
from fabric.lines import Waiting
from fabric.rooms import Room
from fabric.spillover import Outlook, Pressure

_StuckKey = tuple[str, str, str, str, int]


class Desk:
    """The state of the decision, and the few things that are done to it. Mutable; one owner; not for two threads."""

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

    def _is_timely(self, item: tuple[float, int, Waiting]) -> bool:
        return item[2].waits and item[2].turn == item[1]

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

    def _arm(self, one: Waiting, at_s: float) -> None:
        if at_s < math.inf:
            heapq.heappush(self._timers, (at_s, one.turn, one))

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

    def _shed(self, one: Waiting, reason: Reason) -> None:
        self._books.drop(one)
        self._gone(one)
        self._out.append(Shed(job=one.job.id, reason=reason))

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
        self._watch(holding, holding.paid_until_s - self._books.cover_s(holding.job))

    def _watch(self, holding: Holding, at_s: float) -> None:
        holding.watched_s = at_s
        heapq.heappush(self._paid, (at_s, holding.was.turn, holding.job.id, holding))

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

    def _say(
        self, one: Waiting, reason: Reason, until_s: float | None, numbers: tuple[tuple[str, int], ...] = ()
    ) -> None:
        """Emit a hold where its reason is another than was said last."""
        if one.said is not reason:
            one.said = reason
            self._out.append(Hold(job=one.job.id, reason=reason, until_s=until_s, numbers=numbers))
