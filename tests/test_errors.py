"""Errors travel: every field, and no data."""

import pickle

import pytest

from fabric.errors import (
    CapsuleRefused,
    ClusterUnavailable,
    EvidenceInvalid,
    FabricError,
    InvalidInput,
    Reason,
    Refused,
    RemoteFailure,
    StatementInvalid,
    nearest,
)

CLASSES = [
    FabricError, InvalidInput, Refused, CapsuleRefused, StatementInvalid, EvidenceInvalid, ClusterUnavailable,
    RemoteFailure,
]  # fmt: skip


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_survives_pickling_as_itself(kind):
    error = kind(Reason.UNKNOWN_ZONE, "unknown zone 'x'", "Allowed: private.")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (copy.reason, copy.message, copy.hint) == (error.reason, error.message, error.hint)
    assert str(copy) == str(error)


def test_an_error_says_what_the_way_out_and_its_code():
    text = str(Refused(Reason.POLICY_DENIED, "policy denies move", "say why"))
    assert text == "policy denies move\nHint: say why\nCode: POLICY_DENIED"


def test_a_reason_that_is_not_in_the_vocabulary_is_refused():
    with pytest.raises(ValueError, match="NO_SUCH"):
        FabricError("NO_SUCH", "x")


def test_the_nearest_right_name_is_offered():
    assert nearest("pubic", ["private", "public"]).startswith("did you mean 'public'?")
    assert nearest("zzz", ["private"]) == "Allowed: private."
    assert nearest("x", []) == "Allowed: nothing is declared."
