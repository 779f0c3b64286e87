"""The words of a dispatch decision refuse what cannot be, with a code and a way out."""

import dataclasses

import pytest

from fabric.errors import InvalidInput, Reason
from fabric.fleet import (
    Account,
    Job,
    Need,
    Pool,
    Quota,
    Scope,
    check_need,
    check_quota,
    cost_micros,
)
from fabric.labels import Classification, WorkloadClass
from fabric.zones import ZoneKind

INSIDE = Pool(zone="private", kind=ZoneKind.PRIVATE, gpu_model="H200", gpus_total=8, cpus_total=64, price=0)
OUTSIDE = Pool(
    zone="public", kind=ZoneKind.PUBLIC, gpu_model="H200", gpus_total=32, cpus_total=320, price=4_000_000,
    spot=1_500_000, egress=90_000,
)  # fmt: skip


def job(**changes):
    given = {
        "id": "j1", "token": "t1", "team": "cardio", "project": "ecg", "classification": Classification.INTERNAL,
        "workload": WorkloadClass.TRAINING, "priority": 0, "submitted_s": 100.0, "deadline_s": 4_000.0,
        "need": Need(gpus=1), "duration_s": 600.0,
    }  # fmt: skip
    return Job(**{**given, **changes})


def refused(reason, make):
    with pytest.raises(InvalidInput) as caught:
        make()
    assert caught.value.reason is reason
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("reason", "make"),
    [
        (Reason.DEADLINE_PAST, lambda: job(deadline_s=100.0)),
        (Reason.DEADLINE_PAST, lambda: job(deadline_s=float("nan"))),
        (Reason.JOB_INVALID, lambda: job(duration_s=0.0)),
        (Reason.JOB_INVALID, lambda: job(duration_s=float("inf"))),
        (Reason.JOB_INVALID, lambda: job(egress_bytes=-1)),
        (Reason.JOB_INVALID, lambda: job(priority=101)),
        (Reason.JOB_INVALID, lambda: job(team="two words")),
        (Reason.JOB_INVALID, lambda: Need(workers=0)),
        (Reason.JOB_INVALID, lambda: Need(workers=2, min_workers=3)),
        (Reason.JOB_INVALID, lambda: Need(gpus=0, cpus=0)),
        (Reason.JOB_INVALID, lambda: Need(workers=10_000, gpus=1_000)),
        (Reason.PRICE_INVALID, lambda: dataclasses.replace(OUTSIDE, price=-1)),
        (Reason.PRICE_INVALID, lambda: dataclasses.replace(OUTSIDE, egress=-1)),
        (Reason.PRICE_INVALID, lambda: Account(name="a", scope=Scope(), limit_micros=-1)),
        (Reason.CONFIG_INVALID, lambda: dataclasses.replace(OUTSIDE, gpus_taken=33)),
        (Reason.QUOTA_INVALID, lambda: Quota(name="q", scope=Scope(), zone="public", gpus=-1)),
        (Reason.QUOTA_INVALID, lambda: check_quota(Quota(name="q", scope=Scope(), zone="public", gpus=33), [OUTSIDE])),
        (Reason.UNKNOWN_ZONE, lambda: check_quota(Quota(name="q", scope=Scope(), zone="pubic", gpus=1), [OUTSIDE])),
        (Reason.GPU_MODEL_UNKNOWN, lambda: check_need(Need(gpus=1, gpu_model="H20"), [INSIDE, OUTSIDE])),
        (Reason.ZONE_HAS_NO_ROOM, lambda: check_need(Need(workers=5, gpus=8), [INSIDE, OUTSIDE])),
    ],
)
def test_what_cannot_be_is_refused_with_a_code_and_a_way_out(reason, make):
    refused(reason, make)


def test_an_unknown_model_names_the_nearest_one():
    assert (
        "'H200'" in refused(Reason.GPU_MODEL_UNKNOWN, lambda: check_need(Need(gpus=1, gpu_model="H20"), [INSIDE])).hint
    )


def test_a_job_that_can_shrink_fits_where_its_least_fits():
    check_need(Need(workers=16, gpus=1, min_workers=8), [INSIDE])
    refused(Reason.ZONE_HAS_NO_ROOM, lambda: check_need(Need(workers=16, gpus=1), [INSIDE]))


def test_a_price_that_is_unknown_makes_a_cost_that_is_unknown():
    unknown = dataclasses.replace(OUTSIDE, price=None, spot=None)
    assert cost_micros(unknown, Need(gpus=1), workers=1, seconds=60, egress_bytes=0) is None
    unmeasured = dataclasses.replace(OUTSIDE, egress=None)
    assert cost_micros(unmeasured, Need(gpus=1), workers=1, seconds=60, egress_bytes=1) is None
    assert cost_micros(unmeasured, Need(gpus=1), workers=1, seconds=3600, egress_bytes=0) == 4_000_000


def test_a_cost_is_rounded_up_and_includes_egress_and_spot():
    need = Need(workers=4, gpus=2)
    assert cost_micros(OUTSIDE, need, workers=4, seconds=900, egress_bytes=10**10) == 8_000_000 + 900_000
    assert cost_micros(OUTSIDE, Need(gpus=1), workers=1, seconds=0.1, egress_bytes=1) == 1_112 + 1
    assert cost_micros(OUTSIDE, Need(gpus=1, spot=True), workers=1, seconds=3600, egress_bytes=0) == 1_500_000


def test_a_scope_covers_what_it_names_and_leaves_the_rest_open():
    assert Scope().covers(job())
    assert Scope(team="cardio", workload=WorkloadClass.TRAINING).covers(job())
    assert not Scope(team="cardio", project="other").covers(job())
    assert not Scope(classification=Classification.RESTRICTED).covers(job())


def test_what_is_left_of_a_budget_is_never_negative():
    assert Account(name="a", scope=Scope(), limit_micros=5, reserved_micros=3, spent_micros=4).left_micros == 0
