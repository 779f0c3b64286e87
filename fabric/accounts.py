"""Accounts: the budgets and quotas as the decision sees them, with what it has promised since they were read.

The store enforces them; here they keep a start from being planned that would exceed one. What is missing, too old or
past its period is unknown, and unknown is a no.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.errors import Reason
from fabric.fleet import Account, Job, Obstacle, Quota


@dataclass(slots=True, eq=False)
class _Open:
    account: Account
    left: int


@dataclass(slots=True, eq=False)
class _Held:
    quota: Quota
    gpus: int = 0


@dataclass(slots=True, eq=False)
class Promise:
    """Money that was promised to one start, and in which reading of the balances it is counted."""

    job: Job
    micros: int
    at_s: float
    reading: int = -1


class Accounts:
    """Balances and quotas; every promise is counted at once. Mutable; one owner."""

    __slots__ = ("_covering", "_open", "_quotas", "_reading", "_under", "_used", "required", "stale_s")

    def __init__(self, *, required: bool, stale_s: float) -> None:
        """Start with nothing known: where an account is required, nothing may be spent."""
        self.required = required
        self.stale_s = stale_s
        self._open: tuple[_Open, ...] = ()
        self._reading = 0
        self._quotas: tuple[_Held, ...] = ()
        self._covering: dict[tuple[object, ...], tuple[_Open, ...]] = {}
        self._under: dict[tuple[object, ...], tuple[_Held, ...]] = {}
        self._used: dict[str, tuple[Job, str, int]] = {}

    def seen(self, accounts: tuple[Account, ...], quotas: tuple[Quota, ...], promises: list[Promise]) -> bool:
        """Take balances as read, less `promises` that were made since; say whether the quotas are others."""
        self._reading += 1
        self._open = tuple(_Open(account, account.left_micros) for account in accounts)
        self._covering.clear()
        for promise in promises:
            self.promise(promise)
        changed = quotas != tuple(held.quota for held in self._quotas)
        if changed:
            self._quotas = tuple(_Held(quota) for quota in quotas)
            self._under.clear()
            for job, zone, gpus in self._used.values():
                self._count(job, zone, gpus)
        return changed

    def refusal(self, job: Job, micros: int | None, pool: str, now_s: float) -> Obstacle | None:
        """Say what stands in the way of promising so much now."""
        covering = self._accounts(job)
        if not covering:
            return Obstacle(pool=pool, reason=Reason.BUDGET_UNKNOWN) if self.required else None
        if micros is None:
            return Obstacle(pool=pool, reason=Reason.PRICE_UNKNOWN)
        for one in covering:
            age_s = now_s - one.account.observed_s
            if now_s >= one.account.until_s or not 0.0 <= age_s <= self.stale_s:
                return Obstacle(pool=pool, reason=Reason.BUDGET_UNKNOWN)
            if micros > one.left:
                until_s = one.account.until_s if one.account.until_s < 1e18 else None
                numbers = (("cost_micros", micros), ("left_micros", one.left))
                return Obstacle(pool=pool, reason=Reason.BUDGET_SPENT, until_s=until_s, numbers=numbers)
        return None

    def promise(self, promise: Promise) -> None:
        """Count money that is promised."""
        promise.reading = self._reading
        for one in self._accounts(promise.job):
            one.left -= promise.micros

    def promise_more(self, promise: Promise, micros: int) -> None:
        """Count more money for the same start."""
        for one in self._accounts(promise.job):
            one.left -= micros
        # What was promised before an older reading is in the balances already, and is not given back twice.
        promise.micros = promise.micros + micros if promise.reading == self._reading else micros
        promise.reading = self._reading

    def settle(self, promise: Promise, spent: int) -> None:
        """Give back what was promised and not spent; balances that were read since show it themselves."""
        if promise.reading == self._reading:
            for one in self._accounts(promise.job):
                one.left += promise.micros - spent

    def over_quota(self, job: Job, zone: str, gpus: int, pool: str) -> Obstacle | None:
        """Say which quota does not let the job hold so many GPUs in a zone now."""
        for held in self._held(job):
            quota = held.quota
            if quota.zone == zone and held.gpus + gpus > quota.gpus:
                numbers = (("needs", gpus), ("held", held.gpus), ("quota", quota.gpus))
                return Obstacle(pool=pool, reason=Reason.QUOTA_EXCEEDED, numbers=numbers)
        return None

    def take(self, job: Job, zone: str, gpus: int) -> None:
        """Count GPUs that a job holds."""
        self._used[job.id] = (job, zone, gpus)
        self._count(job, zone, gpus)

    def give_back(self, job: Job) -> None:
        """Count that it holds them no more."""
        _, zone, gpus = self._used.pop(job.id)
        self._count(job, zone, -gpus)

    def names(self, job: Job) -> tuple[str, ...]:
        """Return the names of the quotas that the job falls under."""
        return tuple(held.quota.name for held in self._held(job))

    def _count(self, job: Job, zone: str, gpus: int) -> None:
        for held in self._held(job):
            if held.quota.zone == zone:
                held.gpus += gpus

    def _accounts(self, job: Job) -> tuple[_Open, ...]:
        key = (job.team, job.project, job.classification, job.workload)
        found = self._covering.get(key)
        if found is None:
            found = self._covering[key] = tuple(one for one in self._open if one.account.scope.covers(job))
        return found

    def _held(self, job: Job) -> tuple[_Held, ...]:
        if not self._quotas:
            return ()
        key = (job.team, job.project, job.classification, job.workload)
        found = self._under.get(key)
        if found is None:
            found = self._under[key] = tuple(one for one in self._quotas if one.quota.scope.covers(job))
        return found
