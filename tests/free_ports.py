"""Ports for what a test starts later: nobody else takes one meanwhile."""

from __future__ import annotations

import socket
from random import SystemRandom

_NOBODYS = range(20_000, 32_000)
"""Ray's workers take theirs below these, and who lets the system choose gets one above."""


def free_port() -> int:
    """Return a port of the loopback interface at which nobody listens."""
    while True:
        port = SystemRandom().choice(_NOBODYS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
