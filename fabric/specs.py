"""Specs: what a job does, as typed values from a small TOML file.

`parse` is the one way in for text from outside: unknown keys are refused with the nearest right one, and an error
names the key, never the value.
"""

from __future__ import annotations

import math
import tomllib
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fabric.errors import InvalidInput, Reason, nearest


class Spec(BaseModel):
    """Base of every spec: frozen, strict, closed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class ModelSpec(Spec):
    """A network over the columns of a matrix.

    Attributes:
        hidden: widths of the hidden layers; none makes it a linear model.
    """

    hidden: Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(max_length=8)] = [64, 32]
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class TrainingSpec(Spec):
    """One training run.

    Attributes:
        task: "regression", or "classification" where the target is encoded.
        batch_size: rows per step and worker.
        checkpoint_every: epochs between two checkpoints; the unit of what a killed worker costs.
        max_failures: how many times another attempt goes on from the last checkpoint.
        validation: share of the matrix kept from the gradient, for the curve.
        seed: of the weights and of the order of rows.
    """

    task: Literal["regression", "classification"] = "regression"
    model: ModelSpec = ModelSpec()
    epochs: Annotated[int, Field(ge=1, le=100_000)] = 20
    batch_size: Annotated[int, Field(ge=1, le=1_000_000)] = 128
    learning_rate: Annotated[float, Field(gt=0, le=10)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.0
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    checkpoint_every: Annotated[int, Field(ge=1, le=100_000)] = 5
    max_failures: Annotated[int, Field(ge=0, le=100)] = 2
    validation: Annotated[float, Field(gt=0, lt=0.9)] = 0.1
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0


MAX_TRIALS = 1_024
_FewValues = Field(max_length=32)  # a search tries a few values; hundreds are a column of somebody's


class SearchSpace(Spec):
    """Values to try, in every combination; a field left empty keeps the training spec's value."""

    learning_rate: Annotated[list[Annotated[float, Field(gt=0, le=10)]], _FewValues] = []
    batch_size: Annotated[list[Annotated[int, Field(ge=1, le=1_000_000)]], _FewValues] = []
    weight_decay: Annotated[list[Annotated[float, Field(ge=0, le=10)]], _FewValues] = []
    dropout: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], _FewValues] = []
    hidden: Annotated[list[Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(max_length=8)]], _FewValues] = []


class SweepSpec(Spec):
    """A grid of training runs that share one crossing.

    Attributes:
        concurrent: trials that run at once.
    """

    training: TrainingSpec = TrainingSpec()
    search: SearchSpace
    concurrent: Annotated[int, Field(ge=1, le=1024)] = 2

    @model_validator(mode="after")
    def _small_enough(self) -> SweepSpec:
        if self.training.workers != 1:
            raise ValueError("a trial runs on one worker; leave sweep.training.workers at 1")
        search = self.search
        fields = (search.learning_rate, search.batch_size, search.weight_decay, search.dropout, search.hidden)
        if math.prod(max(len(values), 1) for values in fields) > MAX_TRIALS:
            raise ValueError(f"the search has more than {MAX_TRIALS} combinations")
        return self

    def trials(self) -> list[TrainingSpec]:
        """Return one training spec per combination, in the order of the file."""
        trials = [self.training]
        for name in ("learning_rate", "batch_size", "weight_decay", "dropout", "hidden"):
            values = getattr(self.search, name)
            if values:
                trials = [_with(trial, name, value) for trial in trials for value in values]
        return trials


class QueueSpec(Spec):
    """How the queue should take a job.

    Attributes:
        priority: higher goes first.
        deadline: when it must have ended: a time with a zone, or a span from its submission such as `+2h`.
        minutes: how long it takes, as estimated.
        min_workers: fewest it may be started with where there is not room, or money, for all; 0 if it needs all.
        gpus: per worker; by default 1 where any zone declares GPUs.
        gpu_model: empty for any.
        spot: whether it may run on capacity that the provider can take back.
    """

    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    deadline: Annotated[str, Field(max_length=40)] = ""
    minutes: Annotated[float, Field(gt=0, le=527_040)] = 60.0
    min_workers: Annotated[int, Field(ge=0, le=1024)] = 0
    gpus: Annotated[int | None, Field(ge=0, le=64)] = None
    gpu_model: Annotated[str, Field(max_length=63)] = ""
    spot: bool = False


class JobSpec(Spec):
    """A file for `jobs/train.py`, `jobs/sweep.py` or `fabric submit`: which records, by which recipe, where, the work.

    Attributes:
        records: name of the records in fabric.toml.
        recipe: path of the recipe, relative to this file.
        zone: where it runs; "auto" leaves that to the dispatcher.
        justification: why the work leaves the private zone; kept with the evidence.
        hold_back: share of the rows that stay inside to measure the model on.
    """

    records: str
    recipe: str
    zone: str
    justification: str = ""
    hold_back: Annotated[float, Field(ge=0, lt=0.9)] = 0.2
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    training: TrainingSpec | None = None
    sweep: SweepSpec | None = None
    queue: QueueSpec = QueueSpec()


SpecT = TypeVar("SpecT", bound=BaseModel)


def crossing_form(spec: TrainingSpec) -> dict[str, Any]:
    """Return the plain form of a spec that goes to workers, its values checked once more.

    A subclass may hold more than a spec does, and pydantic can be asked to make one without checking.

    Raises:
        InvalidInput: `CONFIG_INVALID`, `UNKNOWN_KEY`.
    """
    if type(spec) is not TrainingSpec or type(spec.model) is not ModelSpec:
        raise InvalidInput(Reason.CONFIG_INVALID, "the spec is of another class than TrainingSpec", "use TrainingSpec")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydantic's warning of a wrong type quotes the value
        plain = spec.model_dump()
    return validate(TrainingSpec, plain, source="the spec", reason=Reason.CONFIG_INVALID).model_dump()


def sweep_form(spec: SweepSpec) -> dict[str, Any]:
    """Return the plain form of a sweep's spec that goes to another zone, its values checked once more.

    Raises:
        InvalidInput: `CONFIG_INVALID`, `UNKNOWN_KEY`.
    """
    if type(spec) is not SweepSpec or type(spec.search) is not SearchSpace:
        raise InvalidInput(Reason.CONFIG_INVALID, "the spec is of another class than SweepSpec", "use SweepSpec")
    plain = {
        "training": crossing_form(spec.training),
        "search": {name: list(getattr(spec.search, name)) for name in SearchSpace.model_fields},
        "concurrent": spec.concurrent,
    }
    return validate(SweepSpec, plain, source="the spec", reason=Reason.CONFIG_INVALID).model_dump()


def parse(model: type[SpecT], text: str, *, source: str, reason: Reason = Reason.CONFIG_INVALID) -> SpecT:
    """Read a spec from TOML text.

    Args:
        model: the pydantic class.
        text: TOML.
        source: what to call the text in an error: a file's name.
        reason: the token of a value that is wrong.

    Raises:
        InvalidInput: `UNKNOWN_KEY` for a key that is not allowed, else `reason`.
    """
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        raise InvalidInput(reason, f"{source} is not TOML", "check it with a TOML linter") from None
    return validate(model, raw, source=source, reason=reason)


def validate(model: type[SpecT], raw: Mapping[str, Any], *, source: str, reason: Reason) -> SpecT:
    """Check a mapping from outside against `model`.

    Raises:
        InvalidInput: `UNKNOWN_KEY` for a key that is not allowed, else `reason`.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        # A misspelt key is also a missing one; the misspelling is what helps.
        first = min(found, key=lambda one: one["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"])
        problem, message = first["type"], first["msg"]
    if problem == "extra_forbidden":
        *parents, key = where.split(".")
        raise InvalidInput(
            Reason.UNKNOWN_KEY, f"{source} has an unknown key {where!r}", nearest(key, _keys(model, parents))
        )
    raise InvalidInput(reason, f"{source}: {where or 'the file'}: {message}", "see the key's description in README.md")


def _keys(model: type[BaseModel], parents: list[str]) -> list[str]:
    """Return the keys allowed under the path `parents` of `model`."""
    here: Any = model
    for part in parents:
        field = here.model_fields.get(part) if hasattr(here, "model_fields") else None
        if field is not None:
            here = next((m for m in _models_in(field.annotation)), None)
    return sorted(here.model_fields) if here is not None and hasattr(here, "model_fields") else []


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for arg in getattr(annotation, "__args__", ()) for m in _models_in(arg)]


def _with(spec: TrainingSpec, name: str, value: object) -> TrainingSpec:
    if name in ("dropout", "hidden"):
        return spec.model_copy(update={"model": spec.model.model_copy(update={name: value})})
    return spec.model_copy(update={name: value})
