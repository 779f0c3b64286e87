"""Simulation: a trace of jobs under a decision, event by event, in simulated time.

The decision is the live dispatcher's own (`fabric.queueing`); the world around it is made up: pools that start what
they are told to, jobs that take as long as the trace says. `audit` watches every start and every cost with books of its
own and asks policy itself. The same trace, rules and seed make the same result.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from fabric.audit import Audit
from fabric.fleet import (
    Account,
    AccountsSeen,
    Action,
    DrainBack,
    EgressSeen,
    Ended,
    Event,
    Extend,
    Hold,
    Job,
    Left,
    Pool,
    PoolSeen,
    Preempt,
    Quota,
    Scope,
    Shed,
    Start,
    Submitted,
    Verdict,
    cost_micros,
)
from fabric.judging import Judge
from fabric.policy import Policy
from fabric.queueing import Dispatch
from fabric.traces import TraceJob
from fabric.zones import Zone, ZoneKind

_LEAST_LEFT_S = 1.0
_SAMPLES = 4_096


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the decision finds around it.

    Attributes:
        budget_micros: what may be spent outside in each period; None for any amount.
        period_s: of the budget.
    """

    zones: Mapping[str, Zone]
    pools: tuple[Pool, ...]
    budget_micros: int | None = None
    period_s: float = 30 * 86_400.0
    quotas: tuple[Quota, ...] = ()

    def accounts(self, at_s: float) -> tuple[Account, ...]:
        """Return the budget as read at the start of a period."""
        limit = 10**18 if self.budget_micros is None else self.budget_micros
        until_s = math.inf if self.budget_micros is None else at_s + self.period_s
        return (
            Account(
                name="all", scope=Scope(), limit_micros=limit, until_s=until_s, observed_s=at_s,
            ),
        )  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """What became of one job."""

    submitted_s: float
    deadline_s: float | None
    stays: bool
    first_start_s: float = math.nan
    end_s: float = math.nan
    micros: int = 0
    inside_s: float = 0.0
    outside_s: float = 0.0
    moves: int = 0
    shed: bool = False

    @property
    def missed(self) -> bool:
        """Say whether it did not end by its deadline."""
        return self.deadline_s is not None and not self.end_s <= self.deadline_s


@dataclass(slots=True, eq=False)
class _Live:
    traced: TraceJob
    outcome: Outcome
    left_s: float
    estimate_s: float
    segment: int = 0
    pool: Pool | None = None
    workers: int = 0
    at_s: float = 0.0
    works_from_s: float = 0.0
    egress_micros: int = 0


@dataclass(slots=True, kw_only=True)
class Result:
    """One run.

    Attributes:
        usage: times with GPUs held inside and outside, and jobs waiting, sampled.
        violations: what the audit found, by kind; starved jobs among them.
        decisions: calls of `decide`.
    """

    rule: str
    outcomes: dict[str, Outcome]
    usage: list[tuple[float, int, int, int]]
    violations: dict[str, int]
    decisions: int
    actions: dict[str, int]
    span_s: float
    most_spent_micros: int = 0


@dataclass(slots=True, eq=False)
class Simulation:
    """One decision in one world."""

    world: World
    decision: Dispatch
    policy: Policy
    rule: str = "ours"
    keep_outcomes: bool = True
    _heap: list[tuple[float, int, str, str, int]] = field(default_factory=list)
    _live: dict[str, _Live] = field(default_factory=dict)
    _done: dict[str, Outcome] = field(default_factory=dict)
    _actions: dict[str, int] = field(default_factory=dict)
    _audit: Audit = field(init=False)
    _order: Iterator[int] = field(default_factory=itertools.count)
    _usage: list[tuple[float, int, int, int]] = field(default_factory=list)
    _held: list[int] = field(default_factory=lambda: [0, 0])

    def run(self, trace: Iterable[TraceJob]) -> Result:
        """Run the whole trace until every job has ended or nothing more can happen."""
        judge = Judge(self.policy, self.world.zones)
        audit = self._audit = Audit(self.world.pools, Judge(self.policy, self.world.zones), self.world.budget_micros)
        arrivals = iter(trace)
        coming = next(arrivals, None)
        now_s = start_s = coming.submitted_s if coming is not None else 0.0
        self._open(start_s)
        decisions = 0
        while True:
            times = [coming.submitted_s] if coming is not None else []
            if self._heap:
                times.append(self._heap[0][0])
            asked_s = self.decision.next_s()
            if asked_s is not None and (times or self._waits(asked_s)):
                times.append(asked_s)
            if not times:
                break
            now_s = max(now_s, min(times))
            while self._heap and self._heap[0][0] <= now_s:
                _, _, kind, name, segment = heapq.heappop(self._heap)
                self._happens(kind, name, segment, now_s)
            while coming is not None and coming.submitted_s <= now_s:
                self._arrives(coming, judge)
                coming = next(arrivals, None)
            for action in self.decision.decide(now_s):
                self._act(action, now_s)
            decisions += 1
            self._sample(now_s)
        starved = sum(
            1 for live in self._live.values() if any(v.permitted for v in judge.verdicts(live.traced.facts).values())
        )
        for name, live in self._live.items():
            self._done[name] = live.outcome
        violations = {**audit.violations, **({"starved": starved} if starved else {})}
        return Result(
            rule=self.rule, outcomes=self._done, usage=self._usage, violations=violations, decisions=decisions,
            actions=self._actions, span_s=now_s - start_s, most_spent_micros=audit.most_spent,
        )  # fmt: skip

    def _waits(self, asked_s: float) -> bool:
        """Say whether a timer alone can still change anything: not for ever after the last event."""
        last_s = max((live.traced.submitted_s for live in self._live.values()), default=-math.inf)
        return bool(self.decision.waiting) and asked_s < last_s + 90 * 86_400.0

    def _open(self, start_s: float) -> None:
        for pool in self.world.pools:
            self.decision.apply(PoolSeen(pool=pool))
            if not pool.inside:
                self.decision.apply(EgressSeen(zone=pool.zone, open=True, at_s=pool.observed_s))
        self._period(start_s)

    def _period(self, at_s: float) -> None:
        self._audit.period()
        accounts = self.world.accounts(at_s)
        self.decision.apply(
            AccountsSeen(accounts=accounts, quotas=self.world.quotas, at_s=math.nextafter(at_s, math.inf))
        )
        if self.world.budget_micros is not None:
            self._at(at_s + self.world.period_s, "period", "", 0)

    def _at(self, at_s: float, kind: str, name: str, segment: int) -> None:
        heapq.heappush(self._heap, (at_s, next(self._order), kind, name, segment))

    def _tell(self, event: Event) -> None:
        self.decision.apply(event)

    def _arrives(self, traced: TraceJob, judge: Judge) -> None:
        verdicts = judge.verdicts(traced.facts)
        stays = not any(v.permitted and self.world.zones[z].kind is not ZoneKind.PRIVATE for z, v in verdicts.items())
        outcome = Outcome(traced.submitted_s, traced.deadline_s, stays)
        self._live[traced.id] = _Live(traced, outcome, traced.duration_s, traced.estimate_s)
        self._tell(Submitted(job=_job(traced, verdicts)))

    def _happens(self, kind: str, name: str, segment: int, now_s: float) -> None:
        if kind == "period":
            if self._live or self._heap:
                self._period(now_s)
            return
        live = self._live.get(name)
        if live is None or live.segment != segment or live.pool is None:
            return
        worked_s = max(0.0, now_s - live.works_from_s) * live.workers / live.traced.need.workers
        spent = self._stops(live, now_s)
        if kind == "end":
            live.outcome.end_s = now_s
            self._finish(name, live)
            self._tell(Ended(job=name, at_s=now_s, spent_micros=spent))
        else:
            live.left_s = max(_LEAST_LEFT_S, live.left_s - worked_s)
            live.estimate_s = max(60.0, live.estimate_s - worked_s)
            live.outcome.moves += 1
            self._tell(Left(job=name, at_s=now_s, left_s=live.estimate_s, spent_micros=spent))

    def _stops(self, live: _Live, now_s: float) -> int:
        """Count what a job held and what it cost until now."""
        pool = live.pool
        assert pool is not None  # noqa: S101 - it ran
        gpus = live.workers * live.traced.need.gpus
        held_s = now_s - live.at_s
        live.segment += 1
        live.pool = None
        self._held[not pool.inside] -= gpus
        spent = 0
        if pool.inside:
            live.outcome.inside_s += gpus * held_s
        else:
            live.outcome.outside_s += gpus * held_s
            rent = cost_micros(pool, live.traced.need, workers=live.workers, seconds=held_s, egress_bytes=0)
            spent = (rent or 0) + live.egress_micros
            live.outcome.micros += spent
        self._audit.stops(live.traced.id, spent)
        return spent

    def _finish(self, name: str, live: _Live) -> None:
        del self._live[name]
        self._done[name] = live.outcome

    # What the decision wants.

    def _act(self, action: Action, now_s: float) -> None:
        kind = type(action).__name__
        key = f"{kind} {getattr(action, 'reason', '')}".strip()
        self._actions[key] = self._actions.get(key, 0) + 1
        match action:
            case Start():
                self._starts(action, now_s)
            case Preempt() | DrainBack():
                self._asked_to_stop(action.job, now_s)
            case Shed():
                self._sheds(action, now_s)
            case Extend():
                self._audit.extends(action)
            case Hold():
                pass

    def _starts(self, start: Start, now_s: float) -> None:
        live = self._live[start.job]
        pool = next(one for one in self.world.pools if one.name == start.pool)
        self._audit.starts(start, live.traced)
        need = live.traced.need
        rules = self.decision.rules
        overhead_s = 0.0
        live.egress_micros = 0
        if not pool.inside:
            overhead_s = rules.startup_s + live.traced.egress_bytes / (rules.egress_mb_s * 1e6)
            live.egress_micros = (
                cost_micros(pool, need, workers=1, seconds=0.0, egress_bytes=live.traced.egress_bytes) or 0
            )
        live.pool, live.workers, live.at_s = pool, start.workers, now_s
        live.works_from_s = now_s + overhead_s
        if math.isnan(live.outcome.first_start_s):
            live.outcome.first_start_s = now_s
        self._held[not pool.inside] += start.workers * need.gpus
        self._at(live.works_from_s + live.left_s * need.workers / start.workers, "end", start.job, live.segment)

    def _asked_to_stop(self, name: str, now_s: float) -> None:
        """Let a job stop at its next checkpoint; they come every `checkpoint_s` of work."""
        live = self._live[name]
        if live.pool is None:
            return
        every_s = self.decision.rules.checkpoint_s
        worked_s = max(0.0, now_s - live.works_from_s)
        stop_s = live.works_from_s + math.ceil(worked_s / every_s + 1e-9) * every_s
        self._at(max(stop_s, now_s), "left", name, live.segment)

    def _sheds(self, shed: Shed, now_s: float) -> None:
        live = self._live[shed.job]
        live.outcome.shed = True
        if live.pool is not None:
            spent = self._stops(live, now_s)
            self._tell(Ended(job=shed.job, at_s=now_s, spent_micros=spent))
        self._finish(shed.job, live)

    def _sample(self, now_s: float) -> None:
        if self.keep_outcomes:
            self._usage.append((now_s, self._held[0], self._held[1], len(self.decision.waiting)))
            if len(self._usage) > 2 * _SAMPLES:
                self._usage = self._usage[::2]


def _job(traced: TraceJob, verdicts: Mapping[str, Verdict]) -> Job:
    labels = traced.facts.labels
    return Job(
        id=traced.id,
        token=traced.id,
        team=labels.team,
        project=labels.project,
        classification=labels.data_classification,
        workload=traced.workload,
        priority=traced.priority,
        submitted_s=traced.submitted_s,
        deadline_s=traced.deadline_s,
        need=traced.need,
        duration_s=traced.estimate_s,
        checkpointed=traced.checkpointed,
        egress_bytes=traced.egress_bytes,
        justified=traced.facts.justified,
        verdicts=verdicts,
    )
