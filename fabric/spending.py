"""Spending: budgets and ledger kept in step, so that what the records tell of money is what the meters hold.

1. Reserve in the budgets, from every limit that covers the work; then record the intent, and only then may money go.
2. Settle in the budgets; then record the outcome. What goes beyond the reservation is a second reservation in the
   records, named so, because nothing is spent there that was not reserved.
Each step may be cut off and asked for again: a reservation's records have ids made from its own. A reservation whose
intent was closed as abandoned, with the process that made it, is recorded again when it is settled after all.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.budget_store import BudgetStore, Reservation, State
from fabric.budgets import Order
from fabric.charges import Usage
from fabric.errors import EvidenceInvalid, Reason, Refused
from fabric.ledger import Ledger
from fabric.records import BUDGET

MAX_TELLINGS = 100


@dataclass(frozen=True, slots=True)
class Spending:
    """A fabric's budgets with the ledger that tells of them."""

    store: BudgetStore
    ledger: Ledger
    currency: str

    def reserve(
        self, reservation_id: str, job_id: str, order: Order, at: float, *, justification_key: str = ""
    ) -> Reservation:
        """Reserve for a job, and record it; the same id twice is once.

        Args:
            reservation_id: made from the job and its attempt, so that it is the same when asked for again.
            job_id: the job.
            order: what it needs.
            at: the time, in seconds since the epoch.
            justification_key: keyed digest of why the money is spent (`Home.keyed`).

        Raises:
            Refused: `JUSTIFICATION_MISSING`: it would cost or run outside, and nobody has said why.
            SpendingRefused: `BUDGET_UNKNOWN`, `BUDGET_SPENT` or `QUOTA_EXCEEDED`.
            FabricError: as `BudgetStore.reserve` and `Ledger.intend`; what is reserved by then stays, to be asked
                for again or released.
        """
        rented = order.terms is not None and not order.terms.owned
        if (order.amount_micros or rented) and not justification_key:
            raise Refused(
                Reason.JUSTIFICATION_MISSING,
                "work that costs money or runs on rented hardware has no justification",
                "say why in justification",
            )
        made = self.store.reserve(reservation_id, job_id, order, at)
        if made.state is State.HELD:
            self._announce(_record(reservation_id), reservation_id, made, made.order.amount_micros, justification_key)
        return made

    def settle(self, reservation_id: str, actual_micros: int, at: float, *, usage: Usage | None = None) -> Reservation:
        """State what was spent, and record it; the first settlement counts, however often it is asked for.

        Raises:
            FabricError: as `BudgetStore.settle` and `Ledger.conclude`.
        """
        return self._tell(self.store.settle(reservation_id, actual_micros, at, usage=usage))

    def release(self, reservation_id: str, at: float) -> Reservation:
        """Give a reservation back, and record that nothing was spent; a settlement stays as it is.

        Raises:
            FabricError: as `BudgetStore.release` and `Ledger.conclude`.
        """
        return self._tell(self.store.release(reservation_id, at))

    def _tell(self, done: Reservation) -> Reservation:
        spent, reserved = done.spent_micros or 0, done.order.amount_micros
        if spent > reserved:
            self._account_for(done, f"{done.id}.over", spent - reserved, spent - reserved)
        self._account_for(done, done.id, reserved, min(spent, reserved))
        return done

    def _account_for(self, done: Reservation, name: str, reserved: int, spent: int) -> None:
        """Conclude a reservation's record; where that was abandoned, or told as given back, tell it anew."""
        for telling in range(MAX_TELLINGS):
            record = _record(name) + (f".{telling}" if telling else "")
            if not self.ledger.is_concluded(record):
                self._announce(record, name, done, reserved)
                self._conclude(record, spent)
                return
            outcome = self.ledger.find(_outcome(record))
            if outcome is not None and outcome["body"].get("spent") == spent:
                return
        raise EvidenceInvalid(Reason.EVIDENCE_INVALID, "a reservation was told of too often", "look at the ledger")

    def _announce(self, record: str, name: str, made: Reservation, reserved: int, justification: str = "") -> None:
        if self.ledger.find(record) is not None:
            return
        scope = made.order.scope
        body = {
            "reservation": name,
            "job": made.job,
            "zone": made.order.zone,
            "currency": self.currency,
            "reserved": reserved,
            "accounts": list(self.store.covering(made.order)),
            "labels": {
                "team": scope.team,
                "project": scope.project,
                "data_classification": scope.classification,
                "workload_class": scope.workload,
            },
            **({"justification": justification} if justification else {}),
            **({"what": "beyond-reservation"} if name != made.id else {}),
        }
        try:
            self.ledger.intend(BUDGET, body, record_id=record)
        except EvidenceInvalid:
            # Another process may have recorded the same in this moment.
            if self.ledger.find(record) is None:
                raise

    def _conclude(self, record: str, spent: int) -> None:
        try:
            self.ledger.conclude(
                record, "done", {"spent": spent, "currency": self.currency}, record_id=_outcome(record)
            )
        except EvidenceInvalid:
            if self.ledger.find(_outcome(record)) is None:
                raise


def _record(reservation: str) -> str:
    return f"budget-{reservation}"


def _outcome(record: str) -> str:
    return f"{record}-done"
