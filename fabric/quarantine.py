"""Quarantine: what comes back from another zone is not trusted.

A result is read as bounded plain files, in formats that cannot execute (safetensors, JSON), checked against what was
declared, and only then signed and kept. What is kept is written anew from what was checked, so that nothing beside it
stays. Nothing from outside is unpickled here.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from safetensors.torch import save as save_safetensors

from fabric.artifacts import digest
from fabric.crossing import CHECKPOINT_TYPE, SealedCheckpoint
from fabric.errors import InvalidInput, Reason
from fabric.learning import (
    FILE_LIMITS,
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    Epoch,
    Layout,
    Network,
    TabularModel,
    load_model,
    load_optimizer,
    perceptron,
    read_history,
)
from fabric.recording import new_id, now
from fabric.session import Session
from fabric.specs import TrainingSpec
from fabric.statements import MAX_ENVELOPE_BYTES, Statement, sign, timestamp, verify
from fabric.stores import read_bounded

MODEL_TYPE = "urn:zonefabric:statement:model:v1"
STATEMENT_FILE = "statement.json"
_HEADER_BYTES = 1_024  # of safetensors' header, for each tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that came back, was checked and signed.

    Attributes:
        path: its folder in the private zone: weights, history and statement.
    """

    id: str
    digest: str
    path: Path
    history: tuple[Epoch, ...]
    network: TabularModel


def admit_model(
    session: Session,
    folder: Path,
    *,
    spec: TrainingSpec,
    layout: Layout,
    network: Network | None,
    zone: str,
    provenance: Mapping[str, Any],
) -> Model:
    """Bring a trained model back over the border.

    Args:
        session: where it is recorded and kept.
        folder: where the zone's workers wrote it; must lie in the zone's outbox.
        spec: what was asked for: the model's tensors must be this network's.
        layout: of the matrix it was trained on.
        network: the user's network, if it was not the built-in one.
        zone: where it was trained.
        provenance: digests of what it was made from, for its statement; no floats.

    Raises:
        InvalidInput: `RESULT_REFUSED`; recorded, and the model is not kept.
    """
    home_zone = session.config.zones[zone]
    with session.border.refusals("return", home_zone, session.job):
        # 1. Quarantine: bounded plain files of the zone's outbox, copied inside before anything looks at them.
        model_id = new_id()
        largest = min(FILE_LIMITS[MODEL_FILE], _model_bytes(spec, layout, network))
        files = read_bounded(folder, {**FILE_LIMITS, MODEL_FILE: largest}, root=session.home.outbox(zone))
        quarantine = session.home.quarantine / model_id
        quarantine.mkdir(mode=0o700)
        try:
            for name, content in files.items():
                session.home.write(quarantine / name, content)
            # 2. Check: the declared network's tensors, finite losses.
            history = read_history(files[STATE_FILE])
            if len(history) > spec.epochs:
                raise InvalidInput(
                    Reason.RESULT_REFUSED, f"the history has {len(history)} epochs of {spec.epochs}", "run it again"
                )
            model = load_model(files[MODEL_FILE], spec, layout, network)
            # 3. Keep what was checked, and nothing that came beside it.
            files = _anew(model, history)
            for name, content in files.items():
                session.home.write(quarantine / name, content)
        except BaseException:
            shutil.rmtree(quarantine)
            raise
    # 4. Record, then keep.
    weights = digest(files[MODEL_FILE])
    receipt = session.ledger.intend(
        "return", {"model": model_id, "digest": weights, "from_zone": zone, "job": session.job, **provenance}
    )
    try:
        issued = now()
        statement = Statement(
            subjects={name: digest(content) for name, content in files.items()},
            predicate_type=MODEL_TYPE,
            predicate={
                "model": model_id,
                "zone": zone,
                "job": session.job,
                **provenance,
                "losses": {"training": f"{history[-1].training:.6g}", "validation": f"{history[-1].validation:.6g}"},
                "issued_at": timestamp(issued),
                "expires_at": timestamp(issued + timedelta(days=3653)),
            },
        )
        signed = sign(statement, session.key)
        session.home.write(quarantine / STATEMENT_FILE, signed.envelope)
        kept = session.home.models / model_id
        quarantine.rename(kept)
        session.ledger.conclude(
            receipt, "done", {"model": model_id, "statement": session.ledger.attach(signed.envelope)}
        )
    except BaseException as error:
        session.ledger.conclude(receipt, "failed", {"code": type(error).__name__})
        raise
    return Model(id=model_id, digest=weights, path=kept, history=tuple(history), network=model)


def trial_of(session: Session, model_id: str) -> int:
    """Return which trial of its sweep a kept model is.

    Raises:
        InvalidInput: `RESULT_REFUSED` if it is not there.
    """
    folder = session.home.models / model_id
    envelope = read_bounded(folder, {STATEMENT_FILE: MAX_ENVELOPE_BYTES}, root=session.home.models)[STATEMENT_FILE]
    signed = verify(envelope, trusted=session.trusted, predicate_type=MODEL_TYPE, now=None)
    return int(signed.statement.predicate.get("trial", 0))


def kept_model(
    session: Session, model_id: str, spec: TrainingSpec, layout: Layout, *, network: Network | None = None
) -> Model:
    """Return a model that was admitted before.

    Args:
        network: the user's network, if it is not of the built-in one.

    Raises:
        InvalidInput: `RESULT_REFUSED` if it is not there or not what was signed.
    """
    folder = session.home.models / model_id
    files = read_bounded(folder, FILE_LIMITS, root=session.home.models)
    envelope = read_bounded(folder, {STATEMENT_FILE: MAX_ENVELOPE_BYTES}, root=session.home.models)[STATEMENT_FILE]
    statement = verify(envelope, trusted=session.trusted, predicate_type=MODEL_TYPE, now=None).statement
    if any(statement.subjects.get(name) != digest(files[name]) for name in statement.subjects):
        raise InvalidInput(Reason.RESULT_REFUSED, "the kept model is not what was signed", "train again")
    return Model(
        id=model_id,
        digest=digest(files[MODEL_FILE]),
        path=folder,
        history=tuple(read_history(files[STATE_FILE])),
        network=load_model(files[MODEL_FILE], spec, layout, network),
    )


def admit_checkpoint(
    session: Session,
    folder: Path,
    *,
    reported: Mapping[str, str],
    spec: TrainingSpec,
    layout: Layout,
    network: Network | None,
    zone: str,
    provenance: Mapping[str, Any],
) -> SealedCheckpoint:
    """Bring back where a training stood before it failed, so that another attempt may go on from there.

    Args:
        reported: the digest of each file, as the workers reported it when they wrote it.
        provenance: as of `admit_model`; its `matrix_statement` is the only matrix with which the checkpoint may cross.

    Raises:
        InvalidInput: `RESULT_REFUSED`; recorded, and nothing goes on from it.
    """
    with session.border.refusals("checkpoint", session.config.zones[zone], session.job):
        # 1. Quarantine: bounded plain files of the zone's outbox, the very ones that were reported.
        largest = _model_bytes(spec, layout, network)
        limits = {MODEL_FILE: largest, OPTIMIZER_FILE: 3 * largest, STATE_FILE: FILE_LIMITS[STATE_FILE]}
        files = read_bounded(folder, limits, root=session.home.outbox(zone))
        if {name: digest(content) for name, content in files.items()} != dict(reported):
            raise InvalidInput(
                Reason.RESULT_REFUSED, "the checkpoint is not the one that the workers reported", "run it again"
            )
        # 2. Check: the declared network and its optimizer, finite losses of no more epochs than were asked for.
        history = read_history(files[STATE_FILE])
        if len(history) > spec.epochs:
            raise InvalidInput(
                Reason.RESULT_REFUSED, f"the history has {len(history)} epochs of {spec.epochs}", "run it again"
            )
        model = load_model(files[MODEL_FILE], spec, layout, network)
        moments = load_optimizer(files[OPTIMIZER_FILE], model)
    # 3. Sign and record what was checked, written anew.
    tensors = {f"{i}.{key}": tensor.contiguous() for i, entry in moments.items() for key, tensor in entry.items()}
    files = {**_anew(model, history), OPTIMIZER_FILE: save_safetensors(tensors)}
    issued = now()
    statement = Statement(
        subjects={name: digest(content) for name, content in files.items()},
        predicate_type=CHECKPOINT_TYPE,
        predicate={
            **provenance,
            "zone": zone,
            "epochs": len(history),
            "issued_at": timestamp(issued),
            "expires_at": timestamp(issued + session.border.grant_lasts),
        },
    )
    signed = sign(statement, session.key)
    session.ledger.observe(
        "return",
        {
            "kind": "checkpoint",
            "from_zone": zone,
            "job": session.job,
            "subjects": dict(statement.subjects),
            "statements": [session.ledger.attach(signed.envelope)],
            **provenance,
        },
    )
    return SealedCheckpoint(files=files, signed=signed)


def _anew(model: TabularModel, history: list[Epoch]) -> dict[str, bytes]:
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in model.state_dict().items()}
    epochs = json.dumps({"history": [asdict(epoch) for epoch in history]}, allow_nan=False)
    return {MODEL_FILE: save_safetensors(tensors), STATE_FILE: epochs.encode()}


def _model_bytes(spec: TrainingSpec, layout: Layout, network: Network | None) -> int:
    """Return how large the file of the declared network's tensors may be: they, and a header that names them."""
    tensors: dict[str, Any] = TabularModel(layout, network or perceptron(spec.model)).state_dict()
    return _HEADER_BYTES + sum(_HEADER_BYTES + int(each.numel() * each.element_size()) for each in tensors.values())
