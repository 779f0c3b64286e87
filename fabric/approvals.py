"""Approvals: a second person signs for exactly this code, recipe and schema, for a time.

An approval is a signed statement by a key that `fabric.toml` declares for a person. It counts only while every digest
it names is still the digest of what would move, before it expires, and if its approver is not who asked. Policy reads
one truth value, which this module computes by verifying; whoever lowers a classification is held to the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fabric.artifacts import digest_of
from fabric.errors import FabricError, InvalidInput, Reason, Refused, nearest
from fabric.labels import Classification, Labels
from fabric.statements import PublicKey, Signed, SigningKey, Statement, sign, timestamp, verify

APPROVAL_TYPE = "urn:zonefabric:statement:approval:v1"
LOWERING_TYPE = "urn:zonefabric:statement:lowering:v1"
ROLES = ("approver", "operator", "security", "steward")
MAX_APPROVAL_BYTES = 64 * 1024
MAX_LASTS = timedelta(days=366)
CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far two clocks may differ before one of them counts as set back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approver:
    """A person whose signature counts, as `fabric.toml` declares them.

    Attributes:
        person: the pseudonym under which they stand in the evidence.
        roles: some of `ROLES`.
    """

    name: str
    person: str
    key: PublicKey
    roles: frozenset[str] = frozenset({"approver"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What an approval is bound to. Digests; `code` is empty where none crosses but the fabric's own.

    Attributes:
        recipe: of the recipe that made the matrix.
        schema: of the outgoing columns' names and types.
    """

    code: str
    recipe: str
    schema: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a second person is asked to approve."""

    action: str
    zone: str
    purpose: str
    requester: str
    bound: Bound

    def to_json(self) -> dict[str, Any]:
        """Return the question as JSON, as `fabric plan --ask` writes it."""
        bound = {"code": self.bound.code, "recipe": self.bound.recipe, "schema": self.bound.schema}
        return {
            "action": self.action,
            "zone": self.zone,
            "purpose": self.purpose,
            "requester": self.requester,
            "bound": bound,
        }

    @classmethod
    def from_json(cls, raw: object) -> Question:
        """Read what `to_json` wrote.

        Raises:
            InvalidInput: `CONFIG_INVALID` if it is something else.
        """
        try:
            if not isinstance(raw, dict):
                raise TypeError("no object")
            question = cls(**{**raw, "bound": Bound(**raw["bound"])})
            if not all(isinstance(value, str) for value in (*raw["bound"].values(), question.action, question.zone)):
                raise TypeError("no text")
            if not isinstance(question.purpose, str) or not isinstance(question.requester, str):
                raise TypeError("no text")
        except (KeyError, TypeError):
            raise InvalidInput(
                Reason.CONFIG_INVALID, "the file is no question for approval", "`fabric plan --ask FILE` writes one"
            ) from None
        return question

    @property
    def digest(self) -> str:
        """Return the digest of everything that is asked."""
        return digest_of(self.to_json())


def approve(question: Question, approver: Approver, key: SigningKey, *, now: datetime, lasts: timedelta) -> Signed:
    """Sign that `approver` agrees.

    Raises:
        Refused: `APPROVAL_SELF`; `KEY_UNKNOWN` if the key is not the one declared for them.
        InvalidInput: `CONFIG_INVALID` for a time that is not positive or is too long.
    """
    _no_self(question, approver)
    if key.public != approver.key:
        raise Refused(
            Reason.KEY_UNKNOWN,
            f"the key is not the one declared for the approver {approver.name!r}",
            "sign with your own key, or declare it under [policy.approvers] in fabric.toml",
        )
    _require_role(approver, "approver")
    if not timedelta(0) < lasts <= MAX_LASTS:
        message = "an approval lasts for no time, or for too long"
        raise InvalidInput(Reason.CONFIG_INVALID, message, f"choose 1 to {MAX_LASTS.days} days")
    bound = question.to_json()["bound"]
    subjects = {"question": question.digest, **{name: value for name, value in bound.items() if value}}
    return sign(_statement(APPROVAL_TYPE, subjects, {**question.to_json(), "approver": approver.name}, now, lasts), key)


def check_approval(
    envelope: bytes, question: Question, approvers: Sequence[Approver], *, now: datetime, seen: datetime | None = None
) -> Approver:
    """Return who approved `question`, if `envelope` holds a valid approval of it.

    Args:
        now: the time.
        seen: the newest time in the evidence; a clock before it was set back.

    Raises:
        Refused: `KEY_UNKNOWN`, `STATEMENT_INVALID`, `CLOCK_SET_BACK`, `APPROVAL_EXPIRED`, `APPROVAL_VOID` or
            `APPROVAL_SELF`.
    """
    # 1. Who signed.
    signed = verify(envelope, trusted=[a.key for a in approvers], predicate_type=APPROVAL_TYPE, now=None)
    approver = _signer(signed, approvers)
    # 2. When.
    check_clock(now, _issued(signed), seen)
    if now >= signed.statement.expires_at:
        raise Refused(
            Reason.APPROVAL_EXPIRED,
            f"the approval by {approver.name!r} expired at {signed.statement.predicate['expires_at']}",
            "ask for it again: fabric plan --ask, then fabric approve",
        )
    # 3. What.
    asked = Question.from_json({k: signed.statement.predicate.get(k) for k in question.to_json()})
    if asked != question or signed.statement.subjects.get("question") != question.digest:
        raise Refused(
            Reason.APPROVAL_VOID,
            f"the approval is for other than what is asked now: {', '.join(_changed(asked, question))} changed",
            "ask for a new approval of what it is now: fabric plan --ask, then fabric approve",
        )
    # 4. By somebody else.
    _no_self(question, approver)
    return approver


def check_clock(now: datetime, issued: datetime, seen: datetime | None) -> None:
    """Refuse to judge a time limit by a clock that was set back.

    Raises:
        Refused: `CLOCK_SET_BACK`.
    """
    newest = issued if seen is None else max(issued, seen)
    if now + CLOCK_TOLERANCE < newest:
        raise Refused(
            Reason.CLOCK_SET_BACK,
            f"this machine's clock says {timestamp(now)}, and something here was signed at {timestamp(newest)}",
            "set the clock right; what has expired would come back to life under a wrong one",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Approvals:
    """The approvals that were kept, and whose count.

    Attributes:
        envelopes: signed statements, unverified.
        seen: tells the newest time in the evidence.
    """

    approvers: tuple[Approver, ...] = ()
    envelopes: Callable[[], Sequence[bytes]] = tuple
    seen: Callable[[], datetime | None] = lambda: None

    def hold(self, question: Question, now: datetime) -> bool:
        """Say whether somebody else than the requester has approved exactly `question`, and it still holds."""
        return not self.objections(question, now)

    def objections(self, question: Question, now: datetime) -> tuple[FabricError, ...]:
        """Return why no approval holds: one error for each of this question or an earlier form of it; none if one does.

        An approval of another question is passed over. No approval at all gives one objection.
        """
        found: list[FabricError] = []
        envelopes = self.envelopes() if self.approvers else ()
        seen = self.seen() if envelopes else None
        for envelope in envelopes:
            try:
                check_approval(envelope, question, self.approvers, now=now, seen=seen)
            except FabricError as error:
                found.append(error)
            else:
                return ()
        return tuple(found) or (
            Refused(Reason.APPROVAL_VOID, "nobody has approved it", "fabric plan --ask, then fabric approve"),
        )

    def lowered(self, labels: Labels, subject: str, now: datetime) -> Labels:
        """Return the labels of the artifact of digest `subject`, lowered where a data steward has signed that."""
        for envelope in self.envelopes() if self.approvers else ():
            with suppress(FabricError):
                return lowered(labels, subject, envelope, self.approvers, now=now)
        return labels


def state_lowering(
    subject: str, labels: Labels, to: Classification, steward: Approver, key: SigningKey, *, now: datetime
) -> Signed:
    """Sign that something derived, of digest `subject`, is less sensitive than what it was made from.

    Raises:
        Refused: `KEY_UNKNOWN` if the key is not the steward's, or they are no data steward.
        InvalidInput: `LABEL_INVALID` if `to` is not lower.
    """
    if key.public != steward.key:
        raise Refused(Reason.KEY_UNKNOWN, f"the key is not the one declared for {steward.name!r}", "use your own key")
    _require_role(steward, "steward")
    if to.rank >= labels.data_classification.rank:
        raise InvalidInput(
            Reason.LABEL_INVALID, f"{to.value!r} is not below {labels.data_classification.value!r}", "name a lower one"
        )
    predicate = {"from": labels.data_classification.value, "to": to.value, "steward": steward.name}
    return sign(_statement(LOWERING_TYPE, {"artifact": subject}, predicate, now, MAX_LASTS), key)


def lowered(labels: Labels, subject: str, envelope: bytes, approvers: Sequence[Approver], *, now: datetime) -> Labels:
    """Return the labels of the artifact of digest `subject` once a data steward's statement has lowered them.

    Raises:
        Refused: `KEY_UNKNOWN`, `STATEMENT_INVALID`, `STATEMENT_EXPIRED`, `CLOCK_SET_BACK`; `DIGEST_MISMATCH` if the
            statement is about something else or was made when the artifact had another classification.
    """
    stewards = [a for a in approvers if "steward" in a.roles]
    signed = verify(envelope, trusted=[a.key for a in stewards], predicate_type=LOWERING_TYPE, now=now)
    check_clock(now, _issued(signed), None)
    terms = signed.statement.predicate
    if signed.statement.subjects != {"artifact": subject} or terms.get("from") != labels.data_classification.value:
        raise Refused(
            Reason.DIGEST_MISMATCH,
            "the statement lowers the classification of something else",
            "have a data steward state it of this artifact as it is now",
        )
    to = Labels.parse({"data_classification": terms.get("to")}).data_classification
    return replace(labels, data_classification=min(to, labels.data_classification, key=lambda c: c.rank))


def find_approver(approvers: Iterable[Approver], key: PublicKey) -> Approver:
    """Return the declared approver that `key` belongs to.

    Raises:
        Refused: `KEY_UNKNOWN`.
    """
    known = {approver.key.raw: approver for approver in approvers}
    if key.raw not in known:
        names = nearest("", [approver.name for approver in known.values()])
        raise Refused(
            Reason.KEY_UNKNOWN,
            f"the key {key.keyid[:16]} belongs to no declared approver",
            f"declare it under [policy.approvers] in fabric.toml: key = {key.to_text()!r}. {names}",
        )
    return known[key.raw]


def keep(folder: Path, signed: Signed) -> Path:
    """Write an approval into `folder`, under its digest, for its owner only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{signed.digest.partition(':')[2]}.json"
    path.write_bytes(signed.envelope)
    path.chmod(0o600)
    return path


def kept(folder: Path) -> tuple[bytes, ...]:
    """Return the approvals in `folder`, unverified; what is too large is no approval."""
    files = sorted(folder.glob("*.json")) if folder.is_dir() else []
    return tuple(path.read_bytes() for path in files if path.stat().st_size <= MAX_APPROVAL_BYTES)


def _statement(
    kind: str, subjects: Mapping[str, str], predicate: Mapping[str, Any], now: datetime, lasts: timedelta
) -> Statement:
    times = {"issued_at": timestamp(now), "expires_at": timestamp(now + lasts)}
    return Statement(subjects=subjects, predicate_type=kind, predicate={**predicate, **times})


def _issued(signed: Signed) -> datetime:
    try:
        issued = datetime.fromisoformat(signed.statement.predicate["issued_at"])
        if issued.tzinfo is None:
            raise ValueError("no time zone")
    except (KeyError, TypeError, ValueError):
        raise Refused(Reason.STATEMENT_INVALID, "the statement does not say when it was issued") from None
    return issued


def _signer(signed: Signed, approvers: Sequence[Approver]) -> Approver:
    """Return the approver that the statement names and whose own key signed it."""
    name = signed.statement.predicate.get("approver")
    for approver in approvers:
        if approver.name == name:
            verify(signed.envelope, trusted=[approver.key], predicate_type=APPROVAL_TYPE, now=None)
            _require_role(approver, "approver")
            return approver
    raise Refused(Reason.KEY_UNKNOWN, "the approval names nobody who is declared", "see [policy.approvers]")


def _require_role(approver: Approver, role: str) -> None:
    if role not in approver.roles:
        raise Refused(
            Reason.KEY_UNKNOWN,
            f"{approver.name!r} does not have the role {role!r}",
            f"ask somebody who has it, or add it to their roles under [policy.approvers.{approver.name}]",
        )


def _no_self(question: Question, approver: Approver) -> None:
    if approver.person == question.requester:
        raise Refused(
            Reason.APPROVAL_SELF,
            f"the approver {approver.name!r} is who asked",
            "ask another person declared under [policy.approvers]",
        )


def _changed(asked: Question, now: Question) -> list[str]:
    before, after = asked.to_json(), now.to_json()
    parts = {**{k: (before[k], after[k]) for k in before if k != "bound"}}
    parts |= {k: (before["bound"][k], after["bound"][k]) for k in after["bound"]}
    return sorted(name for name, (old, new) in parts.items() if old != new) or ["the question"]
