"""Zones: trust domains with nodes in them.

A zone's name is its Ray custom resource (`zone_<name>`) and its node label (`zone=<name>`). A public zone never
offers a CPU: Ray places unlabelled work wherever there is one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from fabric.errors import InvalidInput, Reason, nearest

_NAME = re.compile(r"[a-z]([a-z0-9-]{0,29}[a-z0-9])?\Z")
_MOST = 1_000_000

_GPU_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z", re.ASCII)


class ZoneKind(StrEnum):
    """How far a zone is trusted."""

    PRIVATE = "private"
    PUBLIC = "public"
    EDGE = "edge"


class Topology(StrEnum):
    """How the zones hang together: one Ray cluster stretched over them, or a cluster per zone and a border between."""

    STRETCHED = "stretched"
    FEDERATED = "federated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Zone:
    """One zone, as `fabric.toml` declares it.

    Attributes:
        slots: how many workers the zone takes at once (amount of the custom resource).
        cpus: CPUs that Ray may give to tasks; 0 outside the private zone.
        gpus: GPUs of the zone's nodes; a worker takes one where there are any.
        gpu_model: their model, as the price catalogue calls it (AcceleratorName); empty where nobody has said.
    """

    name: str
    kind: ZoneKind
    jurisdiction: str
    provider: str = "local"
    region: str = "local"
    slots: int = 4
    cpus: int = 0
    gpus: int = 0
    gpu_model: str = ""

    def __post_init__(self) -> None:
        if not _NAME.match(self.name):
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                f"zone name {self.name!r} cannot be a Ray resource and label",
                "use a lower-case letter, then up to 30 lower-case letters, digits or '-', and no '-' at the end",
            )
        if self.kind is not ZoneKind.PRIVATE and self.cpus:
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                f"zone {self.name!r} is {self.kind.value} and offers {self.cpus} CPUs",
                "set cpus = 0: Ray places unlabelled work wherever there is a CPU",
            )
        if self.kind is ZoneKind.PRIVATE and self.cpus < 1:
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                f"zone {self.name!r} is private and offers no CPU",
                "set cpus to 2 or more: records are sanitized there",
            )
        if not 1 <= self.slots <= _MOST or not 0 <= self.cpus <= _MOST or not 0 <= self.gpus <= _MOST:
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                f"zone {self.name!r} has a negative size, no slot, or more than there can be",
                f"slots must be 1 to {_MOST}, cpus and gpus 0 to {_MOST}",
            )
        if self.gpu_model and (not self.gpus or not is_gpu_model(self.gpu_model)):
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                f"zone {self.name!r} names a GPU model without having GPUs, or not by a catalogue's name",
                "set gpus, and gpu_model to an AcceleratorName such as H200 or A100-80GB",
            )

    @property
    def resource(self) -> str:
        """Return the Ray custom resource that places work in this zone."""
        return f"zone_{self.name}"

    @property
    def node_label(self) -> dict[str, str]:
        """Return the Ray node label of this zone, also its label selector."""
        return {"zone": self.name}


def is_gpu_model(name: str) -> bool:
    """Say whether `name` has the form of a GPU model's name: letters, digits, '.', '_' and '-'."""
    return _GPU_MODEL.match(name) is not None


def find_zone(zones: Mapping[str, Zone], name: str) -> Zone:
    """Return the zone called `name`.

    Raises:
        InvalidInput: `UNKNOWN_ZONE`, with the nearest declared name. Ray itself would leave the work pending for ever.
    """
    if name not in zones:
        raise InvalidInput(Reason.UNKNOWN_ZONE, f"unknown zone {name!r}", nearest(name, zones))
    return zones[name]
