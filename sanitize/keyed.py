"""Keyed numbers: tokens, vectors of words and noise, which nobody without the key can compute or take away.

Each depends on a key and on the value, or on the number of its row, and on nothing else: not on the block, not on the
other rows.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from sanitize.treatments import Perturb, Vectorise

VECTOR_STEPS = 64
"""A row of length 1 is rounded to this part: few distinct values, and each one exact in 32 bits."""

TOKEN_BITS = 52
_SHA256_BLOCK = 64
_STRIDE_ROWS = 65_536
_STRIDE_CELLS = 1 << 22
_NO_WORD = re.compile(r"[\W_]+")
_WORD_BYTES = np.array(
    [ord(chr(b).lower()) if b < 128 and chr(b).isalnum() else b if b > 127 else 32 for b in range(256)], dtype=np.uint8
)

Reals = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]
Vectors = np.ndarray[Any, np.dtype[np.float32]]


def tokens(texts: Sequence[str | None], key: bytes) -> Ints:
    """Return the first 52 bits of each text's HMAC-SHA256 (RFC 2104), never 0, which stands for a missing text.

    Among a million texts two meet with a chance of about 1 in 10,000.
    """
    # RFC 2104, 4: the states after the padded key are computed once.
    padded = key.ljust(_SHA256_BLOCK, b"\0")
    inner, outer = (hashlib.sha256(bytes(byte ^ pad for byte in padded)) for pad in (0x36, 0x5C))

    def digests() -> Iterator[bytes]:
        for text in texts:
            if text is None:
                yield bytes(8)
                continue
            inside, outside = inner.copy(), outer.copy()
            inside.update(text.encode())
            outside.update(inside.digest())
            yield outside.digest()[:8]

    words = np.frombuffer(b"".join(digests()), dtype=">u8") >> (64 - TOKEN_BITS)
    known = np.fromiter((text is not None for text in texts), dtype=np.bool_, count=len(texts))
    return np.where(known, np.maximum(words, 1), 0).astype(np.int64)


def noisy_steps(held: Reals, treatment: Perturb, *, first_row: int, key: bytes) -> Reals:
    """Return values within bounds as whole steps of the grid, with noise added.

    The noise is the difference of two geometric variables: discrete Laplace. Row number n takes its 128 random bits
    from block n of AES-256 in counter mode (NIST SP 800-38A, 6.5), 53 of them for each variable; beyond 36 scales,
    where only 2^-53 of the noise lies, it is cut off.
    """
    decay = float(treatment.epsilon * treatment.to / (treatment.high - treatment.low))
    stream = Cipher(AES(key), CTR(first_row.to_bytes(16, "big"))).encryptor().update(bytes(16 * len(held)))
    bits = np.frombuffer(stream, dtype="<u8").reshape(len(held), 2) >> 11
    lengths = np.floor(-np.log((bits + 0.5) * 2.0**-53) / decay)
    steps: Reals = np.rint(held / float(treatment.to)) + lengths[:, 0] - lengths[:, 1]
    return steps


def vectors(texts: pa.LargeStringArray, treatment: Vectorise, key: bytes) -> Vectors:
    """Return an array of `size` times rows: the signed sums of each text's hashed words; NaN where it is missing."""
    out: Vectors = np.empty((treatment.size, len(texts)), dtype=np.float32)
    stride = min(_STRIDE_ROWS, _STRIDE_CELLS // treatment.size)
    for first in range(0, len(texts), stride):
        some = texts.slice(first, stride)
        sums = _sums(some, treatment, key)
        if treatment.cap is not None:
            np.clip(sums, -treatment.cap, treatment.cap, out=sums)
        else:
            length = np.sqrt(np.einsum("ij,ij->i", sums, sums))  # exact: the squares are whole numbers
            sums *= (VECTOR_STEPS / np.where(length, length, 1.0))[:, np.newaxis]
            np.rint(sums, out=sums)
            sums /= VECTOR_STEPS
        sums += 0.0  # no negative zero
        sums[np.asarray(some.is_null())] = np.nan
        out[:, first : first + len(some)] = sums.T
    return out


def _sums(texts: pa.Array, treatment: Vectorise, key: bytes) -> Reals:
    """Return rows times `size` whole numbers."""
    words, rows = _words(texts)
    coded = words.dictionary_encode()
    counts, features = _features(coded.dictionary.to_pylist(), treatment, key)
    slots, signs = ((features >> 1) % treatment.size).astype(np.int64), 1.0 - 2.0 * (features & 1)
    places = coded.indices.to_numpy()
    if (counts != 1).any():  # word by word, the features of each: its first, its second, ...
        many = counts[places]
        within = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many)
        rows, places = np.repeat(rows, many), np.repeat((np.cumsum(counts) - counts)[places], many) + within
    cells = rows * treatment.size + slots[places]
    sums = np.bincount(cells, weights=signs[places], minlength=len(texts) * treatment.size)
    return np.asarray(sums, dtype=np.float64).reshape(len(texts), treatment.size)


def _words(texts: pa.Array) -> tuple[pa.Array, Ints]:
    """Return all words of ASCII letters and digits, and of bytes outside ASCII, in lower case, and each one's row."""
    texts = pc.fill_null(texts, "")
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, dtype=np.int64)[texts.offset : texts.offset + len(texts) + 1]
    if data is None or not len(texts):
        return pa.array([], pa.large_string()), np.zeros(0, dtype=np.int64)
    plain = _WORD_BYTES[np.frombuffer(data, dtype=np.uint8)[bounds[0] : bounds[-1]]]
    spaced = pa.Array.from_buffers(
        pa.large_string(),
        len(texts),
        [None, pa.py_buffer(np.ascontiguousarray(bounds - bounds[0])), pa.py_buffer(plain)],
    )
    split = pc.ascii_split_whitespace(spaced)
    rows: Ints = np.repeat(np.arange(len(texts), dtype=np.int64), pc.list_value_length(split).to_numpy())
    words = split.flatten()
    real = pc.not_equal(words, "")
    return words.filter(real), rows[real.to_numpy(zero_copy_only=False)]


def _features(words: Sequence[str], treatment: Vectorise, key: bytes) -> tuple[Ints, Any]:
    """Return how many features each distinct word has, and all of them as 64 keyed bits."""
    hashed: list[bytes] = []
    counts = np.zeros(len(words), dtype=np.int64)
    for place, word in enumerate(words):
        before = len(hashed)
        for part in _parts(word):
            if treatment.words:
                hashed.append(_keyed(b"w" + part.encode(), key))
            if treatment.ngram is not None:
                hashed += [_keyed(b"g" + gram.encode(), key) for gram in _grams(part, treatment.ngram)]
        counts[place] = len(hashed) - before
    return counts, np.frombuffer(b"".join(hashed), dtype="<u8")


def _parts(word: str) -> list[str]:
    """Return the words in a word that may hold marks outside ASCII."""
    if word.isascii():
        return [word]
    return [part for part in _NO_WORD.split(unicodedata.normalize("NFKC", word).lower()) if part]


def _grams(word: str, length: int) -> list[str]:
    """Return the characters in a row, the word's ends marked (Bojanowski et al., Enriching Word Vectors, 2017)."""
    marked = f"<{word}>"
    return [marked[first : first + length] for first in range(max(1, len(marked) - length + 1))]


def _keyed(feature: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(feature, key=key, digest_size=8).digest()


def on_grid(steps: Reals, to: Decimal) -> Reals:
    """Return whole steps of `to` as numbers, without the tail of a binary product."""
    places = max(0, -int(to.normalize().as_tuple().exponent))
    return np.round(steps * float(to), places) + 0.0
