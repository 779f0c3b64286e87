"""Rotating the fabric's signing key on the disk, so that a crash at any point can be gone on from."""

from __future__ import annotations

from collections.abc import Callable

from fabric.errors import FabricError, Reason
from fabric.ledger import Ledger
from fabric.statements import PublicKey, SigningKey
from fabric.stores import Home

NEXT = "signing.key.next"


def rotate_key(home: Home, open_log: Callable[[Home, SigningKey], Ledger]) -> PublicKey:
    """Let a new key sign from now on, and return its public half; run again after a crash, it finishes.

    Raises:
        FabricError: `EVIDENCE_UNWRITABLE`; `KEY_UNKNOWN` if neither the current key nor the next one signed the log.
    """
    waiting = home.keys / NEXT
    # 1. The next key is on the disk before the log names it.
    if not waiting.exists():
        home.write(waiting, SigningKey.generate().seed)
    following = SigningKey.from_seed(waiting.read_bytes())
    # 2. The log names it, unless a run that was cut off has done that.
    _name(home, following, open_log)
    # 3. It takes the old one's place, and the old one is gone.
    try:
        waiting.replace(home.signing_key_file)
    except OSError:
        raise FabricError(
            Reason.EVIDENCE_UNWRITABLE, f"cannot write to {home.keys}", "make it writable, and rotate again"
        ) from None
    return following.public


def _name(home: Home, following: SigningKey, open_log: Callable[[Home, SigningKey], Ledger]) -> None:
    try:
        ledger = open_log(home, home.signing_key())
    except FabricError as error:
        if error.reason is not Reason.KEY_UNKNOWN:
            raise
        open_log(home, following).close()
        return
    try:
        ledger.rotate(following)
    finally:
        ledger.close()
