"""A process that lives long goes on with what fabric.toml, policy files and key say now, and with nothing older."""

from __future__ import annotations

from datetime import timedelta

import pytest
import site_policy

from fabric.config import Environment
from fabric.errors import FabricError, Reason
from fabric.recording import now, open_ledger
from fabric.reopening import Reopening
from fabric.rotating import rotate_key
from fabric.starter import write_starter


@pytest.fixture
def config(tmp_path):
    write_starter(tmp_path)
    return tmp_path / "fabric.toml"


@pytest.fixture
def reopening(config):
    return Reopening(Environment.read({"FABRIC_CONFIG": str(config)}))


def refused(reopening) -> Reason:
    with pytest.raises(FabricError) as caught:
        reopening.session()
    assert caught.value.hint
    return caught.value.reason


def test_the_session_is_the_same_as_long_as_nothing_changes(config, reopening):
    first = reopening.session()
    config.write_bytes(config.read_bytes())
    assert reopening.session() is first


def test_what_changes_in_fabric_toml_counts_from_the_next_look_on(config, reopening):
    first = reopening.session()
    config.write_text(config.read_text().replace("cpus = 2\n", "cpus = 3\n"))
    second = reopening.session()
    assert (first.config.private.cpus, second.config.private.cpus) == (2, 3)
    assert reopening.session() is second


def test_a_file_that_is_wrong_is_refused_at_each_look_and_the_former_is_not_gone_on_with(config, reopening):
    first, text = reopening.session(), config.read_text()
    config.write_text(text + "\n[dispach]\n")
    assert [refused(reopening), refused(reopening)] == [Reason.UNKNOWN_KEY] * 2
    config.unlink()
    assert refused(reopening) is Reason.CONFIG_MISSING
    config.write_text(text)
    assert reopening.session() is first


def test_a_policy_that_comes_in_force_is_asked_and_one_that_was_changed_unsigned_is_no_policy(config, reopening):
    before = reopening.session().policy
    rule = site_policy.bring_in_force(config)
    after = reopening.session()
    assert after.policy.digest != before.digest
    assert after.border.policy is after.policy
    rule.write_text("")
    assert refused(reopening) is Reason.POLICY_UNSIGNED


def test_a_policys_signature_that_runs_out_is_refused_though_no_file_changed(config, reopening, monkeypatch):
    site_policy.bring_in_force(config)
    reopening.session()
    late = now() + timedelta(days=2)
    monkeypatch.setattr("fabric.reopening.now", lambda: late)
    assert refused(reopening) is Reason.STATEMENT_EXPIRED
    site_policy.bring_in_force(config, lasts=timedelta(days=9))
    assert "site.nothing" in [rule.id for rule in reopening.session().policy.rules]


def test_after_the_key_was_rotated_the_new_one_signs_and_is_believed(reopening):
    first = reopening.session()
    first.ledger.close()
    rotate_key(first.home, lambda home, key: open_ledger(first.config, home, key))
    second = reopening.session()
    assert second.key.public != first.key.public
    assert {second.key.public, first.key.public} <= set(second.trusted)
    second.ledger.observe("unsafe-border", {"checked": "yes"})
