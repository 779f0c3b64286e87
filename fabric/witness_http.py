"""A witness over HTTP, seen from the fabric: a module of its own, because the standard client is slow to import."""

from __future__ import annotations

import urllib.error
import urllib.request

from fabric.errors import EvidenceInvalid, Reason
from fabric.notes import MAX_NOTE_CHARACTERS
from fabric.witness import Answer, Request, refuse_shown, unreachable

TIMEOUT_S = 5.0


class HTTPWitness:
    """A witness at `<url>/add-checkpoint`."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/") + "/add-checkpoint"
        # No proxy from the environment: the address is the one that was configured.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def add(self, request: Request) -> Answer:
        """Show a checkpoint over HTTP."""
        asked = urllib.request.Request(self._url, request.to_text().encode(), {"Content-Type": "text/plain"})  # noqa: S310
        try:
            with self._opener.open(asked, timeout=TIMEOUT_S) as response:
                lines = response.read(MAX_NOTE_CHARACTERS).decode()
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 409:
                    return Answer(has=_size(error.read(32)))
                refuse_shown(error.code)
        except (OSError, ValueError) as error:
            raise unreachable(self._url, type(error).__name__) from None
        return Answer(note=request.checkpoint + lines)


def _size(text: bytes) -> int:
    digits = text.strip()
    if not digits.isdigit():
        raise EvidenceInvalid(
            Reason.EVIDENCE_INVALID,
            "the witness did not say which size it has seen",
            "look at the address of the witness",
        )
    return int(digits)
