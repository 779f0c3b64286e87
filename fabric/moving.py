"""Moving: which running work makes room for work that must stay, and which comes home. Pure choices over the books."""

from __future__ import annotations

from collections.abc import Iterable

from fabric.books import Books, Holding
from fabric.dispatch_rules import Rules
from fabric.fleet import HOUR_S
from fabric.lines import Waiting
from fabric.rooms import Room


def victims(one: Waiting, room: Room, held: Iterable[Holding], rules: Rules, now_s: float) -> list[Holding]:
    """Return checkpointed work that is to stop so that `one` fits; empty if that would not be enough.

    Work that may leave goes first, then work of a priority that is lower by the declared gap, unless it was moved as
    often as allowed; among them the one with the latest deadline. None that came only just now.
    """
    candidates = [
        holding
        for holding in held
        if holding.room is room
        and holding.movable
        and now_s - holding.started_s >= rules.stay_s
        and (bool(holding.was.outside) or _gives_way(holding, one, rules))
    ]
    candidates.sort(
        key=lambda h: (not h.was.outside, h.job.priority, -(h.job.deadline_s or h.was.start_by_s), h.job.id)
    )
    leaving = room_leaving(room, held)
    # What others were promised of it is not there.
    kept = [(gpus, cpus) for gpus, cpus, until_s in room.promised.values() if now_s <= until_s]
    gpus = room.free_gpus + sum(h.gpus for h in leaving) - sum(gpus for gpus, _ in kept)
    cpus = room.free_cpus + sum(h.cpus for h in leaving) - sum(cpus for _, cpus in kept)
    found = []
    for holding in candidates:
        if gpus >= one.gpus and cpus >= one.cpus:
            break
        found.append(holding)
        gpus += holding.gpus
        cpus += holding.cpus
    return found if gpus >= one.gpus and cpus >= one.cpus else []


def _gives_way(holding: Holding, one: Waiting, rules: Rules) -> bool:
    lower = one.job.priority - holding.job.priority >= rules.preempt_gap
    return lower and holding.was.moves < rules.max_moves


def room_leaving(room: Room, held: Iterable[Holding]) -> list[Holding]:
    """Return what was already asked to leave a pool."""
    return [holding for holding in held if holding.room is room and holding.leaving]


def homecomers(room: Room, books: Books, now_s: float) -> list[Holding]:
    """Return work outside that is to come home to a private pool that has room: what saves most, while it fits.

    It must have stayed its time, have enough left to do, and save more rent than the move itself costs; and what is
    kept for work that may not leave stays free.
    """
    rules = books.rules
    gpus = room.free_gpus - int(rules.reserve * room.pool.gpus_total)
    cpus = room.free_cpus - (0 if room.pool.gpus_total else int(rules.reserve * room.pool.cpus_total))
    candidates = []
    for holding in books.away.values():
        job, left_s = holding.job, holding.until_s - now_s
        price, _ = holding.room.price(spot=job.need.spot)
        if (
            not holding.movable
            or holding.was.moves >= rules.max_moves
            or now_s - holding.started_s < rules.stay_s
            or left_s < rules.drain_left_s
            or price is None
            or not books.permitted(job, room.pool, now_s)
            or not books.could_hold(job, room)
        ):
            continue
        saved = price * (holding.gpus or holding.cpus) * (left_s - rules.startup_s - rules.checkpoint_s) / HOUR_S
        if saved > 0:
            candidates.append((-saved, job.id, holding))
    found = []
    for _, _, holding in sorted(candidates, key=lambda item: item[:2]):
        need = holding.job.need
        if need.total_gpus <= gpus and need.total_cpus <= cpus:
            found.append(holding)
            gpus -= need.total_gpus
            cpus -= need.total_cpus
    return found
