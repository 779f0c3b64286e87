"""A training is asked to leave its zone: it goes on elsewhere from a checked checkpoint and trains no epoch twice."""

import json

import pytest

pytestmark = pytest.mark.cluster

PROGRAM = """
import json

import fabric
from fabric.errors import FabricError
from fabric.specs import TrainingSpec


class Tour:
    '''Leaves once each zone's first checkpoint was told, until there is no further zone.'''

    def __init__(self, zones):
        self.zones, self.told = list(zones), []

    def progress(self, epoch):
        self.told.append((self.here, epoch.epoch))

    def leave(self):
        return bool(self.zones) and any(here == self.here for here, _ in self.told)

    def onward(self):
        self.here = self.zones.pop(0)
        return errand(self.here), 2 if self.here == "private" else 1


def errand(zone):
    return session.session.errand(zone=zone, labels=matrix.labels, purpose="cost-forecast", justification="test")


def tour(*zones, purpose="cost-forecast"):
    moves = Tour(zones[1:])
    moves.here = zones[0]
    spec = TrainingSpec(epochs=900, checkpoint_every=100)
    try:
        first = errand(zones[0])
        run = training.train(session.session, matrix.sealed, spec, first, progress=moves.progress, moves=moves)
        return {"told": moves.told, "losses": len(run.history), "model": run.id}
    except FabricError as error:
        return {"told": moves.told, "code": error.reason.value}


with fabric.connect() as session:
    from fabric import training
    matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"))
    found = {"tour": tour("public", "private", "public"), "job": session.session.job}
    found["trusted"] = session.evidence().verify().trusted
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def toured(living):
    found = json.loads(living.run("python", "-c", PROGRAM).stdout.splitlines()[-1])
    return found, [record for record in living.evidence() if record["body"].get("job") == found["job"]]


def test_a_training_that_is_moved_repeats_no_epoch(toured):
    tour = toured[0]["tour"]
    assert [epoch for _, epoch in tour["told"]] == list(range(100, 1000, 100))
    assert list(dict.fromkeys(zone for zone, _ in tour["told"])) == ["public", "private"]
    assert tour["told"][-1] == ["public", 900]
    assert tour["losses"] == 900


def test_each_move_is_a_movement_of_its_own_with_the_checkpoint_among_its_cargo(toured):
    found, records = toured
    moved = [r for r in records if r["action"] in ("crossing", "delivery") and r["phase"] == "intent"]
    assert [(r["action"], r["body"]["to_zone"]) for r in moved] == [
        ("crossing", "public"), ("delivery", "private"), ("crossing", "public"),
    ]  # fmt: skip
    back = [r["body"] for r in records if r["action"] == "return" and r["body"].get("kind") == "checkpoint"]
    assert [body["from_zone"] for body in back] == ["public", "private"]
    for checkpoint, before, after in zip(back, moved, moved[1:], strict=False):
        assert checkpoint["crossing"] == before["body"]["crossing"]
        assert {name: after["body"]["subjects"][name] for name in checkpoint["subjects"]} == checkpoint["subjects"]
    assert found["trusted"] is True


def test_the_ledger_says_which_attempts_left(living, toured):
    _, records = toured
    jobs = {r["id"] for r in records if r["action"] == "job" and r["phase"] == "intent"}
    ends = [r["body"] for r in living.evidence() if r["intent"] in jobs]
    assert [(body["status"], body.get("what", "")) for body in ends] == [
        ("done", "left"),
        ("done", "left"),
        ("done", ""),
    ]
