"""The order of rows, and who is held back: keyed, so that nobody without the records can undo or foresee either.

Rows leave in the order of a keyed permutation of their numbers: a balanced Feistel network over the next power of four
(Luby and Rackoff 1988, eight rounds; round function AES-128) with cycle walking back into the range (Black and Rogaway
2002). It needs no memory, so any worker can say which rows belong into any chunk, and the order does not depend on how
the work was cut.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

Words = np.ndarray[Any, np.dtype[np.uint64]]
_ROUNDS = 8
_BUCKETS = 1 << 16


def derived(key: bytes, purpose: str) -> bytes:
    """Return 32 bytes for one purpose, from which `key` and the bytes for other purposes cannot be told."""
    return hashlib.blake2b(purpose.encode(), key=key[:64], digest_size=32).digest()


def scrambled(words: Words, key: bytes) -> Words:
    """Return a keyed pseudo-random word for each word; the same word gives the same."""
    blocks = np.zeros((len(words), 2), dtype="<u8")
    blocks[:, 0] = words
    cipher = Cipher(algorithms.AES(key[:16]), modes.ECB()).encryptor()  # noqa: S305 - a pseudo-random function of blocks
    return np.frombuffer(cipher.update(blocks.tobytes()), dtype="<u8")[::2].astype(np.uint64)


def permuted(places: Words, count: int, key: bytes) -> Words:
    """Return which of `count` rows stands at each of `places`: a permutation of 0 to `count` - 1.

    Args:
        places: numbers from 0 to `count` - 1.
        key: at least 16 bytes.
    """
    half = np.uint64(max(1, (max(count - 1, 1).bit_length() + 1) // 2))
    rows = places.astype(np.uint64)
    outside = np.ones(len(rows), dtype=bool)
    while outside.any():
        rows[outside] = _network(rows[outside], half, key)
        outside = rows >= count
    return rows


def _network(words: Words, half: np.uint64, key: bytes) -> Words:
    mask = np.uint64((1 << int(half)) - 1)
    left, right = words >> half, words & mask
    for turn in range(_ROUNDS):
        mixed = scrambled(right | np.uint64(turn << 56), key)
        left, right = right, left ^ (mixed & mask)
    return (left << half) | right


def buckets(who: Words, key: bytes) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the bucket, from 0 to 65,535, into which each subject falls by lot."""
    return (scrambled(who, key) >> np.uint64(48)).astype(np.int64)


def lot(rows_by_bucket: np.ndarray[Any, np.dtype[np.int64]], share: float) -> int:
    """Return the bucket below which subjects are held back, so that about `share` of the rows is.

    Args:
        rows_by_bucket: shape (65536,).
    """
    wanted = round(share * int(rows_by_bucket.sum()))
    return int(np.searchsorted(np.cumsum(rows_by_bucket), wanted, side="right"))


def no_buckets() -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return an empty count of rows by bucket."""
    return np.zeros(_BUCKETS, dtype=np.int64)


def mixed(words: Words) -> Words:
    """Return each word with its bits mixed, one to one (Steele, Lea and Flood 2014, SplitMix64's finalizer)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
