"""What is refused before anything is queued, what the queue may hold, and what policy says of a queued job."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from fabric.approvals import approve
from fabric.artifacts import digest
from fabric.attending import Attendance
from fabric.bursting import kept_code, seal
from fabric.cli import app
from fabric.config import Environment
from fabric.errors import FabricError, Reason
from fabric.job_store import Place, Row, State, open_queue
from fabric.judgement import Judgement, matrix_name
from fabric.people import write_people
from fabric.planning import keep_approval, question_about
from fabric.recording import now
from fabric.sdk import Fabric
from fabric.session import Session
from fabric.specs import JobSpec, QueueSpec
from fabric.starter import write_starter
from fabric.statements import SigningKey, sign
from fabric.submission import deadline_of, submit, wish_of_file, with_code
from fabric.testing import sealed_matrix
from fabric.training import latest
from jobs.running import attend
from sanitize.spool import TRAIN

AT = 1_795_800_000.0


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_starter(tmp_path)
    write_people(tmp_path / "people.csv", rows=200, seed=1)
    config = tmp_path / "fabric.toml"
    config.write_text(config.read_text() + "\n[dispatch]\n")
    change(tmp_path, 'zone = "public"', 'zone = "auto"')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def change(folder, old, new, name="train.toml"):
    path = folder / name
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.fixture
def session(folder):
    found = Session.open(Environment.read({"FABRIC_PERSON": "ann"}), config_path=folder)
    yield found
    found.ledger.close()


@pytest.fixture
def store(session):
    found = open_queue(session.config, session.home)
    yield found
    found.close()


def wish(session, queue=None, labels=None):
    return wish_of_file(session, session.config.path.parent / "train.toml", labels or {}, queue=queue)


def refused(call, reason):
    with pytest.raises(FabricError) as caught:
        call()
    assert caught.value.reason is reason
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('records = "people"', 'records = "peopel"', Reason.UNKNOWN_RECORDS),
        ("people.recipe.toml", "peopel.recipe.toml", Reason.RECIPE_INVALID),
        ('zone = "auto"', 'zone = "pubic"', Reason.UNKNOWN_ZONE),
        ("workers = 2", "workers = 99", Reason.ZONE_HAS_NO_ROOM),
        ("epochs = 20", "epoch = 20", Reason.UNKNOWN_KEY),
        ("[training]", '[queue]\ngpu_model = "H300"\n[training]', Reason.GPU_MODEL_UNKNOWN),
        ("[training]", '[queue]\ndeadline = "2020-01-01T00:00Z"\n[training]', Reason.DEADLINE_PAST),
        ("[training]", '[queue]\ndeadline = "soon"\n[training]', Reason.JOB_INVALID),
        ("[training]", "[queue]\nmin_workers = 3\n[training]", Reason.JOB_INVALID),
        ("[training]", "[sweep.search]\n[training]", Reason.CONFIG_INVALID),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_queued_or_kept(folder, session, store, old, new, reason):
    change(folder, old, new)
    refused(lambda: bringing_code(session, store), reason)
    assert store.jobs(open_only=False) == []
    assert not (session.home.path / "recipes").exists()
    assert not (session.home.path / "code").exists()


def test_an_unknown_label_is_refused_with_the_nearest_right_one(session):
    assert (
        "burst_eligible" in refused(lambda: wish(session, labels={"burst_eligable": "true"}), Reason.UNKNOWN_LABEL).hint
    )


def test_no_record_person_or_justification_enters_the_queue_and_no_text_the_ledger(folder, session, store):
    change(folder, "no free GPU inside before the quarter closes", "Zyxwanda Quorvex wants it")
    row, made = submit(session, store, wish(session), token="one")
    assert made
    for text in (row.body_text, json.dumps([entry.record for entry in session.ledger.entries()])):
        for secret in ("Zyxwanda", "wants it", 'ann"', "people.csv", str(folder)):
            assert secret not in text
    assert session.home.justification(row.body["justification"]) == "Zyxwanda Quorvex wants it"
    assert session.home.kept_recipe(row.body["recipe_file"]) == (folder / "people.recipe.toml").read_text()


def test_a_kept_recipe_that_was_changed_is_not_used(session, store):
    row, _ = submit(session, store, wish(session))
    next((session.home.path / "recipes").iterdir()).write_text("")
    refused(lambda: session.home.kept_recipe(row.body["recipe_file"]), Reason.RECIPE_INVALID)


def test_the_same_token_is_the_same_job_and_one_record_also_when_its_deadline_has_passed(session, store):
    queue = QueueSpec(deadline="+1h")
    row, _ = submit(session, store, wish(session, queue), token="one")
    again, made = submit(session, store, wish(session, queue), token="one")
    assert (again.id, made) == (row.id, False)
    assert [e.record["action"] for e in session.ledger.entries()] == ["submit", "submit"]
    other = wish(session, QueueSpec(priority=3))
    refused(lambda: submit(session, store, other, token="one"), Reason.SUBMIT_TOKEN_REUSED)


def test_a_deadline_is_a_time_with_a_zone_or_a_span():
    assert deadline_of("", AT) is None
    assert deadline_of("+2h", AT) == AT + 7_200
    assert deadline_of("2026-12-01T12:00Z", AT) == datetime(2026, 12, 1, 12, tzinfo=UTC).timestamp()
    at_the_edge = ("9999-12-31T23:59:59-12:00", "0001-01-01T00:00+14:00")
    for text in ("2026-12-01T12:00", "+2w", "-2h", "+2h ", "now", *at_the_edge):
        refused(lambda text=text: deadline_of(text, AT), Reason.JOB_INVALID)


def test_a_job_without_a_matrix_or_with_one_that_nobody_signed_has_no_verdict(session, store):
    row, _ = submit(session, store, wish(session))
    judge = Judgement(session)
    assert judge.verdicts(row, AT) == {}
    store.prepared(row.id, "nowhere")
    assert judge.verdicts(store.find(row.id), AT) == {}


def kept(session, **stated) -> str:
    now = datetime.fromtimestamp(AT, UTC)
    labels = session.config.source("people").labels.to_json()
    matrix = sealed_matrix(
        {"a": [1.0, 2.0], "b": [1.0, 2.0]},
        key=session.key,
        now=now,
        purpose="cost-forecast",
        labels=labels,
        stated=stated,
    )
    folder = session.home.matrices / matrix_name(matrix) / TRAIN
    folder.mkdir(parents=True)
    (folder / "statement.json").write_bytes(matrix.signed.envelope)
    (folder / "chunk-000000").write_bytes(matrix.chunks[0])
    return matrix_name(matrix)


def test_policy_is_asked_about_the_sealed_matrix_and_a_no_carries_its_numbers(session, store):
    row, _ = submit(session, store, wish(session))
    store.prepared(row.id, kept(session, risk={"k": 3, "l": 4, "t": "0.2"}))
    found = Judgement(session).verdicts(store.find(row.id), AT)
    assert found["private"].permitted
    assert (found["public"].permitted, found["public"].code) == (False, "POLICY_DENIED")
    assert dict(found["public"].facts) == {"k": 3, "k_required": 11}


def test_a_yes_ends_with_the_matrixs_statement_and_a_named_zone_is_the_only_one(folder, session, store):
    row, _ = submit(session, store, wish(session))
    store.prepared(row.id, kept(session))
    judge = Judgement(session)
    found = judge.verdicts(store.find(row.id), AT)
    assert found["public"].permitted
    assert found["public"].until_s == AT + 86_400
    assert not judge.verdicts(store.find(row.id), AT + 90_000)["public"].permitted
    assert judge.egress_bytes(store.find(row.id)) > 0
    change(folder, 'zone = "auto"', 'zone = "private"')
    row, _ = submit(session, store, wish(session))
    store.prepared(row.id, kept(session, part="matrix", note="another"))
    found = judge.verdicts(store.find(row.id), AT)
    assert (found["private"].permitted, found["public"].code) == (True, "WRONG_ZONE")


def narrow(inputs, outputs):
    return inputs + outputs


def bringing_code(session, store, *, token="") -> Row:
    """Queue a job that brings code along."""
    return submit(session, store, with_code(wish(session), seal(session, narrow, lambda text: ())), token=token)[0]


@pytest.mark.parametrize("network", ["networks:narrow", 8, {"width": 8}])
def test_what_is_no_function_is_refused_before_it_waits_for_a_turn_to_fail(session, network):
    refused(lambda: seal(session, network, lambda text: ()), Reason.CONFIG_INVALID)


def test_code_that_a_job_brings_along_is_kept_inside_recorded_by_digest_and_opened_as_it_was_read(session, store):
    row = bringing_code(session, store)
    code = kept_code(session, row.body["code"])
    assert code.network(2, 3) == 5
    assert digest(code.sealed.payload) == row.body["code"]
    entries = [entry.record for entry in session.ledger.entries() if entry.record["action"] == "submit"]
    assert entries[0]["body"]["subjects"] == {"capsule": row.body["code"]}
    assert {path.stat().st_mode & 0o777 for path in (session.home.path / "code").iterdir()} == {0o600}


def test_kept_code_that_was_changed_or_that_nobody_inspected_is_neither_judged_nor_opened(session, store):
    row = bringing_code(session, store)
    store.prepared(row.id, kept(session))
    payload, statement = sorted((session.home.path / "code").iterdir())
    assert Judgement(session).verdicts(store.find(row.id), now().timestamp())["public"].permitted
    envelope, content = statement.read_bytes(), payload.read_bytes()
    other = session.border.state_capsule(b"other", {"refused": False}).signed.envelope
    unread = session.border.state_capsule(content, {"refused": True}).signed.envelope
    stated = session.border.read_capsule(content, envelope).signed.statement
    foreign = sign(stated, SigningKey.generate()).envelope
    for file, false, reason in (
        (payload, content + b".", Reason.CAPSULE_UNREADABLE),
        (statement, b"", Reason.STATEMENT_MISSING),
        (statement, other, Reason.DIGEST_MISMATCH),
        (statement, unread, Reason.CAPSULE_UNREADABLE),
        (statement, foreign, Reason.KEY_UNKNOWN),
    ):
        before = file.read_bytes()
        file.write_bytes(false)
        refused(lambda: kept_code(session, row.body["code"]), reason)
        found = Judgement(session).verdicts(store.find(row.id), now().timestamp())
        assert found.keys() == session.config.zones.keys()
        assert {(no.permitted, no.code, no.rules) for no in found.values()} == {(False, reason, (reason,))}
        file.write_bytes(before)
    payload.unlink()
    refused(lambda: kept_code(session, row.body["code"]), Reason.CAPSULE_UNREADABLE)


def test_code_whose_inspection_has_run_out_leaves_no_more_until_it_was_read_again(session, store):
    row = bringing_code(session, store, token="one")
    store.prepared(row.id, kept(session, expires_at="2100-01-01T00:00:00Z"))
    judge, at = Judgement(session), now().timestamp()
    found = judge.verdicts(store.find(row.id), at)["public"]
    assert found.permitted
    assert found.until_s == pytest.approx(at + session.config.crossing_minutes * 60, abs=60)
    after = judge.verdicts(store.find(row.id), found.until_s + 1)
    assert (after["public"].permitted, after["public"].rules) == (False, ("move.expired",))
    # Inside, policy does not mind: a yes there does not end with what has ended.
    assert after["private"].permitted
    assert after["private"].until_s > found.until_s + 1
    later = replace(session.border, clock=lambda: datetime.fromtimestamp(found.until_s, UTC))
    before = kept_code(session, row.body["code"]).sealed
    assert bringing_code(replace(session, border=later), store, token="one").id == row.id
    # A training that had left its zone goes on with what it has, under what was signed since.
    after = latest(session, before)
    assert (after.payload, after.signed.digest != before.signed.digest) == (before.payload, True)
    assert latest(session, other := seal(session, lambda inputs, outputs: inputs, lambda text: ())) is other
    assert latest(session, None) is None
    assert judge.verdicts(store.find(row.id), found.until_s + 1)["public"].permitted


def taken(session, store, row, zone, **spec):
    """Give a job a place, and return what its driver has there: its attendance, its job's spec and its matrix."""
    place = Place(zone=zone, pool=zone, workers=1, reservation="r-1", reserved_micros=0)
    assert store.place(row.id, row.attempt, place, AT)
    inside = Fabric(replace(session, acts_for=row.body["person"]))
    matrix = inside.matrix(store.find(row.id).matrix)
    driver = Attendance(session=inside.session, store=store, job=row.id, driver="d-1", labels=matrix.labels)
    justification = session.home.justification(row.body["justification"])
    return inside, driver, JobSpec(records="people", recipe="", zone=zone, justification=justification, **spec), matrix


def test_an_approval_of_the_code_that_a_job_brings_along_is_found_by_the_queue_and_told_in_its_plan(folder, capsys):
    kim = SigningKey.generate()
    config = folder / "fabric.toml"
    held = '\n[policy.approvers.kim]\nkey = "' + kim.public.to_text() + '"\n'
    limited = 'purpose = "cost-forecast"\ncontract_limits = ["two-person"]\ncontract = "c-1"'
    config.write_text(config.read_text().replace('purpose = "cost-forecast"', limited) + held)
    session = Session.open(Environment.read({"FABRIC_PERSON": "ann"}), config_path=folder)
    store = open_queue(session.config, session.home)
    row = bringing_code(session, store)
    store.prepared(row.id, kept(session, expires_at="2100-01-01T00:00:00Z"))
    row, judge = store.find(row.id), Judgement(session)
    signed = Fabric(session).matrix(row.matrix).sealed.signed
    (approver,) = session.border.approvals.approvers
    at = now()
    for code, permitted in ((digest(b"another"), False), (row.body["code"], True)):
        asked = question_about(session, signed, "public", row.body["purpose"], code)
        keep_approval(session, asked, approver, approve(asked, approver, kim, now=at, lasts=timedelta(days=1)))
        assert judge.verdicts(row, at.timestamp())["public"].permitted is permitted
    attend(*taken(session, store, row, "public"), lambda *_: SimpleNamespace(model=SimpleNamespace(id="m-1")))
    assert "Egress plan to zone public" in (said := capsys.readouterr().out)
    assert "DENIED" not in said
    assert store.find(row.id).state is State.DONE
    store.close()
    session.ledger.close()


def test_a_plan_that_cannot_be_made_ends_the_job_with_its_reason(session, store):
    row = bringing_code(session, store)
    store.prepared(row.id, kept(session, expires_at="2100-01-01T00:00:00Z"))
    inside, driver, spec, matrix = taken(session, store, store.find(row.id), "gone")
    refused(lambda: attend(inside, driver, spec, matrix, lambda *_: pytest.fail("worked")), Reason.UNKNOWN_ZONE)
    assert (store.find(row.id).state, store.find(row.id).code) == (State.FAILED, Reason.UNKNOWN_ZONE)


def test_a_driver_waits_for_a_queue_that_is_away_and_its_words_count_once_it_is_back(session, store):
    row = bringing_code(session, store)
    store.prepared(row.id, kept(session, expires_at="2100-01-01T00:00:00Z"))
    _, driver, _, _ = taken(session, store, store.find(row.id), "public")
    other, told = sqlite3.connect(session.home.path / "queue.sqlite3", isolation_level=None), []

    def away() -> None:
        other.execute("ALTER TABLE job RENAME TO elsewhere")

    def tell(line: str) -> None:
        told.append(line)
        if "cannot be reached" in line:
            other.execute("ALTER TABLE elsewhere RENAME TO job")

    driver.tell = tell
    away()
    assert driver.wait().zone == "public"
    assert store.claim(row.id, 1, "d-1", AT)
    away()
    driver.end(State.DONE, result="m-1")
    assert (store.find(row.id).state, store.find(row.id).result) == (State.DONE, "m-1")
    assert sum("cannot be reached" in line for line in told) == 2
    driver.end(State.DONE, result="m-1")  # heard before, and the answer lost
    refused(lambda: driver.end(State.DONE, result="m-2"), Reason.DRIVER_LOST)
    other.close()


def test_a_driver_whose_claim_was_heard_and_the_answer_lost_has_its_place_and_no_other_has_it(session, store):
    row = bringing_code(session, store)
    store.prepared(row.id, kept(session, expires_at="2100-01-01T00:00:00Z"))
    _, driver, _, _ = taken(session, store, store.find(row.id), "public")
    assert store.claim(row.id, 1, driver.driver, AT)
    assert driver.wait().state is State.RUNNING
    refused(replace(driver, driver="d-2").wait, Reason.DRIVER_LOST)


def raising(inputs, outputs):
    raise type("\x1b[2J7654321", (ValueError,), {})("7654321")


def test_an_error_of_the_code_that_a_job_brings_along_says_no_value_where_ray_or_the_queue_keep_it(session, store):
    sealed = seal(session, raising, lambda text: ())
    row, _ = submit(session, store, with_code(wish(session), sealed))
    store.prepared(row.id, kept(session, expires_at="2100-01-01T00:00:00Z"))
    row = store.find(row.id)
    place = taken(session, store, row, "public")
    work = lambda inside, spec, matrix, moves, code: code.network(2, 1)  # noqa: E731
    error = refused(lambda: attend(*place, work), Reason.REMOTE_FAILED)
    assert ("ValueError" in str(error), "7654321" in str(error), error.__suppress_context__) == (True, False, True)
    assert (store.find(row.id).state, store.find(row.id).code) == (State.FAILED, "ValueError")


def test_an_attempt_that_could_not_be_recorded_is_no_failure_of_the_job(session, store):
    row = bringing_code(session, store)
    store.prepared(row.id, kept(session, expires_at="2100-01-01T00:00:00Z"))
    place = taken(session, store, store.find(row.id), "public")

    def unrecorded(*_):
        raise FabricError(Reason.EVIDENCE_UNWRITABLE, "no room", "make some")

    refused(lambda: attend(*place, unrecorded), Reason.EVIDENCE_UNWRITABLE)
    assert store.find(row.id).state is State.RUNNING
    assert store.lose(row.id, 1, AT, code=Reason.DRIVER_LOST.value, tries=3)
    assert store.find(row.id).state is State.QUEUED


def test_what_comes_under_the_token_of_another_job_is_not_kept(session, store):
    submit(session, store, wish(session), token="one")
    refused(lambda: bringing_code(session, store, token="one"), Reason.SUBMIT_TOKEN_REUSED)
    assert not (session.home.path / "code").exists()


def test_who_submitted_a_job_is_who_policy_is_asked_about_whoevers_process_does_it(session, store):
    row, _ = submit(session, store, wish(session))
    other = Session.open(Environment.read({"FABRIC_PERSON": "the-clusters-owner"}), config_path=session.config.path)
    acting = replace(other, acts_for=row.body["person"])
    errand = acting.errand(zone="public", labels=acting.labels("people"), purpose="cost-forecast", justification="x")
    assert errand.person == session.home.pseudonym("ann") != other.person
    other.ledger.close()


def test_a_job_that_its_label_keeps_inside_is_denied_outside(session, store):
    row, _ = submit(session, store, wish(session, labels={"burst_eligible": "false"}))
    store.prepared(row.id, kept(session))
    found = Judgement(session).verdicts(store.find(row.id), AT)
    assert (found["private"].permitted, found["public"].permitted) == (True, False)


def test_without_dispatch_in_fabric_toml_the_commands_say_what_to_add(folder):
    change(folder, "\n[dispatch]\n", "\n", "fabric.toml")
    for words in (["submit", "train.toml"], ["queue"], ["top", "--once"], ["cancel", "x"]):
        done = CliRunner().invoke(app, words)
        assert done.exception.reason is Reason.CONFIG_INVALID
        assert "every key has a default" in done.exception.hint


def test_the_queue_is_told_without_a_cluster_and_a_job_that_waits_is_taken_back(folder):
    run = CliRunner().invoke
    submitted = json.loads(run(app, ["submit", "train.toml", "--token", "one", "--priority", "5", "--json"]).stdout)
    assert (submitted["new"], submitted["state"], submitted["priority"]) == (True, "queued", 5)
    listed = json.loads(run(app, ["queue", "--json"]).stdout)
    assert [job["job"] for job in listed["jobs"]] == [submitted["job"]]
    assert listed["dispatcher"] is False
    assert "being sanitized" in run(app, ["queue"]).stdout
    assert "dispatcher IS NOT THERE" in run(app, ["top", "--once"]).stdout
    assert json.loads(run(app, ["top", "--json"]).stdout)["limits"][0]["spent"] == 0
    assert "taken back" in run(app, ["cancel", "one"]).stdout
    assert "had ended" not in run(app, ["cancel", "one"]).stdout
    assert json.loads(run(app, ["queue", "--json"]).stdout)["jobs"] == []
    assert json.loads(run(app, ["queue", "--all", "--json"]).stdout)["jobs"][0]["state"] == "cancelled"
    assert run(app, ["cancel", "nobody"]).exception.reason is Reason.JOB_UNKNOWN
