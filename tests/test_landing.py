"""Where work lands that never heard of the fabric, on a real cluster of two zones, the head idle and full."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from conftest import contents_below
from landing_driver import WAYS

from fabric import local_cluster
from fabric.doctor import Code, Finding, judge
from fabric.local_cluster import LocalCluster, Ports, client_env, stop
from fabric.observing import observe
from fabric.zones import Zone, ZoneKind

PRIVATE = Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="DE", cpus=2)
PUBLIC = Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="US", slots=4)
ROOT = Path(__file__).parent.parent
DRIVER = Path(__file__).parent / "landing_driver.py"
BIN = Path(sys.executable).parent
PLANTED = "Zyxwanda-c0ffee-planted"
JOB = """
import ray
ray.init()
@ray.remote(num_cpus=0)
def where():
    return ray.get_runtime_context().get_node_labels()["zone"]
print("ran:", *set(ray.get([where.remote() for _ in range(8)])))
"""

pytestmark = pytest.mark.cluster


JOBS = ["--entrypoint-resources", '{"zone_private": 0.001}']


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[LocalCluster]:
    state = tmp_path_factory.mktemp("state")
    yield local_cluster.start(
        [PRIVATE, PUBLIC],
        state_dir=state,
        private_env={},
        public_env={},
        ports=Ports(),
        base_env={**os.environ, "PYTHONPATH": str(ROOT)},
        progress=lambda _: None,
        guarded=True,
    )
    stop(state)


@pytest.fixture(scope="module")
def fresh(cluster) -> tuple[Finding, ...]:
    """What the doctor says before any work."""
    return examine(cluster)


def examine(cluster: LocalCluster) -> tuple[Finding, ...]:
    return judge(observe(cluster, [PRIVATE, PUBLIC], ray_version=version("ray")))


def run(cluster: LocalCluster, *command: str, guarded: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
    settings = client_env(cluster)
    if not guarded:
        settings = {name: value for name, value in settings.items() if name != "RAY_RUNTIME_ENV_HOOK"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings, **more}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)


def drive(cluster: LocalCluster, folder: Path, *words: str, guarded: bool = True) -> dict:
    done = run(cluster, sys.executable, str(DRIVER), *words, guarded=guarded, LANDING_FOLDER=str(folder))
    assert "FOUND" in done.stdout, (done.returncode, done.stderr[-3000:])
    return json.loads(done.stdout.split("FOUND")[1])


@pytest.fixture(scope="module")
def found(cluster, fresh, tmp_path_factory) -> dict:
    """Where the work of a driver landed that never heard of the fabric."""
    return drive(cluster, tmp_path_factory.mktemp("landing"))


@pytest.fixture(scope="module")
def job(cluster, found, tmp_path_factory) -> str:
    """The output of a job that carries all that a job can."""
    folder = tmp_path_factory.mktemp("carried")
    (folder / "planted.csv").write_text(PLANTED)
    (folder / "job.py").write_text(JOB)
    given = {"env_vars": {"DB_PASSWORD": PLANTED}, "py_modules": [str(module(folder))]}
    words = ["--working-dir", str(folder), "--runtime-env-json", json.dumps(given)]
    about = ["--metadata-json", json.dumps({"note": f"{PLANTED} and more"})]
    return run(cluster, str(BIN / "ray"), "job", "submit", *JOBS, *words, *about, "--", sys.executable, "job.py").stdout


def module(folder: Path) -> Path:
    made = folder.parent / "carried_module"
    made.mkdir(exist_ok=True)
    (made / "__init__.py").write_text(f"{PLANTED!r}")
    return made


def test_a_fresh_cluster_is_clean_to_the_doctor(fresh):
    assert fresh == ()


@pytest.mark.parametrize("head", ["idle", "full"])
def test_work_that_did_not_ask_runs_inside_or_not_at_all(found, head):
    assert set(found[head]) >= set(WAYS)
    for name, (error, zones) in found[head].items():
        assert not error, (name, error)
        assert set(zones) == {"private"}, name


@pytest.mark.parametrize("library", ["data", "tune", "train"])
def test_the_libraries_and_their_helpers_run_inside(found, library):
    error, zones = found["idle"][library]
    assert not error
    assert set(zones) == {"private"}


def test_asking_by_rays_own_api_past_the_border_is_refused(found):
    for name, (error, zones) in found["asking"].items():
        if name == "task by node":
            assert error == "TaskUnschedulableError"
        elif name == "task perhaps by node":
            assert zones == ["private"]
        else:
            assert error == "Refused POLICY_DENIED", name


def test_while_a_crossing_is_open_its_job_may_ask_and_nothing_starts_from_outside(found):
    passing = found["passing"]
    assert passing["actor"] == passing["task"] == ["", ["public"]]
    assert passing["unasked"] == ["", ["private"]]
    for started in ("task started outside", "task started by an actor outside"):
        assert passing[started][0] == "ClusterUnavailable DRIVER_OUTSIDE"
    assert passing["after"][0] == "Refused POLICY_DENIED"


def test_without_the_guard_in_the_driver_the_node_refuses_what_arrives(cluster, found, tmp_path):
    seen = drive(cluster, tmp_path, "unguarded", guarded=False)
    landed = [*seen["tasks"], *seen["actors"]]
    assert {tuple(zones) for _, zones in landed} <= {("private",), ()}
    refusals = [error for error, _ in landed if error]
    assert refusals  # else this test shows nothing: without the guard, some do land outside
    assert set(refusals) | {error for error, _ in seen["asking"]} <= {"Refused POLICY_DENIED", "ActorDiedError"}
    assert all(error for error, _ in seen["asking"])


def test_an_entrypoint_that_is_placed_outside_does_not_run(cluster, found, tmp_path):
    mark = tmp_path / "ran"
    program = f"open({str(mark)!r}, 'w')"
    words = ["--entrypoint-resources", '{"zone_public": 1}', "--", sys.executable, "-c", shlex.quote(program)]
    done = run(cluster, str(BIN / "ray"), "job", "submit", *words)
    assert done.returncode != 0
    assert not mark.exists()


def test_what_a_job_carries_reaches_no_file_and_no_process_of_the_public_node(cluster, job):
    assert "ran: private" in job
    node = cluster.nodes[1]
    assert [path for path, content in contents_below(node.temp) if PLANTED.encode() in content] == []
    for process in psutil.Process(node.pid).children(recursive=True):
        with suppress(psutil.Error):  # a worker may end meanwhile
            assert PLANTED not in str(process.environ())


def test_the_doctor_names_all_of_it_without_a_value(cluster, job):
    findings = examine(cluster)
    assert {finding.code for finding in findings} >= {
        Code.JOB_WORKING_DIR,
        Code.JOB_PY_MODULES,
        Code.JOB_ENV_VARS,
        Code.JOB_METADATA,
        Code.WORK_UNASKED,
        Code.WORK_PAST_BORDER,
    }
    assert "DB_PASSWORD" in str(findings)
    assert PLANTED not in str(findings)
