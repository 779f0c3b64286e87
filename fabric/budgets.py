"""Budgets and quotas: who may spend how much, and hold how many GPUs where, in which period.

A budget covers the jobs whose labels it names; a job is covered by all budgets that fit, and each of them must have
room. A quota bounds what jobs hold in one zone at once (`gpus`), or use there in a period (`gpu_hours`). Both are
limits over a `Meter`: something that is reserved at admission, and settled or released at the end. Money is in micros,
GPU time in seconds. Spending that no budget covers is refused. Pure: time comes in, in seconds since the epoch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from fabric.charges import Terms
from fabric.errors import Reason, Refused
from fabric.fleet import HOUR_S, Account, Quota, Scope
from fabric.labels import Labels
from fabric.money import shown


class Period(StrEnum):
    """How often a limit starts again, at a boundary in UTC."""

    DAY = "day"
    WEEK = "week"
    MONTH = "month"
    QUARTER = "quarter"


class WhenSpent(StrEnum):
    """What becomes of a job for which nothing is left: it waits for the next period, or it is refused.

    One that could run inside waits for that, where no budget is asked.
    """

    HOLD = "hold"
    REFUSE = "refuse"


class Unit(StrEnum):
    """What a limit counts."""

    MICROS = "micros"
    GPU_SECONDS = "gpu-seconds"
    GPUS = "gpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """One budget or one quota.

    Attributes:
        unit: what it counts; GPUs are given back at the end, money and GPU time are used up in their period.
        scope: the work it covers: what has every label that it names.
        period: None for GPUs held at once.
        zone: for quotas, the zone they bound; empty for budgets.
    """

    name: str
    scope: Scope
    unit: Unit
    amount: int
    period: Period | None
    when_spent: WhenSpent = WhenSpent.HOLD
    zone: str = ""

    def asks(self, order: Order) -> int | None:
        """Return how much of this limit an order needs; None if it does not concern it."""
        if not _fits(self.scope, order.scope) or (self.zone and self.zone != order.zone):
            return None
        return {
            Unit.MICROS: order.amount_micros,
            Unit.GPUS: order.gpus,
            Unit.GPU_SECONDS: order.gpu_seconds,
        }[self.unit]

    def window(self, at: float) -> Window:
        """Return the period that `at` falls into."""
        return window_of(self.period, at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One period: from `start_s` until before `end_s`; for what has no period, always."""

    start_s: int
    end_s: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What an admission would reserve.

    Attributes:
        scope: all labels of the work that money is kept apart by (`scope_of`).
        amount_micros: the most that it may cost.
        gpus: GPUs held at once.
        gpu_seconds: GPU time.
        terms: the prices it is made at, for the cost report; None where there are none.
    """

    scope: Scope
    zone: str
    amount_micros: int
    gpus: int = 0
    gpu_seconds: int = 0
    terms: Terms | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """A limit in one window: what is reserved and what is spent of it."""

    limit: Limit
    window: Window
    reserved: int = 0
    spent: int = 0

    @property
    def left(self) -> int:
        """Return what is left; negative if a settlement was above its reservation."""
        return self.limit.amount - self.reserved - self.spent

    @property
    def overdrawn(self) -> bool:
        """Say whether more was spent than the limit allows; nothing is reserved then until the next period."""
        return self.left < 0


class SpendingRefused(Refused):
    """A budget or quota has no room. `hold_until_s` is None where waiting would not help.

    Attributes:
        limit: the name of the budget or quota.
        holds: whether the job may wait.
        hold_until_s: when the next period starts; None where nobody can say.
    """

    def __init__(
        self,
        reason: Reason | str,
        message: str,
        hint: str = "",
        limit: str = "",
        holds: bool = False,
        hold_until_s: int | None = None,
    ) -> None:
        super().__init__(reason, message, hint)
        self.limit = limit
        self.holds = holds
        self.hold_until_s = hold_until_s
        self.args = (self.reason.value, message, hint, limit, holds, hold_until_s)


def scope_of(labels: Labels) -> Scope:
    """Return the scope of work with these labels."""
    return Scope(
        team=labels.team,
        project=labels.project,
        classification=labels.data_classification,
        workload=labels.workload_class,
    )


def accounts_of(balances: Iterable[Balance], at: float) -> tuple[Account, ...]:
    """Return the budgets as the dispatch decision reads them."""
    return tuple(
        Account(
            name=one.limit.name,
            scope=one.limit.scope,
            limit_micros=one.limit.amount,
            reserved_micros=one.reserved,
            spent_micros=one.spent,
            until_s=math.inf if one.window.end_s is None else one.window.end_s,
            observed_s=at,
        )
        for one in balances
        if one.limit.unit is Unit.MICROS
    )


def quotas_of(limits: Iterable[Limit]) -> tuple[Quota, ...]:
    """Return the quotas of GPUs held at once, as the dispatch decision reads them."""
    return tuple(
        Quota(name=limit.name, scope=limit.scope, zone=limit.zone, gpus=limit.amount)
        for limit in limits
        if limit.unit is Unit.GPUS
    )


def window_of(period: Period | None, at: float) -> Window:
    """Return the window of a period that `at` falls into, with boundaries at midnight UTC; weeks start on Monday."""
    if period is None:
        return Window(start_s=0, end_s=None)
    day = datetime.fromtimestamp(at, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if period is Period.DAY:
        start, end = day, day + timedelta(days=1)
    elif period is Period.WEEK:
        start = day - timedelta(days=day.weekday())
        end = start + timedelta(days=7)
    else:
        months = 1 if period is Period.MONTH else 3
        start = day.replace(day=1, month=(day.month - 1) // months * months + 1)
        end = _later(start, months)
    return Window(start_s=int(start.timestamp()), end_s=int(end.timestamp()))


def concerned(limits: Iterable[Limit], order: Order) -> tuple[tuple[Limit, int], ...]:
    """Return the limits that an order falls under, each with what it needs of it, in the order of their names.

    Whoever takes several limits takes them in this order, so that two who race never wait for each other.

    Raises:
        SpendingRefused: `BUDGET_UNKNOWN` if it would spend and no budget covers it.
    """
    found = [(limit, asked) for limit in limits if (asked := limit.asks(order)) is not None]
    if order.amount_micros > 0 and not any(limit.unit is Unit.MICROS for limit, _ in found):
        raise SpendingRefused(
            Reason.BUDGET_UNKNOWN,
            f"no budget covers this work ({_said(order.scope)})",
            "add one to fabric.toml: [[budgets]] with name, limit, period and what it covers",
        )
    return tuple(sorted(((limit, asked) for limit, asked in found if asked), key=lambda pair: pair[0].name))


def shortfall(balances: Sequence[Balance], order: Order) -> SpendingRefused | None:
    """Return what keeps an order from being reserved under these balances, or None.

    Raises:
        SpendingRefused: `BUDGET_UNKNOWN`.
    """
    by_name = {balance.limit.name: balance for balance in balances}
    for limit, asked in concerned([balance.limit for balance in balances], order):
        if asked > by_name[limit.name].left:
            return refusal(by_name[limit.name], asked)
    return None


def refusal(balance: Balance, asked: int) -> SpendingRefused:
    """Return the error that says what is missing, and until when."""
    limit, until = balance.limit, balance.window.end_s
    figures = f"needs {_figure(limit.unit, asked)}, has {_figure(limit.unit, balance.left)} left of "
    figures += _figure(limit.unit, limit.amount)
    if limit.unit is not Unit.MICROS:
        return SpendingRefused(
            Reason.QUOTA_EXCEEDED,
            f"quota {limit.name!r} of zone {limit.zone!r}: {figures}",
            _wait(until) or "wait until something that holds GPUs there ends, or ask for fewer",
            limit.name,
            asked <= limit.amount,
            until,
        )
    holds = limit.when_spent is WhenSpent.HOLD and asked <= limit.amount
    return SpendingRefused(
        Reason.BUDGET_SPENT,
        f"budget {limit.name!r}: {figures}",
        f"{_wait(until)}; or ask its owner to raise `limit`"
        if holds
        else "ask its owner to raise `limit`, or need less",
        limit.name,
        holds,
        until if holds else None,
    )


def _fits(limit: Scope, work: Scope) -> bool:
    return (
        limit.team in ("", work.team)
        and limit.project in ("", work.project)
        and limit.classification in (None, work.classification)
        and limit.workload in (None, work.workload)
    )


def _wait(until: int | None) -> str:
    return f"the next period starts at {datetime.fromtimestamp(until, UTC):%Y-%m-%dT%H:%MZ}" if until else ""


def _figure(unit: Unit, amount: int) -> str:
    if unit is Unit.MICROS:
        return shown(amount)
    return f"{amount} GPUs" if unit is Unit.GPUS else f"{amount / HOUR_S:.1f} GPU-hours"


def _said(scope: Scope) -> str:
    told: Mapping[str, str] = {
        "team": scope.team,
        "project": scope.project,
        "classification": scope.classification.value if scope.classification else "",
        "workload": scope.workload.value if scope.workload else "",
    }
    return ", ".join(f"{name} {value}" for name, value in told.items() if value)


def _later(start: datetime, months: int) -> datetime:
    years, month = divmod(start.month - 1 + months, 12)
    return start.replace(year=start.year + years, month=month + 1)
