"""The story that records tell, checked record by record: nothing happens that was not announced and permitted.

1. No effect without an intent; an intent has one outcome at most; time does not go back.
2. No crossing without a permit, and without statements that verify, cover what moves and had not expired.
3. Work outside, and what comes back from it, name a crossing to that zone that came before.
4. What was spent was reserved before, and is no more than that.

Pure: it sees records that are known to be in the log, documents by their digest, and the keys to believe.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from fabric.errors import EvidenceInvalid, FabricError, Reason
from fabric.records import BUDGET, CROSSING, documents_named, is_crossing, is_refusal
from fabric.statements import PublicKey, Statement, verify

DELIVERY = "delivery"


class Story:
    """What the records so far have told. Feed it every record once, in the log's order.

    Attributes:
        crossings: how many crossings were told of.
        refusals: how many refusals were told of.
    """

    def __init__(self, documents: Mapping[str, bytes], keys: Sequence[PublicKey]) -> None:
        self._documents = documents
        self._keys = keys
        self._verified: dict[str, tuple[Statement, tuple[str, ...]]] = {}
        self._ids: set[str] = set()
        self._open: dict[str, dict[str, Any]] = {}
        self._zones: dict[str, str] = {}
        self._budgets: dict[str, _Budget] = {}
        self._last = ""
        self.crossings = 0
        self.refusals = 0

    @property
    def open_intents(self) -> tuple[str, ...]:
        """Return the ids of intents without an outcome, in the log's order."""
        return tuple(self._open)

    @property
    def statements(self) -> int:
        """Return how many distinct statements crossings rest on."""
        return len(self._verified)

    @property
    def signers(self) -> tuple[str, ...]:
        """Return the ids of the keys that signed those statements."""
        return tuple(dict.fromkeys(keyid for _, signed in self._verified.values() for keyid in signed))

    def tell(self, index: int, record: Mapping[str, Any]) -> None:
        """Go on with one record.

        Raises:
            EvidenceInvalid: `EVIDENCE_INVALID`, naming the record by its index.
        """
        # 1. Order and time.
        intent = self._in_order(index, record)
        # 2. Crossings.
        body = record["body"]
        if any(name not in self._documents for name in documents_named(body)):
            _refuse(f"record {index} rests on a document that is not in the bundle")
        if is_crossing(record):
            self.crossings += 1
            self._check_crossing(index, record)
        # 3. Work outside. A delivery stays in the private zone, and so does the work on it.
        if record["phase"] == "intent" and record["action"] in (CROSSING, DELIVERY) and "crossing" in body:
            self._zones[body["crossing"]] = str(body.get("to_zone", ""))
        elif record["phase"] != "outcome" and "crossing" in body:
            self._check_work(index, body)
        # 4. Money.
        self._check_spending(index, record, intent)
        self.refusals += is_refusal(record)

    def _in_order(self, index: int, record: Mapping[str, Any]) -> Mapping[str, Any] | None:
        if record["id"] in self._ids:
            _refuse(f"record {index} repeats an earlier record's id")
        self._ids.add(record["id"])
        if record["at"] < self._last:
            _refuse(f"record {index} is dated before the record before it")
        self._last = record["at"]
        if record["phase"] == "intent":
            self._open[record["id"]] = {"action": record["action"], "body": record["body"]}
        if record["phase"] != "outcome":
            return None
        intent = self._open.pop(record["intent"], None)
        if intent is None or intent["action"] != record["action"]:
            _refuse(f"record {index} is an outcome, but no open intent of that action comes before it")
        return intent

    def _check_crossing(self, index: int, record: Mapping[str, Any]) -> None:
        body = record["body"]
        decisions = body.get("decisions", [])
        if not isinstance(decisions, list) or any(
            not isinstance(one, dict) or one.get("effect") != "permit" for one in decisions
        ):
            _refuse(f"record {index}: a decision of the crossing does not permit it")
        covered: set[str] = set()
        for name in documents_named(body):
            if name not in self._verified:
                try:
                    self._verified[name] = _verify_statement(self._documents[name], self._keys)
                except FabricError as error:
                    _refuse(f"record {index}: a statement of the crossing does not verify: {error.message}", error.hint)
            statement = self._verified[name][0]
            if datetime.fromisoformat(record["at"]) >= statement.expires_at:
                _refuse(f"record {index}: a statement of the crossing had expired")
            covered.update(statement.subjects.values())
        missing = sum(d not in covered for d in body["subjects"].values())
        if missing:
            _refuse(f"record {index}: {missing} subjects of the crossing are in none of its statements")

    def _check_work(self, index: int, body: Mapping[str, Any]) -> None:
        zone = self._zones.get(str(body["crossing"]))
        if zone is None:
            _refuse(f"record {index} names a crossing that no record before it announces")
        told = body.get("zone", body.get("from_zone", zone))
        if zone and told != zone:
            _refuse(f"record {index} tells of zone {told!r}, its crossing went to {zone!r}")

    def _check_spending(self, index: int, record: Mapping[str, Any], intent: Mapping[str, Any] | None) -> None:
        body = record["body"]
        if record["action"] == BUDGET and record["phase"] == "intent":
            self._budgets[str(body.get("reservation"))] = _Budget(body)
        elif record["action"] == BUDGET and intent is not None:
            name = str(intent["body"].get("reservation"))
            self._spend(index, name, body.get("spent", 0), body.get("currency"), settle=True)
        cost = body.get("cost")
        if isinstance(cost, dict) and "spent" in cost:
            self._spend(index, str(cost.get("reservation")), cost["spent"], cost.get("currency"), settle=False)

    def _spend(self, index: int, name: str, amount: object, currency: object, *, settle: bool) -> None:
        budget = self._budgets.get(name)
        if budget is None:
            _refuse(f"record {index} spends from a reservation that no record before it makes")
        if not isinstance(amount, int) or amount < 0 or currency not in (None, budget.currency):
            _refuse(f"record {index} spends no amount, or in another currency than was reserved")
        # A settlement states the whole, other records state their part.
        budget.spent = max(budget.spent, amount) if settle else budget.spent + amount
        if budget.spent > budget.reserved:
            _refuse(f"record {index} spends more than was reserved")


class _Budget:
    """One reservation, in minor units of its currency."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        reserved = body.get("reserved")
        self.reserved = reserved if isinstance(reserved, int) else 0
        self.currency = body.get("currency")
        self.spent = 0


def _verify_statement(envelope: bytes, keys: Sequence[PublicKey]) -> tuple[Statement, tuple[str, ...]]:
    """Return the statement and the ids of the keys that signed it."""
    # The type is read before the signature is checked only to ask `verify` for it; `verify` reads it again.
    expected = _predicate_type(envelope)
    statement = verify(envelope, trusted=keys, predicate_type=expected, now=None).statement
    return statement, tuple(key.keyid for key in keys if _signed(envelope, key, expected))


def _signed(envelope: bytes, key: PublicKey, expected: str) -> bool:
    try:
        verify(envelope, trusted=[key], predicate_type=expected, now=None)
    except FabricError:
        return False
    return True


def expires_at(envelope: bytes) -> datetime:
    """Return when the statement in an envelope expires, whoever signed it.

    Raises:
        EvidenceInvalid: `EVIDENCE_INVALID` if it is no statement that says so.
    """
    try:
        moment = datetime.fromisoformat(_payload(envelope)["predicate"]["expires_at"])
    except (ValueError, KeyError, TypeError):
        _refuse("the document is not a statement that says when it expires")
    if moment.tzinfo is None:
        _refuse("the document is not a statement that says when it expires")
    return moment


def _predicate_type(envelope: bytes) -> str:
    try:
        return str(_payload(envelope)["predicateType"])
    except (KeyError, TypeError):
        _refuse("the document is not a statement in a DSSE envelope")


def _payload(envelope: bytes) -> Any:
    try:
        return json.loads(base64.b64decode(json.loads(envelope)["payload"], validate=True))
    except (ValueError, KeyError, TypeError, RecursionError):
        _refuse("the document is not a statement in a DSSE envelope")


def _refuse(message: str, hint: str = "") -> NoReturn:
    raise EvidenceInvalid(Reason.EVIDENCE_INVALID, message, hint)
