"""Fleet: the words of a dispatch decision. Jobs, what they need, pools of GPUs, accounts, events, actions.

Values only: no clock, file, network or Ray. Money is in integer micros of one currency (1,000,000 micros are 1.00);
times are seconds since the epoch. What is absent says no: a zone without a verdict is denied, a price that is None is
unknown, a pool's health is unknown until somebody has seen it. A job carries labels and sizes, never data or a name.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from fabric.errors import InvalidInput, Reason, nearest
from fabric.labels import Classification, WorkloadClass, is_token
from fabric.zones import ZoneKind

MICROS = 1_000_000
"""Micros in one unit of currency."""
GIGABYTE = 1_000_000_000
HOUR_S = 3_600
MAX_WORKERS = 10_000
MAX_GPUS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a job asks for; all of its workers start together or none does.

    Attributes:
        gpus: per worker; 0 for work on CPUs.
        gpu_model: empty for any.
        cpus: per worker.
        min_workers: fewest it can work with; 0 if it cannot shrink.
        spot: whether it may run on capacity that the provider can take back.
    """

    workers: int = 1
    gpus: int = 0
    gpu_model: str = ""
    cpus: int = 1
    min_workers: int = 0
    spot: bool = False

    def __post_init__(self) -> None:
        if not (1 <= self.workers <= MAX_WORKERS and 0 <= self.min_workers <= self.workers):
            raise _invalid(f"{self.workers} workers, at least {self.min_workers}", "min_workers is 0 to workers")
        if self.gpus < 0 or self.cpus < 0 or self.gpus + self.cpus < 1 or self.gpus * self.workers > MAX_GPUS:
            raise _invalid(f"{self.gpus} GPUs and {self.cpus} CPUs a worker", "ask for a GPU or a CPU for each worker")

    @property
    def total_gpus(self) -> int:
        """Return the GPUs of all workers."""
        return self.workers * self.gpus

    @property
    def total_cpus(self) -> int:
        """Return the CPUs of all workers."""
        return self.workers * self.cpus


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What policy said about one job in one zone.

    Attributes:
        code: the reason token of a no.
        rules: ids of the rules that decided.
        facts: numbers behind a no, such as ("k", 3), ("k_required", 11).
        until_s: when it is stale, such as the end of a matrix's statement; a stale yes is a no.
    """

    permitted: bool
    code: str = ""
    rules: tuple[str, ...] = ()
    facts: tuple[tuple[str, int], ...] = ()
    until_s: float = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as the decision sees it.

    Attributes:
        token: of the submission; the same token is the same job.
        priority: higher goes first, by a head start that the rules set; never for ever.
        deadline_s: when it must have ended; None where nobody waits for it.
        duration_s: how long it takes with all of its workers, as estimated.
        checkpointed: whether it can stop at a checkpoint and go on from there, also elsewhere.
        egress_bytes: what would cross the border if it ran outside.
        justified: whether there is a justification for running it outside.
        verdicts: by zone; a zone that is absent says no.
    """

    id: str
    token: str
    team: str
    project: str
    classification: Classification
    workload: WorkloadClass
    priority: int
    submitted_s: float
    deadline_s: float | None
    need: Need
    duration_s: float
    checkpointed: bool = False
    egress_bytes: int = 0
    justified: bool = False
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id or not math.isfinite(self.submitted_s) or not -100 <= self.priority <= 100:
            raise _invalid("id, submission time or priority", "priority is -100 to 100")
        if not (math.isfinite(self.duration_s) and self.duration_s > 0 and self.egress_bytes >= 0):
            raise _invalid("duration or egress", "duration_s is more than 0, egress_bytes at least 0")
        if self.deadline_s is not None and not self.deadline_s > self.submitted_s:
            raise InvalidInput(
                Reason.DEADLINE_PAST, "the deadline is not after the submission", "give a later one, or none"
            )
        for name in (self.team, self.project):
            if name and not is_token(name):
                raise _invalid("team or project", "use the tokens that the labels hold")


class Health(StrEnum):
    """What is known of a pool. Only a healthy one takes new work unless the rules say otherwise."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    THROTTLED = "throttled"
    DOWN = "down"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """GPUs of one model in one zone, with their prices.

    Attributes:
        gpu_model: empty for a pool of CPUs or slots only.
        gpus_taken, cpus_taken: held by work that this queue did not start; what its own jobs hold is known to it.
        price: micros for a GPU-hour (for a CPU-hour in a pool without GPUs) on demand; None if unknown.
        spot: micros for a GPU-hour that the provider may take back; None if there is none.
        egress: micros for a GB (10^9 bytes) that moves there and back; None if unknown.
        idle: micros for a GPU-hour that is kept and not used.
        observed_s: when health and capacity were seen.
        priced_s: when the prices were; None for when the rest was.
    """

    zone: str
    kind: ZoneKind
    provider: str = "local"
    region: str = "local"
    gpu_model: str = ""
    gpus_total: int = 0
    gpus_taken: int = 0
    cpus_total: int = 0
    cpus_taken: int = 0
    price: int | None = None
    spot: int | None = None
    egress: int | None = None
    idle: int = 0
    health: Health = Health.UNKNOWN
    observed_s: float = 0.0
    priced_s: float | None = None

    def __post_init__(self) -> None:
        if not (0 <= self.gpus_taken <= self.gpus_total and 0 <= self.cpus_taken <= self.cpus_total):
            raise InvalidInput(
                Reason.CONFIG_INVALID, f"pool {self.name!r} has more taken than there is", "taken is 0 to total"
            )
        for price in (self.price, self.spot, self.egress, self.idle):
            if price is not None and price < 0:
                raise InvalidInput(
                    Reason.PRICE_INVALID, f"pool {self.name!r} has a negative price", "a price is 0 or more micros"
                )

    @property
    def name(self) -> str:
        """Return the zone's name, with the GPU model where there is one."""
        return f"{self.zone}/{self.gpu_model}" if self.gpu_model else self.zone

    @property
    def counts_cpus(self) -> bool:
        """Say whether CPUs are counted: not where machines are rented by the GPU and bring their own."""
        return self.cpus_total > 0 or self.gpus_total == 0

    @property
    def inside(self) -> bool:
        """Say whether it is the organisation's own."""
        return self.kind is ZoneKind.PRIVATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """Which jobs an account or quota is about; what is empty is any."""

    team: str = ""
    project: str = ""
    classification: Classification | None = None
    workload: WorkloadClass | None = None

    def covers(self, job: Job) -> bool:
        """Say whether `job` falls under it."""
        return (
            self.team in ("", job.team)
            and self.project in ("", job.project)
            and self.classification in (None, job.classification)
            and self.workload in (None, job.workload)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A budget as last read: what may be spent in a period, and what is already promised or spent.

    Attributes:
        until_s: when the period ends and the balance starts anew.
        observed_s: when it was read; one that is older than the rules allow is unknown.
    """

    name: str
    scope: Scope
    limit_micros: int
    reserved_micros: int = 0
    spent_micros: int = 0
    until_s: float = math.inf
    observed_s: float = 0.0

    def __post_init__(self) -> None:
        if min(self.limit_micros, self.reserved_micros, self.spent_micros) < 0:
            raise InvalidInput(
                Reason.PRICE_INVALID, f"account {self.name!r} has a negative amount", "amounts are 0 or more micros"
            )

    @property
    def left_micros(self) -> int:
        """Return what may still be promised; never negative."""
        return max(0, self.limit_micros - self.reserved_micros - self.spent_micros)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How many GPUs jobs of a scope may hold at once in a zone."""

    name: str
    scope: Scope
    zone: str
    gpus: int

    def __post_init__(self) -> None:
        if self.gpus < 0:
            raise InvalidInput(Reason.QUOTA_INVALID, f"quota {self.name!r} is negative", "a quota is 0 GPUs or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A job that holds GPUs.

    Attributes:
        checkpoint_s: when it last wrote a checkpoint; None if it never did.
        reserved_micros: what is promised for it.
        left_s: how much of the work was left when it started.
    """

    job: Job
    pool: str
    workers: int
    started_s: float
    left_s: float
    checkpoint_s: float | None = None
    reserved_micros: int = 0
    reservation: str = ""


# What happens, and is told to the decision.


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A job came in; the same id again changes nothing."""

    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled:
    """Somebody took a job back."""

    job: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A job was already running when the decision's state was made, such as after a crash of the dispatcher."""

    running: Running


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A job ended, well or not; its GPUs are free and what it cost is known."""

    job: str
    at_s: float
    spent_micros: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpointed:
    """A running job wrote a checkpoint, and `left_s` of its work is still to do."""

    job: str
    at_s: float
    left_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A running job stopped and waits again, with `left_s` to do: preempted, drained, or its node was lost."""

    job: str
    at_s: float
    left_s: float
    spent_micros: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRefused:
    """A start was not carried out: the budget store, the provider or Ray said no."""

    job: str
    pool: str
    reason: str
    at_s: float
    until_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtendRefused:
    """A job is not paid for longer: the budget store said no."""

    job: str
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSeen:
    """Capacity, prices and health of a pool, as observed."""

    pool: Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressSeen:
    """Whether anything can cross the border to a zone."""

    zone: str
    open: bool
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountsSeen:
    """All budgets and quotas, as last read; what is not among them is gone."""

    accounts: tuple[Account, ...]
    quotas: tuple[Quota, ...]
    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictsSeen:
    """Policy was asked again about a job."""

    job: str
    verdicts: Mapping[str, Verdict]
    at_s: float


Event = (
    Submitted
    | Cancelled
    | Restored
    | Ended
    | Checkpointed
    | Left
    | StartRefused
    | ExtendRefused
    | PoolSeen
    | EgressSeen
    | AccountsSeen
    | VerdictsSeen
)

# What the decision wants done.


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start all of `workers` in `pool`; `cost_micros` is to be reserved first."""

    job: str
    pool: str
    zone: str
    workers: int
    cost_micros: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why one pool does not take a job now: reason, until when (None if nobody can say), and numbers."""

    pool: str
    reason: Reason
    until_s: float | None = None
    numbers: tuple[tuple[str, int], ...] = ()
    rules: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """Keep waiting: why, until when at the earliest (None if nobody can say), and what stands in each pool's way."""

    job: str
    reason: Reason
    until_s: float | None = None
    numbers: tuple[tuple[str, int], ...] = ()
    obstacles: tuple[Obstacle, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shed:
    """Give the job up, as the rules declare; its submitter is told why."""

    job: str
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Preempt:
    """Stop a checkpointed job at its next checkpoint, in favour of `for_job`; it waits again."""

    job: str
    for_job: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainBack:
    """Stop a job outside at its next checkpoint, to go on inside."""

    job: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend:
    """A job outside runs longer than estimated: reserve `cost_micros` more, or stop it."""

    job: str
    cost_micros: int
    until_s: float


Action = Start | Hold | Shed | Preempt | DrainBack | Extend


def cost_micros(pool: Pool, need: Need, *, workers: int, seconds: float, egress_bytes: int) -> int | None:
    """Return what `workers` cost in `pool` for so long, egress included, rounded up; None if a price is unknown."""
    price = pool.spot if need.spot and pool.spot is not None else pool.price
    if price is None or (pool.egress is None and egress_bytes):
        return None
    units = workers * (need.gpus if pool.gpu_model else need.gpus or need.cpus)
    rent = -(-price * units * math.ceil(seconds) // HOUR_S)
    return rent + -(-(pool.egress or 0) * egress_bytes // GIGABYTE)


def check_need(need: Need, pools: Iterable[Pool]) -> None:
    """Refuse a need that no pool can ever meet.

    Raises:
        InvalidInput: `GPU_MODEL_UNKNOWN` with the nearest model, or `ZONE_HAS_NO_ROOM`.
    """
    known = list(pools)
    models = {pool.gpu_model for pool in known if pool.gpu_model}
    if need.gpu_model and need.gpu_model not in models:
        raise InvalidInput(
            Reason.GPU_MODEL_UNKNOWN, f"no pool has GPUs of model {need.gpu_model!r}", nearest(need.gpu_model, models)
        )
    least = need.min_workers or need.workers
    fits = [
        pool
        for pool in known
        if need.gpu_model in ("", pool.gpu_model)
        and pool.gpus_total >= least * need.gpus
        and (not pool.counts_cpus or pool.cpus_total >= least * need.cpus)
    ]
    if not fits:
        most = max((pool.gpus_total for pool in known if need.gpu_model in ("", pool.gpu_model)), default=0)
        raise InvalidInput(
            Reason.ZONE_HAS_NO_ROOM,
            f"{least} workers with {need.gpus} GPUs and {need.cpus} CPUs each fit into no pool",
            f"the largest has {most} GPUs; ask for less, or set min_workers",
        )


def check_quota(quota: Quota, pools: Iterable[Pool]) -> None:
    """Refuse a quota of a zone that is not there, or of more GPUs than the zone has.

    Raises:
        InvalidInput: `UNKNOWN_ZONE` with the nearest name, or `QUOTA_INVALID`.
    """
    gpus: dict[str, int] = {}
    for pool in pools:
        gpus[pool.zone] = gpus.get(pool.zone, 0) + pool.gpus_total
    if quota.zone not in gpus:
        raise InvalidInput(
            Reason.UNKNOWN_ZONE, f"quota {quota.name!r} names an unknown zone {quota.zone!r}", nearest(quota.zone, gpus)
        )
    if quota.gpus > gpus[quota.zone]:
        raise InvalidInput(
            Reason.QUOTA_INVALID,
            f"quota {quota.name!r} is {quota.gpus} GPUs, and zone {quota.zone!r} has {gpus[quota.zone]}",
            f"set it to {gpus[quota.zone]} or less",
        )


def _invalid(what: str, way_out: str) -> InvalidInput:
    return InvalidInput(Reason.JOB_INVALID, f"the job's {what} cannot be", way_out)
