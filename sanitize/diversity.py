"""Diversity: what the sensitive values of a cell tell of its subjects (Machanavajjhala et al. 2007; Li et al. 2007)."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from sanitize.cells import Spread
from sanitize.scales import Ints, Reals

_AT_ONCE = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """How a sensitive column's values are spread over the cells.

    Attributes:
        values: codes that were told apart: distinct values, or bins of numbers that have more than 64 values.
        ordered: the distance of two values is how far apart they stand in order, missing below the lowest; else 1.
        binned: the numbers were put into at most 64 bins of about as many rows each.
        l: fewest distinct values in a cell; 1 if all subjects of some cell share a value; 0 without a row.
        entropy_l: 1 to `l` where no subject has two values.
        t: 0 to 1.
    """

    column: str
    values: int
    ordered: bool
    binned: bool
    l: int  # noqa: E741 - the literature's name
    entropy_l: Decimal
    t: Decimal

    def to_json(self) -> dict[str, Any]:
        """Return the figures as JSON without floats."""
        return {
            "column": self.column,
            "values": self.values,
            "distance": "ordered" if self.ordered else "equal",
            "binned": self.binned,
            "l": self.l,
            "entropy_l": str(self.entropy_l),
            "t": str(self.t),
        }


def lowest(spread: Spread, sizes: Ints) -> tuple[int, float]:
    """Return the fewest distinct values in a cell, and the lowest entropy, in nats."""
    distinct = np.bincount(spread.cell, minlength=len(sizes))
    distinct[spread.cell[spread.holders == sizes[spread.cell]]] = 1
    share = spread.weight / sizes[spread.cell]
    entropy = -np.bincount(spread.cell, weights=share * np.log(share), minlength=len(sizes))
    return int(distinct.min()), float(entropy.min())


def equal_distance(spread: Spread, sizes: Ints, whole: Reals) -> float:
    """Return the farthest a cell lies from the whole where all distances are 1: half the sum of all differences."""
    there = whole[spread.code]
    apart = np.abs(spread.weight / sizes[spread.cell] - there) - there
    return float((1.0 + np.bincount(spread.cell, weights=apart, minlength=len(sizes))).max() / 2)


def ordered_distance(spread: Spread, sizes: Ints, whole: Reals) -> float:
    """Return the same for ordered values: what must be carried past each value, over their number less one."""
    if len(whole) < 2:
        return 0.0
    order = np.argsort(spread.cell, kind="stable")
    ends = np.cumsum(np.bincount(spread.cell, minlength=len(sizes)))
    farthest, step = 0.0, max(1, _AT_ONCE // len(whole))
    for low in range(0, len(sizes), step):
        high = min(low + step, len(sizes))
        some = order[(ends[low - 1] if low else 0) : ends[high - 1]]
        shares = np.zeros((high - low, len(whole)))
        shares[spread.cell[some] - low, spread.code[some]] = spread.weight[some] / sizes[spread.cell[some]]
        carried = np.abs(np.cumsum(shares - whole, axis=1)).sum(axis=1)
        farthest = max(farthest, float(carried.max()) / (len(whole) - 1))
    return farthest


def six_digits(number: float) -> Decimal:
    """Return a figure as it is signed and judged: rounded to six digits, zero without a minus."""
    return Decimal(f"{number:.6f}") + 0
