"""Policy: may this job run there, may this artifact move there, may this be done to it.

Cedar decides (default deny, forbid overrides permit). Cedar itself skips a policy that errors, so this wrapper closes
it: the schema checks every request and entity, and any error, missing decision or failure of the engine is a deny
with a reason of its own. Deciding is pure: a request goes in, a `Decision` comes out. What is remembered is a decision
per distinct request, which is the same as deciding again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import cedarpy

from fabric.artifacts import digest, digest_of
from fabric.errors import InvalidInput, Reason, Refused
from fabric.requests import Asked, Request, action_of, asked_of, is_hashable, recorded_asked, well_typed
from fabric.zones import Zone

MAX_REMEMBERED = 8_192
"""Decisions kept; about 2 kB each."""
_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy.

    Attributes:
        effect: "permit" or "forbid".
        origin: "default", "site", or "engine" for what is denied without a rule.
        floor: whether no rule of a site can stand in its place.
        replaces: id of the rule in whose place it stands.
    """

    id: str
    reason: str
    way_out: str = ""
    effect: str = "forbid"
    origin: str = "default"
    floor: bool = False
    replaces: str = ""

    def to_json(self) -> dict[str, str | bool]:
        """Return the rule as plain JSON."""
        return {
            "id": self.id,
            "effect": self.effect,
            "reason": self.reason,
            "way_out": self.way_out,
            "origin": self.origin,
            "floor": self.floor,
            "replaces": self.replaces,
        }


NO_RULE = Rule(id="default.deny", reason="no rule permits it", origin="engine")
NOT_A_REQUEST = Rule(
    id="engine.request",
    reason="the request lacks an attribute or has one of another kind, so it cannot be judged",
    way_out="give every label and attribute that the policy's schema names",
    origin="engine",
)
ENGINE_FAILED = Rule(
    id="engine.error",
    reason="the policy engine could not judge the request",
    way_out="run `fabric policy show`: a rule that errors on some requests denies them all",
    origin="engine",
)
_CODES = {NOT_A_REQUEST.id: Reason.POLICY_REQUEST_INVALID, ENGINE_FAILED.id: Reason.POLICY_ENGINE_FAILED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The policy's answer for one request, with the rules that decided and what they read.

    Attributes:
        asked: the request's attributes as JSON text, without free text; empty if it had the wrong shape.
        policy: digest of the policy set.
    """

    permit: bool
    action: str
    zone: Zone
    rules: tuple[Rule, ...]
    policy: str
    asked: str

    @property
    def code(self) -> Reason:
        """Return the reason token of a denial."""
        return _CODES.get(self.rules[0].id, Reason.POLICY_DENIED)

    @property
    def attributes(self) -> dict[str, Any]:
        """Return what the rules read, enough to decide again."""
        return json.loads(self.asked) if self.asked else {}

    @property
    def request(self) -> str:
        """Return the digest of the attributes."""
        return digest_of(self.attributes)

    def enforce(self) -> None:
        """Raise unless the answer is yes.

        Raises:
            Refused: `POLICY_DENIED`, with every rule that said no and the way out of each; `POLICY_REQUEST_INVALID`
                or `POLICY_ENGINE_FAILED` where nothing could be judged.
        """
        if self.permit:
            return
        why = "; ".join(f"{rule.reason} [{rule.id}]" for rule in self.rules)
        raise Refused(
            self.code,
            f"policy denies {self.action} to zone {self.zone.name!r}: {why}",
            "; ".join(rule.way_out for rule in self.rules if rule.way_out),
        )

    def brief(self) -> dict[str, Any]:
        """Return the decision as plain JSON, without what the rules read."""
        return {
            "effect": "permit" if self.permit else "deny",
            "action": self.action,
            "zone": self.zone.name,
            "rules": [rule.id for rule in self.rules],
            "policy": self.policy,
            "request": self.request,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the decision as it stands in the ledger and in `--json` output, ready to be replayed."""
        return {**self.brief(), "attributes": self.attributes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the engine says of one request's attributes."""

    permit: bool
    rules: tuple[Rule, ...]


class Policy:
    """A validated policy set with its schema. Immutable; safe to share between threads."""

    def __init__(self, policies: str, schema: str, *, additions: Sequence[str] = (), version: int = 0) -> None:
        """Load and validate.

        Args:
            policies: Cedar text of the default set.
            schema: Cedar schema.
            additions: Cedar text of a site's own files; text that somebody else wrote is parsed in a child first
                (`policy_files.parse_apart`).
            version: of the additions, as they were signed.

        Raises:
            InvalidInput: `POLICY_INVALID` if the text does not parse or does not fit the schema, if a rule lacks its
                id or reason, or if one replaces what it cannot.
        """
        try:
            self._schema = cedarpy.Schema.from_str(schema)
            parsed = [(text, _static(text)) for text in (policies, *additions)]
            valid = all(cedarpy.validate_policies(text, schema) for text, _ in parsed)
            shipped = {rule.id: (rule, policy) for rule, policy in _rules(parsed[0][1], "default")}
            added = [pair for _, static in parsed[1:] for pair in _rules(static, "site")]
        except (ValueError, KeyError, TypeError):
            valid = False
        if not valid:
            raise InvalidInput(
                Reason.POLICY_INVALID,
                "the policies do not parse, do not fit their schema, or lack an @id or @reason",
                "mend the policy file; `fabric policy show` lists the rules that hold",
            )
        rules = _merged(shipped, added)
        self._policies = cedarpy.PolicySet.from_json_str(_set_of({rule.id: policy for rule, policy in rules}))
        self._rules = {rule.id: rule for rule, _ in rules}
        self._remembered: dict[Request, Decision] = {}
        self._entities: dict[tuple[tuple[str, ...], tuple[str, ...]], cedarpy.Entities] = {}
        self.version = version
        self.digest = digest(b"\0".join(text.encode() for text in (policies, schema, *additions)))

    @classmethod
    def default(cls) -> Policy:
        """Return the policy set that ships with the fabric."""
        return cls(*default_texts())

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Return every rule in force, in the order of the files."""
        return tuple(self._rules.values())

    def decide(self, request: Request) -> Decision:
        """Answer one request. Never raises for what the request holds: what cannot be judged is denied."""
        return self._known(request) or self._decided([request])[0]

    def decide_all(self, requests: Sequence[Request]) -> tuple[Decision, ...]:
        """Answer many requests, such as one for every zone, in one call of the engine."""
        answers = [self._known(request) for request in requests]
        new = iter(self._decided([r for r, known in zip(requests, answers, strict=True) if known is None]))
        return tuple(known or next(new) for known in answers)

    def judge(self, attributes: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Answer requests given by the attributes that `Decision.attributes` returned, to replay what was decided."""
        asked = [recorded_asked(one) for one in attributes]
        return [verdict for start in range(0, len(asked), _BATCH) for verdict in self._judge(asked[start:][:_BATCH])]

    def _known(self, request: Request) -> Decision | None:
        # True equals 1, and a request with 1 in place of True has the wrong shape.
        try:
            return self._remembered.get(request) if well_typed(request) else None
        except TypeError:
            return None  # it cannot be hashed

    def _decided(self, requests: Sequence[Request]) -> list[Decision]:
        asked = [asked_of(request) for request in requests]
        decisions = []
        for request, one, verdict in zip(requests, asked, self._judge(asked), strict=True):
            decision = Decision(
                permit=verdict.permit,
                action=action_of(request),
                zone=request.zone,
                rules=verdict.rules,
                policy=self.digest,
                # What has the wrong shape may hold anything, so it is not kept.
                asked="" if one is None or verdict.rules[0] is NOT_A_REQUEST else one.text(),
            )
            if decision.asked and well_typed(request) and is_hashable(request):
                if len(self._remembered) >= MAX_REMEMBERED:
                    self._remembered.clear()
                self._remembered[request] = decision
            decisions.append(decision)
        return decisions

    def _judge(self, asked: Sequence[Asked | None]) -> list[Verdict]:
        """Judge in one call, or one by one where one of them has the wrong shape or two zones share a name."""
        good = [one for one in asked if one is not None]
        zones = {one.zone_name: one.zone for one in good}
        labels = tuple(dict.fromkeys(one.labels for one in good))
        together = len(good) == len(asked) and all(zones[one.zone_name] == one.zone for one in good)
        try:
            entities = self._entities_of(tuple(zones.values()), labels) if together else None
        except (ValueError, KeyError, TypeError):
            entities = None
        if entities is None:
            if len(asked) > 1:
                return [self._judge([one])[0] for one in asked]
            return [Verdict(permit=False, rules=(NOT_A_REQUEST,)) for _ in asked]
        try:
            requests = [one.to_cedar(labels.index(one.labels)) for one in good]
            results = cedarpy.is_authorized_batch(requests, self._policies, entities, self._schema)
            return [self._verdict(result) for result in results]
        except (ValueError, KeyError, TypeError):
            return [Verdict(permit=False, rules=(ENGINE_FAILED,)) for _ in asked]

    def _verdict(self, result: cedarpy.AuthzResult) -> Verdict:
        ids = sorted(result.diagnostics.reasons)
        if result.decision is cedarpy.Decision.NoDecision:
            return Verdict(permit=False, rules=(NOT_A_REQUEST,))
        if result.diagnostics.errors:
            return Verdict(permit=False, rules=(ENGINE_FAILED,))
        if not ids:
            return Verdict(permit=False, rules=(NO_RULE,))
        return Verdict(permit=result.allowed, rules=tuple(self._rules[name] for name in ids))

    def _entities_of(self, zones: tuple[str, ...], labels: tuple[str, ...]) -> cedarpy.Entities:
        """Return the entities that requests about these zones and labels name, checked against the schema."""
        known = self._entities.get((zones, labels))
        if known is not None:
            return known
        listed = [_entity("Zone", json.loads(zone)["name"], zone) for zone in zones]
        listed += [_entity("Labels", str(number), text) for number, text in enumerate(labels)]
        made = cedarpy.Entities.from_json_str(f"[{','.join(listed)}]", self._schema)
        if len(self._entities) >= MAX_REMEMBERED:
            self._entities.clear()
        self._entities[zones, labels] = made
        return made


def default_texts() -> tuple[str, str]:
    """Return the Cedar text of the default policies and of their schema."""
    folder = resources.files("fabric") / "policies"
    return (folder / "default.cedar").read_text(), (folder / "default.cedarschema").read_text()


def _entity(kind: str, name: str, attributes: str) -> str:
    return f'{{"uid":{{"type":"{kind}","id":{json.dumps(name)}}},"attrs":{attributes},"parents":[]}}'


def _static(text: str) -> Iterable[Mapping[str, Any]]:
    parsed = json.loads(cedarpy.policies_to_json_str(text))
    if parsed["templates"]:
        raise ValueError("a template is not a policy")
    return list(parsed["staticPolicies"].values())


def _rules(static: Iterable[Mapping[str, Any]], origin: str) -> list[tuple[Rule, Mapping[str, Any]]]:
    found = []
    for policy in static:
        notes = policy["annotations"]
        rule = Rule(
            id=notes["id"],
            reason=notes["reason"],
            way_out=notes.get("way_out", ""),
            effect=policy["effect"],
            origin=origin,
            floor="floor" in notes,
            replaces=notes.get("replaces", ""),
        )
        found.append((rule, policy))
    if len({rule.id for rule, _ in found}) != len(found):
        raise ValueError("two rules share an id")
    return found


def _merged(
    shipped: Mapping[str, tuple[Rule, Mapping[str, Any]]], added: Sequence[tuple[Rule, Mapping[str, Any]]]
) -> list[tuple[Rule, Mapping[str, Any]]]:
    """Return the rules in force: a site's stand beside ours, or in place of one that is not of the floor."""
    reserved = {NO_RULE.id, NOT_A_REQUEST.id, ENGINE_FAILED.id}
    ids = [rule.id for rule, _ in added]
    for rule, _ in added:
        if rule.id in shipped or rule.id in reserved or ids.count(rule.id) > 1:
            message = f"two rules share the id {rule.id!r}"
            raise InvalidInput(Reason.POLICY_INVALID, message, 'name a rule of ours to override in @replaces("its id")')
        if rule.replaces and (rule.replaces not in shipped or shipped[rule.replaces][0].floor):
            can = ", ".join(sorted(name for name, (ours, _) in shipped.items() if not ours.floor))
            message = f"rule {rule.id!r} cannot replace {rule.replaces!r}"
            raise InvalidInput(Reason.POLICY_INVALID, message, f"what is of the floor stays. Can be replaced: {can}.")
    gone = {rule.replaces for rule, _ in added}
    return [pair for name, pair in shipped.items() if name not in gone] + list(added)


def _set_of(policies: Mapping[str, Mapping[str, Any]]) -> str:
    return json.dumps({"staticPolicies": policies, "templates": {}, "templateLinks": []})
