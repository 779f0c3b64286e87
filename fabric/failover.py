"""Failover: which pool outside takes a job, and the declared answer when the first choice cannot.

The first choice is the cheapest pool that has what the job asks for. If it cannot take the job for a reason that has
answers declared (`[dispatch.failures]`), they are tried in order. For any other reason, above all where something is
unknown or stale, the job waits: what nobody declared is not the next cheapest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fabric.dispatch_rules import Failure, Rules, Step
from fabric.errors import Reason
from fabric.fleet import Health, Need, Obstacle, Pool

FAILURE_OF: Mapping[Reason, Failure] = {
    Reason.PROVIDER_THROTTLED: Failure.THROTTLED,
    Reason.POOL_FULL: Failure.NO_CAPACITY,
    Reason.GPU_MODEL_UNKNOWN: Failure.MODEL_MISSING,
    Reason.PRICE_JUMPED: Failure.PRICE_JUMP,
    Reason.ZONE_DOWN: Failure.REGION_GONE,
    Reason.EGRESS_BLOCKED: Failure.EGRESS_BLOCKED,
}
"""Obstacles that have an answer declared; all others mean waiting."""

OF_HEALTH: Mapping[Health, Reason] = {
    Health.DEGRADED: Reason.ZONE_DEGRADED,
    Health.THROTTLED: Reason.PROVIDER_THROTTLED,
    Health.DOWN: Reason.ZONE_DOWN,
    Health.UNKNOWN: Reason.HEALTH_UNKNOWN,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What one pool outside, where policy lets the job run, would cost it, and what stands in the way.

    Attributes:
        cost: micros; None if a price is unknown.
        fitting: most workers, from the job's least to all, that fit now; 0 for none.
        shrunk_cost: micros for so many.
    """

    pool: Pool
    cost: int | None
    obstacle: Obstacle | None = None
    fitting: int = 0
    shrunk_cost: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The offer that is taken with how many workers, or why none is."""

    offer: Offer | None = None
    workers: int = 0
    obstacle: Obstacle | None = None
    shed: bool = False


def choose(need: Need, offers: Sequence[Offer], rules: Rules) -> Choice:
    """Choose among the pools outside where policy lets a job run; pure, the same for the same offers in any order."""
    ordered = sorted(offers, key=lambda one: (one.cost is None, one.cost or 0, one.pool.name))
    if not ordered:
        return Choice()
    first = next((one for one in ordered if need.gpu_model in ("", one.pool.gpu_model)), None)
    if first is not None and first.obstacle is None:
        return Choice(offer=first, workers=need.workers)
    missing = Obstacle(pool=ordered[0].pool.name, reason=Reason.GPU_MODEL_UNKNOWN)
    obstacle = (first.obstacle if first is not None else None) or missing
    failure = FAILURE_OF.get(obstacle.reason)
    for step in rules.steps(failure) if failure is not None else ():
        if step is Step.HOLD:
            break
        if step is Step.SHED:
            return Choice(obstacle=obstacle, shed=True)
        if step is Step.SHRINK:
            if first is not None and _shrinks(need, first, obstacle):
                return Choice(offer=first, workers=first.fitting)
            continue
        for one in ordered:
            if one.obstacle is None and one is not first and _is_answer(step, need, one.pool, first, rules):
                return Choice(offer=one, workers=need.workers)
    return Choice(obstacle=obstacle)


def _shrinks(need: Need, first: Offer, obstacle: Obstacle) -> bool:
    """Say whether fewer workers are an answer: only where room is all that is missing."""
    return (
        obstacle.reason is Reason.POOL_FULL
        and 0 < need.min_workers <= first.fitting < need.workers
        and first.shrunk_cost is not None
    )


def _is_answer(step: Step, need: Need, other: Pool, first: Offer | None, rules: Rules) -> bool:
    exact = need.gpu_model in ("", other.gpu_model)
    if step is Step.OTHER_REGION and first is not None:
        return exact and other.provider == first.pool.provider and other.region != first.pool.region
    if step is Step.OTHER_PROVIDER and first is not None:
        return exact and other.provider != first.pool.provider
    if step is Step.OTHER_MODEL:
        return not need.gpu_model or other.gpu_model in rules.models.get(need.gpu_model, ())
    return False
