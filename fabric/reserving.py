"""What the dispatcher's actions mean in money: the order of a start, the bill of an attempt, and what budgets are left.

Inside, work is owned: it takes from quotas, costs budgets nothing, and what its GPU time is worth stands in its terms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from fabric.budget_store import Reservation, State
from fabric.budgets import Order, Unit, WhenSpent, accounts_of, quotas_of
from fabric.charges import Terms, Usage
from fabric.errors import FabricError, Reason
from fabric.fleet import AccountsSeen, Extend, Job, Pool, Scope, Start
from fabric.job_store import Attempt, Row
from fabric.spending import Spending


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """A fabric's spending, as its dispatcher needs it.

    Attributes:
        terms: the prices of a zone, by its name, at spot prices or not, at a time.
        new_id: a random id.
    """

    spending: Spending
    terms: Callable[[str, bool, float], Terms]
    new_id: Callable[[], str]

    def seen(self, now_s: float) -> AccountsSeen:
        """Return every budget and quota with what is left of it now."""
        balances = self.spending.store.balances(now_s)
        quotas = quotas_of(balance.limit for balance in balances)
        return AccountsSeen(accounts=accounts_of(balances, now_s), quotas=quotas, at_s=now_s)

    def refuses(self, job: Job, cost_micros: int, now_s: float) -> bool:
        """Say whether a budget that covers a job has too little left for it, and is declared to refuse then."""
        return any(
            one.limit.unit is Unit.MICROS
            and one.limit.when_spent is WhenSpent.REFUSE
            and one.limit.scope.covers(job)
            and cost_micros > one.left
            for one in self.spending.store.balances(now_s)
        )

    def reserve(self, job: Job, pool: Pool, start: Start, attempt: int, now_s: float, *, why: str) -> str:
        """Reserve what an attempt may cost, and return the reservation's id.

        Args:
            why: keyed digest of the justification.

        Raises:
            SpendingRefused: `BUDGET_UNKNOWN`, `BUDGET_SPENT`, `QUOTA_EXCEEDED`.
            Refused: `JUSTIFICATION_MISSING`.
            FabricError: `CLOCK_SET_BACK`, `EVIDENCE_UNWRITABLE`.
        """
        # An id of this very try: of two dispatchers that race for a job, neither gives back what the other took.
        name = f"{job.id}-{attempt}-{self.new_id()[:12]}"
        order = self._order(job, pool, start, now_s)
        return self.spending.reserve(name, job.id, order, now_s, justification_key=why).id

    def extend(self, row: Row, action: Extend, now_s: float, *, why: str) -> str:
        """Reserve more for a running attempt.

        Raises:
            FabricError: as `reserve`.
        """
        first = self.spending.store.find(row.reservation)
        if first is None:
            raise FabricError(Reason.RESERVATION_UNKNOWN, "the attempt has no reservation", "it leaves")
        order = Order(scope=first.order.scope, zone=row.zone, amount_micros=action.cost_micros, terms=first.order.terms)
        name = f"{row.reservation}.x{len(self._extensions(row.reservation)) + 1}"
        return self.spending.reserve(name, row.id, order, now_s, justification_key=why).id

    def settle(self, attempt: Attempt, egress_bytes: int) -> int:
        """Settle what an attempt cost, give the rest back, and return the cost; again is the same."""
        at, reservation = attempt.ended_s or attempt.placed_s, self.spending.store.find(attempt.reservation)
        if reservation is None:
            return 0
        if attempt.started_s is None:
            # No driver ever claimed it: nothing ran and nothing moved.
            self._give_back(reservation, at)
            return 0
        usage = self._usage(attempt, reservation, egress_bytes)
        terms = reservation.order.terms
        spent = left = terms.bill(usage) if terms else 0
        for more in self._extensions(reservation.id):
            part = min(left - min(left, reservation.order.amount_micros), more.order.amount_micros)
            self.spending.settle(more.id, part, at)
            left -= part
        self.spending.settle(reservation.id, left, at, usage=usage)
        return spent

    def holds(self, reservation: str) -> bool:
        """Say whether a reservation is still held."""
        found = self.spending.store.find(reservation)
        return found is not None and found.state is State.HELD

    def release(self, reservation: str, now_s: float) -> None:
        """Give a reservation back."""
        self.spending.release(reservation, now_s)

    def release_others(self, known: Collection[str], since_s: float, until_s: float, now_s: float) -> None:
        """Give back what was reserved in a time and is held for no attempt that was ever written down."""
        for each in self.spending.store.reservations(since_s, until_s):
            if each.state is State.HELD and each.id.partition(".x")[0] not in known:
                self.spending.release(each.id, now_s)

    def _extensions(self, reservation: str) -> list[Reservation]:
        found: list[Reservation] = []
        while (more := self.spending.store.find(f"{reservation}.x{len(found) + 1}")) is not None:
            found.append(more)
        return found

    def _give_back(self, reservation: Reservation, at: float) -> None:
        for each in (reservation, *self._extensions(reservation.id)):
            self.spending.release(each.id, at)

    def _order(self, job: Job, pool: Pool, start: Start, now_s: float) -> Order:
        gpus = start.workers * job.need.gpus
        return Order(
            scope=Scope(team=job.team, project=job.project, classification=job.classification, workload=job.workload),
            zone=pool.zone,
            amount_micros=0 if pool.inside else start.cost_micros,
            gpus=gpus,
            gpu_seconds=gpus * math.ceil(job.duration_s),
            terms=self.terms(pool.zone, job.need.spot and pool.spot is not None, now_s),
        )

    def _usage(self, attempt: Attempt, reservation: Reservation, egress_bytes: int) -> Usage:
        ended = attempt.ended_s or attempt.placed_s
        seconds = max(0, math.ceil(ended - (attempt.started_s or ended)))
        # In a pool without GPUs, its price is that of what a worker takes there.
        each = max(1, reservation.order.gpus // max(1, attempt.workers))
        terms = reservation.order.terms
        outside = terms is not None and not terms.owned
        return Usage(gpu_seconds=seconds * attempt.workers * each, egress_bytes=egress_bytes if outside else 0)
