"""A site's policy files: believed under a signature only, parsed apart, and never with a word that means nothing."""

from datetime import UTC, datetime, timedelta

import pytest

from fabric.errors import FabricError, Reason
from fabric.policy import Policy, default_texts
from fabric.policy_files import check_words, load_policy, parse_apart, read_policy, sign_policy
from fabric.statements import SigningKey

NOW = datetime(2026, 6, 1, tzinfo=UTC)
YEAR = timedelta(days=365)
KEY, STRANGER = SigningKey.from_seed(bytes(32)), SigningKey.from_seed(bytes(31) + b"\1")
RULE = """
@id("site.restricted") @reason("what is restricted stays unless somebody else agrees") @way_out("have it approved")
forbid (principal, action == Action::"move", resource)
when { resource.kind != "private" && context.labels.data_classification >= 3 && !context.approved };
"""


@pytest.fixture
def site(tmp_path):
    """A policy file with the signature over the set."""
    file, signature = tmp_path / "site.cedar", tmp_path / "site.cedar.sig"
    file.write_text(RULE)
    signed, _ = sign_policy([file], KEY, version=3, now=NOW, lasts=YEAR)
    signature.write_bytes(signed.envelope)
    return file, signature


def refused(site, *, signers=(KEY.public,), now=NOW, files=None):
    file, signature = site
    with pytest.raises(FabricError) as caught:
        load_policy(files or [file], signature, signers, now=now)
    assert caught.value.hint or caught.value.reason in (Reason.STATEMENT_INVALID,)
    return caught.value.reason


def test_without_files_the_default_set_is_in_force():
    assert load_policy([], None, [], now=NOW).digest == Policy.default().digest


def test_a_signed_file_is_in_force_with_its_version(site):
    file, signature = site
    policy = load_policy([file], signature, [KEY.public], now=NOW)
    assert policy.version == 3
    assert "site.restricted" in [rule.id for rule in policy.rules]
    assert policy.digest != Policy.default().digest


def test_a_file_without_a_signature_is_refused(site):
    site[1].unlink()
    assert refused(site) is Reason.POLICY_UNSIGNED
    assert refused((site[0], None)) is Reason.POLICY_UNSIGNED
    site[1].write_bytes(b"")
    assert refused(site) is Reason.POLICY_UNSIGNED


def test_a_file_that_a_stranger_signed_is_refused(site):
    assert refused(site, signers=[STRANGER.public]) is Reason.KEY_UNKNOWN
    assert refused(site, signers=[]) is Reason.KEY_UNKNOWN


def test_a_file_that_was_changed_left_out_or_added_after_signing_is_refused(site):
    file, _ = site
    other = file.with_name("other.cedar")
    other.write_text(RULE.replace("site.restricted", "site.other"))
    assert refused(site, files=[file, other]) is Reason.POLICY_UNSIGNED
    assert refused(site, files=[other]) is Reason.POLICY_UNSIGNED
    file.write_text(RULE.replace(">= 3", ">= 4"))
    assert refused(site) is Reason.POLICY_UNSIGNED


def test_a_signature_expires_and_a_clock_set_back_does_not_help(site):
    assert refused(site, now=NOW + YEAR) is Reason.STATEMENT_EXPIRED
    assert refused(site, now=NOW - timedelta(days=1)) is Reason.CLOCK_SET_BACK


def test_a_changed_signature_is_refused(site):
    envelope = site[1].read_bytes()
    site[1].write_bytes(envelope.replace(b'"payload":"ey', b'"payload":"fy'))
    assert refused(site) is Reason.STATEMENT_INVALID


def test_another_statement_of_a_signer_is_no_signature_of_policies(site):
    from fabric.statements import Statement, sign, timestamp

    predicate = {"version": 1, "issued_at": timestamp(NOW), "expires_at": timestamp(NOW + YEAR)}
    site[1].write_bytes(
        sign(Statement(subjects={"set": "sha256:0"}, predicate_type="x", predicate=predicate), KEY).envelope
    )
    assert refused(site) is Reason.STATEMENT_INVALID


@pytest.mark.parametrize(
    "text",
    [
        "permit (",
        RULE.replace('@id("site.restricted")', ""),
        RULE.replace("context.approved", "context.aproved"),
        RULE.replace('Action::"move"', 'Action::"mvoe"'),
        RULE.replace('"private"', '"privat"'),
        RULE.replace("@id", '@replaces("move.records") @id'),
        "x" * 300_000,
    ],
)
def test_a_policy_that_does_not_validate_is_not_signed(tmp_path, text):
    file = tmp_path / "site.cedar"
    file.write_text(text)
    with pytest.raises(FabricError) as caught:
        sign_policy([file], KEY, version=1, now=NOW, lasts=YEAR)
    assert caught.value.reason is Reason.POLICY_INVALID
    assert caught.value.hint


def test_a_missing_file_is_refused_with_the_nearest_one(site):
    with pytest.raises(FabricError) as caught:
        sign_policy([site[0].with_name("sight.cedar")], KEY, version=1, now=NOW, lasts=YEAR)
    assert "site.cedar" in caught.value.hint


def test_text_that_kills_the_parser_kills_a_child_and_is_refused():
    deep = "(" * 20_000 + "true" + ")" * 20_000
    text = f'@id("deep") @reason("deep") forbid (principal, action, resource) when {{ {deep} }};'
    with pytest.raises(FabricError, match="kills or stalls") as caught:
        parse_apart(text, default_texts()[1], source="deep.cedar")
    assert caught.value.reason is Reason.POLICY_INVALID


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ('resource.kind == "pubic"', "public"),
        ('context.artifact != "matrx"', "matrix"),
        ('["public", "egde"].contains(resource.kind)', "edge"),
        ('context.labels.export_control == "ITARR"', "ITAR"),
        ('context.labels.contract_limits.contains("no-servin")', "no-serving"),
        ('!(context.labels.retention_class == "holdd")', "hold"),
        ('true && (false || context.labels.workload_class == "sweeep")', "sweep"),
    ],
)
def test_a_word_that_an_attribute_never_is_is_refused_with_the_nearest_right_one(wrong, right):
    text = f'@id("x") @reason("y") forbid (principal, action == Action::"move", resource) when {{ {wrong} }};'
    with pytest.raises(FabricError) as caught:
        check_words(text, source="site.cedar")
    assert f"did you mean {right!r}?" in caught.value.hint


def test_the_default_policies_hold_no_word_that_means_nothing():
    check_words(default_texts()[0], source="default.cedar")


def test_a_draft_can_be_read_without_a_signature_to_try_it(site):
    assert "site.restricted" in [rule.id for rule in read_policy([site[0]], [RULE]).rules]
