"""Policy: deny is the default, each rule of the default set decides, and what cannot be judged is a deny."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabric.errors import InvalidInput, Reason, Refused
from fabric.labels import Classification, Labels
from fabric.placement import place
from fabric.policy import MoveRequest, Policy, RunRequest
from fabric.zones import Zone, ZoneKind

PRIVATE = Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="EU", cpus=2)
PUBLIC = Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="EU", slots=4)
EDGE = Zone(name="edge", kind=ZoneKind.EDGE, jurisdiction="EU")
LABELS = Labels(
    data_classification=Classification.RESTRICTED,
    allowed_execution_zone=frozenset({"private", "public", "edge"}),
    burst_eligible=True,
    purpose="cost-forecast",
    residency=frozenset({"EU"}),
    export_control="none",
)
RUN = RunRequest(
    person="p-1", zone=PUBLIC, labels=LABELS, purpose="cost-forecast", justification="queue", reads_records=False
)
MOVE = MoveRequest(
    person="p-1",
    zone=PUBLIC,
    labels=LABELS,
    purpose="cost-forecast",
    justification="queue",
    artifact="matrix",
    inspected=True,
    expired=False,
    statement_purpose="cost-forecast",
)
POLICY = Policy.default()


def rules(request):
    decision = POLICY.decide(request)
    return decision.permit, [rule.id for rule in decision.rules]


# One row per rule: the permitted request with one thing changed, and the one rule that then decides.
TABLE = [
    (RUN, True, "run.public"),
    (replace(RUN, zone=PRIVATE, reads_records=True, justification=""), True, "run.inside"),
    (replace(RUN, reads_records=True), False, "run.raw_stays"),
    (replace(RUN, zone=EDGE), False, "default.deny"),
    (replace(RUN, labels=replace(LABELS, allowed_execution_zone=frozenset({"private"}))), False, "labels.zone"),
    (replace(RUN, zone=PRIVATE, labels=replace(LABELS, allowed_execution_zone=frozenset())), False, "labels.zone"),
    (replace(RUN, labels=replace(LABELS, burst_eligible=False)), False, "labels.burst"),
    (replace(RUN, purpose="research"), False, "labels.purpose"),
    (replace(RUN, purpose="", labels=replace(LABELS, purpose="")), False, "labels.purpose"),
    (replace(RUN, labels=replace(LABELS, residency=frozenset({"US"}))), False, "labels.residency"),
    (replace(RUN, labels=replace(LABELS, export_control="ITAR")), False, "labels.export"),
    (replace(RUN, justification=""), False, "public.justified"),
    (MOVE, True, "move.public"),
    (replace(MOVE, artifact="capsule", statement_purpose=""), True, "move.public"),
    (replace(MOVE, zone=PRIVATE, artifact="records", inspected=False), True, "move.inside"),
    (replace(MOVE, artifact="records"), False, "default.deny"),
    (replace(MOVE, artifact="model"), False, "default.deny"),
    (replace(MOVE, inspected=False), False, "move.uninspected"),
    (replace(MOVE, expired=True), False, "move.expired"),
    (replace(MOVE, text_columns=1), False, "move.text"),
    (replace(MOVE, keyed_tokens=1), False, "move.tokens"),
    (
        replace(MOVE, keyed_tokens=1, labels=replace(LABELS, data_classification=Classification.CONFIDENTIAL)),
        False,
        "move.tokens",
    ),
    (
        replace(MOVE, keyed_tokens=1, labels=replace(LABELS, data_classification=Classification.INTERNAL)),
        True,
        "move.public",
    ),
    (replace(MOVE, statement_purpose="research"), False, "move.purpose"),
    (replace(MOVE, zone=EDGE), False, "default.deny"),
    (replace(MOVE, justification=""), False, "public.justified"),
    (replace(MOVE, labels=replace(LABELS, burst_eligible=False)), False, "labels.burst"),
]


@pytest.mark.parametrize(
    ("request_", "permit", "rule"), TABLE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_rule_decides_alone(request_, permit, rule):
    assert rules(request_) == (permit, [rule])


def test_every_rule_of_the_default_set_stands_in_the_table():
    assert {rule for _, _, rule in TABLE} - {"default.deny"} == set(POLICY._rules)


def test_a_request_that_does_not_fit_the_schema_is_denied():
    permit, ids = rules(replace(RUN, purpose=None))
    assert not permit
    assert ids == ["engine.error"]


def test_a_policy_that_errors_does_not_turn_into_a_permit():
    # Cedar skips a policy that errors; without the schema a missing attribute would make this forbid vanish.
    text = """
    @id("a") @reason("all") permit (principal, action, resource);
    @id("b") @reason("never") forbid (principal, action == Action::"run", resource) when { context.nothing > 0 };
    """
    with pytest.raises(InvalidInput) as caught:
        Policy(text, _schema())
    assert caught.value.reason is Reason.POLICY_INVALID


@pytest.mark.parametrize("text", ["permit (", "permit (principal, action, resource);", '@id("x") permit (p);', "\0"])
def test_a_policy_without_an_id_or_that_does_not_parse_is_refused(text):
    with pytest.raises(InvalidInput) as caught:
        Policy(text, _schema())
    assert caught.value.reason is Reason.POLICY_INVALID


def test_an_empty_policy_denies_everything():
    decision = Policy("", _schema()).decide(RUN)
    assert not decision.permit
    assert [rule.id for rule in decision.rules] == ["default.deny"]


def test_a_denial_names_every_rule_and_every_way_out():
    request = replace(MOVE, justification="", expired=True)
    with pytest.raises(Refused) as caught:
        POLICY.decide(request).enforce()
    assert caught.value.reason is Reason.POLICY_DENIED
    assert "[public.justified]" in caught.value.message
    assert "[move.expired]" in caught.value.message
    assert "sanitize the records again" in caught.value.hint


requests = st.builds(
    replace,
    st.just(MOVE),
    zone=st.sampled_from([PUBLIC, EDGE, PRIVATE]),
    artifact=st.sampled_from(["records", "matrix", "capsule", "model", ""]),
    inspected=st.booleans(),
    expired=st.booleans(),
    justification=st.sampled_from(["", "queue"]),
    purpose=st.sampled_from(["", "cost-forecast", "research"]),
    statement_purpose=st.sampled_from(["", "cost-forecast", "research"]),
    text_columns=st.integers(0, 2),
    labels=st.builds(
        Labels,
        allowed_execution_zone=st.frozensets(st.sampled_from(["private", "public", "edge"])),
        burst_eligible=st.booleans(),
        purpose=st.sampled_from(["", "cost-forecast"]),
        residency=st.frozensets(st.sampled_from(["EU", "US"])),
        export_control=st.sampled_from(["none", "ITAR"]),
    ),
)


@given(requests)
def test_records_and_text_never_leave_and_taking_rights_away_never_permits(request):
    permit = POLICY.decide(request).permit
    if request.zone is not PRIVATE and (request.artifact == "records" or request.text_columns or request.expired):
        assert not permit
    for stricter in (
        replace(request, labels=replace(request.labels, burst_eligible=False)),
        replace(request, labels=replace(request.labels, allowed_execution_zone=frozenset())),
        replace(request, labels=replace(request.labels, residency=frozenset())),
        replace(request, inspected=False),
        replace(request, justification=""),
    ):
        assert permit or not POLICY.decide(stricter).permit


def test_a_denied_decision_cannot_be_placed():
    with pytest.raises(Refused) as caught:
        place(POLICY.decide(replace(RUN, justification="")), workers=1)
    assert caught.value.reason is Reason.POLICY_DENIED


def test_more_workers_than_the_zone_has_are_refused_instead_of_pending_for_ever():
    with pytest.raises(Refused) as caught:
        place(POLICY.decide(RUN), workers=5)
    assert caught.value.reason is Reason.ZONE_HAS_NO_ROOM
    assert "at most 4" in caught.value.hint


def test_a_worker_outside_takes_a_slot_and_no_cpu():
    placement = place(POLICY.decide(RUN), workers=2)
    assert placement.resources_per_worker == {"zone_public": 1}
    assert placement.label_selector == {"zone": "public"}
    assert not placement.use_gpu


def test_a_worker_takes_a_gpu_where_the_zone_has_one():
    placement = place(POLICY.decide(replace(RUN, zone=replace(PUBLIC, gpus=2))), workers=2)
    assert placement.resources_per_worker == {"zone_public": 1, "GPU": 1}
    assert placement.use_gpu


def test_a_public_zone_with_cpus_cannot_be_declared():
    with pytest.raises(InvalidInput, match="set cpus = 0"):
        replace(PUBLIC, cpus=1)


def _schema():
    from importlib import resources

    return (resources.files("fabric") / "policies" / "default.cedarschema").read_text()
