"""Submitting a job to the queue: everything that can be refused is refused before anything is queued.

1. Read and check: the job file, the records' and the job's labels, the recipe, the zone, the deadline, the size.
2. Ask policy whether this person may submit it.
3. Keep inside what the queue must not hold: the recipe's text and the user's code, under their digests, and the
   justification's.
4. Record, then queue. The same token again is the same job.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fabric.artifacts import digest, digest_of
from fabric.crossing import CAPSULE, SealedCapsule
from fabric.errors import FabricError, InvalidInput, Reason, nearest
from fabric.fleet import Need, Pool, check_need
from fabric.job_store import JobStore, NewJob, Row
from fabric.judgement import AUTO, CODE
from fabric.labels import Labels, WorkloadClass
from fabric.recording import new_id, now
from fabric.requests import Action, ActRequest
from fabric.session import Session
from fabric.specs import JobSpec, QueueSpec, SweepSpec, TrainingSpec, parse
from fabric.zones import Zone, find_zone
from sanitize.recipe import Recipe, parse_recipe

_RELATIVE = re.compile(r"\+([0-9]{1,6})([smhd])\Z")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
CLOSEST_DEADLINE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is submitted: the work, and how the queue should take it.

    Attributes:
        body: as the queue keeps it, without what the queue settles.
        justification: why it may leave; only its keyed digest enters the queue.
        recipe_text: of the records that are still to be sanitized; empty where a matrix is given.
        matrix: name of a sealed matrix; empty where the records are still to be sanitized.
        code: a network of the user's own; `body` names its digest (`with_code`).
    """

    body: Mapping[str, Any]
    queue: QueueSpec
    justification: str
    recipe_text: str = ""
    matrix: str = ""
    code: SealedCapsule | None = None


def read_job(path: Path) -> JobSpec:
    """Read a job file.

    Raises:
        InvalidInput: `CONFIG_MISSING` with the nearest file, or what is wrong with it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        near = nearest(path.name, [p.name for p in path.parent.glob("*.toml")])
        raise InvalidInput(Reason.CONFIG_MISSING, f"there is no job file {path}", near) from None
    return parse(JobSpec, text, source=path.name)


def wish_of_file(session: Session, path: Path, labels: Mapping[str, str], *, queue: QueueSpec | None = None) -> Wish:
    """Return what a job file asks for.

    Args:
        labels: of the job itself, as Ray's job metadata holds them.
        queue: how the queue should take it, in place of what the file says.

    Raises:
        InvalidInput: what is wrong with the file, the labels or the recipe.
    """
    spec = read_job(path)
    queue = queue or spec.queue
    work = spec.training or spec.sweep
    if work is None or (spec.training and spec.sweep):
        raise InvalidInput(
            Reason.CONFIG_INVALID, f"{path.name} has no work, or two", "give one of [training] and [sweep]"
        )
    session.config.source(spec.records)
    recipe, text = _recipe(path.parent / spec.recipe)
    names = sorted({spec.records, *recipe.sources})
    all_labels = session.with_job_labels(labels).labels(*names)
    body = {
        **_body(session, work, all_labels, zone=spec.zone, purpose=recipe.purpose, queue=queue),
        "records": spec.records,
        "recipe": recipe.digest,
        "recipe_file": digest(text.encode()),
        "hold_back": spec.hold_back,
        "seed": spec.seed,
        "labels": dict(labels),
    }
    return Wish(body=body, queue=queue, justification=spec.justification, recipe_text=text)


def wish_of_matrix(
    session: Session,
    matrix: str,
    work: TrainingSpec | SweepSpec,
    labels: Labels,
    *,
    zone: str,
    purpose: str,
    justification: str,
    queue: QueueSpec,
) -> Wish:
    """Return the wish to do `work` on a sealed matrix."""
    body = {
        **_body(session, work, labels, zone=zone, purpose=purpose, queue=queue),
        "records": "",
        "recipe": "",
        "recipe_file": "",
        "hold_back": 0.0,
        "seed": 0,
        "labels": {},
        "matrix": matrix,
    }
    return Wish(body=body, queue=queue, justification=justification, matrix=matrix)


def with_code(wish: Wish, code: SealedCapsule) -> Wish:
    """Return the wish to do the same with a network of the user's own."""
    return replace(wish, body={**wish.body, CODE: digest(code.payload)}, code=code)


def submit(session: Session, store: JobStore, wish: Wish, *, token: str = "", driver: str = "") -> tuple[Row, bool]:
    """Queue a job, and say whether it is new.

    Args:
        token: names the submission; by default a new one.
        driver: the process that waits to do the work itself; by default one is started when its turn comes.

    Raises:
        InvalidInput: `DEADLINE_PAST`, `ZONE_HAS_NO_ROOM`, `GPU_MODEL_UNKNOWN`, `SUBMIT_TOKEN_REUSED` and the like.
        Refused: policy lets this person submit no such job.
    """
    at = now().timestamp()
    body = {**wish.body, "justification": session.home.keyed(wish.justification)}
    # A retry comes later: a deadline that has passed since is no reason not to know the job again.
    known = store.by_token(token) if token else None
    deadline = deadline_of(wish.queue.deadline, at)
    if known is None:
        _check_deadline(deadline, at)
    check_need(Need(**body["need"]), [static_pool(zone) for zone in session.config.zones.values()])
    _ask(session, body, wish)
    new = NewJob(
        id=known.id if known else new_id()[:16],
        token=token or f"t-{new_id()[:24]}",
        body=body,
        priority=wish.queue.priority,
        deadline_s=deadline,
        driver=driver,
        matrix=wish.matrix,
    )
    if known is not None:
        found = store.submit(new, at)  # or it is another job, which brings nothing along
        _keep(session, wish)
        return found
    _keep(session, wish)
    return _record_and_queue(session, store, new, at)


def _keep(session: Session, wish: Wish) -> None:
    """Keep inside what the work is made from."""
    if wish.recipe_text:
        session.home.keep_recipe(wish.recipe_text)
    if wish.code is not None:
        session.home.keep_code(wish.code.payload, wish.code.signed.envelope)
    session.home.keep_justification(wish.justification)


def _record_and_queue(session: Session, store: JobStore, new: NewJob, at: float) -> tuple[Row, bool]:
    body = new.body
    record = {
        "kind": body["kind"],
        "job": new.id,
        "actor": session.person,
        "purpose": body["purpose"],
        "spec": digest_of(body["spec"]),
        "workers": body["need"]["workers"],
        "labels": body["all_labels"],
        "justification": body["justification"],
        "token": digest(new.token.encode()),
    }
    if CODE in body:
        record["subjects"] = {CAPSULE: body[CODE]}
    receipt = session.ledger.intend("submit", record)
    try:
        row, made = store.submit(new, at)
    except BaseException as error:
        code = error.reason.value if isinstance(error, FabricError) else type(error).__name__
        session.ledger.conclude(receipt, "refused", {"code": code})
        raise
    session.ledger.conclude(receipt, "done", {"job": row.id})
    store.admitted(row.id, receipt.id)
    return row, made


def deadline_of(text: str, at: float) -> float | None:
    """Return the time that a deadline names: an ISO time with a zone, or a span such as `+2h` from `at`; None for none.

    Raises:
        InvalidInput: `JOB_INVALID`.
    """
    if not text:
        return None
    if (match := _RELATIVE.match(text)) is not None:
        return at + timedelta(seconds=int(match[1]) * _UNITS[match[2]]).total_seconds()
    found = None
    with suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(text)
        # A time at the edge of the calendar may lie beyond it in UTC, where nobody could be shown it.
        found = None if moment.tzinfo is None else moment.astimezone(UTC).timestamp()
    if found is None:
        raise InvalidInput(
            Reason.JOB_INVALID, "the deadline is not a time", "write 2026-12-01T12:00Z, with a zone, or +2h, +30m, +1d"
        )
    return found


def _check_deadline(deadline: float | None, at: float) -> None:
    if deadline is not None and not (math.isfinite(deadline) and deadline > at + CLOSEST_DEADLINE_S):
        raise InvalidInput(
            Reason.DEADLINE_PAST,
            f"the deadline {datetime.fromtimestamp(deadline, UTC):%Y-%m-%dT%H:%M:%SZ} is past",
            "give a later one, or none",
        )


def static_pool(zone: Zone) -> Pool:
    """Return a zone as a pool with all that fabric.toml declares of it: what could ever be free."""
    return Pool(
        zone=zone.name,
        kind=zone.kind,
        provider=zone.provider,
        region=zone.region,
        gpu_model=zone.gpu_model,
        gpus_total=zone.gpus,
        cpus_total=zone.cpus or zone.slots,
    )


def _ask(session: Session, body: Mapping[str, Any], wish: Wish) -> None:
    request = ActRequest(
        action=Action.SUBMIT,
        person=session.person,
        zone=session.config.private,
        labels=Labels.from_json(body["all_labels"]),
        purpose=body["purpose"],
        justification=wish.justification,
        roles=frozenset(),
        own=True,
        verified=False,
        approved=False,
    )
    with session.border.refusals("submit", session.config.private, session.job) as decided:
        decision = session.policy.decide(request)
        decided.append(decision)
        decision.enforce()


def _body(
    session: Session,
    work: TrainingSpec | SweepSpec,
    labels: Labels,
    *,
    zone: str,
    purpose: str,
    queue: QueueSpec,
) -> dict[str, Any]:
    if zone != AUTO:
        find_zone(session.config.zones, zone)
    training = isinstance(work, TrainingSpec)
    workers = work.workers if isinstance(work, TrainingSpec) else min(work.concurrent, len(work.trials()))
    gpus = queue.gpus if queue.gpus is not None else int(any(each.gpus for each in session.config.zones.values()))
    workload = labels.workload_class or (WorkloadClass.TRAINING if training else WorkloadClass.SWEEP)
    return {
        "kind": "training" if training else "sweep",
        "spec": work.model_dump(mode="json"),
        "zone": zone,
        "purpose": purpose,
        "all_labels": labels.to_json(),
        "workload": workload.value,
        "need": {
            "workers": workers,
            "min_workers": queue.min_workers,
            "gpus": gpus,
            "gpu_model": queue.gpu_model,
            "spot": queue.spot,
        },
        "duration_s": queue.minutes * 60,
        # A sweep's trials cannot be moved; a training ends at its next checkpoint and goes on from it.
        "checkpointed": training,
        "person": session.person,
        "priority": queue.priority,
        "deadline": queue.deadline,
    }


def _recipe(path: Path) -> tuple[Recipe, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        near = nearest(path.name, [p.name for p in path.parent.glob("*.toml")])
        raise InvalidInput(Reason.RECIPE_INVALID, f"there is no recipe {path}", near) from None
    return parse_recipe(text, source=path.name), text
