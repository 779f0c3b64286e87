"""The tables of money in `fabric.toml`: `[prices]`, `[[budgets]]` and `[[quotas]]`, checked and made into limits.

An amount is a whole number or text in plain digits, because TOML's floats are not exact. A quota that its zone could
never fill is refused: it would promise what is not there. A team that nobody has heard of is fine; a key is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from fabric.budgets import Limit, Period, Unit, WhenSpent
from fabric.errors import InvalidInput, Reason
from fabric.fleet import HOUR_S, Scope
from fabric.labels import Classification, WorkloadClass, is_token
from fabric.money import micros
from fabric.specs import Spec
from fabric.zones import Zone, find_zone

_CURRENCY = re.compile(r"[A-Z]{3}\Z", re.ASCII)
_LONGEST_DAYS = {Period.DAY: 1, Period.WEEK: 7, Period.MONTH: 31, Period.QUARTER: 92}


class _ScopeTable(Spec):
    name: str
    team: str = ""
    project: str = ""
    classification: Literal["public", "internal", "confidential", "restricted"] | None = None
    workload: (
        Literal["training", "fine-tuning", "sweep", "batch-inference", "online-inference", "edge-inference"] | None
    ) = None


class BudgetTable(_ScopeTable):
    """One `[[budgets]]`: how much money the work it covers may cost in a period."""

    limit: Any
    period: Literal["day", "week", "month", "quarter"]
    when_spent: Literal["hold", "refuse"] = "hold"


class QuotaTable(_ScopeTable):
    """One `[[quotas]]`: how many GPUs of a zone the work it covers holds at once, or GPU-hours in a period."""

    zone: str
    gpus: Annotated[int | None, Field(ge=0)] = None
    gpu_hours: Annotated[int | None, Field(ge=0)] = None
    period: Literal["day", "week", "month", "quarter"] | None = None


class InsideTable(Spec):
    """`[prices.inside]`: what a GPU-hour on owned hardware costs, in use and idle."""

    running: Any
    idle: Any = 0


class PricesTable(Spec):
    """`[prices]`: where the price catalogue lies, in which currency, and how old it may be."""

    catalogue: str = ""
    currency: str = "EUR"
    stale_after_hours: Annotated[int, Field(ge=1, le=8_784)] = 168
    inside: InsideTable | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceSettings:
    """What `[prices]` declares.

    Attributes:
        catalogue: the file, absolute; None where there is none, so that no price outside is known.
        stale_after_s: the age at which the file's prices count as unknown.
        inside_running: micros per GPU-hour on owned hardware; None where nobody has said.
        inside_idle: the same for a GPU that stands idle.
    """

    catalogue: Path | None = None
    currency: str = "EUR"
    stale_after_s: int = 168 * HOUR_S
    inside_running: int | None = None
    inside_idle: int | None = None


def price_settings(table: PricesTable, folder: Path) -> PriceSettings:
    """Return the checked form of `[prices]`; its paths are relative to `folder`.

    Raises:
        InvalidInput: `CONFIG_INVALID` or `PRICE_INVALID`.
    """
    if not _CURRENCY.match(table.currency):
        raise InvalidInput(
            Reason.CONFIG_INVALID, "prices.currency is not a currency's code", "three capitals of ISO 4217, such as EUR"
        )
    inside = table.inside
    return PriceSettings(
        catalogue=(folder / table.catalogue).resolve() if table.catalogue else None,
        currency=table.currency,
        stale_after_s=table.stale_after_hours * HOUR_S,
        inside_running=amount_of("prices.inside.running", inside.running) if inside else None,
        inside_idle=amount_of("prices.inside.idle", inside.idle) if inside else None,
    )


def limits_of(
    budgets: Sequence[BudgetTable], quotas: Sequence[QuotaTable], zones: Mapping[str, Zone]
) -> tuple[Limit, ...]:
    """Return every budget and quota as a limit.

    Raises:
        InvalidInput: `QUOTA_INVALID`, `UNKNOWN_ZONE`, `PRICE_INVALID`, `LABEL_INVALID` or `CONFIG_INVALID`.
    """
    limits = (*(_budget(table) for table in budgets), *(_quota(table, zones) for table in quotas))
    names = [limit.name for limit in limits]
    for name in names:
        if not is_token(name) or names.count(name) > 1:
            raise InvalidInput(
                Reason.CONFIG_INVALID,
                "a budget's or quota's name is no token, or two share it",
                "give each [[budgets]] and [[quotas]] a name of its own: letters, digits, '.', '_' and '-'",
            )
    return limits


def amount_of(key: str, value: object) -> int:
    """Return an amount of fabric.toml in micros.

    Raises:
        InvalidInput: `PRICE_INVALID`, naming the key and not the value.
    """
    found = micros(str(value)) if isinstance(value, int | str) and not isinstance(value, bool) else None
    if found is None:
        raise InvalidInput(
            Reason.PRICE_INVALID,
            f"{key} is not an amount of money",
            'a whole number, or digits in quotes such as "2500.00": no sign, no exponent, at most 1,000,000,000',
        )
    return found


def _budget(table: BudgetTable) -> Limit:
    return Limit(
        name=table.name,
        scope=_scope(table),
        unit=Unit.MICROS,
        amount=amount_of("budgets.limit", table.limit),
        period=Period(table.period),
        when_spent=WhenSpent(table.when_spent),
    )


def _quota(table: QuotaTable, zones: Mapping[str, Zone]) -> Limit:
    zone = find_zone(zones, table.zone)
    if (table.gpus is None) == (table.gpu_hours is None) or (table.gpu_hours is None) != (table.period is None):
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            f"quota of zone {zone.name!r} does not say how much",
            "set gpus (held at once), or gpu_hours and period",
        )
    if table.gpus is not None:
        amount, unit, period, most = table.gpus, Unit.GPUS, None, zone.gpus
    else:
        period = Period(table.period or "day")
        amount, unit, most = table.gpu_hours or 0, Unit.GPU_SECONDS, zone.gpus * 24 * _LONGEST_DAYS[period]
    if amount > most:
        raise InvalidInput(
            Reason.QUOTA_INVALID,
            f"a quota of {amount} {'GPUs' if period is None else 'GPU-hours'} is more than zone {zone.name!r} has",
            f"set it to {most} or less, or raise zones.{zone.name}.gpus to what is there",
        )
    return Limit(
        name=table.name,
        scope=_scope(table),
        unit=unit,
        amount=amount if period is None else amount * HOUR_S,
        period=period,
        zone=zone.name,
    )


def _scope(table: _ScopeTable) -> Scope:
    for key in ("team", "project"):
        name = getattr(table, key)
        if name and not is_token(name):
            raise InvalidInput(
                Reason.LABEL_INVALID, f"{key} of a budget or quota is not a token", "write it as the label is written"
            )
    return Scope(
        team=table.team,
        project=table.project,
        classification=Classification(table.classification) if table.classification else None,
        workload=WorkloadClass(table.workload) if table.workload else None,
    )
