"""Tokens: none without a receipt; each for one crossing, one direction, one zone, and a quarter of an hour."""

import base64
import json
from dataclasses import replace
from datetime import timedelta

import pytest
from border_lab import Lab
from joserfc import jwt
from joserfc.jwk import OctKey, OKPKey

from fabric.crossing import Cargo
from fabric.errors import FabricError, Reason
from fabric.recording import now
from fabric.statements import SigningKey
from fabric.testing import MemoryCarrier
from fabric.tokens import Direction, check_use, mint, prove, read_token

KEY = SigningKey.from_seed(bytes(32))
CLAIMS = {
    "iss": "lab", "aud": "lab/border", "sub": "job-1", "jti": "1", "crossing": "a" * 32, "direction": "fetch",
    "zone": "public", "grant": "sha256:" + "0" * 64,
}  # fmt: skip


def times(*, begins=0, lasts=900):
    start = int(now().timestamp()) + begins
    return {"iat": start, "nbf": start, "exp": start + lasts}


def signed(claims, *, key=KEY, header=None):
    header = header or {"alg": "Ed25519", "typ": "JWT"}
    return jwt.encode(header, claims, OKPKey.import_key(key.private), algorithms=[header["alg"]])


def refused(text):
    with pytest.raises(FabricError) as caught:
        read_token(text, fabric="lab", key=KEY.public, now=now())
    return caught.value.reason


@pytest.fixture
def lab(tmp_path):
    made = Lab(tmp_path)
    yield made
    made.ledger.close()


class Keeping(MemoryCarrier):
    def carry(self, cargo, grant, receipt):
        self.receipt = receipt
        return super().carry(cargo, grant, receipt)


def crossed(lab, **options):
    from border_lab import ERRAND

    carrier = Keeping()
    crossing = lab.border.export(Cargo(matrix=lab.matrix(**options)), ERRAND, carrier)
    return crossing.grant.envelope, carrier.receipt, lab.ledger.record(carrier.receipt)


def test_a_token_that_is_none_or_is_altered_is_refused():
    good = signed({**CLAIMS, **times()})
    head, body, mark = good.split(".")
    for text in ("", "x", "a.b.c", "." * 5_000, good[:-2], f"{head}.{body}.", f"{head}..{mark}", good + "\n", "é"):
        assert refused(text) is Reason.TOKEN_INVALID


def test_a_token_by_no_algorithm_or_another_one_or_another_key_is_refused():
    claims = {**CLAIMS, **times()}
    none = [base64.urlsafe_b64encode(json.dumps(p).encode()).decode().rstrip("=") for p in ({"alg": "none"}, claims)]
    assert refused(f"{none[0]}.{none[1]}.") is Reason.TOKEN_INVALID
    # The public key is public: a keyed hash with it must not pass for a signature.
    shared = jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(KEY.public.raw), algorithms=["HS256"])
    assert refused(shared) is Reason.TOKEN_INVALID
    assert refused(signed(claims, key=SigningKey.generate())) is Reason.TOKEN_INVALID
    assert refused(signed(claims, header={"alg": "Ed25519", "typ": "JWT", "kid": "x"})) is Reason.TOKEN_INVALID


@pytest.mark.parametrize("name", [*CLAIMS, "iat", "nbf", "exp"])
def test_a_token_without_one_of_its_claims_or_with_one_of_another_kind_is_refused(name):
    claims = {**CLAIMS, **times()}
    assert refused(signed({key: value for key, value in claims.items() if key != name})) is Reason.TOKEN_INVALID
    assert refused(signed({**claims, name: None})) is Reason.TOKEN_INVALID
    assert refused(signed({**claims, name: ["x"]})) is Reason.TOKEN_INVALID
    assert refused(signed({**claims, "more": 1})) is Reason.TOKEN_INVALID


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"begins": -1000}, Reason.TOKEN_EXPIRED),
        ({"lasts": 901}, Reason.TOKEN_INVALID),
        ({"lasts": 10**9}, Reason.TOKEN_INVALID),
        ({"begins": 60}, Reason.TOKEN_INVALID),
        ({"iss": "other"}, Reason.TOKEN_INVALID),
        ({"aud": "other/border"}, Reason.TOKEN_INVALID),
        ({"direction": "both"}, Reason.TOKEN_INVALID),
        ({"crossing": "../" + "a" * 29}, Reason.TOKEN_INVALID),
    ],
)
def test_a_token_out_of_its_time_or_for_something_else_is_refused(change, reason):
    # The time is read here: the table was made when the tests were collected.
    when = {name: value for name, value in change.items() if name in ("begins", "lasts")}
    said = {name: value for name, value in change.items() if name not in when}
    assert refused(signed({**CLAIMS, **times(**when), **said})) is reason


@pytest.mark.parametrize(
    "use", [{"zone": "elsewhere"}, {"direction": Direction.RETURN}, {"crossing": "b" * 32}, {"zone": ""}]
)
def test_a_good_token_used_for_something_else_is_refused(use):
    found = read_token(signed({**CLAIMS, **times()}), fabric="lab", key=KEY.public, now=now())
    right = {"zone": "public", "direction": Direction.FETCH, "crossing": "a" * 32}
    check_use(found, **right)
    with pytest.raises(FabricError) as caught:
        check_use(found, **{**right, **use})
    assert caught.value.reason is Reason.TOKEN_MISUSED


def test_no_receipt_of_this_very_crossing_no_token(lab):
    grant, receipt, record = crossed(lab)
    other_grant, other_receipt, other_record = crossed(lab)
    keys = lab.ledger.keys
    for shown in (
        (other_receipt, record, grant),
        (receipt, other_record, grant),
        (other_receipt, other_record, grant),
        (receipt, record, other_grant),
        (receipt, record.replace(b"public", b"secret"), grant),
        (replace(receipt, proof=("00" * 32,)), record, grant),
        (replace(receipt, index=receipt.index + 1), record, grant),
        (replace(receipt, checkpoint=""), record, grant),
        (receipt, b"", grant),
        (receipt, record, b""),
    ):
        with pytest.raises(FabricError):
            prove(*shown, keys=keys)
    with pytest.raises(FabricError) as caught:
        prove(receipt, record, grant, keys=[SigningKey.generate().public])
    assert caught.value.reason is Reason.KEY_UNKNOWN


def test_the_receipt_of_an_outcome_or_of_a_refusal_is_no_receipt_of_an_intent(lab):
    grant, *_ = crossed(lab)
    for receipt in (lab.ledger.observe("refusal", {"what": "x"}), lab.ledger.intend("job", {"kind": "training"})):
        with pytest.raises(FabricError) as caught:
            prove(receipt, lab.ledger.record(receipt), grant, keys=lab.ledger.keys)
        assert caught.value.reason is Reason.EVIDENCE_INVALID


def test_a_minted_token_says_what_was_recorded_and_ends_with_the_grant(lab):
    grant, receipt, record = crossed(lab)
    recorded = prove(receipt, record, grant, keys=lab.ledger.keys)
    moment = now()

    def minted(when, lasts=timedelta(minutes=15)):
        text = mint(recorded, Direction.FETCH, fabric="lab", key=KEY, lasts=lasts, now=when, token_id="t")
        return read_token(text, fabric="lab", key=KEY.public, now=when)

    found = minted(moment)
    assert (found.crossing, found.zone, found.job) == (recorded.crossing, "public", "job-1")
    assert found.expires_at - moment <= timedelta(minutes=15)
    assert minted(moment, lasts=timedelta(days=1)).expires_at - moment <= timedelta(minutes=15)
    late = recorded.expires_at - timedelta(minutes=1)
    assert minted(late).expires_at <= recorded.expires_at
    with pytest.raises(FabricError) as caught:
        minted(recorded.expires_at)
    assert caught.value.reason is Reason.CROSSING_CLOSED
