"""The dispatcher's core, without Ray: what it refuses, holds, starts, moves and settles, and no crash changes that."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
from dispatch_lab import BODY, KEY, PRICE, Lab, start

from fabric.budgets import Order, WhenSpent
from fabric.dispatch_rules import Rules, Spill
from fabric.errors import ClusterUnavailable, FabricError, Reason
from fabric.fleet import AccountsSeen, Extend, Health, Scope
from fabric.job_store import NewJob, State
from fabric.labels import Classification, WorkloadClass
from fabric.launching import Life
from fabric.reserving import Books
from fabric.standing import waiting_line
from fabric.verification import verify_bundle

NOW = 1_795_800_000.0


@pytest.fixture
def lab(tmp_path):
    return Lab(tmp_path, clock_s=NOW)


def started(lab: Lab) -> list[str]:
    return [drive.submission for drive in lab.drivers.started]


def hold(lab: Lab, name: str) -> dict:
    return dict(lab.store.find(name).hold)


def test_where_the_drivers_cannot_be_asked_about_nothing_is_concluded_and_nothing_starts(lab):
    dispatcher = lab.dispatcher()
    lab.submit("a")
    dispatcher.turn()
    lab.submit("b")
    lab.drivers.fails = ClusterUnavailable(Reason.CLUSTER_FAILED, "no answer", "")
    with pytest.raises(ClusterUnavailable):
        dispatcher.turn()
    assert lab.states() == {"a": "starting", "b": "queued"}
    lab.drivers.fails = None
    dispatcher.turn()
    assert started(lab) == ["fabric-a-1", "fabric-b-1"]


def test_a_job_starts_with_fewer_workers_where_it_may_and_the_driver_is_told(tmp_path):
    lab = Lab(tmp_path, inside=2, outside=0, clock_s=NOW)
    dispatcher = lab.dispatcher()
    lab.submit("all", need={"workers": 3}, denied=["public"])
    lab.submit("some", need={"workers": 3, "min_workers": 1}, denied=["public"])
    dispatcher.turn()
    assert (lab.store.find("all").state, lab.store.find("some").state) == (State.QUEUED, State.STARTING)
    assert lab.store.find("some").workers == 2


def test_a_job_that_may_not_leave_waits_and_says_why_with_numbers(lab):
    dispatcher = lab.dispatcher()
    lab.submit("a")
    dispatcher.turn()
    lab.submit("b", denied=["public"])
    dispatcher.turn()
    found = hold(lab, "b")
    assert lab.states()["b"] == "queued"
    assert found["reason"] == "WAITS_FOR_ROOM"
    assert found["zones"] == {
        "private": {"reason": "WAITS_FOR_ROOM", "numbers": {"free": 0, "needs": 1, "total": 1}, "rules": []},
        "public": {"reason": "POLICY_DENIED", "numbers": {}, "rules": []},
    }
    assert waiting_line(lab.store.find("b")) == (
        "job b waits: private: needs 1, 0 free; public refused: policy says no; earliest 2026-11-27 17:21 "
        "[WAITS_FOR_ROOM]"
    )
    assert lab.balance() == (0, 0)


def test_what_a_driver_that_died_or_was_stopped_left_elsewhere_is_ended_before_another_begins(lab):
    dispatcher = lab.dispatcher()
    lab.submit("dies")
    lab.submit("cancelled")
    dispatcher.turn()
    for name in ("dies", "cancelled"):
        lab.claim(name)
    lab.drivers.known["fabric-dies-1"] = Life.GONE
    lab.store.cancel("cancelled", lab.now())
    dispatcher.turn()
    assert lab.abandoned == ["fabric-dies-1"]  # the other is still alive: it is asked to stop
    dispatcher.turn()
    assert lab.abandoned == ["fabric-dies-1", "fabric-cancelled-1"]
    assert lab.states() == {"dies": "starting", "cancelled": "cancelled"}


def test_the_reason_of_a_job_that_waits_on_follows_what_has_changed(lab):
    dispatcher = lab.dispatcher()
    lab.submit("a")
    dispatcher.turn()
    lab.submit("b", denied=["public"])
    dispatcher.turn()
    lab.inside, lab.clock_s = 5, lab.clock_s + 1
    lab.health["private"] = Health.DOWN
    for _ in range(40):
        lab.clock_s += 1
        dispatcher.turn()
    assert hold(lab, "b")["zones"]["private"]["reason"] == "ZONE_DOWN"


def test_a_job_that_may_leave_does_when_the_private_zone_is_full_and_is_paid_for_first(lab):
    dispatcher = lab.dispatcher()
    lab.submit("a")
    lab.submit("b")
    dispatcher.turn()
    assert {row.id: row.zone for row in lab.store.jobs()} == {"a": "private", "b": "public"}
    assert lab.balance()[0] >= 60 * PRICE // 3600
    order = [e.record["action"] for e in lab.ledger.entries() if e.record["body"].get("job") == "b"]
    assert order.index("budget") < order.index("dispatch")


def test_room_inside_that_other_work_holds_is_waited_for_like_any_other(tmp_path):
    patient = Rules(spill={WorkloadClass.TRAINING: Spill(patience_s=600.0)}, startup_s=0.0, margin_s=0.0, reserve=0.0)
    lab = Lab(tmp_path, clock_s=NOW, taken=1, rules=patient)
    dispatcher = lab.dispatcher()
    lab.submit("stays", denied=["public"])
    lab.submit("may-leave")
    dispatcher.turn()
    assert lab.states() == {"stays": "queued", "may-leave": "queued"}
    assert hold(lab, "stays")["reason"] == "WAITS_FOR_ROOM"
    assert hold(lab, "may-leave")["reason"] == "WAITING_IS_CHEAPER"
    lab.taken = 0
    lab.clock_s += 1
    dispatcher.turn()
    assert [row.zone for row in lab.store.jobs() if row.state.holds] == ["private"]


def test_a_turn_that_is_cut_short_between_deciding_and_doing_is_made_up_for(lab):
    dispatcher = lab.dispatcher()
    dispatcher.turn()
    lab.submit("a")
    ledger, dispatcher.ledger = dispatcher.ledger, Broken()
    with pytest.raises(FabricError):
        dispatcher.turn()
    assert lab.states() == {"a": "queued"}
    dispatcher.ledger = ledger
    dispatcher.turn()
    assert lab.states() == {"a": "starting"}
    assert [attempt.number for attempt in lab.store.attempts()] == [1]


class Broken:
    """A ledger that cannot be written."""

    def intend(self, action, body):
        raise FabricError(Reason.EVIDENCE_UNWRITABLE, "no room on the disk", "")


def test_a_budget_with_nothing_left_holds_a_job_and_charges_nothing(tmp_path):
    lab = Lab(tmp_path, clock_s=NOW, limit=1)
    dispatcher = lab.dispatcher()
    lab.submit("a")
    lab.submit("b")
    dispatcher.turn()
    assert lab.states() == {"a": "starting", "b": "queued"}
    assert "BUDGET" in str(hold(lab, "b"))
    assert lab.balance() == (0, 0)


def test_a_spent_budget_that_is_declared_to_refuse_refuses_what_could_never_run_inside(tmp_path):
    lab = Lab(tmp_path, clock_s=NOW, limit=1, when_spent=WhenSpent.REFUSE)
    dispatcher = lab.dispatcher()
    for name, denied in (("a", []), ("b", []), ("c", ["private"])):
        lab.submit(name, denied=denied)
    dispatcher.turn()
    assert lab.states() == {"a": "starting", "b": "queued", "c": "refused"}
    assert lab.store.find("c").code == "BUDGET_SPENT"
    dispatcher.turn()
    assert lab.balance() == (0, 0)


def test_stale_health_outside_holds_and_a_zone_that_is_down_gets_nothing(lab):
    lab.health["public"] = Health.UNKNOWN
    dispatcher = lab.dispatcher()
    lab.submit("a")
    lab.submit("b")
    dispatcher.turn()
    assert lab.states()["b"] == "queued"
    lab.health["public"] = Health.HEALTHY
    lab.clock_s += 31
    dispatcher.turn()
    assert lab.states()["b"] == "starting"


def test_a_clock_that_is_set_back_starts_nothing_until_it_has_caught_up(lab):
    dispatcher = lab.dispatcher()
    dispatcher.turn()
    lab.clock_s -= 3_600
    lab.submit("a")
    dispatcher.turn()
    assert lab.states() == {"a": "queued"}
    assert hold(lab, "a")["reason"] == "CLOCK_SET_BACK"
    lab.clock_s += 3_700
    dispatcher.turn()
    assert lab.states() == {"a": "starting"}


def test_work_that_ended_is_settled_once_at_what_it_took_and_the_rest_is_given_back(lab):
    dispatcher = lab.dispatcher()
    lab.submit("a")
    lab.submit("b")
    dispatcher.turn()
    lab.claim("a"), lab.claim("b")
    lab.clock_s += 10
    lab.finish("a"), lab.finish("b")
    for _ in range(3):
        dispatcher.turn()
    spent = 10 * PRICE // 3600
    assert lab.balance() == (0, spent)
    assert [(a.job, a.spent_micros) for a in lab.store.attempts()] == [("a", 0), ("b", spent)]
    outcomes = [r["body"] for r in lab.records("budget", "outcome")]
    assert sorted(body["spent"] for body in outcomes) == [0, spent]


def test_work_that_took_longer_than_was_reserved_is_charged_and_the_evidence_verifies(tmp_path):
    lab = Lab(tmp_path, clock_s=NOW, inside=0)
    dispatcher = lab.dispatcher()
    lab.submit("a")
    dispatcher.turn()
    lab.claim("a")
    lab.clock_s += 1_000
    lab.finish("a")
    dispatcher.turn()
    assert lab.balance() == (0, 1_000 * PRICE // 3600)
    assert verify_bundle(lab.ledger.bundle(), trusted=[KEY.public])


PAID_S = 61
"""For how long the lab pays a checkpointed job of a minute: it is covered until its next checkpoint."""


def test_work_outside_that_nobody_pays_for_any_longer_and_that_cannot_be_moved_is_stopped(tmp_path):
    lab = Lab(tmp_path, clock_s=NOW, inside=0, limit=60 * PRICE // 3600)
    dispatcher = lab.dispatcher()
    lab.submit("a", checkpointed=False)
    dispatcher.turn()
    lab.claim("a")
    for _ in range(5):
        lab.clock_s += 20
        dispatcher.turn()
    row = lab.store.find("a")
    assert (row.state, row.code) == (State.SHED, "BUDGET_SPENT")
    assert lab.drivers.known == {"fabric-a-1": Life.STOPPED}
    assert lab.balance()[0] == 0
    assert [r["body"]["code"] for r in lab.records("dispatch") if r["body"]["what"] == "shed"] == ["BUDGET_SPENT"]


def test_work_that_was_asked_to_leave_and_does_not_is_stopped_when_what_pays_for_it_is_over(tmp_path):
    lab = Lab(tmp_path, clock_s=NOW, inside=0, limit=PAID_S * PRICE // 3600)
    dispatcher = lab.dispatcher()
    lab.submit("a")
    dispatcher.turn()
    lab.claim("a")
    lab.clock_s += 60
    dispatcher.turn()
    assert lab.store.find("a").state is State.LEAVING
    for _ in range(3):
        lab.clock_s += 1
        dispatcher.turn()
    assert (lab.store.find("a").state, lab.store.find("a").code) == (State.SHED, "BUDGET_SPENT")
    assert lab.balance()[0] == 0


def test_however_often_work_is_extended_each_time_is_paid_and_all_of_it_is_settled(lab):
    lab.taken = 1
    dispatcher = lab.dispatcher()
    lab.submit("a")
    dispatcher.turn()
    row = lab.claim("a")
    first = lab.budgets.find(row.reservation)
    for number in range(1, 1_000):
        lab.budgets.reserve(f"{row.reservation}.x{number}", "a", replace(first.order, amount_micros=1), NOW)
    before, _ = lab.balance()
    more = Extend(job="a", cost_micros=7, until_s=NOW + 60)
    names = [dispatcher.books.extend(row, more, NOW, why="hmac-sha256:00") for _ in range(2)]
    assert names == [f"{row.reservation}.x1000", f"{row.reservation}.x1001"]
    assert lab.balance()[0] == before + 14
    lab.finish("a", State.FAILED)
    dispatcher.turn()
    assert lab.balance()[0] == 0


def test_an_extension_that_the_budgets_refuse_is_no_extension(tmp_path):
    lab = Lab(tmp_path, clock_s=NOW, inside=0)
    dispatcher = lab.dispatcher()
    lab.submit("a")
    dispatcher.turn()
    lab.claim("a")
    other = Order(scope=Scope(classification=Classification.INTERNAL), zone="public", amount_micros=10**9 - 10**5)
    seen, dispatcher.books = dispatcher.books, Seen(dispatcher.books.seen(NOW), dispatcher.books)
    seen.spending.reserve("b-1", "b", other, NOW, justification_key="hmac-sha256:00")
    lab.clock_s += 60
    dispatcher.turn()
    assert lab.store.find("a").reserved_micros == PAID_S * PRICE // 3600
    for _ in range(4):
        lab.clock_s += 1
        dispatcher.turn()
    assert lab.store.find("a").state is State.SHED


@dataclass
class Seen:
    """Books whose balances were read before somebody else reserved."""

    read: AccountsSeen
    books: Books

    def __getattr__(self, name):
        return getattr(self.books, name)

    def seen(self, now_s):
        return replace(
            self.read, accounts=tuple(replace(one, observed_s=now_s) for one in self.read.accounts), at_s=now_s
        )


@pytest.mark.parametrize("limit", [10**9, PAID_S * PRICE // 3600])
def test_work_outside_is_paid_for_longer_or_stopped_also_after_the_dispatcher_began_anew(tmp_path, limit):
    lab = Lab(tmp_path, clock_s=NOW, inside=0, limit=limit)
    lab.submit("a")
    lab.dispatcher().turn()
    lab.claim("a")
    lab.clock_s += 30
    again = lab.dispatcher()
    again.turn()
    assert lab.store.find("a").reserved_micros == PAID_S * PRICE // 3600
    for _ in range(32):
        lab.clock_s += 1
        again.turn()
    row = lab.store.find("a")
    if limit == 10**9:
        assert (row.state, row.reserved_micros) == (State.RUNNING, (PAID_S + 600) * PRICE // 3600)
    else:
        assert row.state is State.SHED or row.cancel


def test_what_runs_in_a_pool_whose_name_is_another_now_is_counted_and_not_started_again(lab):
    lab.submit("a", denied=["public"])
    lab.dispatcher().turn()
    lab.claim("a")
    again = lab.dispatcher()
    again.pools = lambda now_s: (replace(pool, gpu_model="H200") for pool in lab.pools(now_s))
    lab.submit("b", denied=["public"])
    for _ in range(3):
        lab.clock_s += 1
        again.turn()
    assert lab.states() == {"a": "running", "b": "queued"}
    assert hold(lab, "b")["zones"]["private/H200"]["numbers"] == {"needs": 1, "free": 0, "total": 1}
    assert [r["body"]["job"] for r in lab.records("dispatch") if r["body"]["what"] == "place"] == ["a"]
    lab.finish("a")
    again.turn()
    assert lab.states() == {"a": "done", "b": "starting"}


def test_work_in_a_zone_that_is_not_declared_any_more_goes_on_is_settled_and_is_not_started_again(lab):
    lab.submit("a")
    lab.submit("b")
    lab.dispatcher().turn()
    lab.claim("a"), lab.claim("b")
    again = lab.dispatcher()
    again.pools = lambda now_s: (pool for pool in lab.pools(now_s) if pool.inside)
    lab.finish("a")
    for _ in range(3):
        lab.clock_s += 1
        again.turn()
    assert lab.states() == {"a": "done", "b": "running"}
    row = lab.store.find("b")
    assert lab.store.left("b", 1, row.driver, 30.0, lab.now())
    again.turn()
    assert (lab.store.find("b").zone, lab.store.find("b").attempt) == ("private", 2)
    assert lab.store.attempts(unsettled=True) == []
    places = [r["body"] for r in lab.records("dispatch") if r["body"]["what"] == "place"]
    assert [body["attempt"] for body in places if body["job"] == "b"] == [1, 2]


def test_what_another_dispatcher_started_is_counted_and_not_tried_again_every_turn(lab):
    old, new = lab.dispatcher(), lab.dispatcher()
    lab.submit("a", denied=["public"])
    lab.taken = 1
    lab.health["public"] = Health.DOWN
    old.turn(), new.turn()
    lab.taken = 0
    lab.clock_s += 1
    new.turn()
    assert lab.states() == {"a": "starting"}
    lab.claim("a")
    for _ in range(3):
        lab.clock_s += 1
        old.turn()
    assert [r["body"]["attempt"] for r in lab.records("dispatch") if r["body"]["what"] == "place"] == [1]
    lab.submit("b", denied=["public"])
    old.turn()
    assert lab.states() == {"a": "running", "b": "queued"}


def test_a_driver_that_dies_without_an_end_is_noticed_charged_and_tried_again_up_to_a_limit(tmp_path):
    lab = Lab(tmp_path, clock_s=NOW, inside=0)
    dispatcher = lab.dispatcher()
    lab.submit("a")
    for attempt in (1, 2, 3):
        dispatcher.turn()
        assert started(lab)[-1] == f"fabric-a-{attempt}"
        lab.claim("a")
        lab.clock_s += 5
        lab.drivers.known[f"fabric-a-{attempt}"] = Life.GONE
        dispatcher.turn()
    row = lab.store.find("a")
    assert (row.state, row.code) == (State.FAILED, "DRIVER_LOST")
    assert lab.balance() == (0, 15 * PRICE // 3600)


def test_a_job_outside_comes_home_when_there_is_room_as_the_same_job(lab):
    dispatcher = lab.dispatcher()
    lab.submit("a", duration_s=7_200.0)
    lab.submit("b", duration_s=7_200.0)
    dispatcher.turn()
    lab.claim("a"), lab.claim("b")
    lab.finish("a")
    for _ in range(40):
        lab.clock_s += 1
        dispatcher.turn()
        if lab.store.find("b").state is State.LEAVING:
            break
    row = lab.store.find("b")
    assert (row.state, row.leave) == (State.LEAVING, "drain-back")
    assert lab.store.left("b", 1, row.driver, 3_000.0, lab.now())
    dispatcher.turn()
    row = lab.store.find("b")
    assert (row.zone, row.attempt, row.state) == ("private", 2, State.STARTING)
    assert started(lab) == ["fabric-a-1", "fabric-b-1"]  # the driver goes on: none was started
    assert lab.claim("b").state is State.RUNNING
    assert lab.balance()[0] == 0


def test_a_cancelled_job_is_stopped_settled_and_not_started_again(lab):
    dispatcher = lab.dispatcher()
    lab.submit("a")
    dispatcher.turn()
    lab.claim("a")
    lab.store.cancel("a", NOW)
    for _ in range(3):
        dispatcher.turn()
    assert lab.states() == {"a": "cancelled"}
    assert lab.drivers.known == {"fabric-a-1": Life.STOPPED}
    assert lab.store.attempts(unsettled=True) == []


def test_a_driver_that_is_stopped_by_rays_own_means_takes_its_job_back(lab):
    dispatcher = lab.dispatcher()
    lab.submit("a")
    dispatcher.turn()
    lab.claim("a")
    lab.drivers.known["fabric-a-1"] = Life.STOPPED
    for _ in range(3):
        dispatcher.turn()
    assert lab.states() == {"a": "cancelled"}


def test_a_driver_of_the_users_own_that_waits_is_used_and_one_that_is_gone_takes_its_job_along(lab):
    dispatcher = lab.dispatcher()
    lab.drivers.known |= {"raysubmit_1": Life.ALIVE, "raysubmit_2": Life.GONE}
    lab.submit("a", driver="raysubmit_1")
    lab.submit("b", driver="raysubmit_2")
    dispatcher.turn()
    assert lab.states() == {"a": "starting", "b": "cancelled"}
    assert started(lab) == []
    assert not lab.store.claim("a", 1, "fabric-a-1", NOW)


def test_a_driver_that_came_while_the_drivers_were_asked_about_is_not_taken_for_gone(lab):
    dispatcher = lab.dispatcher(Slow(lab))
    dispatcher.turn()
    assert lab.states() == {"a": "starting"}
    dispatcher.turn()
    assert lab.states() == {"a": "starting"}


@dataclass
class Slow:
    """Drivers of which one comes while they are asked about, and then queues its job."""

    lab: Lab

    def __getattr__(self, name):
        return getattr(self.lab.drivers, name)

    def lives(self):
        found = self.lab.drivers.lives()
        if not found:
            self.lab.drivers.known["raysubmit_1"] = Life.ALIVE
            self.lab.submit("a", driver="raysubmit_1")
        return found


def test_a_job_without_a_matrix_is_prepared_first_and_fails_when_that_fails_again(lab):
    dispatcher = lab.dispatcher()
    lab.store.submit(_raw("a"), NOW)
    dispatcher.turn()
    assert [drive.words for drive in lab.drivers.started] == [("prepare", "a")]
    lab.drivers.known["fabric-a-1-prepare"] = Life.GONE
    dispatcher.turn()
    lab.drivers.known["fabric-a-2-prepare"] = Life.GONE
    dispatcher.turn()
    assert lab.states() == {"a": "failed"}


def test_one_jobs_records_are_sanitized_at_a_time(lab):
    dispatcher = lab.dispatcher()
    for name in ("a", "b"):
        lab.store.submit(_raw(name), NOW)
    dispatcher.turn()
    dispatcher.turn()
    assert [drive.words for drive in lab.drivers.started] == [("prepare", "a")]
    assert lab.store.prepared("a", "m")
    lab.drivers.known["fabric-a-1-prepare"] = Life.GONE
    dispatcher.turn()
    assert [drive.words[1] for drive in lab.drivers.started] == ["a", "b", "a"]


def test_what_was_reserved_for_a_place_that_a_crash_left_unwritten_is_given_back(lab):
    dispatcher = lab.dispatcher()
    dispatcher.turn()
    books = dispatcher.books.spending
    scope = Scope(classification=Classification.INTERNAL)
    order = Order(scope=scope, zone="public", amount_micros=5)
    books.reserve("a-1.0", "a", order, NOW, justification_key="hmac-sha256:00")
    again = lab.dispatcher()
    again.turn()
    assert lab.balance() == (5, 0)  # it may be another dispatcher's that is at it
    lab.clock_s += 61
    again.turn()
    assert lab.balance() == (0, 0)


def test_a_dispatcher_that_stood_still_after_reserving_places_nothing_on_what_was_given_back_meanwhile(lab):
    slow, other = lab.dispatcher(), lab.dispatcher()
    slow.turn()
    lab.submit("a")
    lab.submit("b")
    record = lab.ledger.intend

    def stand_still(action, body, **more):
        if body.get("what") == "place" and body["zone"] == "public":
            lab.clock_s += 100
            lab.health["private"] = lab.health["public"] = Health.DOWN
            other.turn()
        return record(action, body, **more)

    slow.ledger = Standing(stand_still, lab.ledger)
    slow.turn()
    row = lab.store.find("b")
    assert row.state is State.QUEUED
    assert lab.balance() == (0, 0)


class Standing:
    """A ledger that something happens before."""

    def __init__(self, intend, ledger):
        self.intend, self._ledger = intend, ledger

    def __getattr__(self, name):
        return getattr(self._ledger, name)


def test_fifty_submitters_race_for_the_last_dollar_and_it_is_never_overspent(tmp_path):
    cost = 60 * PRICE // 3600
    lab = Lab(tmp_path, clock_s=NOW, inside=0, outside=50, limit=2 * cost + cost // 2)
    dispatchers = [
        Lab(tmp_path, clock_s=NOW, inside=0, outside=50, limit=lab.limit, drivers=lab.drivers) for _ in range(3)
    ]

    def submitter(number: int) -> None:
        Lab(tmp_path, clock_s=NOW).submit(f"j{number}")

    def dispatch(one: Lab) -> None:
        dispatcher = one.dispatcher()
        for _ in range(6):
            dispatcher.turn()

    with ThreadPoolExecutor(20) as pool:
        found = [pool.submit(submitter, number) for number in range(50)] + [
            pool.submit(dispatch, d) for d in dispatchers
        ]
        for one in found:
            one.result()
    lab.dispatcher().turn()
    reserved, spent = lab.balance()
    assert reserved + spent <= lab.limit
    placed = [row for row in lab.store.jobs() if row.state.holds]
    assert len(placed) <= 2
    assert sum(row.reserved_micros for row in placed) <= reserved


def test_kill_minus_9_of_the_dispatcher_at_random_moments_runs_every_job_once_and_every_budget_adds_up(tmp_path):
    lab, chance = Lab(tmp_path), random.Random(11)
    names = [f"j{number}" for number in range(24)]
    kills = 0
    for number, name in enumerate(names):
        lab.submit(name)
        if number % 2:
            continue
        running = start(f"dispatch_lab.dispatch_for_ever({str(tmp_path)!r})")
        assert running.stdout.readline() == "ready\n"
        time.sleep(chance.random() * 0.4)
        os.kill(running.pid, signal.SIGKILL)
        running.wait()
        running.stdout.close()
        kills += 1
    last = start(f"dispatch_lab.dispatch_for_ever({str(tmp_path)!r})")
    try:
        _until(lambda: not lab.store.jobs() and not lab.store.attempts(unsettled=True))
    finally:
        last.kill()
        last.wait()
        last.stdout.close()
    assert kills >= 10
    assert set(lab.states().values()) == {"done"}
    done = Counter(line.split()[0] for line in (tmp_path / "done").read_text().splitlines())
    assert done == dict.fromkeys(names, 1)
    attempts = lab.store.attempts()
    # A dispatcher that was killed between the mark of a start and the start itself leaves an attempt that never began.
    assert sorted(attempt.job for attempt in attempts if attempt.started_s) == sorted(names)
    assert all(attempt.started_s or (attempt.outcome, attempt.spent_micros) == ("lost", 0) for attempt in attempts)
    reserved, spent = lab.balance()
    assert (reserved, spent) == (0, sum(a.spent_micros or 0 for a in attempts))
    verified = verify_bundle(lab.ledger.bundle(), trusted=[KEY.public])
    assert verified.records > len(names)


def _until(ready, seconds: float = 1_800) -> None:
    until = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < until, "it does not come to an end"
        time.sleep(0.1)


def _raw(name: str):
    return NewJob(id=name, token=f"t-{name}", body=BODY, priority=0, deadline_s=None)
