"""Policy: deny is the default, each rule of the default set decides, and what cannot be judged is a deny."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import cedarpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fabric.egress import risk_of
from fabric.errors import InvalidInput, Reason, Refused
from fabric.labels import Classification, ContractLimit, ExportControl, Labels, RetentionClass, WorkloadClass
from fabric.placement import place
from fabric.policy import Policy, default_texts
from fabric.requests import Action, ActRequest, MoveRequest, Risk, RunRequest
from fabric.statements import SigningKey
from fabric.testing import LOW_RISK, RISK_LIMITS, sealed_matrix
from fabric.zones import Zone, ZoneKind

PRIVATE = Zone(name="private", kind=ZoneKind.PRIVATE, jurisdiction="EU", cpus=2)
PUBLIC = Zone(name="public", kind=ZoneKind.PUBLIC, jurisdiction="EU", slots=4)
EDGE = Zone(name="edge", kind=ZoneKind.EDGE, jurisdiction="EU")
AMERICAN = replace(PUBLIC, name="american", jurisdiction="US")
AMERICAN_HOME = replace(PRIVATE, name="home", jurisdiction="US")
LABELS = Labels(
    data_classification=Classification.RESTRICTED,
    allowed_execution_zone=frozenset({"private", "public", "edge", "american", "home"}),
    burst_eligible=True,
    purpose="cost-forecast",
    residency=frozenset({"EU", "US"}),
    export_control=ExportControl.NONE,
)
RUN = RunRequest(
    person="p-1", zone=PUBLIC, labels=LABELS, purpose="cost-forecast", justification="queue", reads_records=False
)
RISK = Risk(k=11, k_required=11, l=2, l_required=2, t=500_000, t_allowed=500_000)
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
    risk=RISK,
)
ACT = ActRequest(
    action=Action.SERVE,
    person="p-1",
    zone=PUBLIC,
    labels=LABELS,
    purpose="cost-forecast",
    justification="queue",
    roles=frozenset({"approver", "steward"}),
    own=False,
    verified=True,
    approved=True,
)
POLICY = Policy.default()


def labelled(request, **changes):
    return replace(request, labels=replace(request.labels, **changes))


def inside(request, **changes):
    return replace(request, zone=PRIVATE, **changes)


def limited(request, *limits):
    return labelled(request, contract_limits=frozenset(map(ContractLimit, limits)))


def risky(**changes):
    return replace(MOVE, risk=replace(RISK, **changes))


def act(action, **changes):
    return replace(ACT, action=Action(action), **changes)


def home(action, **changes):
    return inside(act(action), **changes)


ITAR = {"export_control": ExportControl.ITAR}
# Everything that a rule asks of what leaves is missing; inside, nothing of it matters.
BARE = {"burst_eligible": False, "purpose": "other", "residency": frozenset()}
OPEN_DATA, INTERNAL, CONFIDENTIAL = Classification.PUBLIC, Classification.INTERNAL, Classification.CONFIDENTIAL
TUNING, TRAINING = {"workload_class": WorkloadClass.FINE_TUNING}, {"workload_class": WorkloadClass.TRAINING}
UNAPPROVED = replace(ACT, approved=False, labels=replace(LABELS, data_classification=INTERNAL))

# The permitted request with one thing changed, and what then decides, alone. Each condition of each rule is turned once
# while all others hold (modified condition/decision coverage), and each threshold is met and missed by one.
TABLE = [
    # run
    (RUN, "run.public"),
    (inside(RUN, reads_records=True), "run.inside"),
    (labelled(inside(RUN, justification="", purpose=""), **BARE), "run.inside"),
    (replace(RUN, reads_records=True), "run.raw_stays"),
    (replace(RUN, zone=EDGE), "default.deny"),
    # submit
    (home("submit"), "submit.inside"),
    (act("submit"), "default.deny"),
    (act("submit", zone=EDGE), "default.deny"),
    # move
    (MOVE, "move.public"),
    (replace(MOVE, artifact="capsule", statement_purpose="", risk=None), "move.public"),
    (replace(MOVE, artifact="model"), "default.deny"),
    (replace(MOVE, zone=EDGE), "default.deny"),
    (replace(MOVE, artifact="records"), "move.records"),
    (replace(MOVE, artifact="held-back"), "move.records"),
    (labelled(replace(MOVE, artifact="records"), data_classification=CONFIDENTIAL), "move.records"),
    (labelled(replace(MOVE, artifact="records"), data_classification=INTERNAL), "default.deny"),
    (labelled(replace(MOVE, artifact="held-back"), data_classification=OPEN_DATA), "default.deny"),
    (
        inside(
            labelled(MOVE, **BARE), purpose="x", justification="", inspected=False, expired=True, risk=None,
            text_columns=frozenset({"notes"}), keyed_tokens=3, statement_purpose="y",
        ),
        "move.inside",
    ),
    (inside(risky(k=0, l=0, t=900_000)), "move.inside"),
    (inside(MOVE, artifact="records"), "move.inside"),
    (inside(MOVE, artifact="held-back"), "move.inside"),
    (replace(MOVE, inspected=False), "move.uninspected"),
    (replace(MOVE, expired=True), "move.expired"),
    (replace(MOVE, text_columns=frozenset({"notes"})), "move.text"),
    (replace(MOVE, statement_purpose="research"), "move.purpose"),
    (replace(MOVE, statement_purpose=""), "move.purpose"),
    (replace(MOVE, risk=None), "move.unmeasured"),
    (labelled(replace(MOVE, risk=None), data_classification=CONFIDENTIAL), "move.unmeasured"),
    (labelled(replace(MOVE, risk=None), data_classification=INTERNAL), "move.public"),
    (risky(k=12), "move.public"),
    (risky(k=10), "move.k"),
    (labelled(risky(k=10), data_classification=OPEN_DATA), "move.k"),
    (replace(risky(k=10), artifact="capsule"), "move.public"),
    (risky(l=3), "move.public"),
    (risky(l=1), "move.l"),
    (replace(risky(l=1), artifact="capsule"), "move.public"),
    (risky(t=499_999), "move.public"),
    (risky(t=500_001), "move.t"),
    (replace(risky(t=500_001), artifact="capsule"), "move.public"),
    (replace(MOVE, keyed_tokens=1), "move.keyed"),
    (replace(MOVE, keyed_tokens=2), "move.keyed"),
    (replace(MOVE, keyed_tokens=1, approved=True), "move.public"),
    (labelled(replace(MOVE, keyed_tokens=1), data_classification=CONFIDENTIAL), "move.keyed"),
    (labelled(replace(MOVE, keyed_tokens=1), data_classification=INTERNAL), "move.public"),
    # labels
    (labelled(RUN, allowed_execution_zone=frozenset({"private"})), "labels.zone"),
    (labelled(inside(RUN), allowed_execution_zone=frozenset()), "labels.zone"),
    (labelled(RUN, burst_eligible=False), "labels.burst"),
    (labelled(MOVE, burst_eligible=False), "labels.burst"),
    (replace(RUN, purpose="research"), "labels.purpose"),
    (labelled(replace(RUN, purpose=""), purpose=""), "labels.purpose"),
    (labelled(RUN, residency=frozenset({"US"})), "labels.residency"),
    (labelled(RUN, export_control=ExportControl.CONTROLLED), "labels.export"),
    (labelled(RUN, **ITAR), "labels.export"),
    (labelled(replace(RUN, zone=AMERICAN), **ITAR), "run.public"),
    (labelled(inside(RUN), export_control=ExportControl.CONTROLLED), "run.inside"),
    (labelled(inside(RUN), **ITAR), "labels.export_inside"),
    (labelled(replace(RUN, zone=AMERICAN_HOME), **ITAR), "run.inside"),
    (labelled(replace(MOVE, zone=AMERICAN), **ITAR), "labels.export_approved"),
    (labelled(replace(MOVE, zone=AMERICAN, approved=True), **ITAR), "move.public"),
    (labelled(replace(ACT, zone=AMERICAN), **ITAR), "serve.verified"),
    (labelled(replace(UNAPPROVED, zone=AMERICAN), **ITAR), "labels.export_approved"),
    (
        labelled(replace(UNAPPROVED, action=Action.DEPLOY, zone=AMERICAN), **ITAR),
        "labels.export_approved",
    ),
    (
        labelled(replace(MOVE, zone=AMERICAN_HOME), **ITAR),
        "move.inside",
    ),
    # contract
    (limited(RUN, "no-public-zone"), "contract.public"),
    (limited(act("serve", zone=EDGE), "no-public-zone"), "serve.verified"),
    (limited(inside(RUN), "no-public-zone", "no-edge-zone", "two-person"), "run.inside"),
    (limited(act("serve", zone=EDGE), "no-edge-zone"), "contract.edge"),
    (limited(RUN, "no-edge-zone"), "run.public"),
    (limited(labelled(RUN, **TUNING), "no-fine-tuning"), "contract.fine_tuning"),
    (limited(labelled(inside(RUN), **TUNING), "no-fine-tuning"), "contract.fine_tuning"),
    (limited(labelled(RUN, **TRAINING), "no-fine-tuning"), "run.public"),
    (limited(labelled(inside(RUN), **TRAINING), "no-fine-tuning"), "run.inside"),
    (limited(RUN, "no-fine-tuning"), "contract.fine_tuning"),
    (limited(inside(RUN), "no-fine-tuning"), "run.inside"),
    (labelled(RUN, **TUNING), "run.public"),
    (limited(labelled(MOVE, **TUNING), "no-fine-tuning"), "move.public"),
    (limited(ACT, "no-serving"), "contract.serving"),
    (limited(act("deploy"), "no-serving"), "contract.serving"),
    (limited(MOVE, "no-serving"), "move.public"),
    (limited(MOVE, "two-person"), "contract.two_person"),
    (limited(replace(MOVE, approved=True), "two-person"), "move.public"),
    (limited(inside(MOVE), "two-person"), "move.inside"),
    (limited(UNAPPROVED, "two-person"), "contract.two_person"),
    (
        limited(replace(UNAPPROVED, action=Action.DEPLOY), "two-person"),
        "contract.two_person",
    ),
    # justification
    (replace(RUN, justification=""), "public.justified"),
    (replace(MOVE, justification=" \n"), "public.justified"),
    # read
    (home("read"), "read.inside"),
    (act("read"), "default.deny"),
    (home("read", purpose="research"), "read.purpose"),
    (labelled(home("read", purpose=""), purpose=""), "read.purpose"),
    # approve
    (home("approve"), "approve.approver"),
    (act("approve"), "default.deny"),
    (home("approve", roles=frozenset({"steward"})), "default.deny"),
    (home("approve", own=True), "approve.own"),
    # promote
    (home("promote"), "promote.verified"),
    (act("promote"), "default.deny"),
    (home("promote", verified=False), "default.deny"),
    (home("promote", approved=False), "promote.approved"),
    (home("promote", own=True), "promote.verified"),
    # deploy, serve
    (ACT, "serve.verified"),
    (act("deploy"), "serve.verified"),
    (act("deploy", zone=EDGE), "serve.verified"),
    (replace(ACT, verified=False), "default.deny"),
    (act("deploy", verified=False), "default.deny"),
    (replace(ACT, approved=False), "serve.approved"),
    (act("deploy", approved=False), "serve.approved"),
    (inside(ACT, approved=False), "serve.verified"),
    (labelled(replace(ACT, approved=False), data_classification=CONFIDENTIAL), "serve.approved"),
    (labelled(replace(ACT, approved=False), data_classification=INTERNAL), "serve.verified"),
    # delete
    (home("delete"), "delete.steward"),
    (home("delete", roles=frozenset({"approver"})), "default.deny"),
    (home("delete", approved=False), "delete.approved"),
    (labelled(home("delete"), retention_class=RetentionClass.HOLD), "delete.hold"),
    (labelled(home("delete"), retention_class=RetentionClass.YEARS_10), "delete.steward"),
    (labelled(inside(RUN), retention_class=RetentionClass.HOLD), "run.inside"),
    # change_policy
    (home("change_policy"), "policy.change"),
    (act("change_policy"), "default.deny"),
    (home("change_policy", verified=False), "default.deny"),
    (home("change_policy", approved=False), "policy.approved"),
    # break_glass
    (home("break_glass"), "glass.inside"),
    (act("break_glass"), "default.deny"),
    (home("break_glass", justification=""), "glass.justified"),
    (home("break_glass", approved=False), "glass.justified"),
]  # fmt: skip
PERMITS = {rule.id for rule in POLICY.rules if rule.effect == "permit"}


@pytest.mark.parametrize(("asked", "rule"), TABLE, ids=[f"{n}-{rule}" for n, (_, rule) in enumerate(TABLE)])
def test_each_rule_decides_alone(asked, rule):
    decision = POLICY.decide(asked)
    assert ([r.id for r in decision.rules], decision.permit) == ([rule], rule in PERMITS)


def test_every_rule_of_the_default_set_stands_in_the_table():
    assert {rule for _, rule in TABLE} - {"default.deny"} == {rule.id for rule in POLICY.rules}


def test_every_rule_that_forbids_names_a_way_out():
    assert [rule.id for rule in POLICY.rules if rule.effect == "forbid" and not rule.way_out] == []


# Mutants: every change of one token of the default policies must change the answer to some row of the table.

SWAPS = [
    ("==", "!="), ("!=", "=="), ("&&", "||"), ("||", "&&"), (">=", ">"), (">=", "<"), (" > ", " >= "), (" > ", " < "),
    (" < ", " <= "), (" < ", " > "), ("permit (", "forbid ("), ("forbid (", "permit ("), ("when {", "unless {"),
    (".isEmpty()", ".isEmpty() == false"),
]  # fmt: skip


def rule_blocks(text):
    return re.findall(r'@id\("[^"]+"\).*?;\n', text, re.DOTALL)


def without_an_operand(node):
    """Yield a Cedar JSON expression once for each operand of each `&&` and `||`, with a constant in its place."""
    for operator, operands in node.items() if isinstance(node, dict) else ():
        if operator in ("&&", "||"):
            for side in ("left", "right"):
                for constant in (True, False):
                    yield {operator: {**operands, side: {"Value": constant}}}
        if operator in ("&&", "||", "!"):
            for side, inner in operands.items():
                for changed in without_an_operand(inner):
                    yield {operator: {**operands, side: changed}}


def mutated_conditions(block):
    """Yield the rule with one operand of its condition made constant, as text."""
    (rule,) = json.loads(cedarpy.policies_to_json_str(block))["staticPolicies"].values()
    for condition in rule["conditions"]:
        for body in without_an_operand(condition["body"]):
            changed = {**rule, "conditions": [{**condition, "body": body}]}
            policies = {"staticPolicies": {"one": changed}, "templates": {}, "templateLinks": []}
            yield cedarpy.policies_from_json_str(json.dumps(policies)) + "\n"


def mutants(text):
    for block in rule_blocks(text):
        name = re.match(r'@id\("([^"]+)"\)', block)[1]
        start = block.index("permit (") if "\npermit (" in block else block.index("forbid (")
        notes, rule = block[:start], block[start:]

        def made(changed, notes=notes, block=block):
            return text.replace(block, notes + changed)

        yield f"{name}: dropped", text.replace(block, "")
        for old, new in SWAPS:
            for m in re.finditer(re.escape(old), rule):
                if old == "==" and rule[max(0, m.start() - 7) : m.start()] == "action ":
                    continue
                yield f"{name}: {old}->{new} at {m.start()}", made(rule[: m.start()] + new + rule[m.end() :])
        for m in re.finditer(r"!(?!=)", rule):
            yield f"{name}: negation at {m.start()}", made(rule[: m.start()] + rule[m.end() :])
        for m in re.finditer(r"(?<=[({\s])(context\.[a-z_.]+|\[[^\]]*\]\.contains\([^)]*\))(?=\s*[})&|])", rule):
            yield f"{name}: {m[0]} negated", made(f"{rule[: m.start()]}!({m[0]}){rule[m.end() :]}")
        for m in re.finditer(r'"([^"]*)"', rule):
            if rule[m.start() - 2 : m.start()] == "::":
                for other in ("run", "move", "read", "serve", "delete"):
                    if other != m[1]:
                        yield f"{name}: action {m[1]}->{other}", made(f'{rule[: m.start()]}"{other}"{rule[m.end() :]}')
            else:
                yield f"{name}: {m[0]} changed", made(rule[: m.start()] + '"mutant"' + rule[m.end() :])
        for m in re.finditer(r"(?<=[ >=<])\d+", rule):
            for step in (-1, 1):
                yield f"{name}: {m[0]}{step:+}", made(rule[: m.start()] + str(int(m[0]) + step) + rule[m.end() :])
        for m in re.finditer(r"\[([^\]]+)\]", rule):
            items = m[1].split(", ")
            for item in items if len(items) > 1 else ():
                rest = ", ".join(other for other in items if other != item)
                yield f"{name}: without {item}", made(f"{rule[: m.start()]}[{rest}]{rule[m.end() :]}")
        for m in re.finditer(r'action (==|in) (Action::"\w+"|\[[^\]]*\])', rule):
            yield f"{name}: any action", made(rule[: m.start()] + "action" + rule[m.end() :])
        if when := re.search(r"when \{(.*)\}", rule, re.DOTALL):
            yield f"{name}: no condition", made(rule[: when.start()] + rule[when.end() :])
        for number, changed in enumerate(mutated_conditions(block)):
            yield f"{name}: operand {number}", text.replace(block, changed)


def answers(policy, rows):
    decisions = policy.decide_all([TABLE[row][0] for row in rows])
    return [(decision.permit, [rule.id for rule in decision.rules]) for decision in decisions]


def survives(policy, name):
    """Say whether a mutant of the rule `name` answers every row as the default policy does."""
    nearest_first = sorted(range(len(TABLE)), key=lambda row: TABLE[row][1] != name)
    batches = (nearest_first[:8], nearest_first[8:])
    return all(answers(policy, batch) == answers(POLICY, batch) for batch in batches)


def test_the_table_kills_every_one_token_mutant_of_the_default_policies():
    text, schema = default_texts()
    lived, killed = [], 0
    for name, mutant in mutants(text):
        assert mutant != text, name
        try:
            policy = Policy(mutant, schema)
        except InvalidInput:
            continue  # the schema refuses it before anybody is asked
        if survives(policy, name.partition(":")[0]):
            lived.append(name)
        killed += 1
    assert lived == []
    assert killed > 500


# The oracle: the default rules read by hand, over a request's attributes. It shares no code with the policy.

TEXT, FLAG, COUNT, WORDS = "text", "flag", "count", "words"
LABEL_SHAPE = {
    "data_classification": COUNT, "allowed_execution_zone": WORDS, "burst_eligible": FLAG, "purpose": TEXT,
    "residency": WORDS, "export_control": TEXT, "export_jurisdiction": TEXT, "contract": TEXT, "contract_limits": WORDS,
    "retention_class": TEXT, "team": TEXT, "project": TEXT, "workload_class": TEXT,
}  # fmt: skip
COMMON = {"labels": LABEL_SHAPE, "purpose": TEXT, "justified": FLAG}
OF_RUN = {**COMMON, "reads_records": FLAG}
OF_ACT = {**COMMON, "approved": FLAG, "roles": WORDS, "own": FLAG, "verified": FLAG}
OF_MOVE = {
    **COMMON, "approved": FLAG, "artifact": TEXT, "inspected": FLAG, "expired": FLAG, "statement_purpose": TEXT,
    "text_columns": WORDS, "keyed_tokens": COUNT, "risk_measured": FLAG, "risk_k": COUNT, "risk_k_required": COUNT,
    "risk_l": COUNT, "risk_l_required": COUNT, "risk_t": COUNT, "risk_t_allowed": COUNT,
}  # fmt: skip


def fits(value, shape):
    if isinstance(shape, dict):
        return isinstance(value, dict) and value.keys() == shape.keys() and all(fits(value[k], shape[k]) for k in shape)
    if shape == WORDS:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value) is {TEXT: str, FLAG: bool, COUNT: int}[shape] and (shape != COUNT or -(2**63) <= value < 2**63)


def oracle(asked):
    """Say whether the default policy permits a request, given by its attributes."""
    action, c, zone = asked.get("action"), asked.get("context"), asked.get("zone")
    acts = {action.value for action in Action}
    if not isinstance(action, str):
        return False
    shape = {"run": OF_RUN, "move": OF_MOVE}.get(action, OF_ACT if action in acts else None)
    if shape is None or not fits(c, shape) or not isinstance(asked.get("person"), str):
        return False
    if not fits(zone, {"name": TEXT, "kind": TEXT, "jurisdiction": TEXT}):
        return False
    labels, kind, outside = c["labels"], zone["kind"], zone["kind"] != "private"
    secret = labels["data_classification"] >= 2
    limits = labels["contract_limits"]
    # Who may, at all.
    may = {
        "run": kind in ("private", "public"),
        "submit": not outside,
        "move": not outside or (kind == "public" and c.get("artifact") in ("matrix", "capsule")),
        "read": not outside,
        "approve": not outside and "approver" in c.get("roles", ()),
        "promote": not outside and c.get("verified"),
        "deploy": c.get("verified"),
        "serve": c.get("verified"),
        "delete": "steward" in c.get("roles", ()),
        "change_policy": not outside and c.get("verified"),
        "break_glass": not outside,
    }[action]
    no = [zone["name"] not in labels["allowed_execution_zone"]]
    if outside:
        no += [
            not labels["burst_eligible"],
            c["purpose"] == "" or c["purpose"] != labels["purpose"],
            zone["jurisdiction"] not in labels["residency"],
            labels["export_control"] != "none" and labels["export_jurisdiction"] != zone["jurisdiction"],
            not c["justified"],
        ]
    else:
        no.append(labels["export_jurisdiction"] not in ("", zone["jurisdiction"]))
    no.append(kind == "public" and "no-public-zone" in limits)
    no.append(kind == "edge" and "no-edge-zone" in limits)
    leaves = outside and action in ("move", "deploy", "serve")
    if leaves and not c["approved"]:
        no += [labels["export_control"] != "none", "two-person" in limits]
    if action == "run":
        no.append(outside and c["reads_records"])
        forbidden = ("fine-tuning", "") if outside else ("fine-tuning",)
        no.append("no-fine-tuning" in limits and labels["workload_class"] in forbidden)
    if action == "move" and outside:
        no += [not c["inspected"], c["expired"], c["text_columns"] != []]
        no.append(
            secret and (c["artifact"] in ("records", "held-back") or (c["keyed_tokens"] > 0 and not c["approved"]))
        )
        if c["artifact"] == "matrix":
            no += [c["statement_purpose"] != c["purpose"], secret and not c["risk_measured"]]
            no += [c["risk_k"] < c["risk_k_required"], c["risk_l"] < c["risk_l_required"]]
            no.append(c["risk_t"] > c["risk_t_allowed"])
    if action in ("deploy", "serve"):
        no += ["no-serving" in limits, outside and secret and not c["approved"]]
    if action == "read":
        no.append(c["purpose"] == "" or c["purpose"] != labels["purpose"])
    if action == "approve":
        no.append(c["own"])
    if action in ("promote", "delete", "change_policy", "break_glass"):
        no.append(not c["approved"])
    if action == "delete":
        no.append(labels["retention_class"] == "hold")
    if action == "break_glass":
        no.append(not c["justified"])
    return bool(may) and not any(no)


BASES = [POLICY.decide(asked).attributes for asked, _ in TABLE]
VALUES = {
    "data_classification": st.integers(-1, 4),
    "allowed_execution_zone": st.lists(st.sampled_from(["private", "public", "edge"]), max_size=3, unique=True),
    "residency": st.lists(st.sampled_from(["EU", "US", ""]), max_size=2, unique=True),
    "export_control": st.sampled_from(["none", "ITAR", "controlled", ""]),
    "export_jurisdiction": st.sampled_from(["", "US", "EU"]),
    "contract_limits": st.lists(st.sampled_from([limit.value for limit in ContractLimit]), max_size=3, unique=True),
    "retention_class": st.sampled_from(["job", "hold", ""]),
    "workload_class": st.sampled_from(["", "training", "fine-tuning"]),
    "roles": st.lists(st.sampled_from(["approver", "steward"]), max_size=2, unique=True),
    "artifact": st.sampled_from(["records", "matrix", "held-back", "capsule", "model", ""]),
    "text_columns": st.lists(st.sampled_from(["notes", "name"]), max_size=2, unique=True),
    "kind": st.sampled_from(["private", "public", "edge", ""]),
    "jurisdiction": st.sampled_from(["EU", "US", ""]),
    "name": st.sampled_from(["private", "public", "edge", "elsewhere"]),
    "action": st.sampled_from(["run", "move", *(action.value for action in Action), "dance"]),
}
PURPOSES = st.sampled_from(["", "cost-forecast", "research"])
STRANGE = st.sampled_from(
    [None, 1, -1, True, "x", [], {}, [1], 2**63, "\0", {"__entity": {"type": "Person", "id": "x"}}]
)


def _values_of(name, value):
    if name in VALUES:
        return VALUES[name]
    if isinstance(value, bool):
        return st.booleans()
    return st.integers(0, 3) if isinstance(value, int) else PURPOSES


@st.composite
def attributes(draw):
    """A request near a permitted one, with up to four attributes changed, dropped, added or of a strange kind."""
    asked = json.loads(json.dumps(draw(st.sampled_from(BASES))))
    for _ in range(draw(st.integers(0, 4))):
        holder = draw(
            st.sampled_from(
                [
                    h
                    for h in (
                        asked,
                        asked.get("zone"),
                        asked.get("context"),
                        (asked.get("context") or {}).get("labels"),
                    )
                    if isinstance(h, dict) and h
                ]
            )
        )
        name = draw(st.sampled_from(sorted(holder)))
        what = draw(st.sampled_from(["value"] * 6 + ["strange", "drop", "add"]))
        if what == "drop":
            del holder[name]
        elif what == "add":
            holder["surplus"] = 1
        elif what == "strange":
            # A copy: a strange value may be changed in the next round, and the strategy keeps the one it drew.
            holder[name] = json.loads(json.dumps(draw(STRANGE)))
        elif not isinstance(holder[name], dict):
            holder[name] = draw(_values_of(name, holder[name]))
        if not isinstance(asked.get("context"), dict):
            break
    return asked


@given(attributes())
@settings(max_examples=1500, deadline=None)
def test_the_policy_and_an_independent_reading_of_its_rules_never_disagree(asked):
    (verdict,) = POLICY.judge([asked])
    assert verdict.permit == oracle({k: v for k, v in asked.items() if k != "surplus"}), [r.id for r in verdict.rules]


@pytest.mark.parametrize(("asked", "rule"), TABLE)
def test_the_independent_reading_agrees_with_the_table(asked, rule):
    assert oracle(POLICY.decide(asked).attributes) == (rule in PERMITS)


def test_requests_judged_together_are_judged_as_if_alone():
    strange = [{}, {"action": "run"}, {**BASES[0], "context": None}, {**BASES[0], "zone": {"name": "public"}}]
    asked = [*BASES, *strange, {**BASES[0], "zone": {**BASES[0]["zone"], "jurisdiction": "XX"}}]
    assert POLICY.judge(asked) == [POLICY.judge([one])[0] for one in asked]
    assert POLICY.judge(BASES) == [POLICY.judge([one])[0] for one in BASES]
    alone = [Policy.decide(POLICY, request) for request, _ in TABLE]
    assert list(Policy.default().decide_all([request for request, _ in TABLE])) == alone


# Monotonicity: what makes work more sensitive, or takes a right away, never turns a no into a yes.

zones = st.sampled_from([PRIVATE, PUBLIC, EDGE, AMERICAN])
labels = st.builds(
    Labels,
    data_classification=st.sampled_from(Classification),
    allowed_execution_zone=st.frozensets(st.sampled_from(["private", "public", "edge", "american"])),
    burst_eligible=st.sampled_from([True, True, False]),
    purpose=st.sampled_from(["cost-forecast", "cost-forecast", ""]),
    residency=st.sampled_from([frozenset({"EU", "US"}), frozenset({"EU"}), frozenset()]),
    export_control=st.sampled_from([ExportControl.NONE, ExportControl.NONE, *ExportControl]),
    contract=st.sampled_from(["", "c-1"]),
    contract_limits=st.one_of(st.none(), st.frozensets(st.sampled_from(ContractLimit), max_size=2)),
    retention_class=st.sampled_from([None, RetentionClass.HOLD, RetentionClass.YEAR_1]),
    workload_class=st.sampled_from([None, *WorkloadClass]),
)  # fmt: skip
words = st.sampled_from(["cost-forecast", "cost-forecast", "", "research", "for Mrs Doe"])
common = {"zone": zones, "labels": labels, "purpose": words, "justification": st.sampled_from(["queue", "queue", ""])}
few = st.integers(0, 3)
risks = st.one_of(
    st.none(), st.builds(Risk, k=few, k_required=few, l=few, l_required=few, t=few, t_allowed=few)
)  # fmt: skip
flags = st.booleans()
requests = st.one_of(
    st.builds(RunRequest, person=st.just("p-1"), reads_records=flags, **common),
    st.builds(
        MoveRequest, person=st.just("p-1"), **common, statement_purpose=words, inspected=flags, expired=flags,
        artifact=st.sampled_from(["matrix", "matrix", "capsule", "records", "held-back", "model"]), risk=risks,
        text_columns=st.sampled_from([frozenset(), frozenset({"notes"})]), keyed_tokens=few,
        approved=flags,
    ),
    st.builds(
        ActRequest, person=st.just("p-1"), action=st.sampled_from(Action), **common, own=flags, verified=flags,
        roles=st.frozensets(st.sampled_from(["approver", "steward"])), approved=flags,
    ),
)  # fmt: skip


def stricter_forms(request):
    """Yield the request with one thing more sensitive, or with one right or proof less."""
    own = request.labels
    for higher in Classification:
        if higher.rank > own.data_classification.rank:
            yield labelled(request, data_classification=higher)
    for zone in own.allowed_execution_zone:
        yield labelled(request, allowed_execution_zone=own.allowed_execution_zone - {zone})
    for where in own.residency:
        yield labelled(request, residency=own.residency - {where})
    yield labelled(request, burst_eligible=False)
    yield labelled(request, contract_limits=frozenset(ContractLimit))
    yield labelled(request, contract_limits=None, contract="c-2")
    yield labelled(request, export_control=ExportControl.CONTROLLED) if own.export_control == "none" else request
    yield labelled(request, retention_class=RetentionClass.HOLD)
    yield replace(request, justification="")
    yield replace(request, purpose="")
    if isinstance(request, RunRequest):
        yield replace(request, reads_records=True)
        return
    yield replace(request, approved=False)
    if isinstance(request, ActRequest):
        yield replace(request, verified=False)
        yield replace(request, own=True)
        yield replace(request, roles=frozenset())
        return
    yield replace(request, inspected=False)
    yield replace(request, expired=True)
    yield replace(request, text_columns=request.text_columns | {"more"})
    yield replace(request, keyed_tokens=request.keyed_tokens + 1)
    if request.risk is not None:
        yield replace(request, risk=replace(request.risk, k=max(0, request.risk.k - 1)))
        yield replace(request, risk=replace(request.risk, l_required=request.risk.l_required + 1))
        yield replace(request, risk=replace(request.risk, t=request.risk.t + 1))
        if own.data_classification.rank >= 2:
            yield replace(request, risk=None)


@given(requests)
@settings(max_examples=400, deadline=None)
def test_what_makes_work_more_sensitive_or_takes_a_right_away_never_permits(request):
    permit = POLICY.decide(request).permit
    for stricter, decision in zip(forms := list(stricter_forms(request)), POLICY.decide_all(forms), strict=True):
        assert permit or not decision.permit, stricter


@given(requests)
@settings(max_examples=400, deadline=None)
def test_records_text_and_what_is_expired_never_leave(request):
    if isinstance(request, MoveRequest) and request.zone.kind is not ZoneKind.PRIVATE:
        raw = request.artifact in ("records", "held-back", "model")
        if raw or request.text_columns or request.expired or not request.inspected:
            assert not POLICY.decide(request).permit


# What cannot be judged.

STRANGE_REQUESTS = [
    replace(RUN, purpose=None),
    replace(RUN, person=None),
    replace(RUN, justification=None),
    replace(RUN, reads_records=0),
    replace(MOVE, inspected=1),
    replace(MOVE, expired=None),
    replace(MOVE, text_columns=["notes", 1]),
    replace(MOVE, keyed_tokens="0"),
    replace(MOVE, keyed_tokens=0.0),
    replace(MOVE, risk=replace(RISK, k=None)),
    replace(MOVE, labels=None),
    labelled(MOVE, burst_eligible=1),
    labelled(MOVE, allowed_execution_zone=None),
    labelled(MOVE, export_control="ITARR"),
    labelled(MOVE, contract_limits=frozenset({"no-such-limit"})),
]


@pytest.mark.parametrize("asked", STRANGE_REQUESTS, ids=range(len(STRANGE_REQUESTS)))
def test_a_request_of_the_wrong_shape_is_denied_with_a_reason_of_its_own(asked):
    POLICY.decide(RUN), POLICY.decide(MOVE)  # remembered: 1 equals True, and must not be taken for it
    for decision in (POLICY.decide(asked), POLICY.decide_all([RUN, asked, MOVE])[1]):
        assert not decision.permit
        assert [rule.id for rule in decision.rules] == ["engine.request"]
        assert decision.attributes == {}
        with pytest.raises(Refused) as caught:
            decision.enforce()
        assert caught.value.reason is Reason.POLICY_REQUEST_INVALID


def test_a_policy_that_reads_what_a_request_may_lack_is_refused_when_it_is_loaded():
    # Cedar skips a policy that errors; without the schema a missing attribute would make this forbid vanish.
    text = (
        '@id("b") @reason("never") forbid (principal, action == Action::"run", resource) when { context.nothing > 0 };'
    )
    with pytest.raises(InvalidInput) as caught:
        Policy(text, default_texts()[1])
    assert caught.value.reason is Reason.POLICY_INVALID


def test_a_rule_that_errors_on_a_request_denies_it():
    # The one error that a validated policy can still make: a sum that is too large.
    text = """
    @id("a") @reason("all") permit (principal, action, resource);
    @id("b") @reason("sum") forbid (principal, action == Action::"move", resource)
    when { context.keyed_tokens + 1 > 9223372036854775806 };
    """
    policy = Policy(text, default_texts()[1])
    assert policy.decide(MOVE).permit
    decision = policy.decide(replace(MOVE, keyed_tokens=2**63 - 1))
    assert [rule.id for rule in decision.rules] == ["engine.error"]
    with pytest.raises(Refused) as caught:
        decision.enforce()
    assert caught.value.reason is Reason.POLICY_ENGINE_FAILED


@pytest.mark.parametrize("text", ["permit (", "permit (principal, action, resource);", '@id("x") permit (p);', "\0",
    '@id("x") @reason("y") permit (principal == ?principal, action, resource);',
    '@id("x") @reason("y") permit (principal, action, resource);' * 2])  # fmt: skip
def test_a_policy_without_an_id_or_that_does_not_parse_is_refused(text):
    with pytest.raises(InvalidInput) as caught:
        Policy(text, default_texts()[1])
    assert caught.value.reason is Reason.POLICY_INVALID


def test_an_empty_policy_denies_everything():
    decision = Policy("", default_texts()[1]).decide(RUN)
    assert not decision.permit
    assert [rule.id for rule in decision.rules] == ["default.deny"]


def test_a_denial_names_every_rule_and_every_way_out():
    with pytest.raises(Refused) as caught:
        POLICY.decide(replace(MOVE, justification="", expired=True)).enforce()
    assert caught.value.reason is Reason.POLICY_DENIED
    assert "[public.justified]" in caught.value.message
    assert "[move.expired]" in caught.value.message
    assert "sanitize the records again" in caught.value.hint


def test_what_is_remembered_is_what_would_be_decided_again():
    fresh = Policy.default()
    assert [fresh.decide(asked) for asked, _ in TABLE * 2] == [Policy.default().decide(asked) for asked, _ in TABLE] * 2


def test_no_free_text_enters_a_decision():
    asked = replace(MOVE, justification="for Mrs Doe", purpose="Mrs Doe", statement_purpose="Mr Roe")
    decision = POLICY.decide(asked)
    assert not decision.permit
    assert "oe" not in repr(decision).replace("does", "")
    # Two texts that are no purposes are not the same purpose.
    assert "move.purpose" in [rule.id for rule in decision.rules]


def test_a_recorded_decision_is_decided_the_same_from_its_attributes():
    decisions = [json.loads(json.dumps(POLICY.decide(asked).to_json())) for asked, _ in TABLE]
    again = POLICY.judge([decision["attributes"] for decision in decisions])
    assert [verdict.permit for verdict in again] == [decision["effect"] == "permit" for decision in decisions]


# A site's own rules.

SITE = """
@id("site.icd") @replaces("move.text") @reason("only diagnoses leave as text") @way_out("drop the other text columns")
forbid (principal, action == Action::"move", resource)
when { resource.kind != "private" && !["icd"].containsAll(context.text_columns) };
"""


def with_site(*texts):
    return Policy(*default_texts(), additions=texts)


def test_text_leaves_only_where_a_site_allows_the_column_by_name():
    policy = with_site(SITE)
    assert policy.decide(replace(MOVE, text_columns=frozenset({"icd"}))).permit
    denied = policy.decide(replace(MOVE, text_columns=frozenset({"icd", "notes"})))
    assert [rule.id for rule in denied.rules] == ["site.icd"]


@pytest.mark.parametrize("floor", sorted(rule.id for rule in POLICY.rules if rule.floor))
def test_no_rule_of_a_site_stands_in_place_of_the_floor(floor):
    with pytest.raises(InvalidInput) as caught:
        with_site(SITE.replace("move.text", floor))
    assert caught.value.reason is Reason.POLICY_INVALID
    assert "move.text" in caught.value.hint


@pytest.mark.parametrize("name", ["move.text", "default.deny", "engine.error", "engine.request"])
def test_no_rule_of_a_site_takes_the_name_of_another(name):
    with pytest.raises(InvalidInput, match="share the id"):
        with_site(SITE.replace('"site.icd"', f'"{name}"').replace('@replaces("move.text")', ""))
    with pytest.raises(InvalidInput, match="share the id"):
        with_site(SITE, SITE.replace("move.text", "move.keyed"))


def test_a_permit_of_a_site_opens_nothing_that_a_rule_of_ours_forbids():
    policy = with_site('@id("site.all") @reason("all") permit (principal, action, resource);')
    for asked, rule in TABLE:
        if rule not in PERMITS and rule != "default.deny":
            assert not policy.decide(asked).permit


# Statements become what policy reads.


@pytest.mark.parametrize(
    ("risk", "limits", "expected"),
    [
        (None, RISK_LIMITS, None),
        (LOW_RISK, None, None),
        ({"k": True}, {"k": 1}, None),
        ({"k": -1}, {"k": 1}, None),
        ({"k": "20"}, {"k": 1}, None),
        ({"k": 20, "t": 0.5}, {"k": 1}, None),
        ({"k": 20, "t": "NaN"}, {"k": 1}, None),
        ({"k": 20, "t": "-0.1"}, {"k": 1}, None),
        ({"k": 20, "t": "many"}, {"k": 1}, None),
        ([], {}, None),
        (
            {},
            {"k": 11, "l": 2, "t": "0.5"},
            Risk(k=0, k_required=11, l=0, l_required=2, t=1_000_000, t_allowed=500_000),
        ),
        ({"k": 20, "l": 3, "t": "0.1234561"}, {}, Risk(k=20, l=3, t=123_457)),
        ({"t": "0.1234569"}, {"t": "0.1234569"}, Risk(t=123_457, t_allowed=123_456)),
    ],
)
def test_a_risk_counts_only_if_it_and_its_limits_are_stated_and_make_sense(risk, limits, expected):
    stated = {name: value for name, value in (("risk", risk), ("risk_limits", limits)) if value is not None}
    assert risk_of(stated) == expected


def test_the_fixtures_matrix_is_within_its_limits():
    key, now = SigningKey.from_seed(bytes(32)), datetime(2026, 6, 1, tzinfo=UTC)
    risk = risk_of(sealed_matrix({"age": [1], "cost": [2.0]}, key=key, now=now).predicate)
    assert risk is not None
    assert risk.k >= risk.k_required > 0


# Placement.


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
