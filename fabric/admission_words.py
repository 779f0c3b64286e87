"""What the admission policies are written in: one check, and how a word of ours becomes CEL."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fabric.errors import Reason

DOMAIN = "zonefabric.io"
"""Prefix of every Kubernetes label and annotation of ours."""
_PLAIN = re.compile(r"[A-Za-z0-9 ._/-]*\Z")


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
    """Return a plain word as a CEL string; anything that would need escaping is a mistake of ours."""
    if not _PLAIN.match(text):
        raise ValueError(f"{text!r} is no plain word")
    return f'"{text}"'


def quoted_account(account: str) -> str:
    """Return the name of a service account, which has colons, as a CEL string."""
    return '"' + ":".join(quoted(part)[1:-1] for part in account.split(":")) + '"'


def quoted_list(words: list[str]) -> str:
    """Return plain words as a CEL list."""
    return "[" + ", ".join(map(quoted, words)) + "]"
