"""The list over a real cluster of two zones: each way ends as it does in memory, and nothing planted lies outside."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from test_main_job import _public_temp, _scan_files

from attacks.ways import STOPPED

TESTS = Path(__file__).parent.parent
PROGRAM = """
import json, sys
import fabric, pyarrow.csv
from fabric.errors import FabricError
from attacks.ways import STOPPED

class Living:
    def __init__(self, session, matrix):
        self.session, self.made = session, matrix
        self.records, self.matrix = pyarrow.csv.read_csv("people.csv"), matrix.sealed

    def burst(self, function, parameters=None):
        return self.session.burst(function, self.made, justification="test", **(parameters or {}))

    def train(self, spec, network=None):
        run = self.session.sweep if hasattr(spec, "search") else self.session.train
        return run(self.made, spec, justification="test", network=network)

ends = {}
with fabric.connect() as session:
    matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"))
    for way in STOPPED:
        if way.needs in ("burst", "train"):
            try:
                way(Living(session, matrix))
                ends[way.id] = ""
            except FabricError as error:
                ends[way.id] = error.reason.value
            except BaseException as error:
                ends[way.id] = f"{type(error).__name__} is foreign"
print("ENDS", json.dumps(ends))
"""


@pytest.mark.cluster
def test_every_way_ends_over_a_cluster_as_it_does_in_memory(living):
    path = os.pathsep.join(filter(None, (str(TESTS), living.env.get("PYTHONPATH"))))
    out = replace(living, env={**living.env, "PYTHONPATH": path}).run("python", "-c", PROGRAM).stdout
    ends = json.loads(out.rpartition("ENDS ")[2])
    live = [way for way in STOPPED if way.needs in ("burst", "train")]
    wrong = {way.id: ends.get(way.id) for way in live if ends.get(way.id) not in ({*way.by} or {""})}
    assert wrong == {}
    assert _scan_files([_public_temp(living), living.folder / ".fabric" / "outbox" / "public"]) == {}
