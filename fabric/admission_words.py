"""What the admission policies are written in: one check, and how a word of ours becomes CEL."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fabric.errors import InvalidInput, Reason

DOMAIN = "zonefabric.io"
"""Prefix of every Kubernetes label and annotation of ours."""
_PLAIN = re.compile(r"[A-Za-z0-9@ ._/-]*\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One validation: CEL that is true of what is admitted, and what is said where it is not.

    Attributes:
        id: short and stable; the id of the Cedar rule where it is the same rule.
        says: why it was refused, and the way out.
    """

    id: str
    reason: Reason
    expression: str
    says: str

    @property
    def message(self) -> str:
        """Return what the person who applied the object reads: the reason token first."""
        return f"{self.reason.value} [{self.id}] {self.says}"


def quoted(text: str) -> str:
    """Return a plain word as a CEL string.

    Raises:
        InvalidInput: `CONFIG_INVALID` for what would need escaping: it could say something else in CEL.
    """
    if not _PLAIN.match(text):
        raise InvalidInput(
            Reason.CONFIG_INVALID, f"{text!r} cannot stand in an admission policy", "use letters, digits, '.', '_', '-'"
        )
    return f'"{text}"'


def quoted_account(account: str) -> str:
    """Return what has colons, a service account or an image, as a CEL string."""
    return '"' + ":".join(quoted(part)[1:-1] for part in account.split(":")) + '"'


def quoted_list(words: list[str]) -> str:
    """Return plain words as a CEL list."""
    return "[" + ", ".join(map(quoted, words)) + "]"
