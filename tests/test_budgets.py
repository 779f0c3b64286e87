"""Budgets and quotas as declared and decided: what is refused at load, periods, and that nothing overspends."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from spenders import AT, LIMITS, WORK, added_up, books, budgets, order

from fabric.budgets import Balance, Limit, Period, SpendingRefused, Unit, accounts_of, quotas_of, shortfall, window_of
from fabric.charges import Usage
from fabric.config import Config, load_config
from fabric.errors import InvalidInput, Reason
from fabric.fleet import Scope
from fabric.labels import Classification

CONFIG = """
[fabric]
name = "t"
[zones.private]
kind = "private"
jurisdiction = "EU"
cpus = 2
[zones.public]
kind = "public"
jurisdiction = "EU"
gpus = 8
gpu_model = "H200"
"""
BUDGET = '[[budgets]]\nname = "b"\nlimit = "10.00"\nperiod = "month"\n'


def loaded(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "fabric.toml"
    path.write_text(CONFIG + text)
    return load_config(path)


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ('[[quotas]]\nname = "q"\nzone = "public"\ngpus = 9\n', Reason.QUOTA_INVALID, "set it to 8 or less"),
        ('[[quotas]]\nname = "q"\nzone = "private"\ngpus = 1\n', Reason.QUOTA_INVALID, "set it to 0 or less"),
        ('[[quotas]]\nname = "q"\nzone = "public"\ngpu_hours = 193\nperiod = "day"\n', Reason.QUOTA_INVALID, "192"),
        ('[[quotas]]\nname = "q"\nzone = "pubic"\ngpus = 1\n', Reason.UNKNOWN_ZONE, "'public'"),
        ('[[quotas]]\nname = "q"\nzone = "public"\n', Reason.CONFIG_INVALID, "gpus (held at once), or gpu_hours"),
        ('[[quotas]]\nname = "q"\nzone = "public"\ngpus = 1\nperiod = "day"\n', Reason.CONFIG_INVALID, "gpus"),
        (BUDGET + 'temm = "x"\n', Reason.UNKNOWN_KEY, "did you mean 'team'"),
        (BUDGET + 'workload = "trainin"\n', Reason.CONFIG_INVALID, "README"),
        (BUDGET + 'team = "two words"\n', Reason.LABEL_INVALID, "label"),
        (BUDGET + BUDGET, Reason.CONFIG_INVALID, "name of its own"),
        (BUDGET.replace('"b"', '"b c"'), Reason.CONFIG_INVALID, "name of its own"),
        (BUDGET.replace('"10.00"', "10.5"), Reason.PRICE_INVALID, "digits in quotes"),
        (BUDGET.replace('"10.00"', '"-10"'), Reason.PRICE_INVALID, "digits in quotes"),
        (BUDGET.replace('"10.00"', "-10"), Reason.PRICE_INVALID, "digits in quotes"),
        (BUDGET.replace('"10.00"', "true"), Reason.PRICE_INVALID, "digits in quotes"),
        (BUDGET.replace('"10.00"', "nan"), Reason.PRICE_INVALID, "digits in quotes"),
        (BUDGET.replace("month", "year"), Reason.CONFIG_INVALID, ""),
        ('[prices]\ncurrency = "euro"\n', Reason.CONFIG_INVALID, "EUR"),
        ('[prices]\ncatalog = "c"\n', Reason.UNKNOWN_KEY, "did you mean 'catalogue'"),
        ('[prices]\nstale_after_hours = 0\n', Reason.CONFIG_INVALID, ""),
        ('[prices.inside]\nrunning = "-1"\n', Reason.PRICE_INVALID, "digits in quotes"),
    ],
)  # fmt: skip
def test_a_table_of_money_that_is_wrong_is_refused_at_load_with_its_way_out(
    tmp_path: Path, text: str, reason: Reason, said: str
):
    with pytest.raises(InvalidInput) as caught:
        loaded(tmp_path, text)
    assert caught.value.reason is reason
    assert said in caught.value.hint


def test_a_zone_that_names_a_model_without_gpus_is_refused(tmp_path: Path):
    path = tmp_path / "fabric.toml"
    path.write_text(CONFIG.replace("gpus = 8\n", ""))
    with pytest.raises(InvalidInput) as caught:
        load_config(path)
    assert "AcceleratorName" in caught.value.hint


def test_a_team_that_nobody_has_heard_of_is_fine(tmp_path: Path):
    (limit,) = loaded(tmp_path, BUDGET + 'team = "brand-new"\nclassification = "internal"\n').limits
    assert limit.scope == Scope(team="brand-new", classification=Classification.INTERNAL)
    assert limit.amount == 10_000_000


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        (Period.DAY, "2026-12-31", "2027-01-01"),
        (Period.WEEK, "2026-12-28", "2027-01-04"),
        (Period.MONTH, "2026-12-01", "2027-01-01"),
        (Period.QUARTER, "2026-10-01", "2027-01-01"),
    ],
)
def test_a_period_starts_at_midnight_utc(period: Period, start: str, end: str):
    for at in ("2026-12-31T00:00:00", "2026-12-31T23:59:59.999999"):
        window = window_of(period, datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp())
        assert window.start_s == datetime.fromisoformat(start).replace(tzinfo=UTC).timestamp()
        assert window.end_s == datetime.fromisoformat(end).replace(tzinfo=UTC).timestamp()


@given(st.sampled_from(list(Period)), st.floats(0, 2**40))
def test_every_moment_lies_in_one_window_and_the_next_begins_where_it_ends(period: Period, at: float):
    if at > 250_000_000_000:  # the year 9892
        return
    window = window_of(period, at)
    assert window.end_s is not None
    assert window.start_s <= at < window.end_s
    assert window_of(period, window.start_s) == window
    assert window_of(period, window.end_s).start_s == window.end_s


def test_the_decision_reads_the_same_numbers():
    window = window_of(Period.MONTH, AT)
    balance = Balance(limit=LIMITS[0], window=window, reserved=3, spent=4)
    (account,) = accounts_of([balance], AT)
    assert (account.limit_micros, account.reserved_micros, account.spent_micros) == (10_000, 3, 4)
    assert account.until_s == window.end_s
    assert [(quota.zone, quota.gpus) for quota in quotas_of(LIMITS)] == [("public", 7)]


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 400))
def test_a_shortfall_is_told_exactly_where_there_is_one(reserved: int, spent: int, amount: int):
    limit = Limit(name="b", scope=Scope(team="oncology"), unit=Unit.MICROS, amount=200, period=Period.DAY)
    balance = Balance(limit=limit, window=window_of(Period.DAY, AT), reserved=reserved, spent=spent)
    found = shortfall([balance], order(amount))
    assert (found is not None) == (reserved + spent + amount > 200)


class Spenders(RuleBasedStateMachine):
    """Any order of reservations, settlements, releases and repeats, over days, against the sums of what was told."""

    @initialize(folder=st.just(None))
    def open(self, folder: None) -> None:
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.money = budgets(self.folder.name)
        self.at = AT
        self.over: dict[str, int] = {}

    @rule(
        number=st.integers(0, 6), amount=st.integers(0, 700), gpus=st.integers(0, 4), hours=st.integers(0, 20),
        foreign=st.booleans(), step=st.sampled_from([0, 1, 3600, 86_400]),
    )  # fmt: skip
    def reserve(self, number: int, amount: int, gpus: int, hours: int, foreign: bool, step: int) -> None:
        self.at += step
        scope = Scope(team="radiology", classification=WORK.classification) if foreign else WORK
        before = books(self.money, self.at)
        try:
            self.money.reserve(
                f"r-{number}", f"j-{number}", order(amount, gpus=gpus, gpu_seconds=hours * 3600, scope=scope), self.at
            )
        except SpendingRefused:
            assert books(self.money, self.at) == before

    @rule(number=st.integers(0, 6), spent=st.integers(0, 900), seconds=st.integers(0, 9000))
    def settle(self, number: int, spent: int, seconds: int) -> None:
        if self.money.find(f"r-{number}"):
            self.money.settle(f"r-{number}", spent, self.at, usage=Usage(gpu_seconds=seconds))

    @rule(number=st.integers(0, 6))
    def release(self, number: int) -> None:
        if self.money.find(f"r-{number}"):
            self.money.release(f"r-{number}", self.at)

    @invariant()
    def the_meters_are_the_sums_of_the_reservations(self) -> None:
        if hasattr(self, "money"):
            assert books(self.money, self.at) == added_up(self.money.reservations(), LIMITS, self.at)

    @invariant()
    def nothing_is_overspent_but_by_a_settlement_above_its_reservation(self) -> None:
        if not hasattr(self, "money"):
            return
        for balance in self.money.balances(self.at):
            beyond = sum(
                max(0, spent_of(balance.limit.unit, one) - (balance.limit.asks(one.order) or 0))
                for one in self.money.reservations()
                if balance.limit.asks(one.order)
            )
            assert balance.left >= -beyond

    def teardown(self) -> None:
        if hasattr(self, "money"):
            self.money.close()
            self.folder.cleanup()


def spent_of(unit: Unit, one: object) -> int:
    spent, usage = one.spent_micros or 0, one.usage  # type: ignore[attr-defined]
    return {Unit.MICROS: spent, Unit.GPU_SECONDS: usage.gpu_seconds if usage else 0, Unit.GPUS: 0}[unit]


TestSpenders = Spenders.TestCase
TestSpenders.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
