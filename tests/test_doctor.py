"""The doctor: a cluster set up well is clean, and each way to set it up badly is named."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.doctor import Code, Finding, Severity, judge
from fabric.observed import Observed, SeenJob, SeenNode, SeenWork
from fabric.zones import Zone, ZoneKind

PRIVATE = Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="DE", cpus=2)
PUBLIC = Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="US", slots=4)
FLAGS = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
INSIDE = SeenNode(
    id="a" * 56,
    name="private",
    head=True,
    resources={"CPU": 2, "memory": 2**33, "zone_private": 1000, "my_disk": 1},
    labels={"zone": "private"},
    listens=("127.0.0.1", "::1"),
    variables=frozenset({"AWS_SECRET_ACCESS_KEY", "PATH"}),
    flags=FLAGS,
    guarded=True,
    folder_mode=0o700,
    core_bytes=0,
)
OUTSIDE = SeenNode(
    id="b" * 56,
    name="public",
    resources={"memory": 1, "zone_public": 4, "GPU": 1, "object_store_memory": 2**30},
    labels={"zone": "public"},
    listens=("127.0.0.1",),
    variables=frozenset({"PATH", "HOME", "FABRIC_ZONE", "RAY_AUTH_MODE"}),
    flags=FLAGS,
    guarded=True,
    folder_mode=0o700,
    core_bytes=0,
)
JOB = SeenJob(id="raysubmit_1", node=INSIDE.id, metadata=("purpose",))
BURST = SeenWork(kind="task", id="t1", node=OUTSIDE.id, what="fabric.burst", job="01", requires={"zone_public": 1})
WORKER = SeenWork(
    kind="actor", id="a1", node=OUTSIDE.id, what="RayTrainWorker", job="01", requires={"zone_public_group_0_ff": 1}
)
PLAIN = SeenWork(kind="task", id="t2", node=INSIDE.id, what="anything", job="01", requires={"CPU": 1})
GOOD = Observed(
    zones=(PRIVATE, PUBLIC),
    nodes=(INSIDE, OUTSIDE),
    jobs=(JOB,),
    work=(BURST, WORKER, PLAIN),
    ray_version="2.60.0",
    cluster_version="2.60.0",
    auth="token",
)


APART = replace(GOOD, nodes=(INSIDE,), work=(PLAIN,), apart=(replace(OUTSIDE, head=True, guarded=False),))


def apart(**changes: object) -> Observed:
    return replace(APART, apart=(replace(APART.apart[0], **changes),))


def codes(observed: Observed) -> set[Code]:
    return {finding.code for finding in judge(observed)}


def inside(**changes: object) -> Observed:
    return replace(GOOD, nodes=(replace(INSIDE, **changes), OUTSIDE))


def outside(**changes: object) -> Observed:
    return replace(GOOD, nodes=(INSIDE, replace(OUTSIDE, **changes)))


def job(**changes: object) -> Observed:
    return replace(GOOD, jobs=(replace(JOB, **changes),))


def work(**changes: object) -> Observed:
    return replace(GOOD, work=(replace(BURST, **changes),))


def offers(**more: float) -> dict[str, float]:
    return {**OUTSIDE.resources, **more}


def without(name: str) -> dict[str, float]:
    return {key: amount for key, amount in OUTSIDE.resources.items() if key != name}


BAD = {
    "a public node with CPUs": (outside(resources=offers(CPU=2)), {Code.CPUS_OUTSIDE}),
    "a public node with memory": (outside(resources=offers(memory=2**30)), {Code.MEMORY_OUTSIDE}),
    "a public node with a disk to take": (outside(resources=offers(my_disk=1)), {Code.RESOURCE_OUTSIDE}),
    "a public node without its zone's resource": (
        outside(resources=without("zone_public")),
        {Code.NODE_ZONELESS, Code.WORK_UNASKED},
    ),
    "a node in no zone at all": (
        replace(GOOD, nodes=(INSIDE, OUTSIDE, SeenNode(id="c" * 56, name="third", resources={"CPU": 4}))),
        {Code.NODE_ZONELESS, Code.CPUS_OUTSIDE},
    ),
    "a node of a zone that is not declared": (
        outside(resources={"zone_rented": 4}, labels={"zone": "rented"}),
        {Code.NODE_UNDECLARED, Code.WORK_UNASKED},
    ),
    "a node in both zones": (
        outside(resources=offers(zone_private=1)),
        {Code.NODE_TWO_ZONES, Code.WORK_UNASKED},
    ),
    "a label that contradicts the resource": (outside(labels={"zone": "private"}), {Code.LABEL_CONTRADICTS}),
    "a node without the label": (outside(labels={}), {Code.LABEL_CONTRADICTS}),
    "a head outside": (
        replace(GOOD, nodes=(replace(INSIDE, head=False), replace(OUTSIDE, head=True))),
        {Code.HEAD_NOT_PRIVATE},
    ),
    "no head": (replace(GOOD, nodes=(replace(INSIDE, head=False), OUTSIDE)), {Code.LOOK_INCOMPLETE}),
    "workers without the guard": (outside(guarded=False), {Code.GUARD_MISSING}),
    "another Ray outside": (outside(ray_version="2.59.0"), {Code.VERSIONS_DIFFER}),
    "another Ray in the cluster": (replace(GOOD, cluster_version="2.59.0"), {Code.VERSIONS_DIFFER}),
    "authentication off": (replace(GOOD, auth="disabled"), {Code.AUTH_OFF}),
    "authentication unknown": (replace(GOOD, auth=""), {Code.AUTH_OFF}),
    "a node without a token": (outside(flags={**FLAGS, "RAY_AUTH_MODE": "disabled"}), {Code.AUTH_OFF}),
    "a link over a network without TLS": (outside(address="10.1.2.3"), {Code.TLS_OFF}),
    "a dashboard on all addresses": (inside(listens=("0.0.0.0", "127.0.0.1")), {Code.BOUND_TO_ALL}),
    "gRPC on all addresses of IPv6": (outside(listens=("::",)), {Code.BOUND_TO_ALL}),
    "usage statistics on": (inside(flags={**FLAGS, "RAY_USAGE_STATS_ENABLED": "1"}), {Code.TELEMETRY_ON}),
    "usage statistics left to Ray": (inside(flags={"RAY_AUTH_MODE": "token"}), {Code.TELEMETRY_ON}),
    "drivers on any node": (
        inside(flags={**FLAGS, "RAY_JOB_ALLOW_DRIVER_ON_WORKER_NODES": "1"}),
        {Code.DRIVERS_ANYWHERE},
    ),
    "a secret in the environment outside": (
        outside(variables=OUTSIDE.variables | {"AWS_SECRET_ACCESS_KEY"}),
        {Code.VARIABLES_OUTSIDE},
    ),
    "a folder open to other users": (inside(folder_mode=0o755), {Code.FOLDER_OPEN}),
    "a folder open to a group": (outside(folder_mode=0o750), {Code.FOLDER_OPEN}),
    "spilling to a shared place": (inside(spills_to="s3://bucket"), {Code.SPILLS_ELSEWHERE}),
    "core dumps of private processes": (inside(core_bytes=-1), {Code.CORE_DUMPS_ON}),
    "logs streamed from outside": (outside(streams_logs=True), {Code.LOGS_STREAMED}),
    "an entrypoint placed outside": (job(node=OUTSIDE.id), {Code.DRIVER_OUTSIDE}),
    "a working directory": (job(working_dir=True), {Code.JOB_WORKING_DIR}),
    "py_modules": (job(py_modules=2), {Code.JOB_PY_MODULES}),
    "env_vars": (job(env_vars=("DB_PASSWORD",)), {Code.JOB_ENV_VARS}),
    "a setup hook": (job(setup_hook=True), {Code.JOB_SETUP_HOOK}),
    "metadata with text in it": (job(odd_metadata=("note",)), {Code.JOB_METADATA}),
    "a task that did not ask": (work(requires={}), {Code.WORK_UNASKED}),
    "a task that asked for another zone": (work(requires={"zone_private": 0.001}), {Code.WORK_UNASKED}),
    "a task that asked for a namesake": (work(requires={"zone_public2": 1}), {Code.WORK_UNASKED}),
    "an actor that did not ask": (work(kind="actor", what="Queue", requires={}), {Code.WORK_UNASKED}),
    "a bundle that did not ask": (work(kind="bundle", what="", requires={"memory": 1}), {Code.WORK_UNASKED}),
    "a detached actor outside": (work(kind="actor", detached=True), {Code.DETACHED_OUTSIDE}),
    "a task past the border": (work(what="steal"), {Code.WORK_PAST_BORDER}),
    "a list that is cut off": (replace(GOOD, unseen=("tasks",)), {Code.LOOK_INCOMPLETE}),
    "a cluster of its own with a variable of the shell": (
        apart(variables=OUTSIDE.variables | {"AWS_SECRET_ACCESS_KEY"}),
        {Code.VARIABLES_OUTSIDE},
    ),
    "a cluster of its own without tokens": (apart(flags={**FLAGS, "RAY_AUTH_MODE": "disabled"}), {Code.AUTH_OFF}),
    "a cluster of its own that listens everywhere": (apart(listens=("0.0.0.0",)), {Code.BOUND_TO_ALL}),
    "a cluster of its own in an open folder": (apart(folder_mode=0o755), {Code.FOLDER_OPEN}),
    "a node of another zone has joined": (replace(APART, nodes=(INSIDE, OUTSIDE)), {Code.ZONES_JOINED}),
}


def test_a_cluster_set_up_well_is_clean():
    assert judge(GOOD) == ()


@pytest.mark.parametrize("name", BAD)
def test_each_bad_setting_is_named_and_nothing_else_is(name):
    observed, expected = BAD[name]
    assert codes(observed) == expected


@pytest.mark.parametrize("name", BAD)
def test_each_finding_is_one_sentence_and_has_a_fix_of_one_line(name):
    for finding in judge(BAD[name][0]):
        assert finding.what
        assert finding.fix
        assert "\n" not in finding.what + finding.fix


def test_every_code_is_found_by_a_bad_setting():
    assert set().union(*(expected for _, expected in BAD.values())) == set(Code)


def test_an_empty_cluster_is_not_clean():
    assert Code.LOOK_INCOMPLETE in codes(replace(GOOD, nodes=(), work=(), jobs=()))


def test_what_is_over_is_a_warning_and_comes_after_what_is_open():
    observed = replace(GOOD, work=(replace(BURST, requires={}, over=True),), jobs=(replace(JOB, py_modules=1),))
    assert [finding.severity for finding in judge(observed)] == [Severity.OPEN, Severity.WARNING]


def test_a_worker_in_a_group_whose_bundle_asked_for_the_zone_did_ask():
    assert judge(work(kind="actor", what="RayTrainWorker", requires={}, within=("zone_public",))) == ()


def test_core_dumps_outside_hold_nothing_raw_and_work_on_a_node_that_is_gone_is_not_judged():
    assert judge(outside(core_bytes=-1)) == ()
    assert judge(work(node="f" * 56, requires={})) == ()


def test_variables_that_cannot_be_seen_are_not_taken_for_bad_ones():
    assert judge(outside(variables=frozenset(), flags={})) == ()


def test_tls_and_a_network_are_well():
    flags = {**FLAGS, "RAY_USE_TLS": "1"}
    nodes = (replace(INSIDE, flags=flags, address="10.1.2.2"), replace(OUTSIDE, flags=flags, address="10.1.2.3"))
    assert judge(replace(GOOD, nodes=nodes)) == ()


@given(st.floats(min_value=0.001, max_value=1e6), st.sampled_from(["zone_private", "my_disk", "CPU"]))
def test_no_amount_outside_of_what_is_not_the_zones_own_is_clean(amount, name):
    assert judge(outside(resources=offers(**{name: amount}))) != ()


def test_a_finding_as_json_has_the_four_words():
    finding = Finding(code=Code.AUTH_OFF, severity=Severity.OPEN, what="w", fix="f")
    assert finding.to_json() == {"code": "AUTH_OFF", "severity": "open", "what": "w", "fix": "f"}


def test_the_command_says_that_nothing_is_up(tmp_path):
    fabric = Path(sys.executable).parent / "fabric"
    subprocess.run([fabric, "init", "--rows", "100"], cwd=tmp_path, check=True)
    done = subprocess.run([fabric, "doctor", "--json"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 5
    assert json.loads(done.stdout)["code"] == "FABRIC_DOWN"


def test_zones_that_are_clusters_of_their_own_and_set_up_well_are_clean():
    assert judge(APART) == ()
