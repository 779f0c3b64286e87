"""One API, two topologies: the same programs, jobs, refusals and evidence, and the same model from the same seed."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from conftest import BIN, PLANTED, Living, contents_below, needles, processes_of, title, write_planted

from fabric.starter import write_starter
from fabric.zones import Topology

pytestmark = pytest.mark.cluster

PROGRAM = """
import json
import fabric
from fabric.errors import FabricError
from fabric.specs import ModelSpec, SearchSpace, SweepSpec, TrainingSpec

leaked = open("people.csv").read()
found = {}


def told(name, work):
    try:
        found[name] = work()
    except FabricError as error:
        found[name] = error.reason.value


with fabric.connect() as session:
    matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"), hold_back=0.2)

    def burst(fn, **named):
        return lambda: session.burst(fn, matrix, **{"justification": "test", **named})

    def fails(table):
        raise KeyError(str(table.column("income")[0]))

    told("denied", burst(lambda table: table.num_rows, purpose="marketing"))
    told("leak", burst(lambda table: leaked.count("@")))
    told("misspelt", burst(lambda table: 1, zone="publik"))
    told("parameter", burst(lambda table, who: 1, who="zyxwanda.quorvex@planted.example"))
    told("rows", burst(lambda table: table.num_rows))
    told("table", lambda: burst(lambda table: table.select(["visits"]).slice(0, 3))().num_rows)
    told("odd", burst(lambda table: object()))
    told("fails", burst(fails))
    spec = TrainingSpec(epochs=4, checkpoint_every=2, workers=2, seed=11, model=ModelSpec(hidden=[8]))
    losses = []
    run = session.train(matrix, spec, justification="test", progress=losses.append)
    found["model"] = run.model.digest
    found["told"] = [epoch.epoch for epoch in losses]
    inside = session.train(matrix, spec.model_copy(update={"workers": 1}), zone="private")
    found["inside"] = inside.model.digest
    sweep = SweepSpec(training=TrainingSpec(epochs=2, seed=3), search=SearchSpace(learning_rate=[0.01, 0.1]))
    counted = []
    done = session.sweep(matrix, sweep, justification="test", progress=lambda n, of: counted.append((n, of)))
    found["trials"] = [(trial.number, trial.validation) for trial in done.result.trials]
    found["counted"] = counted
    found["best"] = done.best.model.digest
    verified = session.evidence().verify()
    found["trusted"], found["open"] = verified.trusted, list(verified.open_intents)
print(json.dumps(found))
"""
SAME = ("denied", "leak", "misspelt", "parameter", "rows", "table", "odd", "fails", "told", "counted", "trials")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Return a folder of keys: the order of a matrix's rows depends on them, and so does the model."""
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def seen():
    """Return what was found in each topology, to be held against the other."""
    return {}


@pytest.fixture(scope="module", params=[topology.value for topology in Topology])
def fabric(request, tmp_path_factory, keys):
    """Return a fabric that is up, of each topology in turn, on planted records."""
    folder = tmp_path_factory.mktemp(request.param)
    write_starter(folder, topology=Topology(request.param))
    write_planted(folder / "people.csv")
    with (folder / "fabric.toml").open("a") as config:
        config.write("\n[dispatch]\n")
    if keys.exists():
        (folder / ".fabric").mkdir(mode=0o700)
        shutil.copytree(keys, folder / ".fabric" / "keys")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "FABRIC_"))}
    env["PATH"] = f"{BIN}{os.pathsep}{env['PATH']}"
    env["PYTHONPATH"] = str(Path(__file__).parent.parent)
    up = Living(folder, env)
    up.run("fabric", "up")
    try:
        for line in up.run("fabric", "env").stdout.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            env[name] = value.strip("'")
        yield request.param, up
    finally:
        up.run("fabric", "down")
        if not keys.exists():
            shutil.copytree(folder / ".fabric" / "keys", keys)


@pytest.fixture(scope="module")
def found(fabric, seen):
    topology, up = fabric
    seen[topology] = json.loads(up.run("python", "-c", PROGRAM).stdout.splitlines()[-1])
    return seen[topology]


def test_refusals_are_the_same_word_for_word(found):
    assert {name: found[name] for name in ("denied", "leak", "misspelt", "parameter", "odd", "fails")} == {
        "denied": "POLICY_DENIED",
        "leak": "CAPSULE_CAPTURES_DATA",
        "misspelt": "UNKNOWN_ZONE",
        "parameter": "PARAMETERS_REFUSED",
        "odd": "RESULT_REFUSED",
        "fails": "REMOTE_FAILED",
    }


def test_a_burst_a_training_and_a_sweep_come_back(found):
    assert (found["rows"], found["table"], found["told"], found["counted"]) == (1201, 3, [2, 4], [[1, 2], [2, 2]])
    assert len(found["trials"]) == 2


def test_the_evidence_verifies_and_no_intent_is_left_open(found):
    assert found["trusted"] is True
    assert found["open"] == []


def test_a_job_whose_worker_is_killed_goes_on_from_its_last_checkpoint(fabric):
    _, up = fabric
    text = (up.folder / "train.toml").read_text()
    text = text.replace("epochs = 20", "epochs = 200").replace("checkpoint_every = 5", "checkpoint_every = 20")
    (up.folder / "long.toml").write_text(text)
    command = [
        str(BIN / "ray"), "job", "submit", "--entrypoint-resources", '{"zone_private": 0.001}',
        "--metadata-json", '{"purpose": "cost-forecast"}',
        "--", sys.executable, "-m", "jobs.train", f"{up.folder}/long.toml",
    ]  # fmt: skip
    job = subprocess.Popen(command, cwd=up.folder, env=up.env, stdout=subprocess.PIPE, text=True)
    lines: list[str] = []
    killed: int | None = None
    for line in job.stdout:
        lines.append(line)
        if killed is None and line.startswith("epoch 40:"):
            worker = next(p for p in processes_of("public", up.folder) if "RayTrainWorker" in title(p))
            killed = worker.pid
            worker.kill()
    out = "".join(lines)
    assert job.wait(timeout=600) == 0, out[-3000:]
    assert killed is not None
    epochs = [int(n) for n in re.findall(r"^epoch (\d+):", out, re.M)]
    assert epochs[-1] == 200
    # Resumed, not begun again: no epoch before the kill was reported twice.
    assert epochs.count(20) == 1
    assert epochs == sorted(epochs)
    assert "held back, inside: r2" in out


def test_nothing_that_crossed_lies_ready_once_its_work_is_over(fabric, found):
    _, up = fabric
    border = up.folder / ".fabric" / "border"
    assert [path for name in ("offers", "inbox") for path in (border / name).glob("*")] == []


def test_no_planted_value_lies_in_a_file_of_the_public_side(fabric, found):
    _, up = fabric
    state = json.loads((up.folder / ".fabric" / "cluster.json").read_text())
    temp = Path(next(node["temp"] for node in state["nodes"] if node["zone"] == "public"))
    files, wanted = list(contents_below(temp)), needles()
    assert len(files) > 10
    assert {name: str(path) for path, held in files for name, needle in wanted.items() if needle in held} == {}
    assert PLANTED["email"] in (up.folder / "people.csv").read_text()


def test_a_process_outside_is_told_nothing_of_the_private_side(fabric, found):
    topology, up = fabric
    if topology != "federated":
        pytest.skip("in a stretched cluster a node outside is a member of the private one")
    private = (up.folder / ".fabric" / "ray-token").read_text().encode()
    state = json.loads((up.folder / ".fabric" / "cluster.json").read_text())
    temp = Path(next(node["temp"] for node in state["nodes"] if node["zone"] == "public"))
    names = (str(up.folder), state["nodes"][0]["temp"], state["gcs_address"], state["dashboard_url"])
    outside = processes_of("public", up.folder)
    told_of = []
    for process in outside:
        with suppress(psutil.Error):  # a worker may end meanwhile
            told_of.append("\n".join([*process.cmdline(), *(f"{k}={v}" for k, v in process.environ().items())]))
    assert len(told_of) > 3
    assert [name for told in told_of for name in (*names, private.decode()) if name in told] == []
    for path, content in contents_below(temp):
        assert private not in content, path
        # Ray's job supervisor looks through this machine's processes, where it sees every cluster: nobody told it.
        lines = [line for line in content.splitlines() if not line.startswith(b"Found multiple active Ray")]
        told = [line for line in lines for name in names if name.encode() in line]
        assert told == [], path


def test_the_same_seed_gives_the_same_model_in_both(found, seen):
    if len(seen) < len(Topology):
        pytest.skip("the other topology has not run yet")
    one, other = seen.values()
    assert {name: one[name] for name in SAME} == {name: other[name] for name in SAME}
    assert one["model"] == other["model"]
    assert one["best"] == other["best"]
    assert one["inside"] == other["inside"]


def test_a_queued_job_runs_outside_by_the_dispatcher_in_both(fabric):
    _, up = fabric
    told = json.loads(up.run("fabric", "submit", "train.toml", "--token", "queued", "--wait", "--json").stdout)
    assert (told["state"], told["zone"], told["attempt"]) == ("done", "public", 1)
    job = f"fabric-{told['job']}-1"
    moved = [r["body"] for r in up.evidence() if r["action"] == "crossing" and r["phase"] == "intent"]
    assert [body["to_zone"] for body in moved if body["job"] == job] == ["public"]
