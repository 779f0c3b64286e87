"""The dispatcher: reads the queue, asks the pure decision, and does what it says. It knows no Ray.

All state is in the stores, so it may be killed at any moment and started again anywhere. One turn, numbered once and
followed below:

1. Follow: what became of the drivers that should be alive; an attempt whose driver is gone is given up.
2. Settle: what an attempt that is over has cost; what was reserved and not used is given back.
3. Tell the decision what happened and what is seen now: jobs, verdicts, pools, accounts.
4. Decide, and do: reserve, record the intent, write it down, then start, ask to leave, or give up.

What cannot be asked is no answer: where drivers, pools or budgets cannot be read, nothing is started in that turn. An
attempt is started under an id that is made from its job and its number, so that no crash starts it twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from fabric.errors import FabricError, Reason
from fabric.fleet import (
    Action,
    Cancelled,
    DrainBack,
    EgressSeen,
    Ended,
    Event,
    Extend,
    ExtendRefused,
    Health,
    Hold,
    Job,
    Left,
    Need,
    Pool,
    PoolSeen,
    Preempt,
    Restored,
    Running,
    Shed,
    Start,
    StartRefused,
    Submitted,
    Verdict,
    VerdictsSeen,
)
from fabric.holds import to_json
from fabric.job_store import SIGN, Attempt, JobStore, Place, Row, State
from fabric.labels import Labels, WorkloadClass
from fabric.launching import Drive, Launcher, Life
from fabric.ledger import Ledger
from fabric.reserving import Books

DRIVER_TRIES = 3
"""Drivers that may die under a job before it has failed."""
PREPARE_TRIES = 2
REFUSED_START_WAITS_S = 30.0
EXPLAINED_EVERY_S = 15.0
EXPLAINED_AT_ONCE = 25
"""Waiting jobs whose reasons are looked at anew in one turn, beside those whose reason has just changed."""


class Decision(Protocol):
    """The pure decision, fed with events."""

    def apply(self, event: Event) -> None:
        """Go on with one event."""

    def decide(self, now_s: float) -> Sequence[Action]:
        """Return what is to be done now."""

    def explain(self, job_id: str, now_s: float) -> Hold | None:
        """Say why a job waits, in every pool; None if it does not."""


class Judge(Protocol):
    """What policy says of a job now."""

    def verdicts(self, row: Row, now_s: float) -> Mapping[str, Verdict]:
        """Return the verdict of every zone."""

    def egress_bytes(self, row: Row) -> int:
        """Return what would cross the border if the job ran outside."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Happening:
    """Something to count: its name, and tokens and zones, never data."""

    name: str
    zone: str = ""
    workload: str = ""
    reason: str = ""
    value: float = 1.0


@dataclass(slots=True, kw_only=True)
class _Told:
    """What the decision was told of a job last."""

    state: State
    attempt: int
    verdicts: Mapping[str, Verdict]


@dataclass(slots=True, kw_only=True)
class Dispatcher:
    """Runs the queue of one fabric, turn by turn.

    Attributes:
        new_decision: makes a fresh one; it is told everything from the stores, also after a turn that was cut short.
        pools: what is seen of every pool now.
        preparing: how many jobs' records are sanitized at once.
        orphaned_s: the age from which on a reservation without an attempt is a dead dispatcher's.
        abandon: ends what a dead driver, given by its id, left running elsewhere; again does nothing more.
    """

    store: JobStore
    ledger: Ledger
    books: Books
    new_decision: Callable[[], Decision]
    launcher: Launcher
    judge: Judge
    pools: Callable[[float], Iterable[Pool]]
    clock: Callable[[], float]
    preparing: int = 1
    orphaned_s: float = 60.0
    abandon: Callable[[str], object] = lambda driver: None
    _decision: Decision | None = None
    _swept: float | None = None
    _told: dict[str, _Told] = field(default_factory=dict)
    _rows: dict[str, Row] = field(default_factory=dict)
    _pools: dict[str, Pool] = field(default_factory=dict)
    _spent: dict[tuple[str, int], int] = field(default_factory=dict)
    _happened: list[Happening] = field(default_factory=list)
    _explained: dict[str, float] = field(default_factory=dict)

    def turn(self) -> tuple[Happening, ...]:
        """Take one turn, and return what happened.

        Raises:
            FabricError: a store, the ledger, the drivers or the cluster cannot be asked; the next turn tries again.
        """
        self._happened = []
        now = self.clock()
        stood = {row.id: _standing(row) for row in self.store.jobs()}
        lives = dict(self.launcher.lives())
        # 1. Follow. What changed while the drivers were asked about may have one that was not there yet: next turn.
        for row in self.store.jobs():
            if stood.get(row.id) == _standing(row):
                self._follow(row, lives, now)
        # 2. Settle.
        for attempt in self.store.attempts(unsettled=True):
            self._settle(attempt)
        self._give_back(now)
        decision = self._decision or self._anew()
        # What was decided and not done would never be done: if this turn is cut short, the next begins anew.
        self._decision = None
        # 3. Tell.
        for event in self._events(self.store.jobs(), now):
            decision.apply(event)
        # 4. Decide, and do.
        for action in decision.decide(now):
            self._do(action, decision, now)
        # 5. Say why the others wait.
        self._explain(decision, now)
        self._decision = decision
        self.store.beat(SIGN, now)
        return tuple(self._happened)

    def _anew(self) -> Decision:
        self._told.clear()
        self._rows.clear()
        return self.new_decision()

    # 1. Follow.

    def _follow(self, row: Row, lives: dict[str, Life], now: float) -> None:
        life = lives.get(row.driver or submission_of(row), Life.GONE)
        if row.state is State.QUEUED:
            self._follow_waiting(row, life, lives, now)
        elif row.cancel:
            self._stop(row, life, now)
        elif row.state is State.STARTING and not row.driver and submission_of(row) not in lives:
            self._launch(row)
        elif life is Life.STOPPED:
            # Somebody stopped it by Ray's own means: that is how a job is taken back there.
            self.store.cancel(row.id, now)
        elif life is Life.GONE:
            self._give_up(row, now)

    def _follow_waiting(self, row: Row, life: Life, lives: dict[str, Life], now: float) -> None:
        if row.driver and life is not Life.ALIVE:
            # The process that waited to do the work is gone. One that its user had started is not replaced.
            if row.own_driver:
                self._end_waiting(row, State.CANCELLED, Reason.DRIVER_LOST, now)
            else:
                self.store.forget_driver(row.id, row.driver)
        elif not row.matrix and not row.driver:
            self._prepare(row, lives, now)

    def _prepare(self, row: Row, lives: dict[str, Life], now: float) -> None:
        """Have the records sanitized: inside, before anybody can say where the work may go."""
        life = lives.get(preparation_of(row), Life.GONE) if row.preparing else Life.GONE
        if life is Life.ALIVE:
            return
        if row.preparing >= PREPARE_TRIES:
            self._end_waiting(row, State.FAILED, Reason.DRIVER_LOST, now)
            return
        if sum(name.endswith(_PREPARING) and life is Life.ALIVE for name, life in lives.items()) >= self.preparing:
            return
        if self.store.preparing(row.id, row.preparing + 1):
            row = replace(row, preparing=row.preparing + 1)
            drive = Drive(submission=preparation_of(row), words=("prepare", row.id), labels=labels_of(row))
            self._start_driver(row, drive)
            lives[drive.submission] = Life.ALIVE

    def _give_up(self, row: Row, now: float) -> None:
        body = {
            "what": "lost",
            "job": row.id,
            "attempt": row.attempt,
            "zone": row.zone,
            "code": Reason.DRIVER_LOST.value,
        }
        self.abandon(row.driver or submission_of(row))
        receipt = self.ledger.intend("dispatch", body)
        lost = self.store.lose(row.id, row.attempt, now, code=Reason.DRIVER_LOST.value, tries=DRIVER_TRIES)
        self.ledger.conclude(receipt, "done" if lost else "failed", {})
        self._happen("driver-lost", row, row.zone)

    def _stop(self, row: Row, life: Life, now: float) -> None:
        if life is Life.ALIVE:
            self.launcher.stop(row.driver or submission_of(row))
            return
        self.abandon(row.driver or submission_of(row))  # one that is stopped may have had no time for it
        if self.store.stopped(row.id, row.attempt, now):
            self._happen("cancelled", row, row.zone)

    def _launch(self, row: Row) -> None:
        """Start the driver of an attempt that is written down."""
        self._start_driver(row, Drive(submission=submission_of(row), words=("run", row.id), labels=labels_of(row)))

    def _start_driver(self, row: Row, drive: Drive) -> None:
        body = {"what": drive.words[0], "job": row.id, "attempt": row.attempt, "submission": drive.submission}
        receipt = self.ledger.intend("dispatch", {**body, **({"zone": row.zone} if row.zone else {})})
        try:
            self.launcher.start(drive)
        except FabricError as error:
            # Whether it was started, the next turn sees.
            self.ledger.conclude(receipt, "failed", {"code": error.reason.value})
            return
        self.ledger.conclude(receipt, "done", {})

    # 2. Settle.

    def _settle(self, attempt: Attempt) -> None:
        spent = self.books.settle(attempt, self.judge.egress_bytes(self._row(attempt.job)))
        self.store.settled(attempt.job, attempt.number, spent)
        self._spent[attempt.job, attempt.number] = spent
        self._happen("spent", self._row(attempt.job), attempt.zone, value=spent / 1e6)

    def _give_back(self, now: float) -> None:
        """Give back what a dispatcher reserved that was killed before it wrote the attempt down."""
        if self._swept is not None and 0 <= now - self._swept < self.orphaned_s:
            return
        since = 0.0 if self._swept is None else self._swept - 2 * self.orphaned_s
        self._swept = now
        known = {attempt.reservation for attempt in self.store.attempts()}
        self.books.release_others(known, since, now - self.orphaned_s, now)

    def _row(self, job: str) -> Row:
        return self._rows.get(job) or self.store.find(job)

    # 3. Tell.

    def _events(self, rows: Sequence[Row], now: float) -> Iterable[Event]:
        yield self.books.seen(now)
        for pool in self.pools(now):
            self._pools[pool.name] = pool
            yield PoolSeen(pool=pool)
            if not pool.inside:
                yield EgressSeen(zone=pool.zone, open=pool.health is Health.HEALTHY, at_s=now)
        self._rows.update({row.id: row for row in rows})
        for row in rows:
            yield from self._of(row, now)
        for job in self._told.keys() - {row.id for row in rows}:
            yield from self._of_ended(job)

    def _of(self, row: Row, now: float) -> Iterable[Event]:
        if not row.matrix:
            return  # what is not sanitized yet goes nowhere
        verdicts = self.judge.verdicts(row, now)
        told = self._told.get(row.id)
        pool = self._pool_of(row)
        if row.state.holds and pool is None:
            # Its zone is not declared any more, so no pool can count it: it is followed and settled, and decided
            # about again if it comes to wait.
            self._told.pop(row.id, None)
            return
        self._told[row.id] = _Told(state=row.state, attempt=row.attempt, verdicts=verdicts)
        if told is None:
            job = job_of(row, verdicts, self.judge.egress_bytes(row))
            yield Submitted(job=job)
            if row.state.holds:
                yield Restored(running=_running(row, pool or "", job, now))
            return
        if verdicts != told.verdicts:
            yield VerdictsSeen(job=row.id, verdicts=verdicts, at_s=now)
        if told.state.holds and (row.state is State.QUEUED or row.attempt != told.attempt):
            spent = self._spent.pop((row.id, told.attempt), 0)
            yield Left(job=row.id, at_s=now, left_s=_left(row), spent_micros=spent)
        if row.state.holds and (row.attempt != told.attempt or not told.state.holds):
            # What this dispatcher started it knows; this was another's, such as one that is not dead yet.
            job = job_of(row, verdicts, self.judge.egress_bytes(row))
            yield Restored(running=_running(row, pool or "", job, now))

    def _pool_of(self, row: Row) -> str | None:
        """Return the pool that counts what a job holds: its own, or that of its zone if pools have other names now."""
        if row.pool in self._pools:
            return row.pool
        return next((pool.name for pool in self._pools.values() if pool.zone == row.zone), None)

    def _of_ended(self, job: str) -> Iterable[Event]:
        told, row = self._told.pop(job), self.store.find(job)
        self._rows.pop(job, None)
        at = row.ended_s or self.clock()
        self._happen(f"ended-{row.state.value}", row, row.zone, reason=row.code)
        if told.state.holds:
            yield Ended(job=job, at_s=at, spent_micros=self._spent.pop((job, told.attempt), 0))
        else:
            yield Cancelled(job=job, at_s=at)

    # 4. Do.

    def _do(self, action: Action, decision: Decision, now: float) -> None:
        row = self._rows[action.job]
        if isinstance(action, Start):
            refused = self._start(row, action, now)
            if refused is not None:
                decision.apply(refused)
        elif isinstance(action, Hold):
            if self._is_final(row, action, decision, now):
                self._end_waiting(row, State.REFUSED, action.reason, now)
                return
            self._explained.pop(row.id, None)  # the reason has changed
            self._happen("hold", row, reason=action.reason.value)
        elif isinstance(action, Shed):
            self._shed(row, action.reason, now)
        elif isinstance(action, Preempt | DrainBack):
            self._ask_to_leave(row, action)
        elif isinstance(action, Extend) and not self._extend(row, action, now):
            decision.apply(ExtendRefused(job=row.id, at_s=now))

    def _start(self, row: Row, action: Start, now: float) -> StartRefused | None:
        number, pool = row.attempt + 1, self._pools[action.pool]
        job = job_of(row, self._told[row.id].verdicts, self.judge.egress_bytes(row))
        try:
            # Reserve first: what nobody pays for does not start.
            reservation = self.books.reserve(job, pool, action, number, now, why=str(row.body["justification"]))
        except FabricError as error:
            return self._refused(row, action, error, now)
        place = Place(
            zone=action.zone,
            pool=action.pool,
            workers=action.workers,
            reservation=reservation,
            reserved_micros=action.cost_micros,
        )
        body = {"what": "place", "job": row.id, "attempt": number, "zone": action.zone, "workers": action.workers}
        receipt = self.ledger.intend("dispatch", {**body, "pool": action.pool, "reservation": reservation})
        # Whoever stood still for long after reserving may have had it given back by another dispatcher meanwhile.
        placed = self.books.holds(reservation) and self.store.place(row.id, row.attempt, place, now)
        self.ledger.conclude(receipt, "done" if placed else "failed", {})
        if not placed:  # it was taken back meanwhile, or another dispatcher placed it
            self.books.release(reservation, now)
            self._told[row.id] = replace(self._told[row.id], state=State.QUEUED)
            return self._start_refused(row, action, Reason.JOB_CANCELLED.value, now, now)
        self._told[row.id] = replace(self._told[row.id], state=State.STARTING, attempt=number)
        self._happen("start", row, action.zone, reason=action.reason)
        self._happen("wait", row, action.zone, value=max(0.0, now - row.submitted_s))
        if not row.driver:
            self._launch(self.store.find(row.id))
        return None

    def _refused(self, row: Row, action: Start, error: FabricError, now: float) -> StartRefused:
        until = getattr(error, "hold_until_s", None)
        self.ledger.observe(
            "refusal", {"what": "place", "job": row.id, "zone": action.zone, "code": error.reason.value}
        )
        self._happen("refusal", row, action.zone, reason=error.reason.value)
        until = now + REFUSED_START_WAITS_S if until is None else until
        return self._start_refused(row, action, error.reason.value, now, until)

    def _start_refused(self, row: Row, action: Start, reason: str, now: float, until: float) -> StartRefused:
        return StartRefused(job=row.id, pool=action.pool, reason=reason, at_s=now, until_s=until)

    def _explain(self, decision: Decision, now: float) -> None:
        """Write down why jobs wait, in every pool and with numbers as they are now; some in each turn."""
        waiting = {job for job, told in self._told.items() if told.state is State.QUEUED}
        self._explained = {job: at for job, at in self._explained.items() if job in waiting and at <= now}
        old = [job for job in waiting if now - self._explained.get(job, -math.inf) >= EXPLAINED_EVERY_S]
        news = [job for job in old if job not in self._explained]
        rest = sorted(set(old) - set(news), key=lambda job: (self._explained[job], job))
        for job in [*news, *rest[:EXPLAINED_AT_ONCE]]:
            hold = decision.explain(job, now)
            if hold is not None:
                self._explained[job] = now
                self.store.note_hold(job, to_json(hold))

    def _is_final(self, row: Row, action: Hold, decision: Decision, now: float) -> bool:
        """Say whether a spent budget refuses a job: it is declared so, and no pool inside could ever take it."""
        hold = decision.explain(row.id, now) if action.reason is Reason.BUDGET_SPENT else None
        if hold is None:
            return False
        inside = {pool.name for pool in self._pools.values() if pool.inside}
        shut = {each.pool for each in hold.obstacles if each.reason in _NEVER}
        job = job_of(row, self._told[row.id].verdicts, self.judge.egress_bytes(row))
        return inside <= shut and self.books.refuses(job, dict(action.numbers).get("cost_micros", 0), now)

    def _ask_to_leave(self, row: Row, action: Preempt | DrainBack) -> None:
        what = "preempt" if isinstance(action, Preempt) else "drain-back"
        body = {"what": what, "job": row.id, "attempt": row.attempt, "zone": row.zone}
        receipt = self.ledger.intend("dispatch", body)
        asked = self.store.leave(row.id, row.attempt, what)
        self.ledger.conclude(receipt, "done" if asked else "failed", {})
        self._happen(what, row, row.zone)

    def _extend(self, row: Row, action: Extend, now: float) -> bool:
        """Reserve more for what takes longer, and say whether that was to be had."""
        try:
            self.books.extend(row, action, now, why=str(row.body["justification"]))
            self.store.reserved_more(row.id, row.attempt, action.cost_micros)
        except FabricError as error:
            self.ledger.observe(
                "refusal", {"what": "extend", "job": row.id, "zone": row.zone, "code": error.reason.value}
            )
            self._happen("refusal", row, row.zone, reason=error.reason.value)
            return False
        return True

    def _shed(self, row: Row, reason: Reason, now: float) -> None:
        """Give a job up; one that holds room is stopped in the next turns."""
        if not row.state.holds:
            self._end_waiting(row, State.SHED, reason, now)
            return
        body = {"what": "shed", "job": row.id, "attempt": row.attempt, "zone": row.zone, "code": reason.value}
        receipt = self.ledger.intend("dispatch", body)
        given_up = self.store.give_up(row.id, row.attempt, reason.value)
        self.ledger.conclude(receipt, "done" if given_up else "failed", {})

    def _end_waiting(self, row: Row, state: State, reason: Reason, now: float) -> None:
        """End a job that waits, and record it: a hold became a refusal."""
        body = {"what": state.value, "job": row.id, "code": reason.value}
        receipt = self.ledger.intend("dispatch", body)
        ended = self.store.withdraw(row.id, state, reason.value, now)
        self.ledger.conclude(receipt, "done" if ended else "failed", {})

    def _happen(self, name: str, row: Row, zone: str = "", *, reason: str = "", value: float = 1.0) -> None:
        workload = str(row.body["workload"])
        self._happened.append(Happening(name=name, zone=zone, workload=workload, reason=reason, value=value))


_PREPARING = "-prepare"
_NEVER = (Reason.POLICY_DENIED, Reason.GPU_MODEL_UNKNOWN, Reason.ZONE_HAS_NO_ROOM)
"""What keeps a job from a pool however long it waits."""


def _standing(row: Row) -> tuple[State, int, str, int]:
    return row.state, row.attempt, row.driver, row.preparing


def submission_of(row: Row) -> str:
    """Return the id of the driver of a job's current attempt."""
    return f"fabric-{row.id}-{row.attempt}"


def preparation_of(row: Row) -> str:
    """Return the id of the driver that sanitizes a job's records."""
    return f"fabric-{row.id}-{row.preparing}{_PREPARING}"


def labels_of(row: Row) -> dict[str, str]:
    """Return the labels that the job itself was given, as Ray's job metadata holds them."""
    return {name: str(value) for name, value in row.body["labels"].items()}


def job_of(row: Row, verdicts: Mapping[str, Verdict], egress_bytes: int) -> Job:
    """Return a stored job as the decision sees it."""
    body = row.body
    labels = Labels.from_json(body["all_labels"])
    return Job(
        id=row.id,
        token=row.token,
        team=labels.team,
        project=labels.project,
        classification=labels.data_classification,
        workload=WorkloadClass(body["workload"]),
        priority=row.priority,
        submitted_s=row.submitted_s,
        deadline_s=row.deadline_s,
        need=Need(**body["need"]),
        duration_s=float(body["duration_s"]),
        checkpointed=bool(body["checkpointed"]),
        egress_bytes=egress_bytes,
        justified=bool(body["justification"]),
        verdicts=verdicts,
    )


def _running(row: Row, pool: str, job: Job, now: float) -> Running:
    return Running(
        job=job,
        pool=pool,
        workers=row.workers,
        started_s=now if row.started_s is None else row.started_s,
        left_s=_left(row),
        reserved_micros=row.reserved_micros,
        reservation=row.reservation,
    )


def _left(row: Row) -> float:
    whole = float(row.body["duration_s"])
    return whole if row.left_s is None else max(1.0, min(whole, row.left_s))
