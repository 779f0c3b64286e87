"""Placement: a decision made concrete as Ray resources.

`place` takes the `Decision`, not a zone's name, so that nothing can be placed that policy has not permitted.
"""

from __future__ import annotations

from dataclasses import dataclass

from fabric.errors import Reason, Refused
from fabric.policy import Decision
from fabric.zones import Zone, ZoneKind

PRIVATE_PINCH = 0.001
"""Share of the private zone's custom resource that pins a helper there without using it up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where work runs and what each of its workers asks Ray for.

    Attributes:
        resources_per_worker: Ray resources; always the zone's own, so Ray can place it nowhere else.
        label_selector: the zone's node label, given beside the resource: each holds where the other is dropped.
    """

    zone: Zone
    workers: int
    resources_per_worker: dict[str, float]
    use_gpu: bool
    decision: Decision

    @property
    def label_selector(self) -> dict[str, str]:
        """Return the label selector of every worker."""
        return self.zone.node_label


def place(decision: Decision, *, workers: int) -> Placement:
    """Turn a permit to run into Ray resources for `workers` workers.

    A worker in a public zone takes one slot, a GPU where the zone has any, and no CPU, because there is none to
    take; one in the private zone takes a CPU.

    Raises:
        Refused: `POLICY_DENIED` if the decision is no; `ZONE_HAS_NO_ROOM` if the zone can never hold the workers.
    """
    decision.enforce()
    zone = decision.zone
    inside = zone.kind is ZoneKind.PRIVATE
    room = zone.gpus if zone.gpus else zone.cpus if inside else zone.slots
    if workers > room:
        kind = "GPUs" if zone.gpus else "CPUs" if inside else "slots"
        raise Refused(
            Reason.ZONE_HAS_NO_ROOM,
            f"{workers} workers never fit into zone {zone.name!r}, which has {room} {kind}",
            f"ask for at most {room} workers, or declare a larger zone in fabric.toml",
        )
    per_worker: dict[str, float] = {zone.resource: PRIVATE_PINCH if inside else 1}
    if zone.gpus:
        per_worker["GPU"] = 1
    if inside:
        per_worker["CPU"] = 1
    return Placement(
        zone=zone,
        workers=workers,
        resources_per_worker=per_worker,
        use_gpu=zone.gpus > 0,
        decision=decision,
    )
