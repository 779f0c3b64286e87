"""The one decision: where and when each job runs. Refusals first; a table for each rule."""

import math
from dataclasses import replace

import pytest

from fabric.dispatch_rules import DispatchTable, Failure, Late, Rules, Spill, Step
from fabric.errors import InvalidInput, Reason
from fabric.fleet import (
    Account,
    AccountsSeen,
    Cancelled,
    DrainBack,
    EgressSeen,
    Ended,
    Extend,
    Health,
    Hold,
    Job,
    Left,
    Need,
    Pool,
    PoolSeen,
    Preempt,
    Quota,
    Restored,
    Running,
    Scope,
    Shed,
    Start,
    StartRefused,
    Submitted,
    Verdict,
    VerdictsSeen,
)
from fabric.holds import text
from fabric.labels import Classification, WorkloadClass
from fabric.queueing import Dispatch, replay
from fabric.specs import parse
from fabric.zones import ZoneKind

YES = Verdict(permitted=True)
NO = Verdict(permitted=False, code="POLICY_DENIED", rules=("move.k",), facts=(("k", 3), ("k_required", 11)))
ANYWHERE = {"private": YES, "public": YES, "other": YES}
INSIDE_ONLY = {"private": YES, "public": NO, "other": NO}
RULES = Rules(
    stale_s=1e12,
    calm_s=60.0,
    stay_s=60.0,
    drain_left_s=600.0,
    reserve=0.0,
    checkpoint_s=300.0,
    stays_s=0.0,
    overrun_share=0.1,
)
PRIVATE = Pool(
    zone="private", kind=ZoneKind.PRIVATE, gpu_model="H200", gpus_total=4, price=0, health=Health.HEALTHY,
    observed_s=0.0,
)  # fmt: skip
PUBLIC = Pool(
    zone="public", kind=ZoneKind.PUBLIC, provider="alpha", region="eu-1", gpu_model="H200", gpus_total=16,
    price=4_000_000, egress=90_000, health=Health.HEALTHY, observed_s=0.0,
)  # fmt: skip
OTHER = replace(PUBLIC, zone="other", provider="beta", region="eu-9", price=5_000_000)
MONEY = Account(name="all", scope=Scope(), limit_micros=10**12)


def job(name, *, gpus=1, at=0.0, lasts=3_600.0, due=36_000.0, **changes):
    need = changes.pop("need", Need(gpus=gpus))
    given = {
        "id": name, "token": name, "team": "cardio", "project": "ecg", "classification": Classification.INTERNAL,
        "workload": WorkloadClass.TRAINING, "priority": 0, "submitted_s": at,
        "deadline_s": None if due is None else at + due, "need": need, "duration_s": lasts, "justified": True,
        "verdicts": ANYWHERE,
    }  # fmt: skip
    return Job(**{**given, **changes})


def made(*pools, rules=RULES, accounts=(MONEY,), quotas=(), egress=("public", "other")):
    dispatch = Dispatch(rules)
    for pool in pools or (PRIVATE, PUBLIC):
        dispatch.apply(PoolSeen(pool=pool))
    for zone in egress:
        dispatch.apply(EgressSeen(zone=zone, open=True, at_s=0.0))
    if accounts is not None:
        dispatch.apply(AccountsSeen(accounts=accounts, quotas=quotas, at_s=0.0))
    return dispatch


def submit(dispatch, now_s, *jobs):
    for one in jobs:
        dispatch.apply(Submitted(job=one))
    return dispatch.decide(now_s)


def starts(actions):
    return {a.job: a.zone for a in actions if isinstance(a, Start)}


def holds(actions):
    return {a.job: a.reason for a in actions if isinstance(a, Hold)}


def until(dispatch, end_s):
    """Decide at every time that the decision asks for, and return all that was wanted."""
    out = []
    while (at_s := dispatch.next_s()) is not None and at_s <= end_s:
        out += dispatch.decide(at_s)
    return out


FULL = job("full", gpus=4, lasts=50_000.0, verdicts=INSIDE_ONLY)


def test_a_job_without_a_permitting_verdict_starts_nowhere():
    dispatch = made()
    actions = submit(dispatch, 0.0, job("j", verdicts={}))
    assert starts(actions) == {}
    assert holds(actions) == {"j": Reason.POLICY_DENIED}
    assert starts(until(dispatch, 1e6)) == {}


def test_a_stale_yes_is_a_no():
    dispatch = made()
    actions = submit(dispatch, 100.0, job("j", verdicts={"private": Verdict(permitted=True, until_s=100.0)}))
    assert starts(actions) == {}
    submit(dispatch, 200.0, FULL)
    late = job(
        "k", at=200.0, lasts=600.0, due=3_000.0, verdicts={"private": YES, "public": replace(YES, until_s=900.0)}
    )
    submit(dispatch, 200.0, late)
    assert starts(until(dispatch, 10_000.0)) == {}
    obstacle = next(o for o in dispatch.explain("k", 10_000.0).obstacles if o.pool == "public/H200")
    assert obstacle.reason is Reason.POLICY_DENIED


def test_a_job_without_a_justification_does_not_leave():
    dispatch = made()
    submit(dispatch, 0.0, FULL, job("j", lasts=600.0, due=3_000.0, justified=False))
    assert starts(until(dispatch, 100_000.0)) == {}


def test_an_eligible_job_waits_while_it_can_and_leaves_at_its_last_call():
    dispatch = made()
    actions = submit(dispatch, 0.0, FULL, job("j", lasts=1_000.0, due=4_000.0))
    assert starts(actions) == {"full": "private"}
    hold = next(a for a in actions if isinstance(a, Hold))
    assert (hold.job, hold.reason, hold.until_s) == ("j", Reason.WAITING_IS_CHEAPER, 4_000 - 1_000 - 120 - 60 - 100)
    assert starts(until(dispatch, hold.until_s - 1)) == {}
    start = next(a for a in until(dispatch, 4_000.0) if isinstance(a, Start))
    assert (start.job, start.zone, start.reason) == ("j", "public", "last-call")
    assert start.cost_micros == -(-4_000_000 * (1_000 + 120 + 60) // 3_600)


def test_a_restricted_job_waits_and_says_why():
    dispatch = made()
    actions = submit(dispatch, 0.0, FULL, job("j", gpus=4, verdicts=INSIDE_ONLY, lasts=600.0))
    assert holds(actions) == {"j": Reason.WAITS_FOR_ROOM}
    said = text(dispatch.explain("j", 0.0), dispatch.waiting["j"].job)
    assert said == (
        "needs 4 GPU; private/H200: needs 4, 0 free; public/H200 refused: k=3, policy wants 11 (move.k); "
        "earliest 1970-01-01 13:53 [WAITS_FOR_ROOM]"
    )


def test_gangs_start_whole_or_not_at_all():
    dispatch = made()
    actions = submit(
        dispatch, 0.0, job("a", gpus=3, due=8_000.0), job("b", need=Need(workers=2, gpus=1), verdicts=INSIDE_ONLY)
    )
    assert starts(actions) == {"a": "private"}
    assert all(a.workers == 1 for a in actions if isinstance(a, Start))


def test_backfill_never_delays_the_job_at_the_head():
    dispatch = made()
    submit(dispatch, 0.0, job("a", gpus=3, lasts=1_000.0))
    head = job("head", gpus=4, lasts=500.0, due=5_000.0, verdicts=INSIDE_ONLY)
    short = job("short", lasts=900.0, due=30_000.0, verdicts=INSIDE_ONLY)
    long = job("long", lasts=1_100.0, due=30_000.0, verdicts=INSIDE_ONLY)
    actions = submit(dispatch, 0.0, head, long, short)
    assert [(a.job, a.reason) for a in actions if isinstance(a, Start)] == [("short", "backfill")]
    dispatch.apply(Ended(job="short", at_s=900.0))
    assert starts(dispatch.decide(900.0)) == {}
    dispatch.apply(Ended(job="a", at_s=1_000.0))
    assert starts(dispatch.decide(1_000.0)) == {"head": "private"}


@pytest.mark.parametrize(
    ("pool", "egress", "accounts", "reason"),
    [
        (replace(PUBLIC, health=Health.UNKNOWN), True, (MONEY,), Reason.HEALTH_UNKNOWN),
        (replace(PUBLIC, health=Health.DEGRADED), True, (MONEY,), Reason.ZONE_DEGRADED),
        (replace(PUBLIC, health=Health.DOWN), True, (MONEY,), Reason.ZONE_DOWN),
        (replace(PUBLIC, health=Health.THROTTLED), True, (MONEY,), Reason.PROVIDER_THROTTLED),
        (replace(PUBLIC, price=None), True, (MONEY,), Reason.PRICE_UNKNOWN),
        (replace(PUBLIC, egress=None), True, (MONEY,), Reason.PRICE_UNKNOWN),
        (replace(PUBLIC, gpus_taken=16), True, (MONEY,), Reason.ZONE_HAS_NO_ROOM),
        (PUBLIC, False, (MONEY,), Reason.EGRESS_BLOCKED),
        (PUBLIC, True, None, Reason.BUDGET_UNKNOWN),
        (PUBLIC, True, (replace(MONEY, scope=Scope(team="other")),), Reason.BUDGET_UNKNOWN),
        (PUBLIC, True, (replace(MONEY, limit_micros=1_000),), Reason.BUDGET_SPENT),
        (PUBLIC, True, (replace(MONEY, until_s=10.0),), Reason.BUDGET_UNKNOWN),
    ],
)
def test_whatever_is_unknown_broken_or_spent_outside_holds_the_job_and_is_named(pool, egress, accounts, reason):
    dispatch = made(PRIVATE, pool, accounts=accounts, egress=("public",) if egress else ())
    submit(dispatch, 0.0, FULL, job("j", lasts=1_000.0, due=4_000.0, egress_bytes=10**9))
    actions = until(dispatch, 3_000.0)
    assert starts(actions) == {}
    if reason is Reason.ZONE_HAS_NO_ROOM:
        reason = Reason.POOL_FULL
    assert holds(actions)["j"] is reason


def test_what_was_observed_too_long_ago_starts_nothing():
    dispatch = made(rules=replace(RULES, stale_s=120.0))
    assert starts(submit(dispatch, 121.0, job("j"))) == {}
    assert dispatch.explain("j", 121.0).reason is Reason.HEALTH_UNKNOWN
    dispatch.apply(PoolSeen(pool=replace(PRIVATE, observed_s=130.0)))
    assert starts(dispatch.decide(131.0)) == {"j": "private"}


def test_what_will_be_observed_in_the_future_is_unknown():
    dispatch = made(replace(PRIVATE, observed_s=500.0), PUBLIC)
    assert starts(submit(dispatch, 100.0, job("j"))) == {}


def test_a_clock_that_was_set_back_starts_nothing_until_it_has_caught_up():
    dispatch = made()
    dispatch.decide(1_000.0)
    actions = submit(dispatch, 900.0, job("j", at=900.0))
    assert holds(actions) == {"j": Reason.CLOCK_SET_BACK}
    assert starts(actions) == {}
    assert dispatch.explain("j", 950.0).until_s == 1_000.0
    assert starts(dispatch.decide(1_000.0)) == {"j": "private"}


def test_a_clock_that_is_not_a_number_starts_nothing():
    dispatch = made()
    dispatch.decide(1.0)
    assert starts(submit(dispatch, math.nan, job("j"))) == {}


def test_an_unknown_first_choice_is_not_answered_by_the_next_cheapest():
    dispatch = made(PRIVATE, replace(PUBLIC, health=Health.UNKNOWN), OTHER)
    submit(dispatch, 0.0, FULL, job("j", lasts=1_000.0, due=4_000.0))
    assert starts(until(dispatch, 100_000.0)) == {}


@pytest.mark.parametrize(
    ("failure", "pool", "steps", "goes"),
    [
        (Failure.THROTTLED, replace(PUBLIC, health=Health.THROTTLED), (Step.HOLD, Step.OTHER_PROVIDER), None),
        (Failure.THROTTLED, replace(PUBLIC, health=Health.THROTTLED), (Step.OTHER_REGION,), None),
        (Failure.THROTTLED, replace(PUBLIC, health=Health.THROTTLED), (Step.OTHER_PROVIDER,), "other"),
        (Failure.REGION_GONE, replace(PUBLIC, health=Health.DOWN), (Step.OTHER_PROVIDER,), "other"),
        (Failure.NO_CAPACITY, replace(PUBLIC, gpus_taken=16), (Step.OTHER_PROVIDER,), "other"),
        (Failure.NO_CAPACITY, replace(PUBLIC, gpus_taken=16), (), None),
        (Failure.THROTTLED, replace(PUBLIC, health=Health.THROTTLED), (Step.SHED,), "shed"),
    ],
)
def test_a_failure_outside_is_answered_as_declared(failure, pool, steps, goes):
    rules = replace(RULES, failures={**RULES.failures, failure: steps})
    dispatch = made(PRIVATE, pool, OTHER, rules=rules)
    submit(dispatch, 0.0, FULL, job("j", lasts=1_000.0, due=4_000.0))
    actions = until(dispatch, 2_900.0)
    if goes == "shed":
        assert [a.job for a in actions if isinstance(a, Shed)] == ["j"]
    else:
        assert starts(actions) == ({} if goes is None else {"j": goes})


def test_egress_that_closes_holds_and_opens_again():
    dispatch = made()
    submit(dispatch, 0.0, FULL, job("j", lasts=1_000.0, due=40_000.0))
    dispatch.apply(EgressSeen(zone="public", open=False, at_s=1.0))
    call_s = 40_000 - 1_000 - 120 - 60 - 100
    assert holds(until(dispatch, call_s))["j"] is Reason.EGRESS_BLOCKED
    dispatch.apply(EgressSeen(zone="public", open=True, at_s=call_s + 30))
    assert starts(dispatch.decide(call_s + 30)) == {"j": "public"}


def test_a_price_that_jumps_holds_until_it_falls_or_has_settled():
    dispatch = made()
    dispatch.apply(PoolSeen(pool=replace(PUBLIC, price=7_000_000, observed_s=10.0)))
    submit(dispatch, 10.0, FULL, job("j", at=10.0, lasts=1_000.0, due=4_000.0))
    assert holds(until(dispatch, 2_900.0))["j"] is Reason.PRICE_JUMPED
    dispatch.apply(PoolSeen(pool=replace(PUBLIC, price=5_000_000, observed_s=2_800.0)))
    assert starts(dispatch.decide(2_900.0)) == {"j": "public"}
    settled = made()
    settled.apply(PoolSeen(pool=replace(PUBLIC, price=7_000_000, observed_s=10.0)))
    settled.apply(PoolSeen(pool=replace(PUBLIC, price=7_000_000, observed_s=90_000.0)))
    submit(settled, 90_000.0, replace(FULL, submitted_s=90_000.0, deadline_s=1e6))
    submit(settled, 90_000.0, job("k", at=90_000.0, lasts=1_000.0, due=1_270.0))
    assert starts(until(settled, 90_100.0)) == {"k": "public"} or "k" in settled.running


@pytest.mark.parametrize(
    ("health", "steps", "classification", "goes"),
    [
        (Health.DOWN, (Step.FAIL_OVER,), Classification.INTERNAL, "public"),
        (Health.DOWN, (Step.FAIL_OVER,), Classification.CONFIDENTIAL, None),
        (Health.DOWN, (Step.HOLD,), Classification.INTERNAL, None),
        (Health.DEGRADED, (Step.FAIL_OVER,), Classification.PUBLIC, "public"),
        (Health.DEGRADED, (), Classification.PUBLIC, None),
        (Health.UNKNOWN, (Step.FAIL_OVER,), Classification.PUBLIC, None),
    ],
)
def test_when_the_private_zone_fails_only_what_is_declared_fails_over(health, steps, classification, goes):
    declared = {Failure.PRIVATE_DOWN: steps, Failure.PRIVATE_DEGRADED: steps}
    rules = replace(RULES, failures={**RULES.failures, **declared})
    dispatch = made(replace(PRIVATE, health=health), PUBLIC, rules=rules)
    actions = submit(dispatch, 0.0, job("j", classification=classification))
    assert starts(actions) == ({} if goes is None else {"j": goes})


def test_running_work_is_not_placed_again_when_capacity_goes_away():
    dispatch = made()
    submit(dispatch, 0.0, job("a", gpus=4))
    dispatch.apply(PoolSeen(pool=replace(PRIVATE, gpus_total=1, observed_s=10.0)))
    assert starts(submit(dispatch, 10.0, job("b", at=10.0))) == {}
    dispatch.apply(Ended(job="a", at_s=20.0))
    assert starts(dispatch.decide(20.0)) == {"b": "private"}


def test_the_reserve_is_kept_for_work_that_may_not_leave():
    dispatch = made(rules=replace(RULES, reserve=0.5))
    actions = submit(dispatch, 0.0, *(job(f"e{n}") for n in range(4)))
    assert sorted(starts(actions)) == ["e0", "e1"]
    assert holds(actions)["e2"] is Reason.WAITING_IS_CHEAPER
    assert dispatch.explain("e2", 0.0).obstacles[0].reason is Reason.ROOM_RESERVED
    assert starts(submit(dispatch, 1.0, job("r", at=1.0, verdicts=INSIDE_ONLY))) == {"r": "private"}


def test_work_that_may_not_leave_has_a_head_start_inside():
    dispatch = made(rules=replace(RULES, stays_s=7_200.0))
    submit(
        dispatch, 0.0, replace(FULL, id="full"), job("a", gpus=4), job("r", gpus=4, due=40_000.0, verdicts=INSIDE_ONLY)
    )
    dispatch.apply(Ended(job="full", at_s=10.0))
    assert starts(dispatch.decide(10.0)) == {"r": "private"}


def test_work_that_is_short_or_can_be_stopped_borrows_the_reserve():
    dispatch = made(rules=replace(RULES, reserve=0.5))
    submit(dispatch, 0.0, job("a", gpus=2))
    assert starts(submit(dispatch, 0.0, job("s", lasts=500.0), job("c", checkpointed=True))) == {
        "s": "private", "c": "private",
    }  # fmt: skip


def test_work_that_must_stay_makes_room_by_preempting_checkpointed_work_only():
    dispatch = made()
    submit(dispatch, 0.0, job("plain", gpus=2, lasts=50_000.0, due=90_000.0))
    submit(dispatch, 0.0, job("saved", gpus=2, lasts=50_000.0, due=90_000.0, checkpointed=True))
    submit(dispatch, 100.0, job("r", gpus=2, at=100.0, lasts=1_000.0, due=5_000.0, verdicts=INSIDE_ONLY))
    actions = until(dispatch, 3_700.0)
    assert [(a.job, a.for_job) for a in actions if isinstance(a, Preempt)] == [("saved", "r")]
    dispatch.apply(Left(job="saved", at_s=3_750.0, left_s=46_000.0))
    assert starts(dispatch.decide(3_750.0)) == {"r": "private"}


def test_nothing_is_preempted_where_it_would_not_be_enough():
    dispatch = made()
    submit(dispatch, 0.0, job("plain", gpus=2, lasts=50_000.0, due=90_000.0))
    submit(dispatch, 0.0, job("saved", gpus=2, lasts=50_000.0, due=90_000.0, checkpointed=True))
    submit(dispatch, 100.0, job("r", gpus=4, at=100.0, lasts=1_000.0, due=5_000.0, verdicts=INSIDE_ONLY))
    assert [a for a in until(dispatch, 5_000.0) if isinstance(a, Preempt)] == []


def drained(**changes):
    dispatch = made()
    submit(dispatch, 0.0, job("full", gpus=4, lasts=5_000.0, verdicts=INSIDE_ONLY))
    given = {"lasts": 20_000.0, "due": 20_500.0, "checkpointed": True, **changes}
    assert starts(submit(dispatch, 0.0, job("j", **given))) == {"j": "public"}
    dispatch.apply(Ended(job="full", at_s=5_000.0))
    return dispatch, [*dispatch.decide(5_000.0), *until(dispatch, 5_090.0)]


def test_a_checkpointed_job_comes_home_when_the_private_zone_has_been_empty_for_a_while():
    dispatch, actions = drained()
    assert [a.job for a in actions if isinstance(a, DrainBack)] == ["j"]
    # The room that it comes home to is kept for it.
    assert starts(submit(dispatch, 5_100.0, job("k", gpus=4, at=5_100.0, verdicts=INSIDE_ONLY))) == {}
    dispatch.apply(Left(job="j", at_s=5_300.0, left_s=15_000.0, spent_micros=5_000_000))
    start = next(a for a in dispatch.decide(5_300.0) if isinstance(a, Start))
    assert (start.job, start.zone, start.reason, start.cost_micros) == ("j", "private", "came-home", 0)


@pytest.mark.parametrize(
    "changes",
    [{"checkpointed": False}, {"verdicts": {"public": YES}}, {"lasts": 5_500.0, "due": 5_900.0}],
    ids=["no checkpoint", "may not run inside", "little left"],
)
def test_a_job_that_cannot_or_need_not_come_home_stays_outside(changes):
    _, actions = drained(**changes)
    assert [a for a in actions if isinstance(a, DrainBack)] == []


def test_an_empty_zone_for_a_moment_is_no_reason_to_come_home():
    dispatch = made(rules=replace(RULES, calm_s=600.0))
    submit(dispatch, 0.0, job("full", gpus=4, lasts=5_000.0, verdicts=INSIDE_ONLY))
    submit(dispatch, 0.0, job("j", lasts=20_000.0, due=20_500.0, checkpointed=True))
    dispatch.apply(Ended(job="full", at_s=5_000.0))
    actions = list(dispatch.decide(5_000.0))
    actions += submit(dispatch, 5_300.0, job("next", gpus=4, at=5_300.0, lasts=5_000.0, verdicts=INSIDE_ONLY))
    actions += until(dispatch, 9_000.0)
    assert [a for a in actions if isinstance(a, DrainBack)] == []


def test_a_budget_is_never_planned_beyond_and_settles_at_what_was_spent():
    dispatch = made(accounts=(replace(MONEY, limit_micros=2_500_000),))
    both = [job(f"j{n}", lasts=1_000.0, due=1_270.0) for n in range(2)]
    actions = submit(dispatch, 0.0, FULL, *both)
    assert list(starts(actions).values()).count("public") == 1
    assert holds(actions)["j1"] is Reason.BUDGET_SPENT
    dispatch.apply(Ended(job="j0", at_s=600.0, spent_micros=700_000))
    submit(dispatch, 600.0, job("k", at=600.0, lasts=1_000.0, due=1_270.0))
    assert "k" in dispatch.running


def test_money_given_back_from_an_earlier_period_is_not_spent_in_the_next():
    dispatch = made(accounts=(replace(MONEY, limit_micros=2_000_000, until_s=900.0),))
    submit(dispatch, 0.0, FULL, job("j0", lasts=1_000.0, due=1_270.0))
    dispatch.apply(
        AccountsSeen(accounts=(replace(MONEY, limit_micros=1_000_000, observed_s=900.0),), quotas=(), at_s=900.0)
    )
    dispatch.apply(Ended(job="j0", at_s=950.0, spent_micros=1))
    submit(dispatch, 950.0, job("k", at=950.0, lasts=1_000.0, due=1_270.0))
    assert "k" not in dispatch.running


def test_a_job_that_outlives_its_estimate_is_paid_for_longer_or_stopped_while_it_is_paid():
    rich = made()
    submit(rich, 0.0, FULL, job("j", lasts=1_000.0, due=1_270.0))
    extend = next(a for a in until(rich, 1_180.0) if isinstance(a, Extend))
    assert (extend.job, extend.until_s) == ("j", 120 + 1_000 + 60 + 600)
    poor = made(accounts=(replace(MONEY, limit_micros=1_400_000),))
    submit(poor, 0.0, FULL, job("j", lasts=1_000.0, due=1_270.0))
    assert [(a.job, a.reason) for a in until(poor, 1_180.0) if isinstance(a, Shed)] == [("j", Reason.BUDGET_SPENT)]
    saved = made(accounts=(replace(MONEY, limit_micros=1_700_000),))
    submit(saved, 0.0, FULL, job("j", lasts=1_000.0, due=1_270.0, checkpointed=True))
    assert [a.job for a in until(saved, 1_180.0) if isinstance(a, Preempt)] == ["j"]


def test_a_quota_holds_inside_and_outside_and_blocks_nobody_else():
    quota = Quota(name="q", scope=Scope(team="cardio"), zone="private", gpus=2)
    dispatch = made(quotas=(quota,))
    actions = submit(dispatch, 0.0, job("a", gpus=2), job("b", verdicts=INSIDE_ONLY), job("c", team="neuro", gpus=2))
    assert starts(actions) == {"a": "private", "c": "private"}
    dispatch.apply(Ended(job="a", at_s=10.0))
    assert starts(dispatch.decide(10.0)) == {"b": "private"}


def test_a_refused_start_gives_everything_back_and_is_not_tried_there_again_at_once():
    dispatch = made(PRIVATE, PUBLIC, OTHER)
    submit(dispatch, 0.0, FULL, job("j", lasts=1_000.0, due=1_270.0))
    dispatch.apply(StartRefused(job="j", pool="public/H200", reason="BUDGET_SPENT", at_s=1.0, until_s=500.0))
    actions = dispatch.decide(1.0)
    assert starts(actions) == {}
    assert holds(actions)["j"] is Reason.BUDGET_SPENT
    assert dispatch.rooms["public/H200"].gpus_held == 0


def test_a_provider_that_refuses_one_start_is_answered_as_declared():
    dispatch = made(PRIVATE, PUBLIC, OTHER)
    submit(dispatch, 0.0, FULL, job("j", lasts=1_000.0, due=1_270.0))
    dispatch.apply(StartRefused(job="j", pool="public/H200", reason="POOL_FULL", at_s=1.0, until_s=500.0))
    assert starts(dispatch.decide(1.0)) == {"j": "other"}


def test_a_job_shrinks_to_what_there_is_only_where_it_may_and_still_meets_its_deadline():
    small = replace(PUBLIC, gpus_total=8, gpus_taken=5)
    may = job("j", need=Need(workers=4, gpus=1, min_workers=2), lasts=1_000.0, due=4_000.0)
    dispatch = made(PRIVATE, small)
    submit(dispatch, 0.0, FULL, may)
    start = next(a for a in until(dispatch, 4_000.0) if isinstance(a, Start))
    assert (start.workers, start.reason) == (3, "shrunk")
    never = made(PRIVATE, small)
    submit(never, 0.0, FULL, replace(may, need=Need(workers=4, gpus=1)))
    assert starts(until(never, 4_000.0)) == {}
    late = made(PRIVATE, small)
    submit(late, 0.0, FULL, replace(may, deadline_s=1_400.0))
    assert starts(until(late, 2_000.0)) == {}


def test_another_model_takes_a_job_only_where_it_is_declared_to_stand_in():
    h100 = replace(PUBLIC, gpu_model="H100")
    asks = job("j", need=Need(gpus=1, gpu_model="H200"), lasts=1_000.0, due=2_000.0)
    dispatch = made(PRIVATE, h100)
    submit(dispatch, 0.0, FULL, asks)
    actions = until(dispatch, 1_000.0)
    assert starts(actions) == {}
    assert holds(actions)["j"] is Reason.GPU_MODEL_UNKNOWN
    declared = made(PRIVATE, h100, rules=replace(RULES, models={"H200": ("H100",)}))
    submit(declared, 0.0, FULL, asks)
    assert starts(until(declared, 1_000.0)) == {"j": "public"}


@pytest.mark.parametrize(("late", "becomes"), [(Late.SHED, "shed"), (Late.WAIT, None), (Late.LEAVE, "public")])
def test_a_job_that_cannot_meet_its_deadline_is_treated_as_declared(late, becomes):
    rules = replace(RULES, spill={WorkloadClass.TRAINING: Spill(late=late)})
    dispatch = made(rules=rules)
    actions = submit(dispatch, 0.0, FULL, job("j", lasts=1_000.0, due=900.0))
    if becomes == "shed":
        assert [a.reason for a in actions if isinstance(a, Shed)] == [Reason.DEADLINE_MISSED]
    else:
        assert starts(actions).get("j") == becomes


def test_the_same_job_submitted_twice_is_one_job():
    dispatch = made()
    submit(dispatch, 0.0, job("j"))
    assert submit(dispatch, 1.0, job("j")) == ()
    dispatch.apply(Ended(job="j", at_s=2.0))
    assert submit(dispatch, 3.0, job("j")) == ()


def test_a_cancelled_job_is_gone_whether_it_waits_or_runs():
    dispatch = made()
    submit(dispatch, 0.0, FULL, job("j", verdicts=INSIDE_ONLY))
    dispatch.apply(Cancelled(job="j", at_s=1.0))
    dispatch.apply(Cancelled(job="full", at_s=1.0))
    assert dispatch.decide(1.0) == ()
    assert (dict(dispatch.waiting), dict(dispatch.running)) == ({}, {})
    assert dispatch.rooms["private/H200"].free_gpus == 4


def test_what_runs_already_is_taken_over_and_not_started_again():
    dispatch = made()
    running = Running(job=job("j", gpus=4), pool="private/H200", workers=1, started_s=0.0, left_s=3_600.0)
    dispatch.apply(Restored(running=running))
    assert submit(dispatch, 10.0, job("j", gpus=4)) == ()
    assert starts(submit(dispatch, 10.0, job("k", at=10.0, verdicts=INSIDE_ONLY))) == {}


def test_a_verdict_that_changes_is_obeyed_from_then_on():
    dispatch = made()
    submit(dispatch, 0.0, FULL, job("j", lasts=1_000.0, due=4_000.0))
    dispatch.apply(VerdictsSeen(job="j", verdicts=INSIDE_ONLY, at_s=10.0))
    assert starts([*dispatch.decide(10.0), *until(dispatch, 4_000.0)]) == {}


def test_a_team_above_its_share_gives_way_but_does_not_starve():
    dispatch = made()
    submit(dispatch, 0.0, job("a", gpus=3, lasts=9_000.0), job("n", gpus=1, team="neuro", lasts=1_000.0))
    waiting = [
        job("b", lasts=9_000.0, verdicts=INSIDE_ONLY),
        job("m", team="neuro", lasts=9_100.0, due=36_300.0, verdicts=INSIDE_ONLY),
    ]
    submit(dispatch, 0.0, *waiting)
    dispatch.apply(Ended(job="n", at_s=1_000.0))
    assert starts(dispatch.decide(1_000.0)) == {"m": "private"}
    dispatch.apply(Ended(job="m", at_s=2_000.0))
    assert starts(dispatch.decide(2_000.0)) == {"b": "private"}


def test_priority_is_a_head_start_and_not_for_ever():
    dispatch = made()
    submit(dispatch, 0.0, FULL)
    submit(
        dispatch, 0.0, job("low", verdicts=INSIDE_ONLY, gpus=4), job("high", verdicts=INSIDE_ONLY, gpus=4, priority=1)
    )
    submit(dispatch, 10_000.0, job("later", at=10_000.0, verdicts=INSIDE_ONLY, gpus=4, priority=1))
    order = []
    running = "full"
    for at_s in (20_000.0, 20_001.0, 20_002.0):
        dispatch.apply(Ended(job=running, at_s=at_s))
        (running,) = starts(dispatch.decide(at_s))
        order.append(running)
    assert order == ["high", "low", "later"]


def test_pressure_lets_a_job_out_early_only_above_both_thresholds():
    spill = Spill(wait_share=0.0, pressure=1.0, queue_depth=3)
    rules = replace(RULES, spill={WorkloadClass.TRAINING: spill})
    dispatch = made(rules=rules)
    one = submit(dispatch, 0.0, FULL, job("a", lasts=1_000.0, due=9_000.0))
    assert set(starts(one)) == {"full"}
    more = submit(dispatch, 1.0, *(job(f"b{n}", at=1.0, lasts=1_000.0, due=9_000.0) for n in range(8)))
    assert "public" in starts(more).values()


def test_waiting_that_costs_more_than_renting_lets_a_job_out():
    dear = replace(RULES, spill={WorkloadClass.TRAINING: Spill(wait_price=1_000_000)})
    dispatch = made(rules=dear)
    actions = submit(dispatch, 0.0, FULL, job("j", lasts=1_000.0))
    assert [(a.job, a.reason) for a in actions if isinstance(a, Start)][-1] == ("j", "waiting-costs-more")
    cheap = made(rules=replace(RULES, spill={WorkloadClass.TRAINING: Spill(wait_price=1_000)}))
    assert "j" not in starts(submit(cheap, 0.0, FULL, job("j", lasts=1_000.0)))


def test_a_job_that_is_not_worth_its_rent_misses_rather_than_leaves():
    rules = replace(RULES, spill={WorkloadClass.TRAINING: Spill(miss_price=1_000_000)})
    dispatch = made(rules=rules)
    submit(dispatch, 0.0, FULL, job("dear", lasts=1_000.0, due=4_000.0), job("cheap", lasts=300.0, due=4_000.0))
    assert starts(until(dispatch, 4_000.0)) == {"cheap": "public"}


def test_the_same_events_make_the_same_actions():
    events = [
        (0.0, tuple(PoolSeen(pool=pool) for pool in (PRIVATE, PUBLIC))),
        (1.0, (EgressSeen(zone="public", open=True, at_s=0.0), AccountsSeen(accounts=(MONEY,), quotas=(), at_s=0.0))),
        *((float(n), (Submitted(job=job(f"j{n}", at=float(n), lasts=500.0 + n, due=2_000.0)),)) for n in range(2, 40)),
    ]
    assert replay(RULES, events) == replay(RULES, events)


def table(body):
    return parse(DispatchTable, body, source="fabric.toml").rules()


@pytest.mark.parametrize(
    ("body", "reason", "hint"),
    [
        ("marginn_s = 1.0", Reason.UNKNOWN_KEY, "margin_s"),
        ("margin_s = -1.0", Reason.CONFIG_INVALID, ""),
        ("[spill.trainin]", Reason.UNKNOWN_KEY, "training"),
        ("[spill.training]\nmax_price = -1", Reason.CONFIG_INVALID, ""),
        ("[failures]\nprice_jmp = ['hold']", Reason.UNKNOWN_KEY, "price_jump"),
        ("[failures]\nprice_jump = ['holt']", Reason.UNKNOWN_KEY, "hold"),
        ("[failures]\nprovider_throttled = ['fail-over']", Reason.CONFIG_INVALID, "hold"),
        ("[failures]\nprivate_down = ['other-region']", Reason.CONFIG_INVALID, "fail-over"),
        ("[weights]\ncardio = 0.0", Reason.CONFIG_INVALID, "above 0"),
    ],
)
def test_a_rule_that_is_wrong_is_refused_with_the_nearest_right_one(body, reason, hint):
    with pytest.raises(InvalidInput) as caught:
        table(body)
    assert caught.value.reason is reason
    assert hint in str(caught.value)


def test_an_empty_table_is_the_defaults():
    assert table("") == Rules()


def test_a_job_that_outlives_its_estimate_does_not_keep_others_from_the_room_beside_it():
    dispatch = made()
    submit(dispatch, 0.0, job("a", gpus=3, lasts=1_000.0))
    submit(dispatch, 0.0, job("head", gpus=4, lasts=500.0, due=5_000.0, verdicts=INSIDE_ONLY))
    # Long past its end it is thought to go on for as long again, not to end within the minute.
    short = job("short", at=8_000.0, lasts=900.0, due=30_000.0, verdicts=INSIDE_ONLY)
    assert starts(submit(dispatch, 8_000.0, short)) == {"short": "private"}


def test_room_that_was_made_for_one_job_is_not_counted_for_the_next_and_not_for_ever():
    rules = replace(RULES, late_s=1e6)
    dispatch = made(rules=rules)
    for n in range(4):
        submit(dispatch, 0.0, job(f"saved{n}", lasts=90_000.0, due=200_000.0, checkpointed=True))
    urgent = {"at": 100.0, "lasts": 1_000.0, "due": 1_400.0, "verdicts": INSIDE_ONLY}
    asked = [a for a in submit(dispatch, 100.0, job("r0", **urgent), job("r1", **urgent)) if isinstance(a, Preempt)]
    assert [a.for_job for a in asked] == ["r0", "r1"]
    assert len({a.job for a in asked}) == 2
    for one in asked:
        dispatch.apply(Left(job=one.job, at_s=200.0, left_s=80_000.0))
    assert starts(dispatch.decide(200.0)) == {"r0": "private", "r1": "private"}
