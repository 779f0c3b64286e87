"""Reservations in SQLite and in a real PostgreSQL: refusals, races for the last money, kill -9 at random moments."""

from __future__ import annotations

import math
import pickle
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from postgres_server import ROLE, Server, missing, postgres
from spenders import AT, KEYED, LIMITS, WORK, added_up, books, budgets, killed, order, race, spending

from fabric.budget_store import DATABASE_NAME, BudgetStore, State
from fabric.budgets import Limit, Period, SpendingRefused, Unit, WhenSpent
from fabric.charges import Terms, Usage
from fabric.errors import FabricError, InvalidInput, Reason
from fabric.fleet import Scope
from fabric.ledger import Ledger
from fabric.money import MAX_MICROS
from fabric.verification import verify_bundle

needs_postgres = pytest.mark.skipif(bool(missing()), reason=missing())
DAY = 86_400


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgres)])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path)
    from fabric import postgres_budgets, postgres_store

    server: Server = request.getfixturevalue("running")
    server.sql("DROP SCHEMA IF EXISTS fabric_evidence CASCADE; DROP SCHEMA IF EXISTS fabric_budgets CASCADE")
    server.sql(postgres_store.schema_sql(ROLE) + postgres_budgets.schema_sql(ROLE))
    return server.url


@pytest.fixture
def money(where: str) -> Iterator[BudgetStore]:
    found = budgets(where)
    yield found
    found.close()


def refused(call: Callable[[], object], reason: Reason) -> FabricError:
    with pytest.raises(FabricError) as caught:
        call()
    assert caught.value.reason is reason
    assert caught.value.hint
    return caught.value


def test_spending_that_no_budget_covers_is_refused_and_leaves_no_trace(where: str):
    money = budgets(where, [LIMITS[1]])
    foreign = Scope(team="radiology", classification=WORK.classification)
    error = refused(lambda: money.reserve("r", "j", order(1, scope=foreign), AT), Reason.BUDGET_UNKNOWN)
    assert "radiology" in error.message
    assert money.find("r") is None
    assert money.reservations() == []


def test_one_limit_without_room_takes_from_no_other(money: BudgetStore):
    money.reserve("a", "j", order(990), AT)
    before = books(money)
    error = refused(lambda: money.reserve("b", "j", order(11), AT), Reason.BUDGET_SPENT)
    assert isinstance(error, SpendingRefused)
    assert (error.limit, error.holds, error.hold_until_s) == ("team", True, (AT // DAY + 1) * DAY)
    assert books(money) == before
    assert money.find("b") is None


def test_gpus_and_gpu_time_have_limits_of_their_own(money: BudgetStore):
    money.reserve("a", "j", order(gpus=7), AT)
    assert "public" in refused(lambda: money.reserve("b", "j", order(gpus=1), AT), Reason.QUOTA_EXCEEDED).message
    money.reserve("elsewhere", "j", order(gpus=9, zone="private"), AT)
    money.release("a", AT)
    error = refused(lambda: money.reserve("c", "j", order(gpus=1, gpu_seconds=90_001), AT), Reason.QUOTA_EXCEEDED)
    assert isinstance(error, SpendingRefused)
    assert not error.holds
    money.reserve("d", "j", order(gpus=1, gpu_seconds=90_000), AT)


def test_a_refusal_says_whether_to_wait_and_survives_pickling(where: str):
    strict = Limit(
        name="strict", scope=Scope(), unit=Unit.MICROS, amount=5, period=Period.WEEK, when_spent=WhenSpent.REFUSE
    )
    error = refused(lambda: budgets(where, [strict]).reserve("r", "j", order(6), AT), Reason.BUDGET_SPENT)
    back = pickle.loads(pickle.dumps(error))
    assert isinstance(back, SpendingRefused)
    assert (back.limit, back.holds, back.hold_until_s, str(back)) == ("strict", False, None, str(error))


def test_time_that_goes_back_reserves_nothing(money: BudgetStore):
    money.reserve("a", "j", order(), AT)
    money.reserve("b", "j", order(), AT - 1.5)
    refused(lambda: money.reserve("c", "j", order(), AT - 60), Reason.CLOCK_SET_BACK)
    assert len(money.reservations()) == 2
    # What was reserved before can still be ended.
    assert money.settle("a", 1, AT - 3600).state is State.SETTLED


@pytest.mark.parametrize("amount", [-1, MAX_MICROS + 1, 1.5, True])
def test_what_is_no_amount_is_neither_reserved_nor_settled(money: BudgetStore, amount: int):
    refused(lambda: money.reserve("r", "j", order(amount), AT), Reason.PRICE_INVALID)
    money.reserve("a", "j", order(), AT)
    refused(lambda: money.settle("a", amount, AT), Reason.PRICE_INVALID)
    assert books(money)["all"] == (10, 0)


@pytest.mark.parametrize("at", [math.nan, math.inf, -1.0, 2.0**60])
def test_what_is_no_time_reserves_nothing(money: BudgetStore, at: float):
    refused(lambda: money.reserve("r", "j", order(), at), Reason.CONFIG_INVALID)


@pytest.mark.parametrize("name", ["", "two words", "x" * 64, "a'; DROP TABLE meter;--", "mary@hospital.example"])
def test_an_id_that_is_no_token_reserves_nothing(money: BudgetStore, name: str):
    error = refused(lambda: money.reserve(name, "j", order(), AT), Reason.CONFIG_INVALID)
    assert not name or name not in str(error)


def test_an_id_of_another_job_is_refused(money: BudgetStore):
    money.reserve("r", "j", order(), AT)
    refused(lambda: money.reserve("r", "k", order(), AT), Reason.RESERVATION_REUSED)


def test_what_was_never_reserved_is_neither_settled_nor_released(money: BudgetStore):
    refused(lambda: money.settle("r", 1, AT), Reason.RESERVATION_UNKNOWN)
    refused(lambda: money.release("r", AT), Reason.RESERVATION_UNKNOWN)


def test_the_same_reservation_twice_is_once_whatever_is_asked_the_second_time(money: BudgetStore):
    first = money.reserve("r", "j", order(10), AT)
    assert money.reserve("r", "j", order(500), AT + 9) == first
    assert books(money)["all"] == (10, 0)
    ended = money.settle("r", 4, AT + 10)
    assert money.settle("r", 9, AT + 11) == ended
    assert money.release("r", AT + 12) == ended
    assert money.reserve("r", "j", order(10), AT + 13) == ended
    assert books(money)["all"] == (0, 4)


def test_a_settlement_above_its_reservation_overdraws_and_stops_what_comes_after_until_the_next_period(
    money: BudgetStore,
):
    money.reserve("r", "j", order(10), AT)
    money.settle("r", 1_001, AT + 1)
    (team,) = [one for one in money.balances(AT) if one.limit.name == "team"]
    assert team.overdrawn
    assert team.left == -1
    refused(lambda: money.reserve("s", "j", order(1), AT + 2), Reason.BUDGET_SPENT)
    money.reserve("t", "j", order(1_000), AT + DAY)
    assert books(money, AT + DAY)["team"] == (1_000, 0)


def test_a_settlement_counts_in_the_period_of_its_reservation(money: BudgetStore):
    money.reserve("r", "j", order(10), AT)
    money.settle("r", 8, AT + 40 * DAY)
    assert books(money)["team"] == (0, 8)
    assert books(money, AT + 40 * DAY)["team"] == (0, 0)


def test_money_spent_under_a_released_reservation_still_counts_once(money: BudgetStore):
    money.reserve("r", "j", order(10, gpus=1), AT)
    money.release("r", AT)
    assert books(money)["all"] == (0, 0)
    for _ in range(2):
        assert money.settle("r", 6, AT).state is State.SETTLED
    assert books(money)["all"] == (0, 6)
    assert books(money)["gpus"] == (0, 0)


def test_a_limit_that_was_lowered_holds_at_once_and_one_that_was_renamed_starts_anew(where: str):
    budgets(where).reserve("r", "j", order(100), AT)
    lower = [Limit(name="team", scope=Scope(), unit=Unit.MICROS, amount=50, period=Period.DAY)]
    refused(lambda: budgets(where, lower).reserve("s", "j", order(1), AT), Reason.BUDGET_SPENT)
    renamed = [Limit(name="new", scope=Scope(), unit=Unit.MICROS, amount=50, period=Period.DAY)]
    money = budgets(where, renamed)
    money.reserve("s", "j", order(50), AT)
    # The first one is still settled where it was reserved.
    money.settle("r", 60, AT)
    assert books(budgets(where))["team"] == (0, 60)


def test_fifty_who_race_for_the_last_money_never_overspend_and_none_waits_for_ever(where: str):
    budgets(where).reserve("before", "j", order(300), AT)
    told = race(where, processes=5, threads=10)
    assert told == {"reserved": 7, "BUDGET_SPENT": 43}
    money = budgets(where)
    assert books(money)["team"] == (1_000, 0)
    assert books(money) == added_up(money.reservations(), LIMITS)


def test_kill_minus_9_at_random_moments_loses_doubles_and_strands_nothing(where: str):
    assert killed(where, rounds=4 if where.startswith("postgresql") else 12, seed=7) > 0
    money = spending(where)
    held = [one for one in money.store.reservations() if one.state is State.HELD]
    assert {one.id for one in held} == {f"r-{n}-{p}" for n in range(2) for p in (3, 7, 11)}
    assert books(money.store) == added_up(money.store.reservations(), LIMITS)
    # And the records tell the same, to the micro.
    bundle = money.ledger.bundle()
    verified = verify_bundle(bundle, trusted=money.ledger.keys)
    assert len(verified.open_intents) == len(held)
    assert recorded_spending(money.ledger) == books(money.store)["all"][1]


def recorded_spending(ledger: Ledger) -> int:
    records = [entry.record for entry in ledger.entries()]
    return sum(r["body"].get("spent", 0) for r in records if r["action"] == "budget" and r["phase"] == "outcome")


def test_spending_without_a_justification_is_refused_before_anything_is_reserved(where: str):
    money = spending(where)
    refused(lambda: money.reserve("r", "j", order(1), AT), Reason.JUSTIFICATION_MISSING)
    rented = Terms(zone="public", currency="EUR", gpu_hour=0, list_gpu_hour=0)
    for_nothing = replace(order(0), terms=rented)
    refused(lambda: money.reserve("r", "j", for_nothing, AT), Reason.JUSTIFICATION_MISSING)
    assert money.store.find("r") is None
    money.reserve("inside", "j", replace(order(0), terms=replace(rented, owned=True)), AT)


def test_a_settlement_that_does_not_say_what_was_used_counts_all_that_was_reserved(money: BudgetStore):
    money.reserve("r", "j", order(10, gpu_seconds=500), AT)
    money.settle("r", 3, AT)
    assert books(money)["hours"] == (0, 500)
    money.reserve("s", "j", order(10, gpu_seconds=500), AT)
    money.release("s", AT)
    assert books(money)["hours"] == (0, 500)


def test_a_settlement_and_a_release_that_race_give_back_once(where: str):
    first, second = budgets(where), budgets(where)
    for number in range(20):
        name = f"r-{number}"
        first.reserve(name, "j", order(10, gpus=1), AT)
        with ThreadPoolExecutor(2) as pool:
            done = [pool.submit(first.settle, name, 4, AT), pool.submit(second.release, name, AT)]
            for one in done:
                one.result()
    assert books(first)["all"] == (0, 80)
    assert books(first) == added_up(first.reservations(), LIMITS)


def test_the_records_of_spending_verify_whatever_order_it_ended_in(where: str):
    money = spending(where)
    for name in ("exact", "under", "over", "back", "late", "abandoned"):
        money.reserve(name, "j", order(10), AT, justification_key=KEYED)
        money.reserve(name, "j", order(10), AT, justification_key=KEYED)
    money.ledger.reconcile(lambda owner: True)  # a process died, and somebody closed what it had open
    for _ in range(2):
        money.settle("exact", 10, AT)
        money.settle("under", 3, AT, usage=Usage(gpu_seconds=5))
        money.settle("over", 25, AT)
        money.release("back", AT)
        money.release("late", AT)
        money.settle("late", 4, AT)
        money.settle("abandoned", 2, AT)
    verified = verify_bundle(money.ledger.bundle(), trusted=money.ledger.keys)
    assert verified.open_intents == ()
    assert recorded_spending(money.ledger) == 10 + 3 + 25 + 4 + 2
    first = next(entry.record["body"] for entry in money.ledger.entries())
    assert first["accounts"] == ["all", "team"]
    assert first["justification"] == KEYED


def test_a_folder_that_cannot_be_written_reserves_nothing(tmp_path: Path):
    (tmp_path / "file").write_text("")
    refused(lambda: budgets(str(tmp_path / "file")), Reason.EVIDENCE_UNWRITABLE)


def test_the_file_is_for_its_owner_only(tmp_path: Path):
    budgets(str(tmp_path / "state"))
    assert (tmp_path / "state" / DATABASE_NAME).stat().st_mode & 0o777 == 0o600


def test_a_store_that_was_closed_says_so(money: BudgetStore, where: str):
    if where.startswith("postgresql"):
        pytest.skip("a pool opens again")
    money.close()
    money.close()
    refused(lambda: money.find("r"), Reason.EVIDENCE_UNWRITABLE)


@needs_postgres
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE fabric_budgets.reservation SET amount = 0",
        "UPDATE fabric_budgets.reservation SET job = 'x'",
        "UPDATE fabric_budgets.hold SET amount = 1",
        "UPDATE fabric_budgets.meter SET name = 'x'",
        "DELETE FROM fabric_budgets.reservation",
        "TRUNCATE fabric_budgets.hold",
        "DROP TABLE fabric_budgets.meter",
    ],
)
def test_the_applications_role_rewrites_and_removes_no_reservation(running: Server, statement: str):
    import psycopg

    from fabric import postgres_budgets

    running.sql("DROP SCHEMA IF EXISTS fabric_budgets CASCADE")
    running.sql(postgres_budgets.schema_sql(ROLE))
    budgets(running.url).reserve("r", "j", order(), AT)
    with psycopg.connect(running.url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute(statement)


@needs_postgres
def test_a_role_that_may_rewrite_reservations_is_refused(running: Server):
    error = refused(lambda: budgets(running.owner_url).reserve("r", "j", order(), AT), Reason.CONFIG_INVALID)
    assert isinstance(error, InvalidInput)
    assert "fabric evidence schema" in error.hint


@needs_postgres
def test_without_its_tables_nothing_is_reserved(running: Server):
    running.sql("DROP SCHEMA IF EXISTS fabric_budgets CASCADE")
    refused(lambda: budgets(running.url).reserve("r", "j", order(), AT), Reason.EVIDENCE_UNWRITABLE)


@needs_postgres
def test_the_schema_that_is_printed_makes_all_tables(running: Server):
    from typer.testing import CliRunner

    from fabric.cli import app

    done = CliRunner().invoke(app, ["evidence", "schema", "--role", ROLE])
    running.sql("DROP SCHEMA IF EXISTS fabric_evidence CASCADE; DROP SCHEMA IF EXISTS fabric_budgets CASCADE")
    running.sql(done.stdout)
    budgets(running.url).reserve("r", "j", order(), AT)
    with pytest.raises(subprocess.CalledProcessError):
        running.sql(done.stdout)
