"""A site's own policy files: read, parsed apart, checked, and believed only under a signature over the whole set.

The engine kills its process on deeply nested text, so text that somebody else wrote is parsed in a child process
first. What is signed is the digest of the set (the default policies, their schema and every file, in order) and a
version: changing any of them asks for a new signature.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import cedarpy

from fabric.approvals import ROLES, check_clock
from fabric.artifacts import digest
from fabric.errors import InvalidInput, Reason, Refused, StatementInvalid, nearest
from fabric.labels import ContractLimit, ExportControl, RetentionClass, WorkloadClass
from fabric.policy import Policy, default_texts
from fabric.statements import MAX_ENVELOPE_BYTES, PublicKey, Signed, SigningKey, Statement, sign, timestamp, verify
from fabric.zones import ZoneKind

POLICY_TYPE = "urn:zonefabric:statement:policy-set:v1"
MAX_POLICY_BYTES = 256 * 1024
PARSE_TIMEOUT_S = 20.0

VOCABULARY: Mapping[str, tuple[str, ...]] = {
    "kind": tuple(kind.value for kind in ZoneKind),
    "artifact": ("records", "matrix", "held-back", "capsule", "model"),
    "export_control": tuple(regime.value for regime in ExportControl),
    "contract_limits": tuple(limit.value for limit in ContractLimit),
    "retention_class": tuple(retention.value for retention in RetentionClass),
    "workload_class": ("", *(workload.value for workload in WorkloadClass)),
    "roles": ROLES,
}
"""Attributes whose words are closed: Cedar itself takes a misspelt one for a word that never comes."""

_CHILD = """
import json, sys, cedarpy
text, schema = json.load(sys.stdin)
try:
    json.loads(cedarpy.policies_to_json_str(text))
    fits = bool(cedarpy.validate_policies(text, schema))
except (ValueError, RecursionError):
    fits = False
sys.exit(0 if fits else 3)
"""


def load_policy(
    files: Sequence[Path], signature: Path | None, signers: Sequence[PublicKey], *, now: datetime
) -> Policy:
    """Return the policy set in force: the default one, with a site's signed files if it has any.

    Raises:
        InvalidInput: `POLICY_INVALID` if a file cannot be read, does not parse or does not validate.
        Refused: `POLICY_UNSIGNED` without a signature over exactly this set; `KEY_UNKNOWN`, `STATEMENT_INVALID`,
            `STATEMENT_EXPIRED` or `CLOCK_SET_BACK` if it is no good.
    """
    if not files:
        return Policy.default()
    # 1. Who vouches for these bytes, before anything parses them.
    texts = [read_text(path) for path in files]
    signed = read_signature(signature, signers, now)
    if signed.statement.subjects != _subjects(files, texts):
        raise Refused(
            Reason.POLICY_UNSIGNED,
            "the policy's signature is over another set than the one that fabric.toml names",
            "have the change reviewed, then sign the set again: fabric policy sign",
        )
    # 2. Only now the text, apart.
    return read_policy(files, texts, version=int(signed.statement.predicate["version"]))


def read_policy(files: Sequence[Path], texts: Sequence[str], *, version: int = 0) -> Policy:
    """Return the default set with these additions, whoever signed them: to try and compare, not to enforce.

    Raises:
        InvalidInput: `POLICY_INVALID`, naming the file.
    """
    policies, schema = default_texts()
    for path, text in zip(files, texts, strict=True):
        parse_apart(text, schema, source=path.name)
        check_words(text, source=path.name)
    return Policy(policies, schema, additions=texts, version=version)


def sign_policy(
    files: Sequence[Path], key: SigningKey, *, version: int, now: datetime, lasts: timedelta
) -> tuple[Signed, Policy]:
    """Sign the set of the default policies and these files, once it validates.

    Raises:
        InvalidInput: `POLICY_INVALID`.
    """
    texts = [read_text(path) for path in files]
    policy = read_policy(files, texts, version=version)
    predicate = {"version": version, "issued_at": timestamp(now), "expires_at": timestamp(now + lasts)}
    statement = Statement(subjects=_subjects(files, texts), predicate_type=POLICY_TYPE, predicate=predicate)
    return sign(statement, key), policy


def read_text(path: Path) -> str:
    """Return the text of a policy file.

    Raises:
        InvalidInput: `POLICY_INVALID` if it is missing, too large or no text.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_POLICY_BYTES + 1)
        if len(content) > MAX_POLICY_BYTES:
            raise InvalidInput(
                Reason.POLICY_INVALID, f"{path.name} is larger than {MAX_POLICY_BYTES} bytes", "split it, or hold less"
            )
        return content.decode()
    except (OSError, UnicodeDecodeError):
        near = nearest(path.name, [other.name for other in path.parent.glob("*.cedar")])
        raise InvalidInput(Reason.POLICY_INVALID, f"the policy file {path} cannot be read as text", near) from None


def parse_apart(text: str, schema: str, *, source: str) -> None:
    """Parse and validate policy text in a child process, which it may kill.

    Raises:
        InvalidInput: `POLICY_INVALID`.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD],
            input=json.dumps([text, schema]).encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={},
            timeout=PARSE_TIMEOUT_S,
            check=False,
        )
        status = done.returncode
    except subprocess.TimeoutExpired:
        status = -1
    if status == 0:
        return
    killed = "does not parse, or does not fit the schema" if status == 3 else "kills or stalls the engine's parser"
    raise InvalidInput(
        Reason.POLICY_INVALID,
        f"the policy file {source} {killed}",
        "mend it: `fabric policy show --schema` prints what a rule may read; do not nest deeply",
    )


def check_words(text: str, *, source: str) -> None:
    """Refuse a rule that compares a closed attribute with a word that it never has.

    Raises:
        InvalidInput: `POLICY_INVALID`, with the nearest right word.
    """
    policies = json.loads(cedarpy.policies_to_json_str(text))["staticPolicies"].values()
    for policy in policies:
        for condition in policy["conditions"]:
            for attribute, word in _compared(condition["body"]):
                if word not in VOCABULARY[attribute]:
                    rule = policy["annotations"].get("id", "?")
                    raise InvalidInput(
                        Reason.POLICY_INVALID,
                        f"{source}: rule {rule!r} compares {attribute!r} with {word!r}, which it never is",
                        nearest(word, VOCABULARY[attribute]),
                    )


def _compared(node: Any) -> Iterator[tuple[str, str]]:
    """Yield each closed attribute with each text it is compared with, anywhere in a Cedar JSON expression."""
    if isinstance(node, list):
        for item in node:
            yield from _compared(item)
    if not isinstance(node, dict):
        return
    for operator, operands in node.items():
        if operator in ("==", "!=", "contains", "containsAll", "containsAny"):
            sides = [operands["left"], operands["right"]]
            attributes = [side["."]["attr"] for side in sides if "." in side]
            words = [word for side in sides for word in _words(side)]
            yield from ((a, word) for a in attributes if a in VOCABULARY for word in words)
        yield from _compared(operands)


def _words(side: Mapping[str, Any]) -> list[str]:
    found = [side] if "Value" in side else side.get("Set", [])
    return [item["Value"] for item in found if isinstance(item.get("Value"), str)]


def _subjects(files: Sequence[Path], texts: Sequence[str]) -> dict[str, str]:
    """Return what a signature is over: the set's digest, and each text's."""
    policies, schema = default_texts()
    named = {path.name: digest(text.encode()) for path, text in zip(files, texts, strict=True)}
    if len(named) != len(files):
        raise InvalidInput(Reason.POLICY_INVALID, "two policy files share a name", "rename one of them")
    whole = digest(b"\0".join(text.encode() for text in (policies, schema, *texts)))
    return {"set": whole, **{f"file:{name}": value for name, value in named.items()}}


def read_signature(path: Path | None, signers: Sequence[PublicKey], now: datetime) -> Signed:
    """Return the signature over a site's policy files, if a signer gave it and it has not run out.

    Raises:
        Refused: `POLICY_UNSIGNED`, `KEY_UNKNOWN`, `STATEMENT_INVALID`, `STATEMENT_EXPIRED` or `CLOCK_SET_BACK`.
    """
    envelope = b""
    if path is not None and path.is_file():
        with path.open("rb") as file:
            envelope = file.read(MAX_ENVELOPE_BYTES + 1)
    if not envelope:
        raise Refused(
            Reason.POLICY_UNSIGNED,
            f"there is no signature {path.name if path else ''} over the policy files".replace("  ", " "),
            "review them, then sign the set: fabric policy sign --key FILE",
        )
    signed = verify(envelope, trusted=signers, predicate_type=POLICY_TYPE, now=None)
    predicate = signed.statement.predicate
    try:
        version, issued = int(predicate["version"]), datetime.fromisoformat(predicate["issued_at"])
        if version < 0 or issued.tzinfo is None:
            raise ValueError("no version or no time zone")
    except (KeyError, TypeError, ValueError):
        raise StatementInvalid(
            Reason.STATEMENT_INVALID, "the policy's signature has no version or time", "sign the set again"
        ) from None
    check_clock(now, issued, None)
    if now >= signed.statement.expires_at:
        raise Refused(
            Reason.STATEMENT_EXPIRED, "the policy's signature has expired", "review the set and sign it again"
        )
    return signed
