"""The benchmark of the border runs and says what it should, on a small size; how long things take is not asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "border.py"


@pytest.mark.cluster
def test_the_border_is_measured_beside_bare_ray_step_by_step(tmp_path):
    small = ["--size", "4", "--rows", "500", "--epochs", "2", "--rounds", "1", "--warm", "0"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *small, "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=280,
        env={**os.environ, "PYTHONPATH": str(BENCHMARK.parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    burst, training = found["burst"], found["training"]
    assert burst["mib"] == 4
    assert [*burst["seconds"]] == [
        "bare Ray: put, task", "bare Ray: task", "border: seal, ship, verify, use", "hashing alone, one pass"
    ]  # fmt: skip
    assert [*burst["phases"]] == [
        "seal", "hash and sign", "put", "check, decide, record", "fetch", "verify and open", "use"
    ]  # fmt: skip
    assert (training["rows"], training["epochs"]) == (500, 2)
    assert [*training["seconds"]][:2] == ["bare Ray Train", "border"]
    assert len(training["seconds"]) == 7
    assert burst["ratio"] > 0
    assert training["ratio"] > 0
    assert found["xray_ms"] > 0
