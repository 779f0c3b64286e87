"""Readings: the texts that a text, bytes or numbers may stand for, as far as they are plain to see.

Normalized spelling, one character for its lookalike, backwards, and the encodings that Python writes in one call, two
deep. What is not among these is not read; SECURITY.md says how much may then be hidden.
"""

from __future__ import annotations

import base64
import binascii
import bz2
import codecs
import html
import lzma
import quopri
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import unquote

_DEPTH = 2
_MOST_UNPACKED = 4_096  # bytes; what unfolds into more is refused by its size in other ways
_LONGEST_SPELLED = 4_096
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2}){4,}")
_SPACED_HEX = re.compile(r"(?:(?:0x|\\x|%)?[0-9A-Fa-f]{2}[\s,:;-]*){6,}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}")
_BASE32 = re.compile(r"[A-Za-z2-7]{8,}")
_BASE85 = re.compile(r"[!-~]{10,}")
_CODES = re.compile(r"\d{2,3}(?:\D{1,2}\d{2,3}){5,}")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8}))")
_LOOSE = re.compile(r"\S(?:[\s._,;:/|*+-]\S){7,}")
_DOUBTFUL = re.compile(r"[0-9OoQDIl|ZzSsBbGg,.-]{9,}")
_INVISIBLE = {"\x00", "\u034f", "\u115f", "\u1160", "\u3164", "\uffa0"}
_DASHES = {"\u2212", "\u00af", "\u02d7", "\u00ad", "\u30fc"}
_DIGIT_LOOKALIKES = str.maketrans("OoQDIl|ZzSsBbGg", "000011122" + "55" + "88" + "66", "")
_LETTER_LOOKALIKES = str.maketrans(
    "АВЕКМНОРСТУХавекмнорстухіјѕԁһԛԝɡ" + "ΑΒΕΖΗΙΚΜΝΟΡΤΥΧανορτυχι" + "ı․｡。",
    "ABEKMHOPCTYXabekmhopctyxijsdhqwg" + "ABEZHIKMNOPTYXavoptuxi" + "i...",
)
_TELLING = re.compile(r"\d(?:\D*\d){4}|[@\uff20]")
"""Five digits or an @: what every identifier that a pattern finds has, and few words of code do."""


def readings_of(text: str) -> frozenset[str]:
    """Return `text` and every text it may stand for."""
    return frozenset(_readings(text, _DEPTH))


def readings_of_bytes(value: bytes) -> frozenset[str]:
    """Return the texts that `value` may stand for: Latin-1 always, UTF-8, UTF-16 and what it unpacks to if it does."""
    found = {value.decode("latin-1")}
    for raw in (value, *_unpacked(value)):
        for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "cp500"):
            found |= {*_as_text(raw, encoding)}
    return frozenset(found)


def readings_of_number(number: int) -> frozenset[str]:
    """Return the texts that a whole number from zero on may stand for: its digits, grouped digits, its bytes."""
    digits = str(number)
    found = {digits}
    if len(digits) in (8, 9):
        nine = digits.zfill(9)
        found.add(f"{nine[:3]}-{nine[3:5]}-{nine[5:]}")
    raw = number.to_bytes((number.bit_length() + 7) // 8, "big")
    found |= {*_as_text(raw, "utf-8"), *_as_text(raw[::-1], "utf-8")}
    return frozenset(found)


def readings_of_numbers(numbers: Sequence[object]) -> Iterator[str]:
    """Yield the text whose characters, or whose digits, `numbers` are."""
    whole = [number for number in numbers[:_LONGEST_SPELLED] if type(number) is int]
    if len(whole) >= 6 and len(whole) == len(numbers[:_LONGEST_SPELLED]):
        if all(32 <= number < 0x3000 for number in whole):
            yield "".join(map(chr, whole))
        if all(0 <= number <= 9 for number in whole):
            yield "".join(map(str, whole))


def _readings(text: str, depth: int) -> Iterator[str]:
    plain = _normalized(text)
    yield from (text, plain)
    if "_" in plain:
        yield plain.replace("_", "-")
    yield from _grouped(plain)
    if (similar := plain.translate(_LETTER_LOOKALIKES)) != plain:
        yield similar
    for run in _DOUBTFUL.findall(plain):
        if sum(char.isdigit() for char in run) >= 5 and (digits := run.translate(_DIGIT_LOOKALIKES)) != run:
            yield digits
    if _LOOSE.search(plain):
        yield plain[::2]
        yield "".join(plain.split())
    if depth:
        for other in {*_decodings(plain), *_decodings("".join(plain.split()))}:
            yield from _readings(other, depth - 1)
    if depth == _DEPTH and _TELLING.search(plain):
        for other in (plain[::-1], codecs.encode(plain, "rot13")):
            yield from _readings(other, 0)


def _grouped(text: str) -> Iterator[str]:
    """Yield nine digits that stand alone as they are grouped on a card."""
    if len(text) == 9 and text.isdecimal():
        yield f"{text[:3]}-{text[3:5]}-{text[5:]}"


def _normalized(text: str) -> str:
    out = []
    for char in unicodedata.normalize("NFKC", text):
        category = unicodedata.category(char)
        if category == "Nd":
            out.append(str(unicodedata.decimal(char)))
        elif category == "Pd" or char in _DASHES:
            out.append("-")
        elif category not in ("Cf", "Mn", "Me") and char not in _INVISIBLE:
            out.append(char)
    return "".join(out)


def _decodings(text: str) -> Iterator[str]:
    for match in _HEX.finditer(text):
        yield from _texts_in(bytes.fromhex(match.group()))
    for match in _SPACED_HEX.finditer(text):
        pairs = re.findall(r"[0-9A-Fa-f]{2}", re.sub(r"0x|\\x|%", " ", match.group()))
        yield from _texts_in(bytes.fromhex("".join(pairs)))
    for match in _BASE64.finditer(text):
        run = match.group().replace("-", "+").replace("_", "/")
        yield from _tried(base64.b64decode, run + "=" * (-len(run) % 4))
    for match in _BASE32.finditer(text):
        run = match.group().upper()
        yield from _tried(base64.b32decode, run + "=" * (-len(run) % 8))
    for match in _BASE85.finditer(text):
        run = match.group()
        yield from _tried(base64.a85decode, run)
        yield from _tried(base64.b85decode, run)
    for match in _CODES.finditer(text):
        codes = [int(number) for number in re.findall(r"\d{2,3}", match.group())]
        if all(32 <= code < 127 for code in codes):
            yield "".join(map(chr, codes))
    if "%" in text:
        yield unquote(text)
    if "&" in text:
        yield html.unescape(text)
    if "\\" in text:
        yield _ESCAPE.sub(
            lambda found: chr(int(found.group(1) or found.group(2) or found.group(3), 16) % 0x110000), text
        )
    if "=" in text:
        yield from _tried(quopri.decodestring, text)


def _tried(decode: Callable[[str], bytes], text: str) -> Iterator[str]:
    try:
        yield from _texts_in(decode(text))
    except (ValueError, binascii.Error):
        return


def _texts_in(raw: bytes) -> Iterator[str]:
    for part in (raw, *_unpacked(raw)):
        for encoding in ("utf-8", "utf-16-le"):
            yield from _as_text(part, encoding)


def _as_text(raw: bytes, encoding: str) -> Iterator[str]:
    try:
        decoded = raw.decode(encoding)
    except UnicodeDecodeError:
        return
    if decoded.isprintable() and len(decoded) >= 4:
        yield decoded


def _unpacked(raw: bytes) -> Iterator[bytes]:
    """Yield what compressed bytes unfold to, if they are, and no more of it than can be read."""
    if raw[:2] in (b"\x1f\x8b", b"x\x01", b"x\x5e", b"x\x9c", b"x\xda"):
        yield from _unfolded(lambda: zlib.decompressobj(47).decompress(raw, _MOST_UNPACKED))
    if raw[:3] == b"BZh":
        yield from _unfolded(lambda: bz2.BZ2Decompressor().decompress(raw, _MOST_UNPACKED))
    if raw[:6] == b"\xfd7zXZ\x00" or raw[:3] == b"\x5d\x00\x00":
        yield from _unfolded(lambda: lzma.LZMADecompressor().decompress(raw, _MOST_UNPACKED))
    yield from _unfolded(lambda: zlib.decompressobj(-15).decompress(raw, _MOST_UNPACKED))


def _unfolded(unfold: Callable[[], bytes]) -> Iterator[bytes]:
    try:
        out = unfold()
    except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError):
        return
    if out:
        yield out
