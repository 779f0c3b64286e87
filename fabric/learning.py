"""Learning: a torch model over the columns of a matrix, trained from arrays. Knows nothing of Ray or of zones.

The same code trains in every zone, so that a model trained outside can be held against one trained inside. What it
saves cannot execute: safetensors for tensors, JSON for the rest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save_file
from torch import nn

from fabric.errors import InvalidInput, Reason
from fabric.results import read_json
from fabric.specs import ModelSpec, TrainingSpec

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
STATE_FILE = "state.json"
FILE_LIMITS = {MODEL_FILE: 2 * 1024**3, STATE_FILE: 16 * 1024**2}
"""Largest size in bytes of each file that comes back."""
CHECKPOINT_FILES = (MODEL_FILE, OPTIMIZER_FILE, STATE_FILE)
_MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter, beside the number of steps

Network = Callable[[int, int], nn.Module]
"""Makes a network from its number of inputs and outputs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How a matrix's columns become inputs and target.

    Attributes:
        numeric: columns that are standardised.
        encoded: columns of codes and how many codes each has; they become one-hot inputs.
        target: the target's column.
        classes: number of classes, or 0 for a regression.
    """

    numeric: tuple[str, ...]
    encoded: tuple[tuple[str, int], ...]
    target: str
    classes: int

    @classmethod
    def of(cls, columns: Mapping[str, Mapping[str, Any]], task: str) -> Layout:
        """Read the layout from a matrix's column notes.

        Raises:
            InvalidInput: `RECIPE_INVALID` if there is no target or no feature, or the target does not fit the task.
        """
        targets = [name for name, note in columns.items() if note["role"] == "target"]
        features = {name: note for name, note in columns.items() if note["role"] != "target"}
        if len(targets) != 1 or not features:
            raise InvalidInput(
                Reason.RECIPE_INVALID, "the matrix has no target or no feature", "give one column the role target"
            )
        levels = int(columns[targets[0]].get("levels") or 0)
        if (task == "classification") != (levels > 0):
            raise InvalidInput(
                Reason.RECIPE_INVALID,
                f"the task is {task}, the target {targets[0]!r} has {levels} classes",
                "encode the target for a classification; leave it a number for a regression",
            )
        return cls(
            numeric=tuple(name for name, note in features.items() if not note.get("levels")),
            encoded=tuple((name, int(note["levels"])) for name, note in features.items() if note.get("levels")),
            target=targets[0],
            classes=levels,
        )

    @property
    def inputs(self) -> int:
        """Return the width of the network's input."""
        return len(self.numeric) + sum(levels for _, levels in self.encoded)

    @property
    def outputs(self) -> int:
        """Return the width of the network's output."""
        return self.classes or 1


class TabularModel(nn.Module):
    """A network over a matrix, with the scaling it was trained under."""

    def __init__(self, layout: Layout, network: Network) -> None:
        super().__init__()
        self.layout = layout
        self.network = network(layout.inputs, layout.outputs)
        self.register_buffer("mean", torch.zeros(len(layout.numeric)))
        self.register_buffer("scale", torch.ones(len(layout.numeric)))
        self.register_buffer("target_mean", torch.zeros(1))
        self.register_buffer("target_scale", torch.ones(1))

    def forward(self, numeric: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Return scores of shape (rows, outputs); a missing number counts as the mean."""
        parts = [torch.nan_to_num((numeric - self.mean) / self.scale)]
        for i, (_, levels) in enumerate(self.layout.encoded):
            parts.append(nn.functional.one_hot(codes[:, i].clamp(0, levels - 1), levels).to(numeric.dtype))
        output: torch.Tensor = self.network(torch.cat(parts, dim=1))
        return output


@dataclass(frozen=True, slots=True)
class Arrays:
    """A matrix as tensors: numeric (rows, n) float32, codes (rows, m) int64, target (rows,)."""

    numeric: torch.Tensor
    codes: torch.Tensor
    target: torch.Tensor

    @classmethod
    def of(cls, table: pa.Table, layout: Layout) -> Arrays:
        """Convert a matrix's table; rows whose target is missing are left out."""
        target = _column(table, layout.target)
        keep = ~np.isnan(target)
        numeric = [_column(table, name)[keep] for name in layout.numeric]
        codes = [_column(table, name)[keep] for name, _ in layout.encoded]
        rows = int(keep.sum())
        return cls(
            torch.from_numpy(np.stack(numeric, axis=1).astype(np.float32) if numeric else np.zeros((rows, 0), "f4")),
            torch.from_numpy(np.stack(codes, axis=1).astype(np.int64) if codes else np.zeros((rows, 0), "i8")),
            torch.from_numpy(target[keep].astype(np.int64 if layout.classes else np.float32)),
        )

    def __len__(self) -> int:
        return len(self.target)

    def take(self, index: torch.Tensor | slice) -> Arrays:
        """Return some of the rows."""
        return Arrays(self.numeric[index], self.codes[index], self.target[index])

    def to(self, device: torch.device) -> Arrays:
        """Return the arrays on `device`."""
        return Arrays(self.numeric.to(device), self.codes.to(device), self.target.to(device))


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch's losses (mean over rows; squared error of the scaled target, or cross entropy)."""

    epoch: int
    training: float
    validation: float


def perceptron(spec: ModelSpec) -> Network:
    """Return the built-in network: a multi-layer perceptron, linear if it has no hidden layer."""

    def build(inputs: int, outputs: int) -> nn.Module:
        layers: list[nn.Module] = []
        for width in spec.hidden:
            layers += [nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(spec.dropout)]
            inputs = width
        return nn.Sequential(*layers, nn.Linear(inputs, outputs))

    return build


def share(rows: int, rank: int, world: int, validation: float) -> tuple[torch.Tensor, int]:
    """Return the rows of worker `rank`, and how many of them, the first, only validate.

    Every worker has as many, so that none waits for another. Which rows validate does not depend on how many workers
    there are: a training that goes on with fewer is not measured on what it was trained on.
    """
    held = max(world, int(rows * validation))
    parts = [
        torch.arange(first + rank, first + count // world * world, world)
        for first, count in ((0, held), (held, max(0, rows - held)))
    ]
    return torch.cat(parts), len(parts[0])


class Trainer:
    """Trains one model on this worker's share of a matrix.

    Args:
        held: how many rows at the beginning only validate; by default the spec's share of them.
        prepare: wraps the model for several workers (DistributedDataParallel); identity for one.
        total: sums a tensor over all workers; identity for one.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        layout: Layout,
        arrays: Arrays,
        *,
        held: int | None = None,
        network: Network | None = None,
        device: torch.device | None = None,
        prepare: Callable[[nn.Module], nn.Module] = lambda model: model,
        total: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
    ) -> None:
        self.spec = spec
        self.history: list[Epoch] = []
        self._device = device or torch.device("cpu")
        self._total = total
        torch.manual_seed(spec.seed)
        self.model = TabularModel(layout, network or perceptron(spec.model)).to(self._device)
        held = max(1, int(len(arrays) * spec.validation)) if held is None else held
        self._training = arrays.take(slice(held, None)).to(self._device)
        self._validation = arrays.take(slice(0, held)).to(self._device)
        if not len(self._training):
            raise InvalidInput(
                Reason.RECORDS_EMPTY, f"a worker has {len(arrays)} rows, too few to train on", "use fewer workers"
            )
        self._fit_scaling()
        self._wrapped = prepare(self.model)
        self._optimizer = torch.optim.AdamW(
            self._wrapped.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay
        )

    def epochs(self) -> Iterator[Epoch]:
        """Train on to the last epoch, yielding after each."""
        for number in range(len(self.history) + 1, self.spec.epochs + 1):
            epoch = Epoch(epoch=number, training=self._train(number), validation=self._validate())
            self.history.append(epoch)
            yield epoch

    def save(self, folder: Path) -> None:
        """Write model, optimizer and history into `folder`."""
        save_file({k: v.contiguous() for k, v in self.model.state_dict().items()}, folder / MODEL_FILE)
        state = self._optimizer.state_dict()["state"]
        tensors = {f"{i}.{k}": v.contiguous() for i, entry in state.items() for k, v in entry.items()}
        save_file(tensors, folder / OPTIMIZER_FILE)
        history = {"history": [asdict(epoch) for epoch in self.history]}
        (folder / STATE_FILE).write_text(json.dumps(history))

    def resume(self, files: Mapping[str, bytes]) -> None:
        """Continue from what `save` wrote, given as the content of each file.

        Raises:
            InvalidInput: `RESULT_REFUSED`: it is not of this network.
        """
        loaded = load_weights(files[MODEL_FILE], self.model)
        state = load_optimizer(files[OPTIMIZER_FILE], self.model)
        self.history = read_history(files[STATE_FILE])
        self.model.load_state_dict(loaded)
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})

    def _fit_scaling(self) -> None:
        data, model = self._training, self.model
        model.mean, model.scale = self._moments(data.numeric)
        if not model.layout.classes:
            model.target_mean, model.target_scale = self._moments(data.target.unsqueeze(1))

    def _moments(self, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        present = ~torch.isnan(values)
        known = torch.nan_to_num(values).double()
        count = self._total(present.sum(0).double()).clamp(min=1)
        mean = self._total(known.sum(0)) / count
        deviation = torch.where(present, known - mean, torch.zeros_like(known))
        scale = (self._total((deviation**2).sum(0)) / count).sqrt()
        return mean.float(), torch.where(scale > 0, scale, torch.ones_like(scale)).float()

    def _train(self, number: int) -> float:
        self._wrapped.train()
        rows = len(self._training)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(self.spec.seed * 1_000_003 + number))
        summed = 0.0
        for start in range(0, rows, self.spec.batch_size):
            batch = self._training.take(order[start : start + self.spec.batch_size].to(self._device))
            self._optimizer.zero_grad()
            loss = self._loss(self._wrapped(batch.numeric, batch.codes), batch.target)
            loss.backward()
            self._optimizer.step()
            summed += float(loss.detach()) * len(batch)
        return self._mean(summed, rows)

    def _validate(self) -> float:
        self.model.eval()
        with torch.no_grad():
            data = self._validation
            loss = self._loss(self.model(data.numeric, data.codes), data.target)
        return self._mean(float(loss) * len(data), len(data))

    def _mean(self, summed: float, rows: int) -> float:
        pair = self._total(torch.tensor([summed, float(rows)], dtype=torch.float64, device=self._device))
        return float(pair[0] / pair[1])

    def _loss(self, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.model.layout.classes:
            return nn.functional.cross_entropy(scores, target)
        scaled = (target - self.model.target_mean) / self.model.target_scale
        return nn.functional.mse_loss(scores.squeeze(1), scaled)


def read_history(content: bytes) -> list[Epoch]:
    """Read a history that came back from another zone: bounded, numbers only, finite.

    Raises:
        InvalidInput: `RESULT_REFUSED`.
    """
    try:
        raw = read_json(content)["history"]
        history = [
            Epoch(epoch=int(e["epoch"]), training=float(e["training"]), validation=float(e["validation"])) for e in raw
        ]
    except (ValueError, KeyError, TypeError, OverflowError, InvalidInput):
        history = []
    finite = all(math.isfinite(e.training) and math.isfinite(e.validation) for e in history)
    if not history or not finite or [e.epoch for e in history] != list(range(1, len(history) + 1)):
        raise InvalidInput(
            Reason.RESULT_REFUSED, "the training history is not a list of finite losses", "lower the learning rate"
        )
    return history


def load_model(content: bytes, spec: TrainingSpec, layout: Layout, network: Network | None = None) -> TabularModel:
    """Build the declared model and load weights that came back from another zone into it.

    Raises:
        InvalidInput: `RESULT_REFUSED` unless names, shapes and types are the declared model's and all numbers finite.
    """
    model = TabularModel(layout, network or perceptron(spec.model))
    model.load_state_dict(load_weights(content, model))
    model.eval()
    return model


def load_weights(content: bytes, model: TabularModel) -> dict[str, torch.Tensor]:
    """Return the tensors in `content` if they are those of `model`.

    Raises:
        InvalidInput: `RESULT_REFUSED`.
    """
    declared = {name: _form(tensor) for name, tensor in model.state_dict().items()}
    return _held(_parsed(content), declared, "model")


def load_optimizer(content: bytes, model: TabularModel) -> dict[int, dict[str, torch.Tensor]]:
    """Return AdamW's state of each parameter of `model` that was ever updated, by the parameter's number.

    Raises:
        InvalidInput: `RESULT_REFUSED` unless it holds the moments of such parameters, and finite numbers.
    """
    tensors = _parsed(content)
    updated = {name.partition(".")[0] for name in tensors}
    declared: dict[str, _Form] = {}
    for index, parameter in enumerate(model.parameters()):
        if str(index) in updated:
            declared[f"{index}.step"] = torch.Size([]), torch.float32
            declared |= {f"{index}.{moment}": _form(parameter) for moment in _MOMENTS}
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _held(tensors, declared, "optimizer").items():
        number, _, key = name.partition(".")
        entries.setdefault(int(number), {})[key] = tensor
    return entries


_Form = tuple[torch.Size, torch.dtype]


def _form(tensor: torch.Tensor) -> _Form:
    return tensor.shape, tensor.dtype


def _parsed(content: bytes) -> dict[str, torch.Tensor]:
    try:
        return dict(load_safetensors(content))
    except Exception:  # noqa: BLE001 - whatever a hostile file makes the parser raise
        return {"": torch.zeros(0)}


def _held(tensors: dict[str, torch.Tensor], declared: Mapping[str, _Form], what: str) -> dict[str, torch.Tensor]:
    """Return the tensors if they are the declared ones and finite."""
    if {name: _form(tensor) for name, tensor in tensors.items()} != declared:
        raise InvalidInput(
            Reason.RESULT_REFUSED,
            f"the {what}'s tensors are not those of the declared network",
            "run the training again",
        )
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise InvalidInput(Reason.RESULT_REFUSED, f"the {what} holds numbers that are not finite", "train again")
    return tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How good a model is on rows it has not seen.

    Attributes:
        metric: "r2" (coefficient of determination) or "accuracy".
        value: of the model.
        baseline: of always answering the mean, or the commonest class.
    """

    metric: str
    value: float
    baseline: float
    rows: int


def evaluate(model: TabularModel, table: pa.Table) -> Quality:
    """Measure `model` on a table of the layout it was trained with."""
    data = Arrays.of(table, model.layout)
    with torch.no_grad():
        scores = model(data.numeric, data.codes)
    if model.layout.classes:
        hits = (scores.argmax(dim=1) == data.target).double().mean()
        common = torch.bincount(data.target, minlength=model.layout.classes).max() / len(data)
        return Quality(metric="accuracy", value=float(hits), baseline=float(common), rows=len(data))
    predicted = scores.squeeze(1) * model.target_scale + model.target_mean
    residual = ((data.target - predicted) ** 2).double().sum()
    total = ((data.target - data.target.mean()) ** 2).double().sum()
    return Quality(metric="r2", value=float(1 - residual / total), baseline=0.0, rows=len(data))


def _column(table: pa.Table, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    values: np.ndarray[Any, np.dtype[np.float64]] = table.column(name).to_numpy().astype(np.float64)
    return values
