"""Merkle tree hashing of an append-only log (RFC 6962, 2.1), with inclusion and consistency proofs.

A tree is kept as the hashes of its perfect subtrees. A node is named by its level (0 for a leaf) and its index on that
level; it never changes once it is written. This module holds no state: nodes are read through a callable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

NodeReader = Callable[[int, int], bytes]
Node = tuple[int, int, bytes]

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(content: bytes) -> bytes:
    """Return the hash of a leaf (RFC 6962, 2.1: the 0x00 prefix keeps leaves and nodes apart)."""
    return hashlib.sha256(b"\x00" + content).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node (RFC 6962, 2.1: the 0x01 prefix)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def append(size: int, leaf: bytes, read: NodeReader) -> list[Node]:
    """Return the nodes that come into being when `leaf` (a leaf hash) becomes leaf number `size`."""
    level, index, value = 0, size, leaf
    nodes = [(level, index, value)]
    while index & 1:
        value = node_hash(read(level, index - 1), value)
        level, index = level + 1, index >> 1
        nodes.append((level, index, value))
    return nodes


def root(size: int, read: NodeReader) -> bytes:
    """Return the Merkle tree hash of the first `size` leaves (RFC 6962, 2.1)."""
    return _subtree(0, size, read) if size else EMPTY_ROOT


def frontier(size: int) -> list[tuple[int, int]]:
    """Return the level and index of each perfect subtree of a tree of `size` leaves: all that its growth reads."""
    return [(level, (size >> level) - 1) for level in range(size.bit_length()) if size >> level & 1]


def inclusion_proof(index: int, size: int, read: NodeReader) -> list[bytes]:
    """Return the audit path of leaf `index` in the tree of `size` leaves (RFC 9162, 2.1.3.1).

    Raises:
        ValueError: if the tree has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError(f"a tree of {size} leaves has no leaf {index}")
    path: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(_subtree(middle, high, read))
            high = middle
        else:
            path.append(_subtree(low, middle, read))
            low = middle
    return path[::-1]


def consistency_proof(first: int, second: int, read: NodeReader) -> list[bytes]:
    """Return the proof that the tree of `second` leaves extends the tree of `first` leaves (RFC 9162, 2.1.4.1).

    Raises:
        ValueError: unless 0 < first <= second.
    """
    if not 0 < first <= second:
        raise ValueError(f"no proof leads from {first} to {second} leaves")
    path: list[bytes] = []
    low, high = 0, second
    while first != high:
        middle = low + _split(high - low)
        if first <= middle:
            path.append(_subtree(middle, high, read))
            high = middle
        else:
            path.append(_subtree(low, middle, read))
            low = middle
    # The verifier holds the old root already, so a whole old tree is left out (SUBPROOF with b = true).
    if low:
        path.append(_subtree(low, high, read))
    return path[::-1]


def inclusion_holds(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected_root: bytes) -> bool:
    """Say whether `proof` puts `leaf` (a leaf hash) at `index` of the tree of `size` leaves (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size or not _are_hashes(leaf, *proof):
        return False
    fn, sn, value = index, size - 1, leaf
    for step in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            value = node_hash(step, value)
            fn, sn = _climb(fn, sn)
        else:
            value = node_hash(value, step)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and value == expected_root


def consistency_holds(first: int, second: int, first_root: bytes, second_root: bytes, proof: Sequence[bytes]) -> bool:
    """Say whether `proof` shows that the second tree extends the first (RFC 9162, 2.1.4.2)."""
    if first == second:
        return not proof and first_root == second_root
    if not 0 < first < second or not proof or not _are_hashes(first_root, *proof):
        return False
    path = [first_root, *proof] if first & (first - 1) == 0 else list(proof)
    fn, sn = first - 1, second - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    old = new = path[0]
    for step in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            old, new = node_hash(step, old), node_hash(step, new)
            fn, sn = _climb(fn, sn)
        else:
            new = node_hash(new, step)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and old == first_root and new == second_root


def _climb(fn: int, sn: int) -> tuple[int, int]:
    # RFC 9162, 2.1.3.2 step 4.b.ii and 2.1.4.2 step 6.b.iii: skip the levels where the last node has no sibling.
    while fn and not fn & 1:
        fn, sn = fn >> 1, sn >> 1
    return fn, sn


def _split(size: int) -> int:
    """Return the largest power of two smaller than `size`."""
    return 1 << (size - 1).bit_length() - 1


def _subtree(low: int, high: int, read: NodeReader) -> bytes:
    """Return the hash over leaves `low` to `high`, where `low` is a multiple of the next power of two."""
    size = high - low
    if size & (size - 1) == 0:
        return read(size.bit_length() - 1, low // size)
    middle = low + _split(size)
    return node_hash(read(_split(size).bit_length() - 1, low // _split(size)), _subtree(middle, high, read))


def _are_hashes(*values: bytes) -> bool:
    # 31 and 33 bytes would concatenate to the same 64 as 32 and 32.
    return all(len(value) == HASH_BYTES for value in values)
