"""A site's own rule, signed and named in fabric.toml."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from fabric.policy_files import sign_policy
from fabric.recording import now
from fabric.statements import SigningKey

_KEY = SigningKey.from_seed(b"p" * 32)
_RULE = """
@id("site.nothing") @reason("nothing leaves this week") @way_out("wait for next week")
forbid (principal, action == Action::"move", resource) when { resource.kind != "private" };
"""


def bring_in_force(config: Path, *, lasts: timedelta = timedelta(days=1)) -> Path:
    """Write the rule and its signature beside a fabric.toml and name them in it, or sign again; return its file."""
    rule = config.with_name("site.cedar")
    rule.write_text(_RULE)
    signed, _ = sign_policy([rule], _KEY, version=1, now=now(), lasts=lasts)
    config.with_name("site.sig").write_bytes(signed.envelope)
    policy = f'[policy]\nfiles = ["site.cedar"]\nsignature = "site.sig"\nsigners = ["{_KEY.public.to_text()}"]\n'
    if policy not in config.read_text():
        config.write_text(f"{config.read_text()}\n{policy}")
    return rule
