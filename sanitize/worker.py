"""The sanitizer: does pieces of a task in the private zone, and signs what was sealed.

Raw records are read in this worker and nowhere else; what it returns is counts, digests and signed statements. Its
methods return errors instead of raising them, so that no foreign traceback travels with one. Everything lasting is in
the work folder: a worker that died is replaced by another, which goes on from there.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from fabric.artifacts import chunk_name, digest_of
from fabric.errors import FabricError, Reason, Refused
from fabric.statements import SigningKey, Statement, sign, timestamp
from sanitize import risk
from sanitize.bench import Bench, Facts
from sanitize.cutting import subjects_of
from sanitize.inspection import Inspector
from sanitize.pipeline import Finished, dictionaries, report
from sanitize.recipe import Recipe, column_of
from sanitize.releases import Release, Releases
from sanitize.sources import FileSource, Source, identity, open_source
from sanitize.spool import TRAIN, Spool
from sanitize.stages import do
from sanitize.surrogates import Surrogates
from sanitize.task import Task
from sanitize.treating import readings_of

STATEMENT = "statement.json"
_VERSIONED = ("zonefabric", "presidio-analyzer", "phonenumbers", "regex", "tldextract", "pyarrow", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What the sanitizers are asked to do. It holds paths and no secret.

    Attributes:
        records: path of each records source, by name, in the private zone.
        work: folder of the work; the same work has the same, so that it can go on.
        surrogates: file of the map of surrogates.
        labels: of the records, for the statement.
        limits: what the risk of the whole must keep to.
        releases: folder of what is remembered of earlier releases.
        earlier: quasi-identifiers of earlier releases of these records, as recipes' JSON.
        sequence: how many releases of these records went before.
        key_path: file of the 32-byte seed that signs; read by the worker, so that no key travels.
        secret_path: file of the 32 bytes from which the keys of subjects and purposes are derived.
        predicate_type: of the statement.
    """

    records: Mapping[str, Path]
    recipe: Recipe
    hold_back: float
    seed: int
    chunk_rows: int
    work: Path
    surrogates: Path
    labels: Mapping[str, Any]
    limits: risk.Limits
    releases: Path
    earlier: tuple[Mapping[str, Any], ...]
    sequence: int
    key_path: Path
    secret_path: Path
    predicate_type: str
    issued_at: datetime
    expires_at: datetime

    @property
    def digest(self) -> str:
        """Return 32 hex digits that two orders share if the second can go on where the first stopped."""
        same = {
            "records": {name: [str(path), *map(str, identity(path))] for name, path in self.records.items()},
            "recipe": self.recipe.digest,
            "hold_back": str(self.hold_back),
            "seed": self.seed,
            "chunk_rows": self.chunk_rows,
            "limits": self.limits.to_json(),
            "earlier": [dict(column) for column in self.earlier],
            "versions": {name: metadata.version(name) for name in _VERSIONED},
        }
        return digest_of(same).removeprefix("sha256:")[:32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """What was sealed: in `folder`, a folder per part with its chunks and its statement.

    Attributes:
        dictionaries: codes to levels; stays in the private zone.
    """

    folder: Path
    finished: Finished
    dictionaries: Mapping[str, tuple[str, ...]]


class Sanitizer:
    """Does pieces of one order. A plain class; `sanitize.actor` makes Ray actors of it."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.spool = Spool(order.work)

    def ready(self) -> None:
        """Return as soon as the worker runs."""

    def do(self, stage: str, item: str) -> Facts | FabricError:
        """Do one piece and return what was found, or the error that stopped it."""
        found: Facts | FabricError = _safely(lambda: self._open() if stage == "open" else do(self._bench, stage, item))
        return found

    def finish(self, finished: Finished) -> Delivery | FabricError:
        """Sign the statements about the sealed parts."""
        delivery: Delivery | FabricError = _safely(lambda: self._sign(finished))
        return delivery

    def _open(self) -> Facts:
        """Open the records, unless that was done before and they have not changed since."""
        order, about = self.order, self.order.work / "sources.json"
        try:
            held = json.loads(about.read_bytes())
            same = all(held["files"][name] == list(identity(path)) for name, path in order.records.items())
        except (OSError, ValueError, KeyError):
            same = False
        if same and self.spool.facts("finish", "all") is None:
            return {"resumed": True}
        self.spool.clear()
        self.spool.prepare()
        files, opened = {}, {}
        for name in order.recipe.sources:
            files[name] = identity(order.records[name])
            source = open_source(order.records[name], name=name, stage=order.work)
            opened[name] = {**asdict(source), "path": str(source.path), "order_key": source.order_key.hex()}
        self.spool.write(about, json.dumps({"files": files, "sources": opened}).encode())
        return {"resumed": False}

    @cached_property
    def _bench(self) -> Bench:
        order = self.order
        task = Task(
            recipe=order.recipe,
            sources=_sources(json.loads((order.work / "sources.json").read_bytes())["sources"]),
            hold_back=order.hold_back,
            seed=order.seed,
            secret=order.secret_path.read_bytes(),
            limits=order.limits,
            earlier=tuple(column_of(column) for column in order.earlier),
            surrogates=Surrogates(order.surrogates).draw,
            chunk_rows=order.chunk_rows,
        )
        return Bench(task, self.spool, Inspector)

    def _sign(self, finished: Finished) -> Delivery:
        bench, key = self._bench, SigningKey.from_seed(self.order.key_path.read_bytes())
        self._propose(bench, finished, key)
        said = report(bench)
        for part in finished.rows:
            statement = self._statement(bench, finished, part, said, key)
            self.spool.write(self.spool.folder / "sealed" / part / STATEMENT, sign(statement, key).envelope)
        names = dictionaries(bench)
        self.spool.mark("finish", "all", {})
        return Delivery(folder=self.spool.folder / "sealed", finished=finished, dictionaries=names)

    def _propose(self, bench: Bench, finished: Finished, key: SigningKey) -> None:
        """Hold the matrix against earlier releases of the same records, and remember it.

        Raises:
            Refused: `RISK_TOO_HIGH`: subtracted from an earlier one, it would single people out.
        """
        order, releases = self.order, Releases(self.order.releases)
        subjects = subjects_of(bench)
        quasi = {name for name in bench.weighed()["quasi"] if name not in bench.phantoms}
        chunks = {chunk_name(index): chunk for index, chunk in enumerate(finished.digests[TRAIN])}
        release = Release(
            matrix=digest_of(chunks),
            records=_inputs(bench, key),
            recipe=order.recipe.digest,
            purpose=order.recipe.purpose,
            quasi=tuple(column.to_json() for column in order.recipe.columns if quasi & {*column.outgoing}),
            rows=finished.rows[TRAIN],
            sequence=order.sequence,
            main=order.recipe.records,
            subject=order.recipe.subject,
            readings=readings_of(order.recipe),
        )
        named = bool(order.recipe.subject)
        against = releases.check(subjects, order.recipe.sources, bench.limits.k, named=named)
        if bench.limits.k > 1:
            against = (*releases.comparable(release), *against)
        if against:
            way_out = "release the same of the same subjects as before, or many others besides"
            raise Refused(Reason.RISK_TOO_HIGH, "; ".join(against), way_out)
        releases.propose(release, subjects)

    def _statement(
        self, bench: Bench, finished: Finished, part: str, said: Mapping[str, Any], key: SigningKey
    ) -> Statement:
        order = self.order
        return Statement(
            subjects={chunk_name(index): chunk for index, chunk in enumerate(finished.digests[part])},
            predicate_type=order.predicate_type,
            predicate={
                **said,
                "inputs": _inputs(bench, key),
                "part": part,
                "rows": finished.rows[part],
                "chunk_rows": order.chunk_rows,
                "purpose": order.recipe.purpose,
                "labels": dict(order.labels),
                # What is made of records is as sensitive as they are, until policy says what that means for a matrix.
                "classification_before": order.labels["data_classification"],
                "classification_after": order.labels["data_classification"],
                "releases_considered": order.sequence,
                "issued_at": timestamp(order.issued_at),
                "expires_at": timestamp(order.expires_at),
            },
        )


def _inputs(bench: Bench, key: SigningKey) -> dict[str, str]:
    """Return a keyed digest of each records file.

    From a plain one, whoever knows most of a file could confirm a guess of the rest.
    """
    return {
        name: "hmac-sha256:" + hmac.digest(key.seed, source.version.encode(), "sha256").hex()
        for name, source in bench.task.sources.items()
    }


def _sources(held: Mapping[str, Mapping[str, Any]]) -> dict[str, Source]:
    names = [each.name for each in fields(FileSource)]
    found: dict[str, Source] = {}
    for name, facts in held.items():
        known = {key: facts[key] for key in names}
        known |= {"path": Path(facts["path"]), "order_key": bytes.fromhex(facts["order_key"])}
        known |= {key: tuple(facts[key]) for key in ("columns", "units", "identity")}
        known |= {"parts": tuple((first, last) for first, last in facts["parts"])}
        found[name] = FileSource(**known)
    return found


def _safely(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except FabricError as error:
        # What it was made from, and the frames it came through, hold cells.
        error.__cause__ = error.__context__ = None
        return error.with_traceback(None)
    except Exception as error:  # noqa: BLE001 - a message of any class may carry a cell
        return Refused(
            Reason.INSPECTION_FAILED,
            f"sanitizing failed with {type(error).__name__}; nothing was sealed",
            "what cannot be inspected does not leave; the message stays unsaid, because messages carry cells",
        )
