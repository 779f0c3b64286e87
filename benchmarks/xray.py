"""Milliseconds of the x-ray of functions that people burst and train with, beside pickling the same functions.

    python benchmarks/xray.py

Each is x-rayed 30 times after a warm-up, with Presidio's recognizers; the median is printed, its ratio to cloudpickle's
time, and the bytes that would cross. Building the inspector is a cost of the session and printed apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import cloudpickle
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from fabric.capsule import seal_capsule
from sanitize.inspection import Inspector

ROUNDS = 30
EPOCHS, RATE, HIDDEN = 20, 0.003, (64, 32)


class Net(nn.Module):
    """A small perceptron, as a user would write it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, HIDDEN[0])
        self.second = nn.Linear(HIDDEN[0], HIDDEN[1])
        self.last = nn.Linear(HIDDEN[1], outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (rows, outputs)."""
        out: torch.Tensor = self.last(torch.relu(self.second(torch.relu(self.first(x)))))
        return out


def one_line(table: pa.Table) -> float:
    """Return a mean."""
    return float(pc.mean(table.column("visits")).as_py())


def network(inputs: int, outputs: int) -> nn.Module:
    """Return a network of one's own."""
    return Net(inputs, outputs)


def scaled(x: torch.Tensor) -> torch.Tensor:
    """Return columns of mean 0 and deviation 1."""
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-6)


def training(table: pa.Table, *, batch: int = 128) -> dict[str, list[float]]:
    """Train a network on all columns but the last, and return the losses."""
    torch.manual_seed(0)
    *features, target = table.column_names
    x = scaled(torch.tensor([table.column(name).to_pylist() for name in features]).T.float())
    y = torch.tensor(table.column(target).to_pylist()).float().unsqueeze(1)
    model = Net(x.shape[1], 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    losses = []
    for _ in range(EPOCHS):
        order = torch.randperm(len(x))
        summed = 0.0
        for start in range(0, len(x), batch):
            index = order[start : start + batch]
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x[index]), y[index])
            loss.backward()
            optimizer.step()
            summed += loss.item() * len(index)
        losses.append(summed / len(x))
    return {"losses": losses}


def median_ms(work: Callable[[], Any]) -> float:
    """Return the median milliseconds of `work` over `ROUNDS` runs after one more."""
    taken = []
    for _ in range(ROUNDS + 1):
        before = time.perf_counter()
        work()
        taken.append((time.perf_counter() - before) * 1e3)
    return statistics.median(taken[1:])


def main() -> None:
    """Measure and print a table."""
    before = time.perf_counter()
    inspect_text = Inspector().inspect_text
    print(f"building the inspector  {time.perf_counter() - before:8.2f} s, once a session")
    for name, fn in (("one line", one_line), ("a network", network), ("a training", training)):
        capsule = seal_capsule(fn, inspect_text=inspect_text)
        taken = median_ms(lambda fn=fn: seal_capsule(fn, inspect_text=inspect_text))
        bare = median_ms(lambda fn=fn: cloudpickle.dumps(fn))
        print(f"{name:<22} {taken:8.1f} ms  {taken / bare:6.1f} x cloudpickle  {len(capsule.payload):6,} bytes cross")


if __name__ == "__main__":
    main()
