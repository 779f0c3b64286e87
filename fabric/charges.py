"""Charges: the prices that an admission was made at, and the lines that its use comes to.

A reservation keeps the prices of its admission, so that a catalogue that changes later changes no account. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import Any, Self

from fabric.money import per_gigabyte, per_hour


class Kind(StrEnum):
    """What is paid for."""

    GPU = "gpu"
    IDLE = "idle"
    EGRESS = "egress"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plain:
    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Self:
        """Read what `to_json` wrote; what another version wrote beside it is left out."""
        return cls(**{field.name: raw[field.name] for field in fields(cls) if field.name in raw})


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms(_Plain):
    """The prices of one admission, in micros.

    Attributes:
        sku: the catalogue's instance type; empty where there is none, as for owned hardware.
        owned: whether the hardware is one's own: its use costs, but nobody sends a bill.
        gpu_hour: the price of one GPU for an hour, at which it was admitted.
        list_gpu_hour: the same on demand, where it was admitted at a spot price.
        idle_hour: the price of one GPU that is kept and not used, for an hour.
        egress_gb: the price of 10^9 bytes that leave for the zone.
        inside_hour: what one GPU-hour costs on owned hardware; None where nobody has said.
    """

    zone: str
    currency: str
    gpu_hour: int
    list_gpu_hour: int
    idle_hour: int = 0
    egress_gb: int = 0
    inside_hour: int | None = None
    provider: str = ""
    region: str = ""
    availability_zone: str = ""
    sku: str = ""
    gpu_model: str = ""
    spot: bool = False
    owned: bool = False

    def charges(self, usage: Usage) -> tuple[Charge, ...]:
        """Return a line for each kind of use that there was."""
        found = (self._gpu(usage), self._idle(usage), self._egress(usage))
        return tuple(charge for charge in found if charge.quantity)

    def bill(self, usage: Usage) -> int:
        """Return what somebody will be paid for the use: all of it, or nothing for owned hardware."""
        return sum(charge.billed for charge in self.charges(usage))

    def _gpu(self, usage: Usage) -> Charge:
        return self._line(
            Kind.GPU,
            usage.gpu_seconds,
            self.gpu_hour,
            cost=per_hour(self.gpu_hour, 1, usage.gpu_seconds),
            listed=per_hour(self.list_gpu_hour, 1, usage.gpu_seconds),
            inside=None if self.inside_hour is None else per_hour(self.inside_hour, 1, usage.gpu_seconds),
        )

    def _idle(self, usage: Usage) -> Charge:
        cost = per_hour(self.idle_hour, 1, usage.idle_gpu_seconds)
        return self._line(Kind.IDLE, usage.idle_gpu_seconds, self.idle_hour, cost=cost, listed=cost, inside=0)

    def _egress(self, usage: Usage) -> Charge:
        cost = per_gigabyte(self.egress_gb, usage.egress_bytes)
        return self._line(Kind.EGRESS, usage.egress_bytes, self.egress_gb, cost=cost, listed=cost, inside=0)

    def _line(self, kind: Kind, quantity: int, price: int, *, cost: int, listed: int, inside: int | None) -> Charge:
        return Charge(
            kind=kind,
            quantity=quantity,
            price=price,
            list_price=self.list_gpu_hour if kind is Kind.GPU else price,
            billed=0 if self.owned else cost,
            effective=cost,
            listed=listed,
            inside=inside,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage(_Plain):
    """What work used, or may use: GPU time, GPU time kept without work, bytes that left for the zone."""

    gpu_seconds: int = 0
    idle_gpu_seconds: int = 0
    egress_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One line: a quantity (GPU-seconds or bytes), its price per GPU-hour or GB, and what it comes to in micros.

    Attributes:
        billed: what somebody will be paid.
        effective: what it costs, owned hardware included.
        listed: what it would cost without any reduction, such as a spot price's.
        inside: what the same would have cost on owned hardware; None where nobody has said.
    """

    kind: Kind
    quantity: int
    price: int
    list_price: int
    billed: int
    effective: int
    listed: int
    inside: int | None
