"""Every refusal a user meets: its code, its message, its way out, and that nothing is lost or left."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import BIN, CROSSED_INCOME, write_planted

from fabric.starter import write_starter


def cli(*args, cwd, env=None):
    return subprocess.run(
        [str(BIN / "fabric"), *args], cwd=cwd, env=env or dict(os.environ), capture_output=True, text=True, timeout=1800
    )


@pytest.fixture
def starter(tmp_path):
    write_starter(tmp_path)
    write_planted(tmp_path / "people.csv", rows=200)
    return tmp_path


def test_without_a_configuration_the_way_out_is_init(tmp_path):
    done = cli("status", cwd=tmp_path)
    assert done.returncode == 2
    assert "Code: CONFIG_MISSING" in done.stderr
    assert "fabric init" in done.stderr


def test_an_error_under_json_is_json(tmp_path):
    done = cli("status", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["code"] == "CONFIG_MISSING"


def test_init_overwrites_nothing(starter):
    before = (starter / "fabric.toml").read_bytes()
    done = cli("init", cwd=starter)
    assert done.returncode == 2
    assert "Code: FILE_EXISTS" in done.stderr
    assert (starter / "fabric.toml").read_bytes() == before


def test_a_misspelt_key_in_the_configuration_is_refused_with_the_nearest(starter):
    text = (starter / "fabric.toml").read_text().replace("jurisdiction", "juristiction", 1)
    (starter / "fabric.toml").write_text(text)
    done = cli("status", cwd=starter)
    assert "Code: UNKNOWN_KEY" in done.stderr
    assert "did you mean 'jurisdiction'?" in done.stderr


def test_a_taken_port_is_named_and_nothing_is_left(starter):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (starter / "fabric.toml").open("a") as file:
            file.write(f"\n[local]\ndashboard_port = {port}\n")
        done = cli("up", cwd=starter)
    assert done.returncode == 5
    assert "Code: PORT_TAKEN" in done.stderr
    assert str(port) in done.stderr
    assert "down" in cli("status", cwd=starter).stdout


def test_an_evidence_folder_that_cannot_be_written_stops_everything(starter):
    (starter / ".fabric").write_text("a file where the folder should be")
    done = cli("up", cwd=starter)
    assert done.returncode == 1
    assert "Code: EVIDENCE_UNWRITABLE" in done.stderr
    assert "fabric.state" in done.stderr


def test_connecting_to_a_fabric_that_is_down_says_how_to_start_it(starter):
    done = subprocess.run(
        [sys.executable, "-c", "import fabric; fabric.connect()"],
        cwd=starter, env=_clean(), capture_output=True, text=True, timeout=1800,
    )  # fmt: skip
    assert "FABRIC_DOWN" in done.stderr
    assert "fabric up" in done.stderr


def test_a_bundle_changed_by_one_character_does_not_verify(starter):
    cli("evidence", cwd=starter)
    assert cli("evidence", "--save", "bundle.json", cwd=starter).returncode == 0
    good = cli("verify", "bundle.json", cwd=starter)
    assert good.returncode == 0
    assert "use --key" in good.stdout
    bundle = json.loads((starter / "bundle.json").read_text())
    note = bundle["checkpoints"][0]
    bundle["checkpoints"][0] = note.replace("\n0\n", "\n1\n")
    assert bundle["checkpoints"][0] != note
    (starter / "bundle.json").write_text(json.dumps(bundle))
    bad = cli("verify", "bundle.json", cwd=starter)
    assert bad.returncode == 4
    assert "Code: EVIDENCE_INVALID" in bad.stderr


def test_a_bundle_of_another_key_does_not_verify(starter):
    cli("evidence", "--save", "bundle.json", cwd=starter)
    done = cli("verify", "bundle.json", "--key", "A" * 43 + "=", cwd=starter)
    assert done.returncode == 4


JOB_REFUSALS = [
    ({"data_clasification": "restricted"}, {}, "UNKNOWN_LABEL", "did you mean 'data_classification'?"),
    ({"data_classification": "restrcted"}, {}, "LABEL_INVALID", "did you mean 'restricted'?"),
    ({"allowed_execution_zone": "private,pubic"}, {}, "UNKNOWN_ZONE", "did you mean 'public'?"),
    ({"burst_eligible": "false"}, {}, "POLICY_DENIED", "burst_eligible"),
    ({"purpose": "research"}, {}, "LABELS_CONFLICT", "relabel"),
    ({}, {'zone = "public"': 'zone = "pubic"'}, "UNKNOWN_ZONE", "did you mean 'public'?"),
    ({}, {'records = "people"': 'records = "peple"'}, "UNKNOWN_RECORDS", "did you mean 'people'?"),
    ({}, {"workers = 2": "workers = 40"}, "ZONE_HAS_NO_ROOM", "at most 4"),
    ({}, {"epochs = 20": "epoch = 20"}, "UNKNOWN_KEY", "did you mean 'epochs'?"),
    ({}, {'justification = "no free GPU inside before the quarter closes"': ""}, "POLICY_DENIED", "say why"),
    ({}, {'recipe = "people.recipe.toml"': 'recipe = "peple.recipe.toml"'}, "RECIPE_INVALID", "people.recipe.toml"),
]


@pytest.mark.cluster
@pytest.mark.parametrize(("metadata", "change", "code", "hint"), JOB_REFUSALS, ids=[r[2] for r in JOB_REFUSALS])
def test_a_job_that_is_wrong_is_refused_at_once_with_the_way_out(living, metadata, change, code, hint):
    text = (living.folder / "train.toml").read_text()
    for old, new in change.items():
        assert old in text
        text = text.replace(old, new)
    (living.folder / "wrong.toml").write_text(text)
    crossed = len(living.evidence())
    file = f"{living.folder}/wrong.toml"
    if metadata:
        out = living.submit("jobs.train", file, metadata={"purpose": "cost-forecast", **metadata})
    else:
        done = living.run("python", "-m", "jobs.train", file, check=False)
        out = done.stdout + done.stderr
        assert done.returncode in (2, 3), out[-2000:]
    assert f"Code: {code}" in out, out[-2000:]
    assert hint in out
    assert "Traceback" not in out
    assert not [r for r in living.evidence()[crossed:] if r["action"] == "crossing"]


@pytest.mark.cluster
def test_records_and_recipes_that_are_wrong_are_refused_and_nothing_is_sealed(living):
    program = """
import fabric, pathlib, shutil
from fabric.errors import FabricError
people = pathlib.Path("people.csv")
good, recipe = people.read_bytes(), pathlib.Path("people.recipe.toml").read_text()
def attempt(name, recipe_text=recipe):
    pathlib.Path("t.recipe.toml").write_text(recipe_text)
    try:
        matrix = session.sanitize(session.records("people"), session.recipe("t.recipe.toml"))
        print(name, "SEALED", ",".join(matrix.sealed.columns))
    except FabricError as error:
        print(name, error.reason.value, "|", error.message, "|", error.hint)
with fabric.connect() as session:
    try:
        attempt("column", recipe.replace('from = "visits"', 'from = "vists"'))
        attempt("identifier", recipe.replace('from = "visits"', 'from = "national_id"'))
        attempt("text", recipe.replace('from = "visits"', 'from = "notes"'))
        attempt("unlisted", recipe.split("[columns.income]")[0])
        attempt("empty recipe", recipe.split("[columns.age]")[0])
        people.write_bytes(good[:-20]); attempt("truncated")
        people.write_bytes(good.splitlines(keepends=True)[0]); attempt("header")
        people.write_bytes(b""); attempt("empty")
        people.unlink(); attempt("missing")
    finally:
        people.write_bytes(good)
"""
    out = living.run("python", "-c", program).stdout
    told = {line.split(" ")[0]: line for line in out.splitlines()}
    assert "COLUMN_MISSING" in told["column"]
    assert "did you mean 'visits'?" in told["column"]
    assert "COLUMN_REFUSED" in told["identifier"]
    assert "COLUMN_REFUSED" in told["text"]
    assert told["unlisted"] == "unlisted SEALED age,region,condition,plan,visits"
    assert "RECIPE_EMPTY" in out
    assert "RECORDS_TRUNCATED" in told["truncated"]
    assert "RECORDS_EMPTY" in told["header"]
    assert "RECORDS_EMPTY" in told["empty"]
    assert "RECORDS_MISSING" in told["missing"]
    assert "987-65-4399" not in out


@pytest.mark.cluster
def test_a_leaking_burst_is_refused_with_what_was_captured_and_recorded(living):
    program = """
import fabric, pyarrow.csv
raw = pyarrow.csv.read_csv("people.csv")
with fabric.connect() as session:
    matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"))
    def leak(table):
        return raw.num_rows
    for fn, parameters in ((leak, {}), (lambda table, who: 1, {"who": "987-65-4399"})):
        try:
            session.burst(fn, matrix, justification="test", **parameters)
        except fabric.errors.Refused as error:
            print(error)
        except fabric.errors.InvalidInput as error:
            print(error)
"""
    done = living.run("python", "-c", program)
    assert "`raw` (pyarrow.Table, 1,501 rows x 12 columns" in done.stdout
    assert "Code: CAPSULE_CAPTURES_DATA" in done.stdout
    assert "987-65-4399" not in done.stdout + done.stderr
    refused = [r["body"] for r in living.evidence() if r["action"] == "refusal"]
    assert {"capsule", "parameters"} <= {body["what"] for body in refused}


@pytest.mark.cluster
def test_an_error_in_a_burst_comes_back_without_its_message(living):
    program = """
import fabric
with fabric.connect() as session:
    matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"))
    def fail(table):
        raise KeyError(str(table.column("income").to_pylist()))
    try:
        session.burst(fail, matrix, justification="test")
    except fabric.errors.RemoteFailure as error:
        print(error)
"""
    out = living.run("python", "-c", program).stdout
    assert "KeyError" in out
    assert "Code: REMOTE_FAILED" in out
    assert str(CROSSED_INCOME) not in out


@pytest.mark.cluster
def test_a_working_directory_that_carries_data_is_refused(living):
    carried = living.folder / "carried"
    carried.mkdir()
    (carried / "export.csv").write_text("a\n1\n")
    out = living.run(
        "ray", "job", "submit", "--working-dir", str(carried), "--entrypoint-resources", '{"zone_private": 0.001}',
        "--", sys.executable, "-m", "jobs.train", f"{living.folder}/train.toml", check=False,
    ).stdout  # fmt: skip
    assert "Code: WORKING_DIR_CARRIES_DATA" in out
    assert "export.csv" in out


@pytest.mark.cluster
def test_the_worker_outside_uses_nothing_that_was_altered_or_has_no_statement(living):
    program = """
import dataclasses, json, fabric, ray
from fabric.bursting import seal
from fabric.calling import _work
from fabric.carriage import ObjectStoreCarrier
from fabric.crossing import Cargo
from fabric.guard import passage

def rows(table):
    return table.num_rows

class Altering(ObjectStoreCarrier):
    def __init__(self, how):
        self.how = how
    def carry(self, cargo, grant, receipt):
        ticket = super().carry(cargo, grant, receipt)
        chunk = bytearray(cargo.matrix.chunks[0])
        chunk[len(chunk) // 2] ^= 1
        grant, statement, capsule, parameters = ray.get(ticket.papers)
        if self.how == "byte":
            return dataclasses.replace(ticket, chunks=(ray.put(bytes(chunk)),))
        if self.how == "statement":
            return dataclasses.replace(ticket, papers=ray.put((grant, b"", capsule, parameters)))
        if self.how == "grant":
            return dataclasses.replace(ticket, papers=ray.put((b"", statement, capsule, parameters)))
        return ticket

with fabric.connect() as session:
    inner = session.session
    matrix = session.sanitize(session.records("people"), session.recipe("people.recipe.toml"))
    errand = inner.errand(zone="public", labels=matrix.labels, purpose=matrix.sealed.purpose, justification="test")
    capsule = seal(inner, rows, lambda text: ())
    task = ray.remote(_work).options(num_cpus=0, resources={"zone_public": 1})
    inside = ray.remote(_work).options(num_cpus=0, resources={"zone_private": 0.001})
    for how in ("byte", "statement", "grant", "nothing"):
        crossing = inner.border.export(Cargo(matrix=matrix.sealed, capsule=capsule), errand, Altering(how))
        with passage("public", crossing.id):
            kind, content = ray.get(task.remote(crossing.ticket))
        print(how, kind, json.loads(content)["code"] if kind == "refusal" else content.decode())
    kind, content = ray.get(inside.remote(crossing.ticket))
    print("elsewhere", kind, json.loads(content)["code"])
"""
    out = living.run("python", "-c", program).stdout.splitlines()
    assert out == [
        "byte refusal DIGEST_MISMATCH",
        "statement refusal STATEMENT_MISSING",
        "grant refusal STATEMENT_MISSING",
        "nothing json 1501",
        "elsewhere refusal WRONG_ZONE",
    ]


@pytest.mark.cluster
def test_a_second_fabric_up_is_refused_and_the_first_goes_on(living):
    done = living.run("fabric", "up", check=False)
    assert done.returncode == 5
    assert "Code: FABRIC_ALREADY_UP" in done.stderr
    assert "starter: up" in living.run("fabric", "status").stdout


@pytest.mark.cluster
def test_ctrl_c_in_the_middle_of_the_demo_leaves_nothing(tmp_path):
    before = _demo_folders()
    env = {**_clean(), "XDG_STATE_HOME": str(tmp_path)}
    demo = subprocess.Popen(
        [str(BIN / "fabric"), "demo", "--rows", "1000"], cwd=tmp_path, env=env,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    marker = None
    for line in demo.stdout:
        if line.startswith("3."):
            state = next(iter(_demo_folders() - before)) / ".fabric" / "cluster.json"
            marker = json.loads(state.read_text())["id"]
            os.killpg(demo.pid, signal.SIGINT)
            break
    _, err = demo.communicate(timeout=600)
    assert demo.returncode == 130, err[-2000:]
    assert "Code: INTERRUPTED" in err
    assert "Traceback" not in err
    assert _demo_folders() == before
    assert _left_of(marker) == []


@pytest.mark.cluster
def test_the_demo_runs_to_its_end_and_leaves_only_its_evidence(tmp_path):
    before = _demo_folders()
    done = subprocess.run(
        [str(BIN / "fabric"), "demo", "--rows", "1000"], cwd=tmp_path,
        env={**_clean(), "XDG_STATE_HOME": str(tmp_path)}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    flat = re.sub(r"\s+", " ", done.stdout)
    assert "CAPSULE_CAPTURES_DATA" in flat
    assert "trained inside on the same features" in flat
    assert "all verified" in flat
    assert _demo_folders() == before
    kept = [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()]
    assert kept == ["zonefabric/demo-evidence.json"]
    assert cli("verify", "zonefabric/demo-evidence.json", cwd=tmp_path).returncode == 0


def _clean():
    return {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "FABRIC_"))}


def _demo_folders():
    import tempfile

    return set(Path(tempfile.gettempdir()).glob("fabric-demo-*"))


def _left_of(marker):
    deadline = time.monotonic() + 300
    while True:
        left = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("FABRIC_CLUSTER_ID") == marker:
                    left.append(process)
            except psutil.Error:
                continue
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.2)


def test_what_a_newcomer_gets_wrong_is_said_in_words_with_a_way_out(starter):
    assert cli("evidence", "--save", "b.json", cwd=starter).returncode == 0
    for words, status, code in (
        (("simulate", "synthetic:20", "--plot", "no/such/x.svg"), 2, "FILE_EXISTS"),
        (("cost", "--format", "csv", "--out", "no/such/x.csv"), 2, "FILE_EXISTS"),
        (("verify", "people.csv"), 4, "EVIDENCE_INVALID"),
        (("verify", "b.json", "--key", "xx"), 3, "KEY_UNKNOWN"),
        (("xray", "train:network"), 2, "CONFIG_MISSING"),
        (("env",), 5, "FABRIC_DOWN"),
    ):
        done = cli(*words, cwd=starter)
        assert (done.returncode, f"Code: {code}" in done.stderr, "Hint: " in done.stderr) == (status, True, True), words
        assert "nothing is declared" not in done.stderr


def test_a_fabric_that_was_renamed_or_whose_state_is_a_file_says_what_to_restore(starter):
    assert cli("evidence", cwd=starter).returncode == 0
    text = (starter / "fabric.toml").read_text()
    (starter / "fabric.toml").write_text(text.replace('name = "starter"', 'name = "renamed"'))
    assert "restore fabric.name" in cli("evidence", cwd=starter).stderr
    (starter / "fabric.toml").write_text(text.replace('name = "starter"', 'name = "starter"\nstate = "people.csv"'))
    for command in ("status", "doctor", "env"):
        done = cli(command, cwd=starter)
        assert (done.returncode, "set fabric.state" in done.stderr) == (2, True), command
