"""The commands about policy: they answer, explain, compare and sign; and none of them moves anything."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fabric.config import Environment
from fabric.crossing import Cargo
from fabric.errors import FabricError, Reason, Refused
from fabric.policy import Policy
from fabric.policy_commands import approve_command, plan, policy_app, read_key
from fabric.policy_replay import recorded_decisions, replay
from fabric.session import Session
from fabric.starter import write_starter
from fabric.statements import SigningKey, timestamp
from fabric.testing import MemoryCarrier, sealed_matrix
from fabric.verification import verify_bundle
from sanitize.recipe import parse_recipe
from sanitize.releases import Release, Releases

app = typer.Typer()
app.command()(plan)
app.command("approve")(approve_command)
app.add_typer(policy_app)
RULE = """
@id("site.restricted") @reason("what is restricted leaves when somebody else agrees") @way_out("have it approved")
forbid (principal, action == Action::"move", resource)
when { resource.kind != "private" && context.labels.data_classification >= 3 && !context.approved };
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_starter(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FABRIC_PERSON", "kim")
    return tmp_path


def fabric(*command, status=0):
    done = CliRunner().invoke(app, list(command))
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done.output


def refused(*command):
    with pytest.raises(FabricError) as caught:
        fabric(*command)
    assert caught.value.hint
    return caught.value.reason


def asked(*command):
    return json.loads(fabric(*command, "--json"))


def declare(folder, text):
    (folder / "fabric.toml").write_text((folder / "fabric.toml").read_text() + text)


def opened(folder):
    return Session.open(Environment.read(), config_path=folder)


def errand(session, justification="queue"):
    labels = session.labels("people")
    return session.errand(zone="public", labels=labels, purpose="cost-forecast", justification=justification)


@pytest.fixture
def sanitized(folder):
    """A matrix that the starter's recipe made, with its statement in the evidence."""
    session = opened(folder)
    recipe = parse_recipe((folder / "people.recipe.toml").read_text(), source="people.recipe.toml")
    labels = session.labels("people")
    now = datetime.now(UTC)
    matrix = sealed_matrix(
        {"age": list(range(20)), "cost": [n * 1.5 for n in range(20)]}, key=session.key, now=now,
        purpose="cost-forecast", labels=labels.to_json(), stated={"recipe": recipe.digest, "issued_at": timestamp(now)},
    )  # fmt: skip
    receipt = session.ledger.intend("sanitize", {"records": ["people"], "recipe": recipe.digest})
    statement = session.ledger.attach(matrix.signed.envelope)
    release = Release(
        matrix=matrix.digest, records={"people": "hmac-sha256:0"}, recipe=recipe.digest, purpose="cost-forecast",
        quasi=(), rows=matrix.rows, sequence=0,
    )  # fmt: skip
    Releases(session.home.releases).propose(release, np.arange(20, dtype=np.uint64))
    session.ledger.conclude(receipt, "done", {"matrix": matrix.digest, "rows": matrix.rows, "statement": statement})
    session.ledger.close()
    return matrix


PLAN = ("plan", "people", "--recipe", "people.recipe.toml")


def test_a_plan_before_sanitizing_says_so_and_what_sanitizing_would_change(folder):
    found = asked(*PLAN, "--justification", "queue")
    assert {zone["zone"]: zone["permit"] for zone in found["zones"]} == {"private": True, "public": False}
    assert found["moving"]["rows"] is None
    assert [way[0]["change"] for way in found["zones"][1]["ways"]] == ["zone=private", "sanitize"]
    assert "not sanitized yet" in fabric(*PLAN)


def test_a_plan_of_a_sanitized_matrix_says_what_would_move(folder, sanitized):
    found = asked(*PLAN, "--justification", "queue")
    assert [zone["permit"] for zone in found["zones"]] == [True, True]
    moving = found["moving"]
    assert (moving["rows"], moving["bytes"], moving["digest"]) == (20, 20 * 16, sanitized.digest)
    assert [column["name"] for column in moving["columns"]] == ["age", "cost"]
    denied = asked(*PLAN, "--zone", "public")["zones"]
    assert [zone["zone"] for zone in denied] == ["public"]
    assert denied[0]["ways"] == [[{"change": "justification", "text": "say why in justification", "who": "you"}]]
    assert denied[0]["price"] == "no price declared"


def test_a_plan_is_for_this_recipe_as_it_stands_now(folder, sanitized):
    recipe = folder / "people.recipe.toml"
    recipe.write_text(recipe.read_text().replace("to = 5000", "to = 1000"))
    assert asked(*PLAN)["moving"]["rows"] is None


def test_a_plan_records_nothing(folder, sanitized):
    before = len(list(opened(folder).ledger.entries()))
    fabric(*PLAN)
    assert len(list(opened(folder).ledger.entries())) == before


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (("plan", "persons", "--recipe", "people.recipe.toml"), Reason.UNKNOWN_RECORDS),
        (("plan", "people", "--recipe", "nothing.toml"), Reason.RECIPE_INVALID),
        ((*PLAN, "--zone", "pubic"), Reason.UNKNOWN_ZONE),
        ((*PLAN, "--zone", "public", "--ask", "ask.json"), Reason.STATEMENT_MISSING),
        (("approve", "nothing.json", "--key", "k"), Reason.CONFIG_INVALID),
        (("policy", "test", "nothing.toml"), Reason.CONFIG_INVALID),
        (("policy", "diff", "default", "nothing.cedar"), Reason.POLICY_INVALID),
        (("policy", "diff", "default", "default", "--replay", "a month"), Reason.CONFIG_INVALID),
        (("policy", "sign", "--key", "k", "--version", "1"), Reason.CONFIG_INVALID),
    ],
)
def test_what_is_wrong_is_refused_with_a_way_out(folder, command, reason):
    assert refused(*command) is reason


# A site's own policy, signed.


@pytest.fixture
def site(folder):
    """A site that asks for a second person before anything restricted leaves; kim asks, sam may approve."""
    (folder / "site.cedar").write_text(RULE)
    sam, security = (read_key(folder / name) for name in ("sam.key", "security.key"))
    kim = read_key(folder / "kim.key")
    declare(folder, f'\n[policy]\nfiles = ["site.cedar"]\nsigners = ["{security.public.to_text()}"]\n')
    declare(folder, f'[policy.approvers.sam]\nkey = "{sam.public.to_text()}"\n')
    declare(folder, f'[policy.approvers.kim]\nkey = "{kim.public.to_text()}"\n')
    return folder


def test_an_unsigned_policy_file_stops_everything_that_asks_policy(site):
    assert refused(*PLAN) is Reason.POLICY_UNSIGNED
    assert refused("policy", "show") is Reason.POLICY_UNSIGNED
    with pytest.raises(Refused):
        opened(site)


def test_a_policy_signed_by_somebody_who_is_not_declared_is_refused(site):
    body = asked("policy", "sign", "--key", "sam.key", "--version", "1")
    assert not body["declared"]
    assert refused("policy", "show") is Reason.KEY_UNKNOWN


@pytest.fixture
def signed(site):
    assert asked("policy", "sign", "--key", "security.key", "--version", "1")["declared"]
    return site


def test_a_signed_policy_is_shown_with_id_reason_and_way_out(signed):
    shown = asked("policy", "show")
    assert shown["version"] == 1
    mine = [rule for rule in shown["rules"] if rule["origin"] == "site"]
    assert [(rule["id"], rule["effect"], rule["way_out"]) for rule in mine] == [
        ("site.restricted", "forbid", "have it approved")
    ]
    assert "way out: have it approved" in fabric("policy", "show")
    assert "entity Zone" in fabric("policy", "show", "--schema")


def test_a_change_of_policy_is_recorded(signed):
    session = opened(signed)
    (record,) = [entry.record for entry in session.ledger.entries()]
    assert record["action"] == "policy-change"
    assert record["body"]["new"] == session.policy.digest
    session.ledger.close()


def test_two_persons_let_a_matrix_leave_and_only_that_one(signed, sanitized, monkeypatch):
    cargo = Cargo(matrix=sanitized)
    session = opened(signed)
    assert not session.border.decide(cargo, errand(session))[0].permit
    session.ledger.close()
    assert asked(*PLAN, "--zone", "public", "--justification", "x")["zones"][0]["ways"][0][0]["change"] == "approval"
    # 1. Kim asks, and may not answer.
    fabric(*PLAN, "--zone", "public", "--ask", "ask.json")
    assert refused("approve", "ask.json", "--key", "kim.key") is Reason.APPROVAL_SELF
    assert refused("approve", "ask.json", "--key", "security.key") is Reason.KEY_UNKNOWN
    # 2. Sam approves.
    monkeypatch.setenv("FABRIC_PERSON", "sam")
    body = asked("approve", "ask.json", "--key", "sam.key", "--days", "2")
    assert body["approver"] == "sam"
    # 3. Kim's matrix leaves; Sam's would not, nor would other code go with it.
    session = opened(signed)
    assert not session.border.decide(cargo, errand(session))[0].permit
    session.ledger.close()
    monkeypatch.setenv("FABRIC_PERSON", "kim")
    session = opened(signed)
    session.border.export(cargo, errand(session), MemoryCarrier())
    capsule = session.border.state_capsule(b"code", {"refused": False})
    assert not any(
        one.permit for one in session.border.decide(Cargo(matrix=sanitized, capsule=capsule), errand(session))
    )
    actions = [entry.record["action"] for entry in session.ledger.entries()]
    assert actions.count("approval") == 1
    bundle = session.ledger.bundle()
    assert bundle["documents"][body["approval"]]
    assert verify_bundle(bundle, trusted=[session.key.public]).crossings == 1
    session.ledger.close()


def test_a_steward_lowers_one_matrix_and_an_approver_does_not(signed, sanitized):
    steward = read_key(signed / "steward.key")
    declare(signed, f'[policy.approvers.stella]\nkey = "{steward.public.to_text()}"\nroles = ["steward"]\n')
    assert asked(*PLAN, "--justification", "x")["zones"][1]["ways"][2][0]["change"] == "lower=confidential"
    command = ("policy", "lower", sanitized.digest, "--to", "confidential", "--key")
    assert refused(*command, "sam.key") is Reason.KEY_UNKNOWN
    assert (
        refused("policy", "lower", "sha256:0", "--to", "internal", "--key", "steward.key") is Reason.STATEMENT_MISSING
    )
    assert refused("policy", "lower", sanitized.digest, "--to", "open", "--key", "steward.key") is Reason.LABEL_INVALID
    assert asked(*command, "steward.key")["to"] == "confidential"
    session = opened(signed)
    assert session.border.decide(Cargo(matrix=sanitized), errand(session))[0].permit
    other = sealed_matrix(
        {"age": [1], "cost": [2.0]}, key=session.key, now=datetime.now(UTC), purpose="cost-forecast",
        labels=session.labels("people").to_json(), stated={"recipe": sanitized.predicate["recipe"]},
    )  # fmt: skip
    assert not session.border.decide(Cargo(matrix=other), errand(session))[0].permit
    assert verify_bundle(session.ledger.bundle(), trusted=[session.key.public]).records > 0
    session.ledger.close()


# Trying a policy.

CASES = """
[[case]]
name = "a matrix may leave"
action = "move"
zone = "public"
purpose = "cost-forecast"
justification = "queue"
artifact = "matrix"
inspected = true
expired = false
statement_purpose = "cost-forecast"
risk = { k = 20, k_required = 11 }
expect = "permit"
rules = ["move.public"]
[case.labels]
data_classification = "restricted"
allowed_execution_zone = ["private", "public"]
burst_eligible = true
purpose = "cost-forecast"
residency = ["EU"]
export_control = "none"

[[case]]
name = "what nothing is said of stays"
action = "move"
zone = "public"
expect = "deny"

[[case]]
name = "nobody approves what they asked for"
action = "approve"
zone = "private"
roles = ["approver"]
expect = "deny"
rules = ["approve.own"]
"""


def test_a_table_of_expected_decisions_is_decided(folder):
    (folder / "cases.toml").write_text(CASES)
    assert "3 of 3 cases as expected" in fabric("policy", "test", "cases.toml")
    (folder / "site.cedar").write_text(RULE)
    out = fabric("policy", "test", "cases.toml", "--policy", "site.cedar", status=1)
    assert "FAILED a matrix may leave: expected permit, decided deny by site.restricted" in out
    (folder / "cases.toml").write_text(CASES.replace('rules = ["approve.own"]', 'rules = ["approve.other"]'))
    assert CliRunner().invoke(app, ["policy", "test", "cases.toml", "--json"]).exit_code == 1


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('action = "approve"', 'action = "aprove"', Reason.CONFIG_INVALID),
        ('roles = ["approver"]', 'artifact = "matrix"', Reason.UNKNOWN_KEY),
        ("statement_purpose =", "statment_purpose =", Reason.UNKNOWN_KEY),
        ('zone = "private"', 'zone = "privat"', Reason.UNKNOWN_ZONE),
        ("burst_eligible =", "burst_elegible =", Reason.UNKNOWN_LABEL),
        ("[[case]]", "[[row]]", Reason.UNKNOWN_KEY),
    ],
)
def test_a_table_with_a_wrong_word_is_refused(folder, old, new, reason):
    (folder / "cases.toml").write_text(CASES.replace(old, new))
    assert refused("policy", "test", "cases.toml") is reason


def test_a_diff_decides_the_past_again(folder, sanitized):
    session = opened(folder)
    cargo = Cargo(matrix=sanitized)
    session.border.export(cargo, errand(session), MemoryCarrier())
    with pytest.raises(Refused):
        session.border.export(cargo, errand(session, justification=""), MemoryCarrier())
    session.ledger.close()
    (folder / "stricter.cedar").write_text(RULE)
    (folder / "looser.cedar").write_text(
        '@id("site.silent") @replaces("public.justified") @reason("nobody need say why") @way_out("-")\n'
        "forbid (principal, action, resource) when { false };"
    )
    # Blocked outside, it could move inside.
    stricter = asked("policy", "diff", "current", "stricter.cedar")
    assert stricter["added"] == ["site.restricted"]
    (moved,) = stricter["differences"]
    assert (moved["kind"], moved["zone"], moved["to"], moved["rules"]) == (
        "moves", "public", ["private"], ["site.restricted"],
    )  # fmt: skip
    assert stricter["same"] == 1
    (freed,) = asked("policy", "diff", "default", "looser.cedar", "--replay", "12h")["differences"]
    assert (freed["kind"], freed["rules"]) == ("freed", ["move.public"])
    assert asked("policy", "diff", "default", "current")["differences"] == []
    assert "- public.justified" in fabric("policy", "diff", "default", "looser.cedar")
    # What the old policy would have decided otherwise was decided under another.
    assert asked("policy", "diff", "stricter.cedar", "stricter.cedar")["unlike_record"] != []


def test_what_is_older_than_the_window_and_what_cannot_be_replayed_is_left_out():
    def record(day, *decisions):
        return {"at": f"2026-06-0{day}T00:00:00.000000+00:00", "body": {"job": "j", "decisions": list(decisions)}}

    decision = {"effect": "permit", "attributes": {}}
    entries = list(
        enumerate([record(1, decision), record(3, decision, decision), record(4), {**record(5), "body": {}}])
    )
    since = datetime(2026, 6, 2, tzinfo=UTC)
    past = list(recorded_decisions(entries, since=since))
    assert [one.index for one in past] == [1, 1]
    found = replay(Policy.default(), Policy.default(), past, [])
    assert (found.unreplayable, found.same, found.differences) == (2, 0, ())


def test_a_key_is_made_once_for_its_owner_only(tmp_path):
    key = read_key(tmp_path / "my.key")
    assert read_key(tmp_path / "my.key").seed == key.seed
    assert (tmp_path / "my.key").stat().st_mode & 0o077 == 0
    (tmp_path / "short").write_bytes(b"short")
    for path in (tmp_path / "short", tmp_path / "none" / "key"):
        with pytest.raises(FabricError) as caught:
            read_key(path)
        assert caught.value.reason is Reason.KEY_UNKNOWN


def test_two_approvers_do_not_share_a_key(folder):
    text = SigningKey.generate().public.to_text()
    declare(folder, f'\n[policy.approvers.a]\nkey = "{text}"\n[policy.approvers.b]\nkey = "{text}"\n')
    assert refused("policy", "show") is Reason.CONFIG_INVALID
