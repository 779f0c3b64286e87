"""Vacancies: for each zone, which GPUs it has, how many are free, what they cost, and whether policy lets work there.

A zone that cannot take what is asked stays in the list, with every reason. How many are free is what was seen of a
running cluster; what was not seen is unknown and never guessed. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fabric.catalogue import Offer, Prices, ZonePrices, unknown_model
from fabric.errors import InvalidInput, Reason
from fabric.money import decimal
from fabric.observed import Observed
from fabric.zones import Zone

if TYPE_CHECKING:
    from fabric.policy import Decision

_LISTS = ("nodes", "actors", "tasks", "placement groups")


@dataclass(frozen=True, slots=True, kw_only=True)
class Objection:
    """One reason why a zone does not take what is asked."""

    code: str
    why: str
    way_out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vacancy:
    """One zone, beside what is asked.

    Attributes:
        free: GPUs that nothing holds; None if unknown.
        objections: none if it may go there, now or when enough is free.
    """

    zone: Zone
    free: int | None
    prices: ZonePrices
    objections: tuple[Objection, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values, prices as decimal text for one GPU and hour."""
        money = {
            "price": self.prices.hour,
            "spot": self.prices.spot,
            "idle": self.prices.idle if self.prices.hour is not None else None,
            "egress_per_gb": self.prices.egress,
        }
        return {
            "zone": self.zone.name,
            "kind": self.zone.kind.value,
            "gpu_model": self.zone.gpu_model,
            "gpus": self.zone.gpus,
            "free": self.free,
            **{name: None if amount is None else f"{decimal(amount)}" for name, amount in money.items()},
            "takes": not self.objections,
            "objections": [{"code": o.code, "why": o.why, "way_out": o.way_out} for o in self.objections],
        }


def free_gpus(seen: Observed) -> dict[str, int]:
    """Return the free GPUs of each zone whose nodes were seen; nothing at all if a list was not seen whole."""
    if any(f"the list of {name}" in seen.unseen for name in _LISTS):
        return {}
    zones = {node.id: node.labels.get("zone", node.name) for node in seen.nodes}
    found: dict[str, float] = {}
    for node in seen.nodes:
        zone = zones[node.id]
        found[zone] = found.get(zone, 0.0) + node.resources.get("GPU", 0.0)
    for work in seen.work:
        if not work.over and work.node in zones:
            found[zones[work.node]] -= work.requires.get("GPU", 0.0)
    return {zone: max(0, int(free)) for zone, free in found.items()}


def vacancies(
    zones: Iterable[Zone],
    decisions: Mapping[str, Decision],
    prices: Prices,
    free: Mapping[str, int],
    *,
    model: str = "",
    count: int = 0,
) -> tuple[Vacancy, ...]:
    """Return every zone beside what is asked, those that take it first, the cheapest of them first.

    Args:
        zones: all that there are.
        decisions: what policy says of each, by name; a zone without a decision is denied.
        prices: those in force.
        free: free GPUs by zone; a zone that is absent is unknown.
        model: the GPU model that is asked for; empty for any.
        count: how many.

    Raises:
        InvalidInput: `GPU_MODEL_UNKNOWN` if neither a zone nor the catalogue has the model.
    """
    listed = list(zones)
    known = {zone.gpu_model for zone in listed if zone.gpu_model}
    known |= set(prices.catalogue.models) if prices.catalogue else set()
    if model and model not in known:
        raise unknown_model(model, sorted(known))
    found = [
        Vacancy(
            zone=zone,
            free=free.get(zone.name),
            prices=(cost := prices.of(zone)),
            objections=tuple(_objections(zone, decisions.get(zone.name), cost, model, count)),
        )
        for zone in listed
    ]
    return tuple(sorted(found, key=lambda one: (bool(one.objections), one.prices.hour is None, one.prices.hour or 0)))


def unreached(zones: Iterable[Zone], prices: Prices, model: str, *, most: int = 10) -> Sequence[Offer]:
    """Return the cheapest offers of a model in places where no zone is."""
    try:
        offers = prices.require().of_model(model)
    except InvalidInput:
        return ()
    places = {(zone.region, zone.gpu_model) for zone in zones}
    return [offer for offer in offers if (offer.region, offer.gpu_model) not in places][:most]


def _objections(zone: Zone, decision: Decision | None, cost: ZonePrices, model: str, count: int) -> Iterable[Objection]:
    if model and zone.gpu_model != model:
        has = f"has {zone.gpu_model}" if zone.gpu_model else "says of no GPU model"
        yield Objection(
            code=Reason.GPU_MODEL_UNKNOWN,
            why=f"zone {zone.name!r} {has}",
            way_out=f"ask for it, or set zones.{zone.name}.gpu_model",
        )
    if count > zone.gpus:
        yield Objection(
            code=Reason.ZONE_HAS_NO_ROOM, why=f"it has {zone.gpus} GPUs, {count} are asked for", way_out="ask for fewer"
        )
    if decision is None:
        yield Objection(code=Reason.POLICY_DENIED, why="policy was not asked")
    elif not decision.permit:
        for rule in decision.rules:
            yield Objection(code=decision.code, why=f"{rule.reason} [{rule.id}]", way_out=rule.way_out)
    if cost.hour is None:
        yield Objection(
            code=cost.why, why="nobody knows its price", way_out="refresh prices.catalogue, or add a row for the zone"
        )
