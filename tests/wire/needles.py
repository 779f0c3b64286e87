"""A planted value in every way in which it could lie about: text encodings, binary numbers, dates, hashes.

What packs values away so that their bytes change (compression, Parquet pages) is not here: `wire.unpacking` opens it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Literal
from urllib.parse import quote, quote_plus

Kind = Literal["text", "integer", "float", "date"]

STRONG_BYTES = 7
"""A pattern this long is taken for what it says; one shorter counts only beside others of its column."""

STRONG_NUMBER_BYTES = 6
"""The same of a binary number, whose zeros at either end say nothing.

Measured on what the processes of a public node hold (0.5 GB without zeros and repetitions) and 5,000 drawings of eight
rows: dates as YYYYMMDD in eight bytes lay about by chance in 0.9 per cent, other numbers of four and five bytes in up
to 0.4.
"""

_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if code != ord("%"))
"""What a message of gRPC's status leaves as it is (gRPC over HTTP2, Status-Message)."""

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Needle:
    """One pattern of one planted value.

    Attributes:
        column: of the value.
        encoding: how the value is written.
        row: which planted row it is of.
        weak: so short, or so plain, that it may lie about by chance: see `search.Search`.
    """

    column: str
    encoding: str
    row: int
    pattern: bytes
    weak: bool = False

    @property
    def step(self) -> int:
        """Return what the distance between two values of one column is a multiple of, where they lie in an array."""
        return len(self.pattern) if self.encoding.endswith((" le", " be")) else 1


def needles(column: str, kind: Kind, values: Sequence[str]) -> list[Needle]:
    """Return every pattern of a column's planted values, each pattern once."""
    found: dict[bytes, Needle] = {}
    for row, value in enumerate(values):
        for encoding, pattern, weak in _READERS[kind](value):
            weak = weak or len(pattern) < STRONG_BYTES
            found.setdefault(pattern, Needle(column, encoding, row, pattern, weak))
    return list(found.values())


_Pattern = tuple[str, bytes, bool]


def _text(value: str) -> Iterator[_Pattern]:
    yield from _spellings(value)
    for name, cased in (("lower", value.lower()), ("upper", value.upper())):
        yield f"{name} utf-8", cased.encode(), False
    raw = value.encode()
    for algorithm in ("md5", "sha1", "sha256"):
        hashed = hashlib.new(algorithm, raw, usedforsecurity=False).digest()
        yield algorithm, hashed, False
        yield f"{algorithm} hex", hashed.hex().encode(), False
    digits = "".join(c for c in value if c.isdigit())
    if digits and not any(c.isalpha() for c in value):
        yield "digits utf-8", digits.encode(), False
        yield "digits utf-16-le", digits.encode("utf-16-le"), False
        yield from _integers(int(digits), "digits ")


def _spellings(value: str, prefix: str = "") -> Iterator[_Pattern]:
    raw = value.encode()
    for codec in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        yield f"{prefix}{codec}", value.encode(codec), False
    yield from _armoured(prefix + "utf-8", raw)
    yield from _armoured(prefix + "utf-16-le", value.encode("utf-16-le"))
    for name, written in {
        "latin-1": value.encode("latin-1", "replace"),
        "url": quote(value, safe="").encode(),
        "url, slashes kept": quote(value).encode(),
        "url form": quote_plus(value).encode(),
        "grpc status": quote(value, safe=_PRINTABLE).encode(),
        "json": json.dumps(value)[1:-1].encode(),
        "json, upper": _upper_escapes(json.dumps(value)[1:-1]),
        "json, all escaped": "".join(f"\\u{ord(c):04x}" for c in value).encode(),
        "python repr": ascii(value)[1:-1].encode(),
        "python bytes repr": repr(raw)[2:-1].encode(),
        "html": html.escape(value).encode(),
        "xml": value.encode("ascii", "xmlcharrefreplace"),
        "reversed": value[::-1].encode(),
    }.items():
        yield prefix + name, written, False


def _upper_escapes(text: str) -> bytes:
    parts = text.split("\\u")
    return "\\u".join([parts[0], *(part[:4].upper() + part[4:] for part in parts[1:])]).encode()


def _armoured(name: str, raw: bytes) -> Iterator[_Pattern]:
    """Yield hexadecimal, and base64 at each place that the bytes can have in a group of three."""
    yield f"{name} hex", raw.hex().encode(), False
    yield f"{name} hex, upper", raw.hex().upper().encode(), False
    for offset in range(3):
        # Of 6-bit digits, only those that hold nothing of the bytes before and after.
        first, last = -(-offset * 8 // 6), (offset + len(raw)) * 8 // 6
        plain = base64.b64encode(bytes(offset) + raw)[first:last]
        yield f"{name} base64 at {offset}", plain, False
        yield f"{name} base64 url-safe at {offset}", plain.replace(b"+", b"-").replace(b"/", b"_"), False


def _binary(name: str, code: str, value: float, *, weak: bool = False) -> Iterator[_Pattern]:
    for order, mark in (("le", "<"), ("be", ">")):
        raw = struct.pack(mark + code, value)
        yield f"{name} {order}", raw, weak or len(raw.strip(b"\0")) < STRONG_NUMBER_BYTES
        if len(raw) == 8 and not weak:
            yield from _armoured(f"{name} {order}", raw)


def _integers(value: int, prefix: str = "") -> Iterator[_Pattern]:
    if abs(value) >= 2**23:  # below, an eight-byte number is mostly zeros, and lies about by chance
        yield from _binary(f"{prefix}int64", "q", value)
    else:
        yield from _binary(f"{prefix}int64", "q", value, weak=True)
    yield from _binary(f"{prefix}float64", "d", float(value))
    if abs(value) < 2**31:
        yield from _binary(f"{prefix}int32", "i", value, weak=True)
        yield f"{prefix}pickle int", b"J" + struct.pack("<i", value), True
    else:
        yield f"{prefix}pickle long", _long(value), False
    if value >= 0:
        yield f"{prefix}varint", _varint(value), True
    yield f"{prefix}varint zigzag", _varint(value * 2 if value >= 0 else -value * 2 - 1), True
    yield from _binary(f"{prefix}float32", "f", value, weak=True)


def _long(value: int) -> bytes:
    """Return an integer of more than 32 bits as pickle writes it (opcode LONG1)."""
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _integer(value: str) -> Iterator[_Pattern]:
    yield from _spellings(value)
    yield "with commas", f"{int(value):,}".encode(), False
    yield from _integers(int(value))


def _float(value: str) -> Iterator[_Pattern]:
    yield from _spellings(value)
    yield "with commas", f"{Decimal(value):,}".encode(), False
    yield from _binary("float64", "d", float(value))
    yield from _binary("float32", "f", float(value), weak=True)
    yield from _integers(int(Decimal(value) * 100), "hundredths ")
    yield "exponent", f"{Decimal(value):e}".split("e")[0].rstrip("0").encode(), False
    yield "exponent, rounded", f"{float(value):e}".split("e")[0].rstrip("0").encode(), True


def _date(value: str) -> Iterator[_Pattern]:
    day = date.fromisoformat(value)
    for form in ("%Y-%m-%d", "%Y%m%d", "%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y"):
        yield from _spellings(day.strftime(form), f"{form} ")
    days = (day - _EPOCH).days
    yield from _binary("days int32", "i", days, weak=True)
    yield from _binary("days int64", "q", days, weak=True)
    yield from _binary("days float64", "d", days, weak=True)
    seconds = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
    yield from _binary("seconds int64", "q", seconds, weak=True)
    yield from _binary("seconds int32", "i", seconds, weak=True)
    yield "seconds pickle int", b"J" + struct.pack("<i", seconds), True
    yield from _binary("seconds float64", "d", seconds)
    for unit, factor in (("ms", 10**3), ("us", 10**6), ("ns", 10**9)):
        yield from _binary(f"{unit} int64", "q", seconds * factor)
        yield f"{unit} pickle long", _long(seconds * factor), False
    # datetime.date pickles as its year, big-endian, month and day; numbers of YYYYMMDD are a custom of databases
    yield "pickle date", b"\x04" + struct.pack(">HBB", day.year, day.month, day.day), True
    yield from _integers(int(day.strftime("%Y%m%d")), "yyyymmdd ")


_READERS = {"text": _text, "integer": _integer, "float": _float, "date": _date}
