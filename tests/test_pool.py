"""The pool of sanitizers on a real cluster: what dies is replaced, what was done stays done, the bytes are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import processes_of, title

from fabric.errors import Reason

pytestmark = pytest.mark.cluster

ROWS, GROUP = 1_600_000, 400_000

RECIPE = """
name = "visits-cost"
purpose = "cost-forecast"
records = "visits"
subject = "patient"
[columns]
age = {from = "age", treatment = "bin", edges = [30, 60], role = "quasi-identifier"}
ward = {from = "ward", treatment = "encode", role = "feature"}
pulse = {from = "pulse", treatment = "keep", role = "feature"}
cost = {from = "cost", treatment = "round", to = 10, role = "target"}
"""

DRIVER = """
import sys, fabric
with fabric.connect() as session:
    matrix = session.sanitize(
        session.records("visits"), session.recipe("visits.recipe.toml"), hold_back=0.1, workers=int(sys.argv[1]),
        progress=lambda p: print(p.stage, p.done, p.total, flush=True),
    )
    print("matrix", matrix.sealed.digest, flush=True)
"""


@pytest.fixture(scope="module")
def visits(living):
    random = np.random.default_rng(4)
    table = pa.table(
        {
            "patient": random.integers(0, 200_000, ROWS),
            "age": random.integers(0, 89, ROWS),
            "ward": random.choice([f"ward {n}" for n in range(30)], ROWS),
            "pulse": random.integers(50, 150, ROWS),
            "cost": np.round(random.lognormal(7, 1, ROWS), 2),
        }
    )
    pq.write_table(table, living.folder / "visits.parquet", row_group_size=GROUP)
    (living.folder / "visits.recipe.toml").write_text(RECIPE)
    config = living.folder / "fabric.toml"
    kept = config.read_text()
    labels = kept.partition("[records.people.labels]")[2].partition("\n[")[0]
    config.write_text(f'{kept}\n[records.visits]\npath = "visits.parquet"\n[records.visits.labels]\n{labels}')
    yield living
    config.write_text(kept)


def start(living, workers=1):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(workers)], cwd=living.folder, env=living.env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finished(driver):
    out, err = driver.communicate(timeout=900)
    assert driver.returncode == 0, err[-3000:]
    return out.splitlines()[-1]


def until(driver, stage):
    for line in driver.stdout:
        if line.startswith(stage):
            return
    pytest.fail(f"the stage {stage} did not come: {driver.stderr.read()[-3000:]}")


def sanitizers(living):
    return [p for p in processes_of("private", living.folder) if "Sanitizer" in title(p)]


def work(living):
    return [mark for mark in (living.folder / ".fabric" / "work").glob("*/marks/*") if not mark.name.startswith(".")]


@pytest.fixture(scope="module")
def matrix(visits):
    return finished(start(visits))


def test_two_sanitizers_seal_the_same_bytes_as_one(visits, matrix):
    assert finished(start(visits, workers=2)) == matrix
    assert work(visits) == []


@pytest.mark.parametrize("stage", ["start", "settle"])
def test_an_actor_that_is_killed_is_replaced_and_the_bytes_are_the_same(visits, matrix, stage):
    driver = start(visits)
    until(driver, stage)
    while len(found := sanitizers(visits)) != 1:  # that of the last driver may be ending
        time.sleep(0.05)
    (victim,) = found
    os.kill(victim.pid, signal.SIGKILL)
    assert finished(driver) == matrix


def test_a_driver_that_is_killed_leaves_work_that_the_same_call_goes_on_with(visits, matrix):
    driver = start(visits)
    until(driver, "treat 2")
    driver.kill()
    driver.wait()
    done = {mark: mark.stat().st_mtime_ns for mark in work(visits)}
    assert {mark.name for mark in done} >= {"start.all", "treat.0", "treat.1"}
    again = start(visits)
    until(again, "settle 1")
    assert {mark: mark.stat().st_mtime_ns for mark in done} == done
    assert finished(again) == matrix
    assert work(visits) == []


def test_a_refusal_leaves_nothing_of_the_work(visits):
    recipe = visits.folder / "refused.recipe.toml"
    recipe.write_text(RECIPE.replace('from = "pulse"', 'from = "patient"'))
    script = DRIVER.replace("visits.recipe.toml", "refused.recipe.toml")
    done = subprocess.run(
        [sys.executable, "-c", script, "1"], cwd=visits.folder, env=visits.env, capture_output=True, text=True,
        timeout=900, check=False,
    )  # fmt: skip
    assert Reason.COLUMN_REFUSED.value in done.stderr
    assert work(visits) == []
    matrices = list((visits.folder / ".fabric" / "matrices").glob("*/matrix/statement.json"))
    assert all("refused" not in path.read_text() for path in matrices)


def test_no_sanitizer_is_left_running(visits):
    deadline = time.monotonic() + 300
    while sanitizers(visits) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert sanitizers(visits) == []
