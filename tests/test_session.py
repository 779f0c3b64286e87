"""A session: labels only get stricter, secrets stay private, and what it writes is whole or not there."""

import json
import os
import stat
import subprocess
import sys

import pytest

from fabric.config import Environment
from fabric.errors import FabricError, InvalidInput, Reason, Refused
from fabric.session import Session
from fabric.starter import write_starter
from fabric.stores import Home


def open_session(folder, metadata=None):
    if not (folder / "fabric.toml").exists():
        write_starter(folder)
    job = json.dumps({"metadata": {"job_submission_id": "j1", **(metadata or {})}})
    variables = {"FABRIC_PERSON": "jane.doe", **({"RAY_JOB_CONFIG_JSON_ENV_VAR": job} if metadata is not None else {})}
    return Session.open(Environment.read(variables), config_path=folder)


def test_a_job_without_labels_has_its_records_labels(tmp_path):
    session = open_session(tmp_path, {})
    assert session.labels("people") == session.config.source("people").labels


@pytest.mark.parametrize(
    ("metadata", "label", "value"),
    [
        ({"burst_eligible": "false"}, "burst_eligible", False),
        ({"allowed_execution_zone": "private"}, "allowed_execution_zone", {"private"}),
        ({"residency": "US"}, "residency", set()),
        ({"export_control": "ITAR"}, "export_control", "ITAR"),
    ],
)
def test_a_jobs_labels_make_its_records_stricter(tmp_path, metadata, label, value):
    assert getattr(open_session(tmp_path, metadata).labels("people"), label) == value


@pytest.mark.parametrize(
    ("owner", "job", "label"),
    [
        (("burst_eligible = true", "burst_eligible = false"), {"burst_eligible": "true"}, "burst_eligible"),
        (('["private", "public"]', '["private"]'), {"allowed_execution_zone": "public"}, "allowed_execution_zone"),
        (('"restricted"', '"restricted"'), {"data_classification": "public"}, "data_classification"),
    ],
)
def test_a_job_cannot_loosen_what_the_owner_set(tmp_path, owner, job, label):
    write_starter(tmp_path)
    text = (tmp_path / "fabric.toml").read_text()
    assert owner[0] in text
    (tmp_path / "fabric.toml").write_text(text.replace(*owner))
    strict, tried = open_session(tmp_path).labels("people"), open_session(tmp_path, job).labels("people")
    if label == "allowed_execution_zone":
        assert tried.allowed_execution_zone <= strict.allowed_execution_zone
    else:
        assert getattr(tried, label) == getattr(strict, label)


def test_what_a_job_leaves_unsaid_its_records_say(tmp_path):
    write_starter(tmp_path)
    text, header = (tmp_path / "fabric.toml").read_text(), "[records.people.labels]"
    more = f'{header}\ncontract = "c-1"\ncontract_limits = ["no-serving"]\n#'
    (tmp_path / "fabric.toml").write_text(text.replace(header, more))
    labels = open_session(tmp_path, {"team": "x"}).labels("people")
    assert labels.limits == {"no-serving"}
    assert labels.burst_eligible


def test_a_refusal_to_place_work_is_recorded_with_what_the_rules_read(tmp_path):
    session = open_session(tmp_path)
    errand = session.errand(zone="public", labels=session.labels("people"), purpose="cost-forecast", justification="")
    with pytest.raises(Refused):
        session.place(errand, workers=1)
    (entry,) = session.ledger.entries()
    (decision,) = entry.record["body"]["decisions"]
    assert decision["rules"] == ["public.justified"]
    assert not session.policy.judge([decision["attributes"]])[0].permit


def test_a_job_for_another_purpose_than_its_records_is_refused(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        open_session(tmp_path, {"purpose": "research"}).labels("people")
    assert caught.value.reason is Reason.LABELS_CONFLICT


def test_records_without_labels_cannot_leave(tmp_path):
    write_starter(tmp_path)
    text = (tmp_path / "fabric.toml").read_text().split("[records.people.labels]")[0]
    (tmp_path / "fabric.toml").write_text(text)
    session = open_session(tmp_path)
    errand = session.errand(zone="public", labels=session.labels("people"), purpose="x", justification="y")
    with pytest.raises(Refused) as caught:
        session.place(errand, workers=1)
    assert caught.value.reason is Reason.POLICY_DENIED
    assert [e.record["action"] for e in session.ledger.entries()] == ["refusal"]


def test_neither_the_person_nor_the_justification_stands_in_the_evidence(tmp_path):
    session = open_session(tmp_path)
    errand = session.errand(zone="public", labels=session.labels("people"), purpose="x", justification="for Mrs Doe")
    assert errand.person.startswith("p-")
    assert errand.justification_key.startswith("hmac-sha256:")
    assert list(session.home.justifications.iterdir()) == []  # a plan keeps nothing
    with pytest.raises(Refused):
        session.place(errand, workers=1)
    told = str(session.ledger.bundle())
    assert "jane.doe" not in told
    assert "Mrs Doe" not in told
    kept = list(session.home.justifications.iterdir())
    assert [path.read_text() for path in kept] == ["for Mrs Doe"]


def test_keys_and_evidence_are_for_their_owner_only(tmp_path):
    session = open_session(tmp_path)
    for path in session.home.path.rglob("*"):
        allowed = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(os.stat(path).st_mode) & ~allowed == 0, path


def test_two_processes_that_open_a_home_first_share_one_key(tmp_path):
    first, second = Home.open(tmp_path / "h"), Home.open(tmp_path / "h")
    assert first.signing_key().seed == second.signing_key().seed


def test_a_home_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FabricError) as caught:
        Home.open(tmp_path / "file" / "home")
    assert caught.value.reason is Reason.EVIDENCE_UNWRITABLE


@pytest.fixture
def working(tmp_path):
    """A session of a job with a working directory, and that directory."""
    (tmp_path / "fabric").mkdir()
    write_starter(tmp_path / "fabric")
    job = {
        "metadata": {},
        "runtime_env": {"working_dir": "gcs://_ray_pkg.zip", "env_vars": {"RAY_WORKER_NICENESS": "0"}},
    }
    variables = {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
    (tmp_path / "work").mkdir()
    return Session.open(Environment.read(variables), config_path=tmp_path / "fabric"), tmp_path / "work"


def test_a_working_directory_of_code_is_fine(working):
    session, folder = working
    (folder / "train.py").write_text("")
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "train.cpython-311.pyc").write_text("")
    session.check_carried(folder)


@pytest.mark.parametrize(
    "name", ["a.CSV", "b.parquet", "c.pkl", "d.json", "e.py.gz", "people", "nb.ipynb", "__pycache__/people.csv"]
)
def test_a_working_directory_with_anything_else_is_refused_by_name(working, name):
    session, folder = working
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("")
    with pytest.raises(InvalidInput) as caught:
        session.check_carried(folder)
    assert caught.value.reason is Reason.WORKING_DIR_CARRIES_DATA
    assert name in caught.value.message


@pytest.mark.parametrize("carried", [{"py_modules": ["gcs://x.zip"]}, {"env_vars": {"DB_PASSWORD": "hunter2"}}])
def test_what_else_ray_gives_to_every_node_is_refused_without_its_value(tmp_path, carried):
    write_starter(tmp_path)
    job = json.dumps({"metadata": {}, "runtime_env": carried})
    session = Session.open(Environment.read({"RAY_JOB_CONFIG_JSON_ENV_VAR": job}), config_path=tmp_path)
    with pytest.raises(InvalidInput) as caught:
        session.check_carried(tmp_path)
    assert caught.value.reason is Reason.WORKING_DIR_CARRIES_DATA
    assert "hunter2" not in str(caught.value)


def test_a_driver_outside_is_refused_before_anything_is_opened(tmp_path):
    program = "import fabric\ntry: fabric.connect()\nexcept fabric.errors.ClusterUnavailable as e: print(e.reason)"
    env = {**os.environ, "FABRIC_ZONE": "public", "FABRIC_ZONE_KIND": "public"}
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "DRIVER_OUTSIDE", done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_key_is_named(tmp_path):
    session = open_session(tmp_path)
    (session.home.keys / "signing.key").write_bytes(b"short")
    with pytest.raises(FabricError) as caught:
        session.home.signing_key()
    assert caught.value.reason is Reason.KEY_UNKNOWN


def test_a_justification_cannot_be_guessed_back_from_the_request(tmp_path):
    session = open_session(tmp_path)
    labels = session.labels("people")
    digests = set()
    for text in ("for Mrs Doe", "for Mr Roe"):
        errand = session.errand(zone="public", labels=labels, purpose="cost-forecast", justification=text)
        digests.add(session.place(errand, workers=1).decision.request)
    assert len(digests) == 1
