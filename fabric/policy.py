"""Policy: may this job run there, may this artifact move there.

Cedar decides (default deny, forbid overrides permit). Cedar itself skips a policy that errors, so this wrapper closes
it: the schema checks every request and entity, and any error, missing decision or failure of the engine is a deny
with a reason of its own. Deciding is pure: a request goes in, a `Decision` comes out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import cedarpy

from fabric.artifacts import digest, digest_of
from fabric.errors import InvalidInput, Reason, Refused
from fabric.labels import Labels
from fabric.zones import Zone


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """May a job with these labels run in `zone`?"""

    person: str
    zone: Zone
    labels: Labels
    purpose: str
    justification: str
    reads_records: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveRequest:
    """May an artifact with these labels move to `zone`?

    Attributes:
        artifact: "records", "matrix", "capsule" or "model".
        inspected: whether a trusted statement says that it was inspected.
        statement_purpose: the purpose that the statement names.
        text_columns: how many of its columns hold text.
        keyed_tokens: how many of its columns hold pseudonyms computed from values by key.
    """

    person: str
    zone: Zone
    labels: Labels
    purpose: str
    justification: str
    artifact: str
    inspected: bool
    expired: bool
    statement_purpose: str
    text_columns: int = 0
    keyed_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy that decided."""

    id: str
    reason: str
    way_out: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The policy's answer for one request, with the rules that decided and what they read."""

    permit: bool
    action: str
    zone: Zone
    rules: tuple[Rule, ...]
    policy: str
    request: str

    def enforce(self) -> None:
        """Raise unless the answer is yes.

        Raises:
            Refused: `POLICY_DENIED`, with every rule that said no and the way out of each.
        """
        if self.permit:
            return
        why = "; ".join(f"{rule.reason} [{rule.id}]" for rule in self.rules)
        raise Refused(
            Reason.POLICY_DENIED,
            f"policy denies {self.action} to zone {self.zone.name!r}: {why}",
            "; ".join(rule.way_out for rule in self.rules if rule.way_out),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the decision as it stands in the ledger and in `--json` output."""
        return {
            "effect": "permit" if self.permit else "deny",
            "action": self.action,
            "zone": self.zone.name,
            "rules": [rule.id for rule in self.rules],
            "policy": self.policy,
            "request": self.request,
        }


class Policy:
    """A validated policy set with its schema."""

    def __init__(self, policies: str, schema: str) -> None:
        """Load and validate.

        Raises:
            InvalidInput: `POLICY_INVALID` if the text does not parse or does not fit the schema.
        """
        try:
            self._schema = cedarpy.Schema.from_str(schema)
            self._policies = cedarpy.PolicySet.from_str(policies)
            valid = bool(cedarpy.validate_policies(policies, schema))
            parsed = json.loads(cedarpy.policies_to_json_str(policies))["staticPolicies"].values()
            self._rules = {rule.id: rule for rule in map(_rule, parsed)}
        except (ValueError, KeyError, TypeError):
            valid = False
        if not valid:
            raise InvalidInput(
                Reason.POLICY_INVALID, "the policies do not parse or do not fit their schema", "mend the policy file"
            )
        self.digest = digest(policies.encode() + b"\0" + schema.encode())

    @classmethod
    def default(cls) -> Policy:
        """Return the policy set that ships with the fabric."""
        folder = resources.files("fabric") / "policies"
        return cls((folder / "default.cedar").read_text(), (folder / "default.cedarschema").read_text())

    def decide(self, request: RunRequest | MoveRequest) -> Decision:
        """Answer one request. Never raises for what the request holds: what cannot be judged is denied."""
        action = "run" if isinstance(request, RunRequest) else "move"
        context = _context(request)
        asked = {
            "principal": f"Person::{json.dumps(request.person)}",
            "action": f'Action::"{action}"',
            "resource": f'Zone::"{request.zone.name}"',
            "context": context,
        }
        permit, rules = self._ask(asked, request.zone)
        return Decision(
            permit=permit,
            action=action,
            zone=request.zone,
            rules=rules,
            policy=self.digest,
            request=digest_of({**asked, "context": _without_text(context), "zone": _zone_attributes(request.zone)}),
        )

    def _ask(self, asked: Mapping[str, Any], zone: Zone) -> tuple[bool, tuple[Rule, ...]]:
        entity = {
            "uid": {"type": "Zone", "id": zone.name},
            "attrs": _zone_attributes(zone),
            "parents": [],
        }
        try:
            entities = cedarpy.Entities.from_json_str(json.dumps([entity]), self._schema)
            result = cedarpy.is_authorized(dict(asked), self._policies, entities, self._schema)
            errors = bool(result.diagnostics.errors) or result.decision is cedarpy.Decision.NoDecision
            ids = result.diagnostics.id_annotations_by_reason
            rules = tuple(self._rules[ids[key]] for key in sorted(result.diagnostics.reasons, key=lambda k: ids[k]))
        except (ValueError, KeyError, TypeError):
            errors, rules = True, ()
        if errors:
            return False, (Rule(id="engine.error", reason="the policy engine could not judge the request"),)
        if not rules:
            return False, (Rule(id="default.deny", reason="no rule permits it"),)
        return result.allowed, rules


def _rule(policy: Mapping[str, Any]) -> Rule:
    notes = policy["annotations"]
    return Rule(id=notes["id"], reason=notes["reason"], way_out=notes.get("way_out", ""))


def _without_text(context: Mapping[str, Any]) -> dict[str, Any]:
    """Return the context for the ledger's digest: a justification could be guessed back from a plain one."""
    return {**context, "justification": context["justification"] != ""}


def _zone_attributes(zone: Zone) -> dict[str, str]:
    return {"name": zone.name, "kind": zone.kind.value, "jurisdiction": zone.jurisdiction}


def _context(request: RunRequest | MoveRequest) -> dict[str, Any]:
    labels = request.labels
    context: dict[str, Any] = {
        "labels": {
            "data_classification": labels.data_classification.rank,
            "allowed_execution_zone": sorted(labels.allowed_execution_zone),
            "burst_eligible": labels.burst_eligible,
            "purpose": labels.purpose,
            "residency": sorted(labels.residency),
            "export_control": labels.export_control,
        },
        "purpose": request.purpose,
        "justification": request.justification,
    }
    if isinstance(request, RunRequest):
        return {**context, "reads_records": request.reads_records}
    return {
        **context,
        "artifact": request.artifact,
        "inspected": request.inspected,
        "expired": request.expired,
        "statement_purpose": request.statement_purpose,
        "text_columns": request.text_columns,
        "keyed_tokens": request.keyed_tokens,
    }
