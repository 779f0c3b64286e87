"""The list over a real cluster of two zones: each way ends as it does in memory, and nothing planted lies outside."""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import needles, processes_of
from test_main_job import _public_temp, _scan_files, _scan_memory

from attacks.ways import LIVE

TESTS = Path(__file__).parent.parent


@pytest.mark.cluster
def test_every_way_ends_over_a_cluster_as_it_does_in_memory(living):
    path = os.pathsep.join([str(TESTS), living.env["PYTHONPATH"]])
    program = str(TESTS / "wire" / "driving.py")
    out = replace(living, env={**living.env, "PYTHONPATH": path}).run("python", program, "attacks").stdout
    ends = dict(json.loads(found) for found in re.findall(r"^way: (.*)$", out, re.M))
    assert {way.id: ends.get(way.id) for way in LIVE if ends.get(way.id) not in ({*way.by} or {"ran"})} == {}
    assert _scan_files([_public_temp(living), living.folder / ".fabric" / "outbox" / "public"]) == {}
    assert _scan_memory(processes_of("public", living.folder), needles()) == {}
