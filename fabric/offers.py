"""Offers: what a pool outside would cost a job now, and what stands in the way."""

from __future__ import annotations

from fabric.books import Books, full
from fabric.errors import Reason
from fabric.failover import Offer
from fabric.fleet import Obstacle
from fabric.lines import Waiting
from fabric.rooms import Room


def offer(books: Books, one: Waiting, room: Room, now_s: float) -> Offer:
    """Return one pool's offer; the obstacle that comes first in this order is the one that is named."""
    need = one.job.need
    cost = books.rent(one, room, need.workers)
    obstacle = _obstacle(books, one, room, cost, now_s)
    if obstacle is None or obstacle.reason is not Reason.POOL_FULL or not need.min_workers:
        return Offer(pool=room.pool, cost=cost, obstacle=obstacle)
    # Fewer workers take longer, so they must still meet the deadline.
    fitting = 0
    for workers in range(need.workers - 1, need.min_workers - 1, -1):
        ends_s = now_s + books.runs_s(one, room, workers)
        if one.job.deadline_s is not None and not one.late and ends_s > one.job.deadline_s:
            break
        shrunk = books.rent(one, room, workers)
        if books.refusal(one, room, workers, shrunk, now_s) is None:
            fitting = workers
            break
    rent = books.rent(one, room, fitting) if fitting else None
    return Offer(pool=room.pool, cost=cost, obstacle=obstacle, fitting=fitting, shrunk_cost=rent)


def _obstacle(books: Books, one: Waiting, room: Room, cost: int | None, now_s: float) -> Obstacle | None:
    rules = books.rules
    # 1. Policy, which nothing below can make up for.
    if not books.permitted(one.job, room.pool, now_s):
        return books.denied(one.job, room.pool)
    # 2. The border and the provider, as last seen.
    is_open, seen_s = books.egress.get(room.pool.zone, (False, now_s))
    if not is_open or not (0.0 <= now_s - seen_s <= rules.stale_s):
        return Obstacle(pool=room.name, reason=Reason.EGRESS_BLOCKED)
    sick = books.unhealthy(room, now_s)
    if sick is not None:
        return sick
    # 3. The price.
    price, usual = room.price(spot=one.job.need.spot)
    if cost is None or price is None or usual is None:
        return Obstacle(pool=room.name, reason=Reason.PRICE_UNKNOWN)
    if price > usual * (1 + rules.price_jump):
        return Obstacle(pool=room.name, reason=Reason.PRICE_JUMPED, numbers=(("price", price), ("usual", usual)))
    most = rules.of(one.job.workload).max_price
    if most is not None and price > most:
        return Obstacle(pool=room.name, reason=Reason.PRICE_TOO_HIGH, numbers=(("price", price), ("most", most)))
    # 4. What the store, the provider or Ray refused a moment ago.
    if room.name in one.blocked and now_s < one.blocked[room.name][1]:
        reason, until_s = one.blocked[room.name]
        known = Reason(reason) if reason in Reason.__members__ else Reason.POOL_FULL
        return Obstacle(pool=room.name, reason=known, until_s=until_s)
    # 5. Room, quota, budget.
    if not books.could_hold(one.job, room) and one.job.need.gpu_model in ("", room.pool.gpu_model):
        return full(one, room)
    return books.refusal(one, room, one.job.need.workers, cost, now_s)
