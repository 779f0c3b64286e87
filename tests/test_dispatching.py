"""The dispatcher on a real cluster: work leaves when inside is full and comes home, whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
from conftest import BIN, Living, processes_of, write_planted

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
    write_planted(folder / "people.csv", rows=1500)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "FABRIC_"))}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    env["PYTHONPATH"] = str(Path(__file__).parent.parent)
    made = Living(folder, env)
    made.run("fabric", "up")
    try:
        for line in made.run("fabric", "env").stdout.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            env[name] = value.strip("'")
        yield made
    finally:
        made.run("fabric", "down")


def write_job(up: Living, name: str, *, epochs: int, every: int, minutes: int, workers: int = 1) -> None:
    text = (up.folder / "train.toml").read_text()
    text = re.sub(r"epochs = \d+", f"epochs = {epochs}", text)
    text = re.sub(r"checkpoint_every = \d+", f"checkpoint_every = {every}", text)
    text = re.sub(r"workers = \d+", f"workers = {workers}", text).replace('zone = "public"', 'zone = "auto"')
    (up.folder / f"{name}.toml").write_text(f"{text}\n[queue]\nminutes = {minutes}\n")


def submit(up: Living, name: str, *options: str) -> str:
    return json.loads(up.run("fabric", "submit", f"{name}.toml", "--token", name, "--json", *options).stdout)["job"]


def queue(up: Living) -> dict[str, dict]:
    return {job["job"]: job for job in json.loads(up.run("fabric", "queue", "--all", "--json").stdout)["jobs"]}


def until(up: Living, ready, seconds: float = 150) -> dict[str, dict]:
    """Look at the queue until `ready` says yes to it."""
    end = time.monotonic() + seconds
    while not ready(jobs := queue(up)):
        assert time.monotonic() < end, json.dumps(jobs, indent=1)
        time.sleep(0.5)
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
            time.sleep(2 + 3 * self.chance.random())
            for process in dispatcher(self.up):
                if process.pid != last:
                    last = process.pid
                    os.kill(last, signal.SIGKILL)
                    self.kills += 1


@pytest.fixture(scope="module")
def story(up):
    """Fill the private zone, submit what may leave and what may not, empty it; kill the dispatcher all the while."""
    write_job(up, "filler", epochs=100_000, every=500, minutes=60, workers=2)
    write_job(up, "mover", epochs=2_000, every=50, minutes=10)
    write_job(up, "stayer", epochs=200, every=100, minutes=1)
    filler = submit(up, "filler", *STAYS)
    until(up, lambda jobs: jobs[filler]["state"] == "running")
    killer = Killer(up)
    killer.start()
    mover, stayer = submit(up, "mover"), submit(up, "stayer", *STAYS)
    full = until(up, lambda jobs: jobs[mover]["state"] == "running" and jobs[stayer]["hold"])
    assert submit(up, "mover") == mover  # asked for again
    up.run("fabric", "cancel", "filler")
    until(up, lambda jobs: jobs[mover]["attempt"] == 2 and jobs[mover]["state"] == "running")
    ended = until(up, lambda jobs: all(jobs[name]["ended_at"] for name in (filler, mover, stayer)))
    killer.join(timeout=120)
    return {"filler": filler, "mover": mover, "stayer": stayer, "full": full, "ended": ended, "kills": killer.kills}


def test_when_inside_is_full_what_may_leave_leaves_and_what_may_not_waits_and_says_why(story):
    full = story["full"]
    assert full[story["filler"]]["zone"] == "private"
    assert full[story["mover"]]["zone"] == "public"
    stayer = full[story["stayer"]]
    assert (stayer["state"], stayer["zone"], stayer["hold"]["reason"]) == ("queued", "", "WAITS_FOR_ROOM")
    assert "POLICY_DENIED" in stayer["says"] or "WAITS_FOR_ROOM" in stayer["says"]


def test_it_comes_home_as_the_same_job_and_trains_no_epoch_twice(up, story):
    mover = story["ended"][story["mover"]]
    assert (mover["state"], mover["attempt"], mover["zone"]) == ("done", 2, "private")
    log = up.run("ray", "job", "logs", f"fabric-{story['mover']}-1").stdout
    epochs = [int(number) for number in re.findall(r"^epoch (\d+):", log, re.M)]
    assert epochs == list(range(50, 2_001, 50))
    moved = [r for r in up.evidence() if r["action"] in ("crossing", "delivery") and r["phase"] == "intent"
             and r["body"]["job"] == f"fabric-{story['mover']}-1"]  # fmt: skip
    assert [(r["action"], r["body"]["to_zone"]) for r in moved] == [("crossing", "public"), ("delivery", "private")]


def test_every_job_ran_once_though_the_dispatcher_was_killed_all_the_while(up, story):
    assert story["kills"] >= KILLS
    ended = story["ended"]
    assert {ended[story[name]]["state"] for name in ("mover", "stayer")} == {"done"}
    assert ended[story["filler"]]["state"] == "cancelled"
    runs = [r["body"]["job"] for r in up.evidence() if r["action"] == "job" and r["phase"] == "intent"]
    assert sorted(runs) == sorted(
        [f"fabric-{story['filler']}-1", *[f"fabric-{story['mover']}-1"] * 2, f"fabric-{story['stayer']}-1"]
    )
    assert len([r for r in up.evidence() if r["action"] == "submit" and r["phase"] == "intent"]) == 3


def test_a_driver_that_dies_without_an_end_is_noticed_and_its_job_goes_on_with_another(up, story):
    write_job(up, "dies", epochs=3_000, every=500, minutes=1)
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
    write_job(up, "auto", epochs=100, every=50, minutes=1)
    out = up.submit("jobs.train", str(up.folder / "auto.toml"), metadata={"purpose": "cost-forecast", "team": "blue"})
    assert "queued as job" in out
    assert re.search(r"attempt 1 in zone private, 1 workers", out), out[-3000:]
    assert "held back, inside: r2" in out


def test_a_notebook_submits_a_matrix_and_gets_its_run(up, story):
    program = """
import fabric
from fabric.specs import QueueSpec, TrainingSpec
with fabric.connect() as session:
    matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"), hold_back=0.2)
    spec = TrainingSpec(epochs=60, checkpoint_every=30)
    job = session.submit(matrix, spec, justification="test", token="from-a-notebook", queue=QueueSpec(minutes=1))
    again = session.submit(matrix, spec, justification="test", token="from-a-notebook", queue=QueueSpec(minutes=1))
    assert again.id == job.id
    run = job.result(timeout=150)
    print(job.status(), len(run.curve), run.evaluate(matrix.held_back).metric, "<table>" in job._repr_html_())
"""
    assert up.run("python", "-c", program).stdout.splitlines()[-1] == "done 60 r2 True"


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


def test_what_the_dispatcher_counts_is_scraped_off_rays_own_endpoint_and_holds_no_data(up, story):
    from urllib.request import ProxyHandler, build_opener

    folder = next(Path("/tmp").glob(f"fz-{_cluster(up)}-0"))
    targets = json.loads(next(folder.rglob("prom_metrics_service_discovery.json")).read_text())[0]["targets"]
    opener = build_opener(ProxyHandler({}))
    text = "".join(opener.open(f"http://{target}/metrics", timeout=20).read().decode() for target in targets)
    assert re.search(r'fabric_dispatch_events\w*\{.*Event="start"|fabric_dispatch_events\w*\{.*event="start"', text)
    assert "fabric_queue_depth" in text


def _cluster(up: Living) -> str:
    return json.loads((up.folder / ".fabric" / "cluster.json").read_text())["id"][:8]


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
