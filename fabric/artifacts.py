"""Artifacts by digest: canonical JSON (RFC 8785), SHA-256 digests, random ids."""

from __future__ import annotations

import hashlib

import rfc8785


def canonical(value: object) -> bytes:
    """Return `value` as canonical JSON (RFC 8785)."""
    return rfc8785.dumps(value)  # type: ignore[arg-type]


def digest(content: bytes | memoryview) -> str:
    """Return the SHA-256 of `content` as `sha256:<64 hex digits>`."""
    return "sha256:" + hashlib.sha256(content).hexdigest()


def digest_of(value: object) -> str:
    """Return the digest of the canonical JSON of `value`."""
    return digest(canonical(value))


def bare(digest_text: str) -> str:
    """Return the hex part of `sha256:<hex>`, as in-toto's digest set wants it."""
    return digest_text.removeprefix("sha256:")


def chunk_name(index: int) -> str:
    """Return the name under which a statement and a crossing list chunk `index` of a matrix."""
    return f"chunk-{index:06d}"


def is_chunk_name(name: str) -> bool:
    """Say whether `name` is the name of a chunk of a matrix."""
    return name.startswith("chunk-")
