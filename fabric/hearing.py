"""Hearing: what happened, taken into the books. An event that names what is not there changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fabric.accounts import Promise
from fabric.books import Holding
from fabric.fleet import (
    AccountsSeen,
    Cancelled,
    Checkpointed,
    EgressSeen,
    Ended,
    Event,
    ExtendRefused,
    Job,
    Left,
    PoolSeen,
    Restored,
    StartRefused,
    Submitted,
    Verdict,
    VerdictsSeen,
)
from fabric.staying import Staying


class Hearing(Staying):
    """Takes in events."""

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
            # The balances count it already, so nothing is promised anew; but it is paid for no longer than it was.
            holding.promise = Promise(job, running.reserved_micros, -math.inf)
            holding.paid_until_s = self._books.paid_until_s(holding, running.reserved_micros)
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

    def _extend_refused(self, event: ExtendRefused) -> None:
        holding = self._books.held.get(event.job)
        if holding is not None and holding.longer_s:
            holding.paid_until_s -= holding.longer_s
            holding.longer_s, holding.extends = 0.0, False
            self._watch(holding, event.at_s)

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

    def _rewire(self) -> None:
        """Work out anew where each waiting job could run: pools or quotas are others than before."""
        for one in list(self._books.waiting.values()):
            self._books.drop(one)
            self._books.shares.leaves(one.job.team)
            again = self._wait(one.job, one.left_s, one.since_s, moves=one.moves)
            again.blocked, again.said = one.blocked, one.said
        self._stuck.clear()
        self._dirty.update(room.name for room in self._books.inside)


def _with_verdicts(job: Job, verdicts: Mapping[str, Verdict]) -> Job:
    return replace(job, verdicts=verdicts)


_APPLY: Mapping[type, Callable[[Hearing, Any], None]] = {
    Submitted: Hearing._submitted,
    Cancelled: Hearing._cancelled,
    Restored: Hearing._restored,
    Ended: Hearing._ended,
    Checkpointed: Hearing._checkpointed,
    Left: Hearing._left,
    StartRefused: Hearing._start_refused,
    ExtendRefused: Hearing._extend_refused,
    PoolSeen: Hearing._pool_seen,
    EgressSeen: Hearing._egress_seen,
    AccountsSeen: Hearing._accounts_seen,
    VerdictsSeen: Hearing._verdicts_seen,
}
