"""The benchmarks of the border run and say what they should, on a small size; how long things take is not asserted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "border.py"
SERVICE = BENCHMARK.with_name("border_service.py")


@pytest.mark.cluster
def test_the_border_is_measured_beside_bare_ray_step_by_step(tmp_path):
    small = ["--size", "4", "--rows", "500", "--epochs", "2", "--rounds", "1", "--warm", "0"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *small, "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=900,
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


@pytest.mark.cluster
def test_the_border_service_is_measured_beside_bare_flight_and_rays_own_transfer(tmp_path):
    done = subprocess.run(
        [sys.executable, str(SERVICE), "--mib", "8", "--chunk-mib", "2", "--rounds", "1", "--json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=900,
        env={**os.environ, "PYTHONPATH": str(SERVICE.parent.parent)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert [*found["mib_per_s"]] == ["border", "bare Flight", "Ray, TLS"]
    assert all([*speeds] == ["1", "2"] for speeds in found["mib_per_s"].values())
    assert [*found["ratio"]] == ["border to bare Flight", "border to Ray, TLS"]
    assert all(ratio > 0 for ratios in found["ratio"].values() for ratio in ratios.values())
