"""The dispatcher on a real cluster: work leaves when inside is full and comes home, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import site_policy
from conftest import BIN, Living, processes_of, write_planted
from free_ports import free_port

from fabric.starter import write_starter

pytestmark = pytest.mark.cluster

RULES = """
[dispatch]
startup_s = 0
margin_s = 0
reserve = 0
calm_s = 2
stay_s = 2
drain_left_s = 5
checkpoint_s = 1

[dispatch.spill.training]
patience_s = 5
wait_share = 0.2
"""
STAYS = ("--label", "burst_eligible=false")
KILLS = 10


@pytest.fixture(scope="module")
def up(tmp_path_factory) -> Living:
    """Return a fabric with a dispatcher: room for two workers inside, four outside."""
    folder = tmp_path_factory.mktemp("dispatching")
    write_starter(folder)
    config = folder / "fabric.toml"
    config.write_text(config.read_text().replace("cpus = 2\n", "cpus = 3\n") + RULES)
    write_planted(folder / "people.csv")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "FABRIC_"))}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    env["PYTHONPATH"] = str(Path(__file__).parent.parent)
    made = Living(folder, env)
    made.run("fabric", "up")
    try:
        env.update(settings_of(made))
        yield made
    finally:
        made.run("fabric", "down")


def settings_of(up: Living) -> dict[str, str]:
    lines = [line.removeprefix("export ").partition("=") for line in up.run("fabric", "env").stdout.splitlines()]
    return {name: value.strip("'") for name, _, value in lines}


def write_job(up: Living, name: str, *, epochs: int, every: int, minutes: int, workers: int = 1) -> None:
    text = (up.folder / "train.toml").read_text()
    text = re.sub(r"epochs = \d+", f"epochs = {epochs}", text)
    text = re.sub(r"checkpoint_every = \d+", f"checkpoint_every = {every}", text)
    text = re.sub(r"workers = \d+", f"workers = {workers}", text).replace('zone = "public"', 'zone = "auto"')
    (up.folder / f"{name}.toml").write_text(f"{text}\n[queue]\nminutes = {minutes}\n")


def submit(up: Living, name: str, *options: str, token: str = "") -> str:
    told = up.run("fabric", "submit", f"{name}.toml", "--token", token or name, "--json", *options).stdout
    return json.loads(told)["job"]


def queue(up: Living) -> dict[str, dict]:
    return {job["job"]: job for job in json.loads(up.run("fabric", "queue", "--all", "--json").stdout)["jobs"]}


def until(up: Living, ready, seconds: float = 900) -> dict[str, dict]:
    """Look at the queue until `ready` says yes to it."""
    end = time.monotonic() + seconds
    while not ready(jobs := queue(up)):
        assert time.monotonic() < end, json.dumps(jobs, indent=1)
        time.sleep(1.5)  # each look is a process: it would take the work's own time
    return jobs


def dispatcher(up: Living) -> list[psutil.Process]:
    found = []
    for process in processes_of("private", up.folder):
        try:
            if process.cmdline()[:1] == ["ray::DispatcherActor"] or "DispatcherActor" in process.name():
                found.append(process)
        except psutil.Error:
            continue
    return found


class Killer(threading.Thread):
    """Kills the dispatcher's process at random moments, so many times."""

    def __init__(self, up: Living) -> None:
        super().__init__(daemon=True)
        self.up, self.kills, self.chance = up, 0, random.Random(3)

    def run(self) -> None:
        last = 0
        while self.kills < KILLS:
            time.sleep(1 + 3 * self.chance.random())
            for process in dispatcher(self.up):
                if process.pid != last:
                    last = process.pid
                    with suppress(ProcessLookupError):  # it may have ended just now
                        os.kill(last, signal.SIGKILL)
                        self.kills += 1


HOLDER = """
import sys
import fabric
with fabric.connect():
    import ray
    class Holder:
        def ready(self):
            return True
    holder = ray.remote(Holder).options(num_cpus=2).remote()
    print(ray.get(holder.ready.remote()), flush=True)
    sys.stdin.read()
"""


@contextmanager
def full_inside(up: Living):
    """Hold all the room inside that jobs could get, as work that the queue did not start; it takes no CPU time."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=up.folder,
        env=up.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout.readline() == "True\n"
        yield
    finally:
        holder.stdin.close()
        holder.wait(timeout=600)
        holder.stdout.close()


@pytest.fixture(scope="module")
def story(up):
    """Fill the private zone, submit what may leave and what may not, empty it; kill the dispatcher all the while."""
    # Long enough that the dispatcher, killed all the while, sees it outside once the room inside is free.
    write_job(up, "mover", epochs=2_000, every=40, minutes=10)
    write_job(up, "stayer", epochs=40, every=20, minutes=1)
    killer = Killer(up)
    with full_inside(up):
        killer.start()
        mover, stayer = submit(up, "mover"), submit(up, "stayer", *STAYS)
        full = until(up, lambda jobs: jobs[mover]["state"] == "running" and jobs[stayer]["hold"])
        assert submit(up, "mover") == mover  # asked for again
    ended = until(up, lambda jobs: all(jobs[name]["ended_at"] for name in (mover, stayer)))
    killer.join(timeout=900)
    return {"mover": mover, "stayer": stayer, "full": full, "ended": ended, "kills": killer.kills}


def test_when_inside_is_full_what_may_leave_leaves_and_what_may_not_waits_and_says_why(story):
    full = story["full"]
    assert full[story["mover"]]["zone"] == "public"
    stayer = full[story["stayer"]]
    assert (stayer["state"], stayer["zone"], stayer["hold"]["reason"]) == ("queued", "", "WAITS_FOR_ROOM")
    assert "WAITS_FOR_ROOM" in stayer["says"]


def test_it_comes_home_as_the_same_job_and_trains_no_epoch_twice(up, story):
    mover = story["ended"][story["mover"]]
    assert (mover["state"], mover["attempt"], mover["zone"]) == ("done", 2, "private")
    log = up.run("ray", "job", "logs", f"fabric-{story['mover']}-1").stdout
    epochs = [int(number) for number in re.findall(r"^epoch (\d+):", log, re.M)]
    assert epochs == list(range(40, 2_001, 40))
    moved = [r for r in up.evidence() if r["action"] in ("crossing", "delivery") and r["phase"] == "intent"
             and r["body"]["job"] == f"fabric-{story['mover']}-1"]  # fmt: skip
    assert [(r["action"], r["body"]["to_zone"]) for r in moved] == [("crossing", "public"), ("delivery", "private")]


def test_every_job_ran_once_though_the_dispatcher_was_killed_all_the_while(up, story):
    assert story["kills"] >= KILLS
    assert {story["ended"][story[name]]["state"] for name in ("mover", "stayer")} == {"done"}
    runs = [r["body"]["job"] for r in up.evidence() if r["action"] == "job" and r["phase"] == "intent"]
    assert sorted(runs) == sorted([*[f"fabric-{story['mover']}-1"] * 2, f"fabric-{story['stayer']}-1"])
    assert len([r for r in up.evidence() if r["action"] == "submit" and r["phase"] == "intent"]) == 2


def test_a_running_job_that_is_taken_back_is_stopped_and_paid_for(up, story):
    write_job(up, "long", epochs=100_000, every=500, minutes=60)
    job = submit(up, "long", *STAYS)
    until(up, lambda jobs: jobs[job]["state"] == "running")
    up.run("fabric", "cancel", "long")
    jobs = until(up, lambda jobs: jobs[job]["ended_at"])
    assert (jobs[job]["state"], jobs[job]["zone"]) == ("cancelled", "private")


def test_a_driver_that_dies_without_an_end_is_noticed_and_its_job_goes_on_with_another(up, story):
    write_job(up, "dies", epochs=600, every=200, minutes=1)
    job = submit(up, "dies", *STAYS)
    until(up, lambda jobs: jobs[job]["state"] == "running")
    for process in processes_of("private", up.folder):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "jobs.queued" in words and job in words:
            process.kill()
    jobs = until(up, lambda jobs: jobs[job]["ended_at"])
    assert (jobs[job]["state"], jobs[job]["attempt"]) == ("done", 2)


def test_a_driver_submitted_by_rays_own_means_waits_for_a_place_and_runs_there(up, story):
    write_job(up, "auto", epochs=20, every=10, minutes=1)
    out = up.submit("jobs.train", str(up.folder / "auto.toml"), metadata={"purpose": "cost-forecast", "team": "blue"})
    assert "queued as job" in out
    assert re.search(r"attempt 1 in zone private, 1 workers", out), out[-3000:]
    assert "held back, inside: r2" in out


def test_a_notebook_submits_a_matrix_and_gets_its_run(up, story):
    program = """
import fabric
from fabric.local_cluster import running
from fabric.specs import QueueSpec, TrainingSpec
with fabric.connect() as session:
    from fabric.dispatching import rays_jobs_url
    assert rays_jobs_url() == running(session.session.config.state).dashboard_url
    matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"), hold_back=0.2)
    spec = TrainingSpec(epochs=60, checkpoint_every=30)
    job = session.submit(matrix, spec, justification="test", token="from-a-notebook", queue=QueueSpec(minutes=1))
    again = session.submit(matrix, spec, justification="test", token="from-a-notebook", queue=QueueSpec(minutes=1))
    assert again.id == job.id
    run = job.result(timeout=900)
    print(job.status(), len(run.curve), run.evaluate(matrix.held_back).metric, "<table>" in job._repr_html_())
"""
    assert up.run("python", "-c", program).stdout.splitlines()[-1] == "done 60 r2 True"


def test_a_network_of_ones_own_waits_in_the_queue_and_crosses_when_its_turn_comes(up, story):
    program = """
import fabric, torch
from fabric.errors import FabricError
from fabric.specs import QueueSpec, TrainingSpec
with fabric.connect() as session:
    matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"), hold_back=0.2)
    def narrow(inputs, outputs):
        return torch.nn.Sequential(torch.nn.Linear(inputs, 8), torch.nn.ReLU(), torch.nn.Linear(8, outputs))
    spec, queue = TrainingSpec(epochs=20, checkpoint_every=10), QueueSpec(minutes=1)
    settings = {"zone": "public", "justification": "test", "queue": queue, "token": "own"}
    job = session.submit(matrix, spec, network=narrow, **settings)
    assert session.submit(matrix, spec, network=narrow, **settings).id == job.id
    run = job.result(timeout=900)
    shapes = [len(parameter) for parameter in run.model.network.parameters()]
    print(job.row().zone, shapes, run.evaluate(matrix.held_back).metric)
    try:
        session.submit(matrix, spec, network=lambda inputs, outputs: torch.nn.Linear(len(matrix.held_back.chunks), 1))
    except FabricError as error:
        print(error.reason)
    print(session.submit(matrix, spec, justification="test", queue=queue, token="own").id)
"""
    done = up.run("python", "-c", program, check=False)
    *_, shape, refused = done.stdout.splitlines()
    assert shape == "public [8, 8, 1, 1] r2", done.stdout
    assert refused == "CAPSULE_CAPTURES_DATA"
    assert "SUBMIT_TOKEN_REUSED" in done.stderr
    subjects = [record["body"].get("subjects", {}) for record in up.evidence() if record["action"] == "submit"]
    digests = {named["capsule"] for named in subjects if "capsule" in named}
    (crossed,) = [
        record["body"]["subjects"]["capsule"]
        for record in up.evidence()
        if record["action"] == "crossing" and "capsule" in record["body"].get("subjects", {})
    ]
    assert digests == {crossed}


def test_the_dispatcher_asks_the_policy_that_is_in_force_now(up, story):
    write_job(up, "outward", epochs=10, every=5, minutes=1)
    job_file, config = up.folder / "outward.toml", up.folder / "fabric.toml"
    job_file.write_text(job_file.read_text().replace('zone = "auto"', 'zone = "public"'))
    before = config.read_text()
    site_policy.bring_in_force(config)
    try:
        job = submit(up, "outward")
        until(up, lambda jobs: "site.nothing" in jobs[job]["says"])
    finally:
        config.write_text(before)
    jobs = until(up, lambda jobs: jobs[job]["ended_at"])
    assert (jobs[job]["state"], jobs[job]["zone"]) == ("done", "public")


METRICS = """
import sys, tempfile, time
from pathlib import Path
from urllib.request import ProxyHandler, build_opener
sys.path[:0] = [sys.argv[1]]
import ray
quiet = {"include_dashboard": False, "log_to_driver": False}
ray.init(address="local", num_cpus=1, _metrics_export_port=int(sys.argv[2]), **quiet)
from dispatch_lab import Lab
from fabric.capacity import Wanted
from fabric.config import load_config
from fabric.dispatching import Metrics
from ray.autoscaler._private.constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
lab = Lab(Path(tempfile.mkdtemp()), clock_s=1795800000.0, outside=0)
for name in ("a", "b"):
    lab.submit(name)
Metrics().take(lab.dispatcher().turn(), lab.store)
Wanted(load_config(Path(sys.argv[3]))).ask(lab.store.jobs())
print("wanted", ray.experimental.internal_kv._internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL).decode())
opener = build_opener(ProxyHandler({}))
for _ in range(120):
    time.sleep(0.5)
    try:
        text = opener.open(f"http://127.0.0.1:{sys.argv[2]}/metrics", timeout=5).read().decode()
    except OSError:
        continue
    found = [line for line in text.splitlines() if line.startswith("ray_fabric_")]
    if any("dispatch_events" in line for line in found):
        break
print("\\n".join(found))
ray.shutdown()
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Return what a dispatcher tells Ray of a turn: its metrics, and the nodes that its placed work needs."""
    folder = tmp_path_factory.mktemp("told")
    write_starter(folder)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "FABRIC_"))} | {"RAY_AUTH_MODE": "disabled"}
    port = str(free_port())
    here = Path(__file__).parent
    env["PYTHONPATH"] = str(here.parent)
    done = subprocess.run(
        [sys.executable, "-c", METRICS, str(here), port, str(folder / "fabric.toml")],
        env=env, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_autoscaler_is_told_which_nodes_placed_work_needs(told):
    assert 'wanted [{"CPU": 1.0}]' in told.splitlines()


def test_what_the_dispatcher_counts_is_on_the_page_that_prometheus_scrapes_off_ray(told):
    found = told
    for name in ("queue_depth", "running_jobs", "held_jobs", "wait_seconds_count", "dispatch_events_total"):
        assert f"ray_fabric_{name}" in found
    own = {
        label
        for line in found.splitlines()
        if line.startswith("ray_fabric_")
        for label in re.findall(r"[{,]([a-z_]+)=", line)
    }
    assert {label for label in own if not label.startswith("otel_")} <= {"zone", "workload", "reason", "event", "le"}


def test_a_cluster_that_is_killed_and_started_again_loses_no_job_and_charges_none_twice(up, story):
    write_job(up, "survivor", epochs=300, every=100, minutes=1, workers=2)
    job, behind = submit(up, "survivor", *STAYS), submit(up, "stayer", *STAYS, token="behind")
    until(up, lambda jobs: jobs[job]["state"] == "running" and jobs[behind]["state"] == "queued")
    for zone in ("private", "public"):
        for process in processes_of(zone, up.folder):
            with suppress(psutil.Error):
                process.kill()
    up.run("fabric", "up")
    up.env.update(settings_of(up))
    jobs = until(up, lambda jobs: all(jobs[name]["ended_at"] for name in (job, behind)))
    assert [(jobs[name]["state"], jobs[name]["attempt"]) for name in (job, behind)] == [("done", 2), ("done", 1)]


def test_afterwards_every_budget_adds_up_and_the_evidence_verifies(up, story):
    seen = json.loads(up.run("fabric", "top", "--json").stdout)
    assert (seen["dispatcher"], seen["spilling"], seen["jobs"]) == (True, 0, [])
    [limit] = seen["limits"]
    budgets = [r for r in up.evidence() if r["action"] == "budget"]
    spent = [r["body"]["spent"] for r in budgets if r["phase"] == "outcome"]
    assert limit["reserved"] == 0
    assert limit["spent"] == sum(spent) > 0
    assert len([r for r in budgets if r["phase"] == "intent"]) == len(spent)
    up.run("fabric", "evidence", "--save", "bundle.json")
    key = json.loads(up.run("fabric", "evidence", "keys", "--json").stdout)["keys"][0]
    up.run("fabric", "verify", "bundle.json", "--key", key if isinstance(key, str) else key["key"])


def test_the_doctor_finds_nothing_open_with_a_dispatcher(up, story):
    looked = json.loads(up.run("fabric", "doctor", "--json").stdout)
    assert [found for found in looked["findings"] if found["severity"] == "open"] == []


def test_submitting_is_refused_before_anything_is_queued(up, story):
    write_job(up, "wrong", epochs=10, every=5, minutes=1, workers=99)
    before = len(queue(up))
    for options, code in (
        ((), "ZONE_HAS_NO_ROOM"),
        (("--deadline", "2020-01-01T00:00Z"), "DEADLINE_PAST"),
        (("--deadline", "tomorrow"), "JOB_INVALID"),
        (("--label", "burst_eligable=true"), "UNKNOWN_LABEL"),
    ):
        done = up.run("fabric", "submit", "wrong.toml", *options, check=False)
        assert done.returncode == 2, done.stderr
        assert f"Code: {code}" in done.stderr
    reused = up.run("fabric", "submit", "auto.toml", "--token", "mover", check=False)
    assert "SUBMIT_TOKEN_REUSED" in reused.stderr
    assert len(queue(up)) == before
