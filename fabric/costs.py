"""The cost report: settled reservations as rows in FOCUS columns, and their sums by model, team, project, class, zone.

Columns and values are those of FOCUS 1.2 (FinOps Open Cost and Usage Specification, focus.finops.org); what it has no
column for stands in columns that begin with `x_`, as it asks. A row's billing period is the month in which it was
reserved, as in the budgets. Owned hardware is billed to nobody: BilledCost 0, its use in EffectiveCost. What was
settled beside what its prices come to is a row of its own, an adjustment, so that the rows add up to the settlement.
Which trained model and which crossings a job's cost belongs to is what the ledger's records of that job say. Pure.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from fabric.budget_store import Reservation, State
from fabric.budgets import Period, Window, window_of
from fabric.charges import Charge, Kind, Terms, Usage
from fabric.errors import InvalidInput, Reason
from fabric.fleet import GIGABYTE, HOUR_S
from fabric.money import decimal

FOCUS_VERSION = "1.2"
NONE = "(none)"
WAYS = ("model", "team", "project", "class", "zone")

MONEY = ("BilledCost", "ContractedCost", "ContractedUnitPrice", "EffectiveCost", "ListCost", "ListUnitPrice")
QUANTITIES = ("ConsumedQuantity", "PricingQuantity")
TIMES = ("BillingPeriodEnd", "BillingPeriodStart", "ChargePeriodEnd", "ChargePeriodStart")
COLUMNS = (
    "AvailabilityZone", "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd",
    "BillingPeriodStart", "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargeFrequency", "ChargePeriodEnd",
    "ChargePeriodStart", "ConsumedQuantity", "ConsumedUnit", "ContractedCost", "ContractedUnitPrice", "EffectiveCost",
    "InvoiceIssuerName", "ListCost", "ListUnitPrice", "PricingCategory", "PricingQuantity", "PricingUnit",
    "ProviderName", "PublisherName", "RegionId", "RegionName", "ResourceId", "ResourceName", "ResourceType",
    "ServiceCategory", "ServiceName", "ServiceSubcategory", "SkuId", "SkuPriceId", "SubAccountId", "SubAccountName",
    "Tags",
    "x_Crossings", "x_DataClassification", "x_GpuModel", "x_InsideCost", "x_Job", "x_Kind", "x_Model", "x_Project",
    "x_Reservation", "x_Spot", "x_Team", "x_WorkloadClass", "x_Zone",
)  # fmt: skip

_SERVICES = {
    Kind.GPU: ("Compute", "Virtual Machines", "GPU time"),
    Kind.IDLE: ("Compute", "Virtual Machines", "GPU time without work"),
    Kind.EGRESS: ("Networking", "Network Connectivity", "Data that left"),
}
_KEYS = {
    "model": "x_Model",
    "team": "x_Team",
    "project": "x_Project",
    "class": "x_DataClassification",
    "zone": "x_Zone",
}
_ATTEMPT = re.compile(r"fabric-(.+)-[0-9]+\Z")
_PERIOD = re.compile(r"([0-9]{4})-(?:(0[1-9]|1[0-2])|Q([1-4]))(?:-(0[1-9]|[12][0-9]|3[01]))?\Z")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the ledger tells of jobs: the models that came of them, and the crossings that they made."""

    models: Mapping[str, str] = field(default_factory=dict)
    crossings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """A sum over the rows of one team, model, project, class or zone; money in micros.

    Attributes:
        inside: what the GPU time would have cost on owned hardware; None if that is not known of every row.
    """

    name: str
    jobs: int
    gpu_seconds: int
    billed: int
    effective: int
    idle: int
    egress: int
    inside: int | None

    def to_json(self, currency: str) -> dict[str, Any]:
        """Return it as plain JSON values, amounts as decimal text."""
        money = {name: getattr(self, name) for name in ("billed", "effective", "idle", "egress", "inside")}
        return {
            "name": self.name,
            "jobs": self.jobs,
            "gpu_hours": f"{Decimal(self.gpu_seconds) / HOUR_S:.6f}",
            "currency": currency,
            **{name: None if amount is None else f"{decimal(amount)}" for name, amount in money.items()},
        }


def period_named(text: str) -> Window:
    """Return the period written as `2026-11`, `2026-Q4` or `2026-11-28`.

    Raises:
        InvalidInput: `CONFIG_INVALID`.
    """
    found = _PERIOD.match(text)
    try:
        if found is None or (found[3] and found[4]):
            raise ValueError
        month = int(found[2]) if found[2] else int(found[3]) * 3
        at = datetime(int(found[1]), month, int(found[4] or 1), tzinfo=UTC).timestamp()
        return window_of(Period.DAY if found[4] else Period.QUARTER if found[3] else Period.MONTH, at)
    except (ValueError, OverflowError):
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            "that is no period",
            "write a month, a quarter or a day: 2026-11, 2026-Q4, 2026-11-28",
        ) from None


def told_by(records: Iterable[Mapping[str, Any]]) -> Told:
    """Return what the ledger's records tell of jobs."""
    models: dict[str, str] = {}
    crossings: dict[str, list[str]] = defaultdict(list)
    for record in records:
        body, action = record["body"], record["action"]
        job = _job(str(body.get("job", "")))
        if record["phase"] != "intent" or not job:
            continue
        if action == "return" and "model" in body:
            models[job] = str(body["model"])
        if action == "crossing" and "crossing" in body:
            crossings[job].append(str(body["crossing"]))
    return Told(models=models, crossings={job: tuple(found) for job, found in crossings.items()})


def rows_of(reservations: Iterable[Reservation], told: Told, *, account: str, currency: str) -> list[Row]:
    """Return the FOCUS rows of all that is settled, in time's order; what is still held has no cost yet.

    Args:
        reservations: of the period.
        told: what the ledger tells of their jobs.
        account: the fabric's name.
        currency: of every amount.
    """
    found = []
    for one in reservations:
        if one.state is State.SETTLED:
            shared = _shared(one, told, account, currency)
            found += [{**shared, **_priced(charge, one.order.terms)} for charge in _charges(one)]
            found += [{**shared, **row} for row in _adjusted(one)]
    return [{column: row.get(column) for column in COLUMNS} for row in found]


def currency_of(rows: Sequence[Row], otherwise: str) -> str:
    """Return the one currency of rows; `otherwise` where there are none.

    Raises:
        InvalidInput: `CONFIG_INVALID`: they have several, such as before and after `prices.currency` was changed.
    """
    found = sorted({row["BillingCurrency"] for row in rows})
    if len(found) > 1:
        raise InvalidInput(
            Reason.CONFIG_INVALID,
            f"amounts in {' and '.join(found)} are not added up",
            "`--format csv` or parquet keeps them apart; or name a shorter --period",
        )
    return found[0] if found else otherwise


def totals(rows: Sequence[Row], by: str) -> list[Total]:
    """Return the sums of rows, the dearest first.

    Raises:
        InvalidInput: `CONFIG_INVALID` for a way to sum that there is not.
    """
    if by not in _KEYS:
        raise InvalidInput(Reason.CONFIG_INVALID, "costs are not summed by that", f"Allowed: {', '.join(WAYS)}.")
    groups: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        groups[row[_KEYS[by]] or NONE].append(row)
    return sorted((_total(name, group) for name, group in groups.items()), key=lambda one: (-one.effective, one.name))


def _total(name: str, rows: Sequence[Row]) -> Total:
    def money(column: str, fits: Callable[[Row], bool] = lambda row: True) -> int:
        return sum(int(row[column].scaleb(6)) for row in rows if fits(row) and row[column] is not None)

    return Total(
        name=name,
        jobs=len({row["x_Job"] for row in rows}),
        gpu_seconds=sum(round(row["ConsumedQuantity"] * HOUR_S) for row in rows if row["x_Kind"] == Kind.GPU),
        billed=money("BilledCost"),
        effective=money("EffectiveCost"),
        idle=money("EffectiveCost", lambda row: bool(row["x_Kind"] == Kind.IDLE)),
        egress=money("EffectiveCost", lambda row: bool(row["x_Kind"] == Kind.EGRESS)),
        inside=None
        if any(row["x_Kind"] == Kind.GPU and row["x_InsideCost"] is None for row in rows)
        else money("x_InsideCost"),
    )


def _charges(one: Reservation) -> tuple[Charge, ...]:
    return one.order.terms.charges(one.usage or Usage()) if one.order.terms else ()


def _shared(one: Reservation, told: Told, account: str, currency: str) -> Row:
    scope, terms = one.order.scope, one.order.terms
    month = window_of(Period.MONTH, one.at)
    model = told.models.get(one.job)
    labels = {
        "team": scope.team,
        "project": scope.project,
        "data_classification": scope.classification.value if scope.classification else "",
        "workload_class": scope.workload.value if scope.workload else "",
        "zone": one.order.zone,
        "job": one.job,
    }
    return {
        "AvailabilityZone": (terms and terms.availability_zone) or None,
        "BillingAccountId": account,
        "BillingAccountName": account,
        "BillingCurrency": terms.currency if terms else currency,
        "BillingPeriodStart": _time(month.start_s),
        "BillingPeriodEnd": _time(month.end_s or 0),
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": _time(one.at),
        "ChargePeriodEnd": _time(max(one.ended_at or one.at, one.at)),
        "InvoiceIssuerName": (terms and terms.provider) or account,
        "ProviderName": (terms and terms.provider) or account,
        "PublisherName": (terms and terms.provider) or account,
        "RegionId": (terms and terms.region) or None,
        "RegionName": (terms and terms.region) or None,
        "ResourceId": one.job,
        "ResourceName": one.job,
        "ResourceType": "Job",
        "ServiceCategory": "Other",
        "ServiceName": "Work",
        "SkuId": (terms and terms.sku) or None,
        "SubAccountId": scope.team or None,
        "SubAccountName": scope.team or None,
        "Tags": json.dumps({name: value for name, value in labels.items() if value}, sort_keys=True),
        "x_Crossings": " ".join(told.crossings.get(one.job, ())) or None,
        "x_DataClassification": labels["data_classification"] or None,
        "x_GpuModel": (terms and terms.gpu_model) or None,
        "x_Job": one.job,
        "x_Model": model,
        "x_Project": scope.project or None,
        "x_Reservation": one.id,
        "x_Spot": bool(terms and terms.spot),
        "x_Team": scope.team or None,
        "x_WorkloadClass": labels["workload_class"] or None,
        "x_Zone": one.order.zone,
    }


def _priced(charge: Charge, terms: Terms | None) -> Row:
    category, subcategory, service = _SERVICES[charge.kind]
    egress = charge.kind is Kind.EGRESS
    quantity = (Decimal(charge.quantity) / (GIGABYTE if egress else HOUR_S)).quantize(Decimal("0.000000001"))
    unit = "GB" if egress else "GPU-Hours"
    where = "on owned hardware" if terms and terms.owned else "rented"
    return {
        "BilledCost": decimal(charge.billed),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{service}, {where}",
        "ConsumedQuantity": quantity,
        "ConsumedUnit": unit,
        "ContractedCost": decimal(charge.effective),
        "ContractedUnitPrice": decimal(charge.price),
        "EffectiveCost": decimal(charge.effective),
        "ListCost": decimal(charge.listed),
        "ListUnitPrice": decimal(charge.list_price),
        "PricingCategory": "Dynamic" if terms and terms.spot and charge.kind is Kind.GPU else "Standard",
        "PricingQuantity": quantity,
        "PricingUnit": unit,
        "ServiceCategory": category,
        "ServiceName": service,
        "ServiceSubcategory": subcategory,
        "x_InsideCost": None if charge.inside is None else decimal(charge.inside),
        "x_Kind": charge.kind.value,
    }


def _adjusted(one: Reservation) -> list[Row]:
    """Return what was settled beside what the prices come to: the provider's bill, or a cost without prices."""
    rest = (one.spent_micros or 0) - sum(charge.billed for charge in _charges(one))
    if not rest:
        return []
    amount = decimal(rest)
    return [
        {
            "BilledCost": amount,
            "ChargeCategory": "Adjustment",
            "ChargeDescription": "Settled beside what its prices come to",
            "ChargeFrequency": "One-Time",
            "ContractedCost": amount,
            "EffectiveCost": amount,
            "ListCost": amount,
            "x_InsideCost": Decimal(0),
            "x_Kind": "adjustment",
        }
    ]


def _job(name: str) -> str:
    """Return the queue's job behind a driver's submission id."""
    found = _ATTEMPT.match(name)
    return found[1] if found else name


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
