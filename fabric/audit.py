"""Audit: what the simulator holds a decision to, kept apart from the decision's own books.

It asks policy itself, counts GPUs and money itself, and trusts nothing that the decision says but the action.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from fabric.fleet import Extend, Pool, Start
from fabric.judging import Judge
from fabric.traces import TraceJob


class Audit:
    """Every start and every cost of one run, checked."""

    def __init__(self, pools: Iterable[Pool], judge: Judge, budget_micros: int | None) -> None:
        """Start with nothing held and nothing spent."""
        self._pools = {pool.name: pool for pool in pools}
        self._judge = judge
        self._budget = budget_micros
        self._held: dict[str, tuple[str, int]] = {}
        self._gpus: Counter[str] = Counter()
        self._period = 0
        self._promised: dict[str, Counter[int]] = {}
        self._committed: Counter[int] = Counter()
        self._found: Counter[str] = Counter()
        self.most_spent = 0

    @property
    def violations(self) -> dict[str, int]:
        """Return what was found, by kind; empty if all was well."""
        return dict(self._found)

    def period(self) -> None:
        """Start another period: money that is promised from now on counts against a budget anew."""
        self._period += 1

    def starts(self, start: Start, traced: TraceJob) -> None:
        """Check a start: policy, gang, room, once, budget."""
        pool, need = self._pools[start.pool], traced.need
        verdict = self._judge.verdicts(traced.facts).get(pool.zone)
        self._note("policy", verdict is None or not verdict.permitted)
        self._note("policy", not pool.inside and not traced.facts.justified)
        least = need.min_workers or need.workers
        self._note("gang", not least <= start.workers <= need.workers)
        self._note("model", bool(need.gpu_model) and pool.inside and need.gpu_model != pool.gpu_model)
        self._note("twice", traced.id in self._held)
        gpus = start.workers * need.gpus
        self._held[traced.id] = (pool.name, gpus)
        self._gpus[pool.name] += gpus
        self._note("capacity", self._gpus[pool.name] > pool.gpus_total - pool.gpus_taken)
        self._promised[traced.id] = Counter({self._period: start.cost_micros})
        self._commit(self._period, start.cost_micros)

    def extends(self, extend: Extend) -> None:
        """Count money that is promised for longer."""
        self._promised[extend.job][self._period] += extend.cost_micros
        self._commit(self._period, extend.cost_micros)

    def stops(self, job: str, spent: int) -> None:
        """Settle what a job cost: never more than was promised for it, to the micro."""
        pool, gpus = self._held.pop(job)
        self._gpus[pool] -= gpus
        promised = self._promised.pop(job)
        self._note("overspent", spent > promised.total())
        # What is left over goes back to the period that promised last.
        self._committed[max(promised)] -= max(0, promised.total() - spent)

    def _commit(self, period: int, micros: int) -> None:
        self._committed[period] += micros
        committed = self._committed[period]
        self.most_spent = max(self.most_spent, committed)
        self._note("budget", self._budget is not None and committed > self._budget)

    def _note(self, kind: str, wrong: bool) -> None:
        if wrong:
            self._found[kind] += 1
