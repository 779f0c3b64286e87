"""The rules of landing, as pure functions: every request gets one zone, or is refused."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import ClusterUnavailable, Reason, Refused
from fabric.landing import Ground, admit_work, asked_for, settle
from fabric.observing import job_of, rows_of, spilling, work_of

INSIDE = Ground(zone="private", home="private", outside=("public", "edge"))
OUTSIDE = Ground(zone="public", home="private", outside=("public", "edge"))
PLANTED = "Zyxwanda 987-65-4399"
GROUP = "e0bee0776464a065d5c3c9a164a402000000"


def opened(*zones: str):
    return lambda zone: zone in zones


# Requests.


@given(
    st.dictionaries(st.sampled_from(["CPU", "GPU", "memory", "zone_private", "node:10.0.0.1", "disk"]), st.just(1.0)),
    st.sampled_from([None, {}, {"zone": "private"}, {"gpu": "a100"}]),
)
def test_what_does_not_ask_gets_the_private_zone_whatever_is_open(resources, selector):
    settled = settle(INSIDE, resources, selector, open_to=opened("public", "edge"), what="f")
    assert settled == {**(selector or {}), "zone": "private"}


@pytest.mark.parametrize("resources", [["zone_public"], ["zone_public_group_0_ff"], ["CPU", "zone_public"]])
@pytest.mark.parametrize("selector", [None, {"zone": "public"}])
def test_what_asks_is_refused_unless_a_crossing_to_that_zone_is_open(resources, selector):
    for open_to in (opened(), opened("edge")):
        with pytest.raises(Refused) as refusal:
            settle(INSIDE, resources, selector, open_to=open_to, what="f")
        assert refusal.value.reason is Reason.POLICY_DENIED
    assert settle(INSIDE, resources, selector, open_to=opened("public"), what="f") == {"zone": "public"}


@pytest.mark.parametrize("label", ["!private", "!public", "in(public,private)", "", "elsewhere", "public2"])
def test_a_label_that_names_no_one_zone_is_refused(label):
    with pytest.raises(Refused):
        settle(INSIDE, [], {"zone": label}, open_to=opened("public", "edge"), what="f")


@pytest.mark.parametrize(
    ("resources", "selector"),
    [(["zone_public", "zone_edge"], {}), (["zone_public"], {"zone": "edge"}), (["zone_public"], {"zone": "private"})],
)
def test_two_zones_at_once_are_refused(resources, selector):
    with pytest.raises(Refused):
        settle(INSIDE, resources, selector, open_to=opened("public", "edge"), what="f")


@given(st.sets(st.sampled_from(["CPU", "zone_public", "zone_private"])))
def test_nothing_is_started_from_outside(resources):
    with pytest.raises(ClusterUnavailable) as refusal:
        settle(OUTSIDE, resources, None, open_to=opened("public", "edge"), what="f")
    assert refusal.value.reason is Reason.DRIVER_OUTSIDE


def test_a_namesake_of_a_zone_is_not_the_zone():
    assert asked_for(INSIDE, ["zone_publican", "zone_public2"], {}) is None


# Work that has arrived.


@pytest.mark.parametrize("assigned", [[], ["CPU"], ["zone_private"], ["zone_edge"], ["GPU"]])
def test_work_that_arrives_outside_without_having_asked_does_not_run(assigned):
    with pytest.raises(Refused):
        admit_work(OUTSIDE, assigned, open_to=opened("public", "edge"), what="f")


def test_work_that_asked_runs_outside_only_while_a_crossing_is_open():
    with pytest.raises(Refused):
        admit_work(OUTSIDE, ["zone_public"], open_to=opened("edge"), what="f")
    admit_work(OUTSIDE, ["zone_public"], open_to=opened("public"), what="f")


def test_inside_all_work_runs():
    admit_work(INSIDE, [], open_to=opened(), what="f")


# What the doctor takes from Ray's lists.


def listing(rows, **changes):
    inner = {"total": len(rows), "num_after_truncation": len(rows), "num_filtered": len(rows), "result": rows}
    return {"result": True, "data": {"result": {**inner, "partial_failure_warning": "", **changes}}}


def test_a_list_that_is_not_whole_says_so():
    assert rows_of(listing([{}])) == ([{}], True)
    for answer in (
        listing([{}], total=2),
        listing([{}], num_filtered=2),
        listing([{}], partial_failure_warning="one node"),
        listing([{}], result=None),
        {"result": False, "data": None},
        {},
    ):
        assert not rows_of(answer)[1]


def test_of_a_job_only_names_are_taken():
    job = job_of(
        {
            "submission_id": "raysubmit_1",
            "status": "RUNNING",
            "entrypoint": f"python x.py {PLANTED}",
            "metadata": {"purpose": "cost-forecast", "note": PLANTED, PLANTED: "x"},
            "runtime_env": {"env_vars": {"DB": PLANTED}, "working_dir": "gcs://x.zip", "py_modules": [PLANTED]},
        }
    )
    assert PLANTED not in repr(job)
    assert (job.env_vars, job.working_dir, job.py_modules, job.over) == (("DB",), True, 1, False)
    assert job.odd_metadata == ("(no identifier)", "note")


def test_of_work_the_zone_that_its_group_asked_for_is_taken_and_no_odd_name():
    task = {"type": "NORMAL_TASK", "task_id": "t", "node_id": "n", "name": PLANTED, "func_or_class_name": PLANTED}
    in_group = {**task, "required_resources": {f"bundle_group_{GROUP}": 0.001}, "state": "FINISHED"}
    bundle = {"node_id": "n", "unit_resources": {"zone_public": 1.0}}
    group = {"placement_group_id": GROUP, "bundles": [bundle], "state": "REMOVED"}
    called = {**task, "type": "ACTOR_TASK"}
    found = list(work_of([in_group, task, called], [], [group]))
    assert [work.kind for work in found] == ["task", "task", "bundle"]
    assert [work.within for work in found] == [("zone_public",), (), ()]
    assert [work.over for work in found] == [True, False, True]
    assert PLANTED not in repr(found)


def test_where_objects_are_spilled_is_read_from_the_raylets_settings(tmp_path):
    def command(config):
        return ["raylet", "--config_list=" + base64.b64encode(json.dumps(config).encode()).decode()]

    def to(target):
        return {"object_spilling_config": json.dumps({"type": "filesystem", "params": {"directory_path": target}})}

    own = [tmp_path]
    assert spilling(command({}), own) == ""
    assert spilling(command(to([str(tmp_path / "r")])), own) == ""
    assert spilling(command(to("/mnt/shared")), own) == "/mnt/shared"
    assert spilling(command(to([str(tmp_path), "/mnt/shared"])), own) == "/mnt/shared"
    assert spilling(["raylet", "--config_list=%"], own) == "(unreadable)"
    assert spilling(["python", Path("x").name], own) == ""
