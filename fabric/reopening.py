"""A session for a process that lives long: opened anew when fabric.toml, a policy file or the signing key changes.

What is wrong with the new settings is raised at each look until it is mended, and so is a policy's signature that has
run out; the former settings are not gone on with, for what they allowed may be what was taken away.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from fabric.artifacts import digest
from fabric.config import Config, Environment, find_config, load_config
from fabric.policy_files import read_signature
from fabric.recording import now
from fabric.session import Session
from fabric.stores import Home


@dataclass(slots=True)
class Reopening:
    """Opens the session of the settings as they are now."""

    environment: Environment
    _session: Session | None = field(default=None, init=False)
    _seen: str = field(default="", init=False)

    def session(self) -> Session:
        """Return the session: the same one as long as nothing changes. A former one is left to whoever still uses it.

        Raises:
            FabricError: as `Session.open`.
        """
        if self._session is not None and (policy := self._session.config.policy).files:
            read_signature(policy.signature, policy.signers, now())
        if self._session is None or _stamp(self._session.config) != self._seen:
            # Looked at before it is read: what changes in between is another change, and is seen the next time.
            config = load_config(find_config(self.environment, None, Path.cwd()))
            Home.open(config.state).signing_key()  # made on first use, which is no change
            before = _stamp(config)
            session = Session.open(self.environment)
            self._session, self._seen = session, before if session.config == config else ""
        return self._session


def _stamp(config: Config) -> str:
    """Return a digest of everything that a session is opened from."""
    policy = config.policy
    signature = () if policy.signature is None else (policy.signature,)
    paths = (config.path, *policy.files, *signature, Home(config.state).signing_key_file)
    return digest(b"".join(f"{path}\0{_content(path)}\0".encode() for path in paths))


def _content(path: Path) -> str:
    try:
        return digest(path.read_bytes())
    except OSError:
        return ""
