"""The rules of the dispatch decision, declared in `[dispatch]` of fabric.toml.

A rule says when work leaves the private zone, what is kept for work that may not, and what happens on each failure. It
can never say where policy lets a job run: that is the policy's, and the decision holds it apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from fabric.errors import InvalidInput, Reason, nearest
from fabric.labels import Classification, WorkloadClass, is_token
from fabric.specs import Spec


class Failure(StrEnum):
    """What can go wrong with a pool, and has an answer declared."""

    PRIVATE_DEGRADED = "private_degraded"
    PRIVATE_DOWN = "private_down"
    THROTTLED = "provider_throttled"
    NO_CAPACITY = "no_capacity"
    MODEL_MISSING = "model_missing"
    PRICE_JUMP = "price_jump"
    REGION_GONE = "region_gone"
    EGRESS_BLOCKED = "egress_blocked"


class Step(StrEnum):
    """One answer to a failure; the steps of a failure are tried in order, and after the last the job waits."""

    HOLD = "hold"
    SHRINK = "shrink"
    OTHER_REGION = "other-region"
    OTHER_PROVIDER = "other-provider"
    OTHER_MODEL = "other-model"
    FAIL_OVER = "fail-over"
    SHED = "shed"


class Late(StrEnum):
    """What becomes of a job whose deadline can no longer be met."""

    WAIT = "wait"
    LEAVE = "leave"
    SHED = "shed"


FAILURES: Mapping[Failure, tuple[Step, ...]] = {
    Failure.PRIVATE_DEGRADED: (Step.HOLD,),
    Failure.PRIVATE_DOWN: (Step.FAIL_OVER,),
    Failure.THROTTLED: (Step.OTHER_REGION, Step.OTHER_PROVIDER),
    Failure.NO_CAPACITY: (Step.OTHER_REGION, Step.OTHER_PROVIDER, Step.OTHER_MODEL, Step.SHRINK),
    Failure.MODEL_MISSING: (Step.OTHER_MODEL,),
    Failure.PRICE_JUMP: (Step.HOLD,),
    Failure.REGION_GONE: (Step.OTHER_REGION, Step.OTHER_PROVIDER),
    Failure.EGRESS_BLOCKED: (Step.HOLD,),
}
"""What is done where fabric.toml says nothing."""

_POSSIBLE: Mapping[Failure, frozenset[Step]] = {
    Failure.PRIVATE_DEGRADED: frozenset({Step.HOLD, Step.FAIL_OVER, Step.SHED}),
    Failure.PRIVATE_DOWN: frozenset({Step.HOLD, Step.FAIL_OVER, Step.SHED}),
}
_OUTSIDE = frozenset(Step) - {Step.FAIL_OVER}


@dataclass(frozen=True, slots=True, kw_only=True)
class Spill:
    """When a job of one workload class leaves.

    Attributes:
        wait_share: share of its slack that a job waits before pressure may let it out; at 1 only the last call does.
        pressure: expected wait over the slack that is left, from which on it counts as under pressure.
        queue_depth: fewest jobs that wait inside for pressure to count.
        patience_s: slack of a job without a deadline.
        wait_price: micros that an hour of waiting costs; 0 for nothing.
        miss_price: micros that a missed deadline costs; None for more than any rent.
        max_price: most micros for a GPU-hour outside; None for any.
        late: what becomes of a job that cannot meet its deadline.
    """

    wait_share: float = 1.0
    pressure: float = 1.0
    queue_depth: int = 1
    patience_s: float = 21_600.0
    wait_price: int = 0
    miss_price: int | None = None
    max_price: int | None = None
    late: Late = Late.WAIT


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All of `[dispatch]`.

    Attributes:
        margin_s: how long before the last moment a job leaves, or makes room for itself.
        overrun_share: by how much of its estimate a job is thought to run over; its last call comes so much earlier.
        startup_s: how long an outside pool takes before work begins.
        egress_mb_s: how fast data cross, in megabytes a second.
        reserve: share of each private pool that is kept for work that may not leave.
        reserve_short_s: movable work that is shorter, or can be stopped at a checkpoint, may borrow the reserve.
        release: share of a threshold below which spilling ends again.
        calm_s: how long a private pool must have had room before work is drained back into it.
        stay_s: how long a job stays where it was started before it is moved.
        drain_left_s: least work that must be left for a job to be moved home.
        max_moves: how often a job comes home, or gives way to a higher priority, in its life.
        checkpoint_s: how long the next checkpoint takes to come, where nothing better is known.
        stays_s: head start inside of work that may not leave; what may has another way.
        priority_s: head start of one step of priority.
        preempt_gap: steps of priority from which on a job may make room for itself by preemption.
        fair_s: how far a team at twice its share is set back; in proportion, up to four times that.
        weights: of teams; 1 where not named.
        late_s: how far behind a job that is late anyway goes.
        stale_s: age from which on what was observed of a pool or account counts as unknown.
        gone_s: age from which on a pool outside counts as a region that is gone.
        price_jump: share above its usual price from which on a price counts as a jump.
        price_settles_s: how long a new price must hold to be the usual one.
        budget_required: whether work outside needs an account that covers it.
        extend: whether a job that outlives its estimate outside is paid for longer, if the budget allows.
        models: by GPU model, others that may stand in for it.
        fail_over_up_to: most sensitive classification that leaves because the private zone failed.
    """

    spill: Mapping[WorkloadClass, Spill] = field(default_factory=dict)
    margin_s: float = 60.0
    overrun_share: float = 0.15
    startup_s: float = 120.0
    egress_mb_s: float = 100.0
    reserve: float = 0.05
    reserve_short_s: float = 600.0
    release: float = 0.7
    calm_s: float = 300.0
    stay_s: float = 300.0
    drain_left_s: float = 1_800.0
    max_moves: int = 16
    checkpoint_s: float = 600.0
    stays_s: float = 7_200.0
    priority_s: float = 3_600.0
    preempt_gap: int = 10
    fair_s: float = 900.0
    weights: Mapping[str, float] = field(default_factory=dict)
    late_s: float = 21_600.0
    stale_s: float = 120.0
    gone_s: float = 900.0
    price_jump: float = 0.5
    price_settles_s: float = 86_400.0
    budget_required: bool = True
    extend: bool = True
    models: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    fail_over_up_to: Classification = Classification.INTERNAL
    failures: Mapping[Failure, tuple[Step, ...]] = field(default_factory=lambda: dict(FAILURES))

    def __post_init__(self) -> None:
        for failure, steps in self.failures.items():
            possible = _POSSIBLE.get(failure, _OUTSIDE)
            for step in steps:
                if step not in possible:
                    raise InvalidInput(
                        Reason.CONFIG_INVALID,
                        f"{step.value!r} is no answer to {failure.value!r}",
                        nearest(step.value, [each.value for each in possible]),
                    )
        if any(not (math.isfinite(weight) and weight > 0) for weight in self.weights.values()):
            raise InvalidInput(Reason.CONFIG_INVALID, "a team's weight is not positive", "give a number above 0")

    def of(self, workload: WorkloadClass) -> Spill:
        """Return when jobs of a workload class leave."""
        return self.spill.get(workload, _DEFAULT)

    def steps(self, failure: Failure) -> tuple[Step, ...]:
        """Return what is tried on a failure, in order."""
        return self.failures.get(failure, FAILURES[failure])


_DEFAULT = Spill()
_Share = Annotated[float, Field(ge=0, le=1)]
_Seconds = Annotated[float, Field(ge=0, le=31_622_400)]
_Micros = Annotated[int, Field(ge=0)]


class SpillTable(Spec):
    """`[dispatch.spill.<workload class>]`."""

    wait_share: _Share = _DEFAULT.wait_share
    pressure: Annotated[float, Field(gt=0, le=1_000)] = _DEFAULT.pressure
    queue_depth: Annotated[int, Field(ge=0, le=1_000_000)] = _DEFAULT.queue_depth
    patience_s: _Seconds = _DEFAULT.patience_s
    wait_price: _Micros = 0
    miss_price: _Micros | None = None
    max_price: _Micros | None = None
    late: Literal["wait", "leave", "shed"] = "wait"

    def spill(self) -> Spill:
        """Return the checked value."""
        return Spill(**{**self.model_dump(), "late": Late(self.late)})


class DispatchTable(Spec):
    """`[dispatch]` of fabric.toml; every key has a default."""

    margin_s: _Seconds = 60.0
    overrun_share: _Share = 0.15
    startup_s: _Seconds = 120.0
    egress_mb_s: Annotated[float, Field(gt=0, le=1_000_000)] = 100.0
    reserve: _Share = 0.05
    reserve_short_s: _Seconds = 600.0
    release: _Share = 0.7
    calm_s: _Seconds = 300.0
    stay_s: _Seconds = 300.0
    drain_left_s: _Seconds = 1_800.0
    max_moves: Annotated[int, Field(ge=0, le=100)] = 16
    checkpoint_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    stays_s: _Seconds = 7_200.0
    priority_s: _Seconds = 3_600.0
    preempt_gap: Annotated[int, Field(ge=1, le=200)] = 10
    fair_s: _Seconds = 900.0
    weights: Annotated[dict[str, float], Field(default_factory=dict)]
    late_s: _Seconds = 21_600.0
    stale_s: _Seconds = 120.0
    gone_s: _Seconds = 900.0
    price_jump: Annotated[float, Field(ge=0, le=100)] = 0.5
    price_settles_s: _Seconds = 86_400.0
    budget_required: bool = True
    extend: bool = True
    models: Annotated[dict[str, list[str]], Field(default_factory=dict)]
    fail_over_up_to: Literal["public", "internal", "confidential", "restricted"] = "internal"
    spill: Annotated[dict[str, SpillTable], Field(default_factory=dict)]
    failures: Annotated[dict[str, list[str]], Field(default_factory=dict)]

    def rules(self) -> Rules:
        """Return the checked value.

        Raises:
            InvalidInput: `CONFIG_INVALID` or `UNKNOWN_KEY`, with the nearest right name.
        """
        raw = self.model_dump()
        for team in self.weights:
            if not is_token(team):
                raise InvalidInput(Reason.CONFIG_INVALID, "[dispatch.weights] names no team", "use the label's token")
        raw["models"] = {name: tuple(others) for name, others in self.models.items()}
        raw["fail_over_up_to"] = Classification(self.fail_over_up_to)
        raw["spill"] = {WorkloadClass(_named(name, WorkloadClass)): t.spill() for name, t in self.spill.items()}
        declared = {
            Failure(_named(name, Failure)): tuple(Step(_named(step, Step)) for step in steps)
            for name, steps in self.failures.items()
        }
        raw["failures"] = {**FAILURES, **declared}
        return Rules(**raw)


def _named(name: str, kind: type[StrEnum]) -> str:
    allowed = [each.value for each in kind]
    if name not in allowed:
        raise InvalidInput(Reason.UNKNOWN_KEY, f"[dispatch] names an unknown {name!r}", nearest(name, allowed))
    return name
