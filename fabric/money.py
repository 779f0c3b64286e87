"""Money: whole micro-units of one currency, read strictly and rounded up, never a float.

A million micros are one unit of the currency. Whatever is computed from a price is rounded up to the next micro, so
that no estimate is below what it stands for.
"""

from __future__ import annotations

import re
from decimal import ROUND_CEILING, Decimal

from fabric.fleet import GIGABYTE, HOUR_S, MICROS

MAX_MICROS = 10**15
"""A thousand million units: below 2^53, so that every amount is canonical JSON."""

# Plain digits: no sign, no exponent, no 'nan', no thousands separator.
_AMOUNT = re.compile(r"[0-9]{1,10}(\.[0-9]{1,18})?\Z", re.ASCII)


def micros(text: str) -> int | None:
    """Return an amount written in plain digits as micros, rounded up; None if it is not one, or too large."""
    if not _AMOUNT.match(text):
        return None
    found = int((Decimal(text) * MICROS).to_integral_value(ROUND_CEILING))
    return found if found <= MAX_MICROS else None


def shown(amount: int, currency: str = "") -> str:
    """Return micros as text with two decimals, more where they say something."""
    sign, whole = "-" if amount < 0 else "", abs(amount)
    units, rest = divmod(whole, MICROS)
    decimals = f"{rest:06d}".rstrip("0").ljust(2, "0")
    return f"{sign}{units:,}.{decimals}{' ' if currency else ''}{currency}"


def decimal(amount: int) -> Decimal:
    """Return micros as an exact decimal of the currency."""
    return Decimal(amount).scaleb(-6)


def per_hour(price: int, gpus: int, seconds: float) -> int:
    """Return what `gpus` cost for so many seconds at a price per GPU-hour, in micros, rounded up."""
    return _ceiling(price * gpus * _whole_seconds(seconds), HOUR_S)


def per_gigabyte(price: int, size_bytes: int) -> int:
    """Return what so many bytes cost at a price per 10^9 bytes, in micros, rounded up."""
    return _ceiling(price * size_bytes, GIGABYTE)


def per_one(price: int, count: int) -> int:
    """Return the price of one of `count`, rounded up."""
    return _ceiling(price, count)


def _whole_seconds(seconds: float) -> int:
    return -int(-seconds // 1) if seconds > 0 else 0


def _ceiling(amount: int, divisor: int) -> int:
    return -(-amount // divisor)
