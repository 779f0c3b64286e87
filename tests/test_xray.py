"""`fabric xray module:function`: what would cross, before anyone submits it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fabric.errors import InvalidInput
from fabric.xray_commands import load_function

ROOT = Path(__file__).parent.parent
JOB = """
import pyarrow as pa

raw = pa.table({"cost": [1.5, 2.5, 3.5]})
RATE = 0.000123456

def good(table):
    return table.num_rows * RATE

def leak(table, who="219-09-9999"):
    return raw.num_rows

number = 3
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "job_to_look_at.py").write_text(JOB)
    yield tmp_path
    sys.modules.pop("job_to_look_at", None)


def fabric(folder, *arguments):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = "import sys; from fabric.cli import main; sys.argv[0] = 'fabric'; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, env=env, capture_output=True, text=True
    )


def test_a_function_that_carries_data_is_shown_with_the_fix_and_the_exit_status_of_a_refusal(folder):
    done = fabric(folder, "xray", "job_to_look_at:leak", "--json")
    assert done.returncode == 3, done.stderr
    seen = json.loads(done.stdout)
    raw, who = (next(c for c in seen["captures"] if c["name"] == name) for name in ("raw", "who"))
    assert (raw["type"], raw["kind"], raw["line"], raw["reason"]) == (
        "pyarrow.Table", "global", JOB.splitlines().index("    return raw.num_rows") + 1, "CAPSULE_CAPTURES_DATA"
    )  # fmt: skip
    assert raw["size"].startswith("3 rows x 1 columns")
    assert raw["fix"].startswith("pass the matrix as the function's argument")
    assert "US_SSN" in who["findings"]
    assert "219-09-9999" not in done.stdout


def test_a_function_that_may_cross_is_shown_with_what_crosses(folder):
    done = fabric(folder, "xray", "job_to_look_at:good")
    assert done.returncode == 0, done.stderr
    assert "nothing is refused" in done.stdout
    assert "RATE" in done.stdout


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("job_to_look_at:god", "did you mean 'good'?"),
        ("job_to_lok_at:good", "did you mean 'job_to_look_at'?"),
        ("job_to_look_at", "module:function"),
        ("job_to_look_at:number", "no function"),
        ("../job:good", "module:function"),
    ],
)
def test_a_target_that_is_none_is_refused_with_the_nearest_right_one(folder, target, told):
    with pytest.raises(InvalidInput) as caught:
        load_function(target, folder)
    assert told in str(caught.value)


def test_a_module_that_fails_says_no_more_than_its_errors_class(folder):
    (folder / "fails_at_once.py").write_text("raise ValueError('219-09-9999')")
    with pytest.raises(InvalidInput) as caught:
        load_function("fails_at_once:work", folder)
    assert "219-09-9999" not in str(caught.value)
    assert "ValueError" in str(caught.value)
    assert str(folder) not in sys.path
