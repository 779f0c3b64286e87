"""Errors and reason tokens.

Every refusal carries a `Reason`: the same stable token in the CLI, the notebook, JSON, the ledger and the exit status.
An error names columns, zones, digests and counts, never a data value. Every field goes to `super().__init__` by
position, so that the class and its fields survive the pickling that Ray does.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum


class Reason(StrEnum):
    """Why something was refused. ARCHITECTURE.md holds the same list with the way out of each."""

    CONFIG_MISSING = "CONFIG_MISSING"
    CONFIG_INVALID = "CONFIG_INVALID"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    UNKNOWN_LABEL = "UNKNOWN_LABEL"
    LABEL_INVALID = "LABEL_INVALID"
    LABELS_CONFLICT = "LABELS_CONFLICT"
    UNKNOWN_ZONE = "UNKNOWN_ZONE"
    UNKNOWN_RECORDS = "UNKNOWN_RECORDS"
    RECORDS_MISSING = "RECORDS_MISSING"
    RECORDS_EMPTY = "RECORDS_EMPTY"
    RECORDS_TRUNCATED = "RECORDS_TRUNCATED"
    RECORDS_UNREADABLE = "RECORDS_UNREADABLE"
    RECIPE_INVALID = "RECIPE_INVALID"
    RECIPE_EMPTY = "RECIPE_EMPTY"
    COLUMN_MISSING = "COLUMN_MISSING"
    COLUMN_REFUSED = "COLUMN_REFUSED"
    INSPECTION_FAILED = "INSPECTION_FAILED"
    RISK_TOO_HIGH = "RISK_TOO_HIGH"
    STATEMENT_MISSING = "STATEMENT_MISSING"
    STATEMENT_INVALID = "STATEMENT_INVALID"
    STATEMENT_EXPIRED = "STATEMENT_EXPIRED"
    DIGEST_MISMATCH = "DIGEST_MISMATCH"
    MATRIX_MALFORMED = "MATRIX_MALFORMED"
    WRONG_ZONE = "WRONG_ZONE"
    WRONG_PURPOSE = "WRONG_PURPOSE"
    RELEASE_STALE = "RELEASE_STALE"
    POLICY_INVALID = "POLICY_INVALID"
    POLICY_DENIED = "POLICY_DENIED"
    POLICY_UNSIGNED = "POLICY_UNSIGNED"
    POLICY_REQUEST_INVALID = "POLICY_REQUEST_INVALID"
    POLICY_ENGINE_FAILED = "POLICY_ENGINE_FAILED"
    APPROVAL_EXPIRED = "APPROVAL_EXPIRED"
    APPROVAL_SELF = "APPROVAL_SELF"
    APPROVAL_VOID = "APPROVAL_VOID"
    CLOCK_SET_BACK = "CLOCK_SET_BACK"
    PRICE_UNKNOWN = "PRICE_UNKNOWN"
    PRICES_STALE = "PRICES_STALE"
    CATALOGUE_INVALID = "CATALOGUE_INVALID"
    JUSTIFICATION_MISSING = "JUSTIFICATION_MISSING"
    BUDGET_UNKNOWN = "BUDGET_UNKNOWN"
    BUDGET_SPENT = "BUDGET_SPENT"
    QUOTA_EXCEEDED = "QUOTA_EXCEEDED"
    RESERVATION_UNKNOWN = "RESERVATION_UNKNOWN"
    RESERVATION_REUSED = "RESERVATION_REUSED"
    CAPSULE_CAPTURES_DATA = "CAPSULE_CAPTURES_DATA"
    CAPSULE_IDENTIFIER = "CAPSULE_IDENTIFIER"
    CAPSULE_TOO_LARGE = "CAPSULE_TOO_LARGE"
    CAPSULE_UNREADABLE = "CAPSULE_UNREADABLE"
    PARAMETERS_REFUSED = "PARAMETERS_REFUSED"
    TOKEN_INVALID = "TOKEN_INVALID"  # noqa: S105 - the name of a refusal
    TOKEN_EXPIRED = "TOKEN_EXPIRED"  # noqa: S105 - the name of a refusal
    TOKEN_MISUSED = "TOKEN_MISUSED"  # noqa: S105 - the name of a refusal
    CROSSING_CLOSED = "CROSSING_CLOSED"
    BORDER_REFUSED = "BORDER_REFUSED"
    BORDER_BUSY = "BORDER_BUSY"
    BORDER_UNREACHABLE = "BORDER_UNREACHABLE"
    RESULT_REFUSED = "RESULT_REFUSED"
    REMOTE_FAILED = "REMOTE_FAILED"
    DRIVER_OUTSIDE = "DRIVER_OUTSIDE"
    WORKING_DIR_CARRIES_DATA = "WORKING_DIR_CARRIES_DATA"
    ZONE_HAS_NO_ROOM = "ZONE_HAS_NO_ROOM"
    JOB_INVALID = "JOB_INVALID"
    JOB_UNKNOWN = "JOB_UNKNOWN"
    JOB_CANCELLED = "JOB_CANCELLED"
    JOB_WAITS = "JOB_WAITS"
    SUBMIT_TOKEN_REUSED = "SUBMIT_TOKEN_REUSED"  # noqa: S105 - a reason, no password
    DRIVER_LOST = "DRIVER_LOST"
    DEADLINE_PAST = "DEADLINE_PAST"
    GPU_MODEL_UNKNOWN = "GPU_MODEL_UNKNOWN"
    PRICE_INVALID = "PRICE_INVALID"
    QUOTA_INVALID = "QUOTA_INVALID"
    WAITS_FOR_ROOM = "WAITS_FOR_ROOM"
    WAITS_ITS_TURN = "WAITS_ITS_TURN"
    ROOM_RESERVED = "ROOM_RESERVED"
    WAITING_IS_CHEAPER = "WAITING_IS_CHEAPER"
    POOL_FULL = "POOL_FULL"
    PROVIDER_THROTTLED = "PROVIDER_THROTTLED"
    ZONE_DOWN = "ZONE_DOWN"
    ZONE_DEGRADED = "ZONE_DEGRADED"
    HEALTH_UNKNOWN = "HEALTH_UNKNOWN"
    EGRESS_BLOCKED = "EGRESS_BLOCKED"
    PRICE_JUMPED = "PRICE_JUMPED"
    PRICE_TOO_HIGH = "PRICE_TOO_HIGH"
    DEADLINE_MISSED = "DEADLINE_MISSED"
    TRACE_INVALID = "TRACE_INVALID"
    PORT_TAKEN = "PORT_TAKEN"
    FABRIC_DOWN = "FABRIC_DOWN"
    FABRIC_ALREADY_UP = "FABRIC_ALREADY_UP"
    CLUSTER_FAILED = "CLUSTER_FAILED"
    EVIDENCE_UNWRITABLE = "EVIDENCE_UNWRITABLE"
    EVIDENCE_INVALID = "EVIDENCE_INVALID"
    EVIDENCE_UNWITNESSED = "EVIDENCE_UNWITNESSED"
    KEY_UNKNOWN = "KEY_UNKNOWN"
    MANIFEST_REFUSED = "MANIFEST_REFUSED"
    MANIFEST_DRIFT = "MANIFEST_DRIFT"
    FILE_EXISTS = "FILE_EXISTS"
    INTERRUPTED = "INTERRUPTED"
    INTERNAL = "INTERNAL"


class FabricError(Exception):
    """Base of every error this project raises: a reason token, a sentence, and the way out.

    Attributes:
        reason: the stable token.
        message: one sentence that names the thing; never a data value.
        hint: what is allowed, or what to do next; may be empty.
    """

    exit_status = 1

    def __init__(self, reason: Reason | str, message: str, hint: str = "") -> None:
        self.reason = Reason(reason)
        self.message = message
        self.hint = hint
        super().__init__(self.reason.value, message, hint)

    def __str__(self) -> str:
        way_out = f"\nHint: {self.hint}" if self.hint else ""
        return f"{self.message}{way_out}\nCode: {self.reason.value}"

    def to_json(self) -> dict[str, str]:
        """Return the error as the JSON object that every `--json` command prints."""
        return {"code": self.reason.value, "message": self.message, "hint": self.hint}


class InvalidInput(FabricError):
    """A file, label, name or option from a user is wrong (exit status 2)."""

    exit_status = 2


class Refused(FabricError):
    """Policy or the border said no (exit status 3). Never retried."""

    exit_status = 3


class CapsuleRefused(Refused):
    """Outbound code carries something that must not cross."""


class StatementInvalid(Refused):
    """A matrix, crossing or model does not match what was signed about it."""


class EvidenceInvalid(FabricError):
    """The evidence does not verify (exit status 4)."""

    exit_status = 4


class ClusterUnavailable(FabricError):
    """The Ray cluster cannot be started, reached or used (exit status 5)."""

    exit_status = 5


class RemoteFailure(FabricError):
    """Work in another zone failed; only the name of its error's class came back (exit status 6)."""

    exit_status = 6


def nearest(name: str, allowed: Iterable[str]) -> str:
    """Return a hint that lists what is allowed and, where one is close, the nearest right name."""
    choices = sorted(allowed)
    listed = ", ".join(choices) if choices else "nothing is declared"
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}? Allowed: {listed}." if close else f"Allowed: {listed}."
