"""A training outside that dies goes on from a checkpoint that quarantine has checked, and from no other."""

import json

import pytest

pytestmark = pytest.mark.cluster

PROGRAM = """
import json, os, pickle, time
from contextlib import suppress
from pathlib import Path

import psutil

import fabric
from fabric.errors import FabricError
from fabric.specs import TrainingSpec

outbox = Path(".fabric/outbox/public").resolve()
executed = Path("executed").resolve()


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(executed),)


def honest(path):
    pass


def altered(path):
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-4] ^= 1
    (path / "model.safetensors").write_bytes(content)


def pickled(path):
    (path / "optimizer.safetensors").write_bytes(pickle.dumps(Bomb()))


def workers():
    ours = json.loads(Path(".fabric/cluster.json").read_text())["id"]
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::RayTrainWorker"):
            with suppress(psutil.Error):
                if process.environ().get("FABRIC_CLUSTER_ID") == ours:
                    yield process


def change_and_kill(change):
    # Every checkpoint, and the worker stands still: the last one is among them.
    stopped = list(workers())
    for process in stopped:
        process.suspend()
    time.sleep(1)
    run = max(outbox.glob("train-*"), key=lambda path: path.stat().st_mtime_ns)
    for path in run.glob("checkpoint_*"):
        if all((path / name).exists() for name in ("model.safetensors", "optimizer.safetensors", "state.json")):
            change(path)
    for process in stopped:
        process.kill()


def crash(change, epochs, every):
    told = []

    def progress(epoch):
        told.append(epoch.epoch)
        if len(told) == 1:
            change_and_kill(change)

    spec = TrainingSpec(epochs=epochs, checkpoint_every=every)
    try:
        run = session.train(matrix, spec, justification="test", progress=progress)
        return {"told": told, "losses": len(run.curve), "model": run.model.id}
    except FabricError as error:
        return {"told": told, "code": error.reason.value, "message": error.message}


with fabric.connect() as session:
    matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"))
    found = {
        "honest": crash(honest, 900, 300),
        "altered": crash(altered, 100_000, 300),
        "pickled": crash(pickled, 100_000, 300),
        "job": session.session.job,
        "trusted": session.evidence().verify().trusted,
        "executed": executed.exists(),
    }
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def crashed(living):
    found = json.loads(living.run("python", "-c", PROGRAM).stdout.splitlines()[-1])
    return found, [record for record in living.evidence() if record["body"].get("job") == found["job"]]


def test_a_training_that_dies_goes_on_from_its_last_checkpoint_and_ends(crashed):
    honest = crashed[0]["honest"]
    assert honest["told"] == [300, 600, 900]  # no epoch was trained twice, so it went on
    assert honest["losses"] == 900


def test_the_evidence_tells_of_the_crash_the_checkpoint_and_the_crossing_back(crashed):
    found, records = crashed
    first, second, *_ = [r["body"] for r in records if r["action"] == "crossing" and r["phase"] == "intent"]
    back = [r["body"] for r in records if r["action"] == "return" and r["body"].get("kind") == "checkpoint"]
    assert len(back) == 1  # the refused ones did not come back
    assert back[0]["crossing"] == first["crossing"]
    files = back[0]["subjects"]
    assert {*files} == {"model.safetensors", "optimizer.safetensors", "state.json"}
    assert not {*files} & {*first["subjects"]}
    assert {name: second["subjects"][name] for name in files} == files
    assert {*back[0]["statements"]} < {*second["statements"]}
    model = next(r["body"] for r in records if r["body"].get("model") == found["honest"]["model"])
    assert model["crossing"] == second["crossing"]
    assert found["trusted"] is True


@pytest.mark.parametrize("case", ["altered", "pickled"])
def test_an_altered_checkpoint_or_a_pickle_in_its_place_ends_the_job(crashed, case):
    found, records = crashed
    assert found[case]["code"] == "RESULT_REFUSED"
    assert found[case]["told"] in ([300], [300, 600])  # a second may have come before the worker stood still
    assert not found["executed"]
    refusals = [r["body"] for r in records if r["action"] == "refusal"]
    assert [(r["what"], r["code"]) for r in refusals] == [("checkpoint", "RESULT_REFUSED")] * 2
    assert sum(r["action"] == "crossing" and r["phase"] == "intent" for r in records) == 4  # no second try of either
