"""The Python SDK: records, recipe, matrix, plan, train, sweep, burst, evidence.

Every object shows itself in a notebook. Nothing here decides: policy, border and sanitizer do.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import ray

from fabric import bursting, planning, sweeping, training
from fabric.artifacts import digest
from fabric.border import Errand
from fabric.capsule import xray
from fabric.charts import curve_svg, curve_text
from fabric.config import RecordsSource
from fabric.crossing import Cargo
from fabric.egress import EgressPlan, plan_of
from fabric.errors import ClusterUnavailable, FabricError, InvalidInput, Reason, nearest
from fabric.evidence import Evidence
from fabric.explain import Explanation
from fabric.job_store import Row, open_queue
from fabric.joining import Joined
from fabric.judgement import AUTO, CODE, matrix_name
from fabric.labels import Labels
from fabric.learning import Epoch, Layout, Quality, evaluate
from fabric.matrix import CHUNK_ROWS, MATRIX_TYPE, STATEMENT, SealedMatrix
from fabric.quarantine import Model, kept_model, trial_of
from fabric.queued import QueuedJob
from fabric.recording import now
from fabric.session import Session
from fabric.specs import QueueSpec, SweepSpec, TrainingSpec
from fabric.submission import submit, wish_of_file, wish_of_matrix, with_code
from fabric.xray import XRay
from sanitize import actor, risk, worker
from sanitize.inspection import Inspector
from sanitize.recipe import Recipe, parse_recipe
from sanitize.releases import Releases
from sanitize.report import report_fragment, report_html
from sanitize.spool import HELD_BACK, TRAIN, WORK_LASTS_S, Spool, sweep


@dataclass(frozen=True, slots=True)
class Records:
    """Raw records by name. They are read by the sanitizer in the private zone, never by this object."""

    source: RecordsSource

    @property
    def name(self) -> str:
        """Return the name they are declared under."""
        return self.source.name

    @property
    def labels(self) -> Labels:
        """Return their owner's labels."""
        return self.source.labels

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>"
            for name, value in self.labels.to_json().items()
        )
        return f"<p>Records <b>{html.escape(self.name)}</b></p><table>{rows}</table>"


@dataclass(frozen=True, slots=True)
class Matrix:
    """A sealed matrix of numbers, and the rows held back inside to measure models on.

    Attributes:
        dictionaries: levels of each encoded column, by code; they stay in the private zone.
        staying: names of the columns that nothing is made from.
    """

    sealed: SealedMatrix
    held_back: SealedMatrix | None
    labels: Labels
    dictionaries: Mapping[str, tuple[str, ...]] = field(repr=False)
    staying: tuple[str, ...] = field(repr=False)

    @property
    def rows(self) -> int:
        """Return the number of rows that would cross."""
        return self.sealed.rows

    def table(self) -> pa.Table:
        """Return the matrix as an Arrow table, to look at inside."""
        return self.sealed.table()

    def __str__(self) -> str:
        held = f", {self.held_back.rows:,} rows held back" if self.held_back else ""
        return (
            f"Matrix of {self.rows:,} rows x {len(self.sealed.columns)} columns{held}, "
            f"{self.sealed.size_bytes:,} bytes, {self.sealed.digest}"
        )

    def report(self, path: str | Path, *, levels: bool = False) -> Path:
        """Write what the signed statement says as one HTML page that stands alone, and return where it is.

        Args:
            levels: show the level behind each code too; the page must then stay inside.
        """
        page = report_html(
            self.sealed.predicate,
            envelope_digest=self.sealed.signed.digest,
            dictionaries=self.dictionaries if levels else None,
        )
        target = Path(path)
        target.write_text(page, encoding="utf-8")
        return target

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(str(self))}</p>{report_fragment(self.sealed.predicate)}"


@dataclass(frozen=True, slots=True)
class Run:
    """A finished training: its curve and its model."""

    model: Model

    @property
    def curve(self) -> tuple[Epoch, ...]:
        """Return the losses of every epoch."""
        return self.model.history

    def evaluate(self, matrix: SealedMatrix | None) -> Quality:
        """Measure the model, inside, on rows that were held back.

        Raises:
            InvalidInput: no rows were held back.
        """
        if matrix is None:
            raise InvalidInput(Reason.RECORDS_EMPTY, "no rows were held back", "sanitize with hold_back=0.2")
        return evaluate(self.model.network, matrix.table())

    def __str__(self) -> str:
        return f"{curve_text(self.curve)}\nmodel {self.model.id}\n{self.model.digest}\n{self.model.path}"

    def _repr_html_(self) -> str:
        return f"{curve_svg(self.curve)}<p>model <code>{html.escape(self.model.id)}</code></p>"


@dataclass(frozen=True, slots=True)
class Sweep:
    """A finished sweep: its trials, best first, and the best one's run."""

    result: sweeping.SweepResult

    @property
    def best(self) -> Run:
        """Return the best trial's run."""
        return Run(self.result.model)

    def rows(self) -> list[tuple[str, ...]]:
        """Return a header and one row of text per trial, best first."""
        header = ("trial", "learning rate", "batch", "hidden", "dropout", "validation loss")
        return [header, *(_trial_row(trial) for trial in self.result.trials)]

    def __str__(self) -> str:
        return "\n".join("  ".join(cell.ljust(16) for cell in row).rstrip() for row in self.rows())

    def _repr_html_(self) -> str:
        cells = ("".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in self.rows())
        return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"


class Fabric:
    """One person's connection to a fabric. Made by `fabric.connect`."""

    def __init__(self, session: Session) -> None:
        self.session = session

    @classmethod
    def join(cls, joined: Joined) -> Fabric:
        """Connect to the session's Ray cluster.

        Raises:
            ClusterUnavailable: the cluster does not answer, or `DRIVER_OUTSIDE`.
        """
        # Ray tells every node the driver's command line, and a value may stand on it.
        ray._private.utils.get_entrypoint_name = lambda: "fabric"
        try:
            ray.init(joined.address, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=False)
        except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
            joined.session.ledger.close()
            raise ClusterUnavailable(
                Reason.FABRIC_DOWN,
                f"the Ray cluster at {joined.address} cannot be joined ({type(error).__name__})",
                "see `fabric status`; close an earlier connection first; restart a notebook that imported Ray itself",
            ) from None
        logging.getLogger("ray").setLevel(logging.ERROR)
        private = joined.session.config.private
        here = ray.get_runtime_context().get_node_id()
        labels: dict[str, str] = next((node["Labels"] for node in ray.nodes() if node["NodeID"] == here), {})
        if labels.get("zone") != private.name:
            ray.shutdown()
            joined.session.ledger.close()
            raise ClusterUnavailable(
                Reason.DRIVER_OUTSIDE,
                f"this driver is attached to a node outside zone {private.name!r}",
                "run it on the head, or submit it as a job",
            )
        return cls(joined.session)

    def close(self) -> None:
        """Leave the cluster and close the evidence."""
        ray.shutdown()
        self.session.ledger.close()

    def __enter__(self) -> Fabric:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def records(self, name: str) -> Records:
        """Return the records declared as `name` in fabric.toml.

        Raises:
            InvalidInput: `UNKNOWN_RECORDS`, with the nearest declared name.
        """
        return Records(self.session.config.source(name))

    def recipe(self, path: str | Path) -> Recipe:
        """Read a recipe; a relative path is relative to fabric.toml.

        Raises:
            InvalidInput: the file is missing, or what is wrong with it.
        """
        file = self.session.config.path.parent / path
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            near = nearest(file.name, [p.name for p in file.parent.glob("*.toml")])
            raise InvalidInput(Reason.RECIPE_INVALID, f"there is no recipe {file}", near) from None
        return parse_recipe(text, source=file.name)

    def sanitize(
        self,
        records: Records,
        recipe: Recipe,
        *,
        hold_back: float = 0.0,
        seed: int = 0,
        workers: int = 0,
        progress: Callable[[actor.Progress], None] = lambda progress: None,
    ) -> Matrix:
        """Sanitize records in the private zone.

        The matrix has the same bytes however many workers there are. Work that a crash stopped goes on where it
        stopped when the same call is made again.

        Args:
            records: what to read; what the recipe joins is read too.
            recipe: what their owner allows to leave.
            hold_back: share of the rows, from 0 to less than 1, that is sealed apart and does not cross.
            seed: of the order of rows.
            workers: sanitizers at once; by default as many as the private zone has CPUs.
            progress: called as pieces of the work get done.

        Raises:
            InvalidInput: a file or the recipe is wrong.
            Refused: `COLUMN_REFUSED`, `RISK_TOO_HIGH`, `INSPECTION_FAILED`; nothing was sealed.
            ClusterUnavailable: the sanitizers died again and again.
        """
        names = sorted({records.name, *recipe.sources})
        labels = self.session.labels(*names)
        inside = self.session.errand(
            zone=self.session.config.private.name, labels=labels, purpose=recipe.purpose, justification=""
        )
        self.session.place(inside, workers=1, reads_records=True)
        inputs = {"records": names, "recipe": recipe.digest, "job": self.session.job, "actor": self.session.person}
        receipt = self.session.ledger.intend("sanitize", {**inputs, "labels": labels.to_json()})
        try:
            order = self._order(names, recipe, labels, hold_back, seed)
            matrix = self._sanitized(order, workers or self.session.config.private.cpus, progress)
        except BaseException as error:
            status = "refused" if isinstance(error, FabricError) else "failed"
            self.session.ledger.conclude(receipt, status, {"code": training.code_of(error)})
            raise
        sealed = matrix.sealed
        body: dict[str, Any] = {"matrix": sealed.digest, "rows": sealed.rows, "statement": self._attach(sealed)}
        self.session.ledger.conclude(receipt, "done", body)
        return matrix

    def matrix(self, name: str) -> Matrix:
        """Return a matrix that was sealed before, by the name of its folder.

        Raises:
            StatementInvalid: it is not there, or not what was signed.
        """
        folder, trusted = self.session.home.matrices / name, self.session.trusted
        sealed = SealedMatrix.load(folder / TRAIN, trusted=trusted)
        held = SealedMatrix.load(folder / HELD_BACK, trusted=trusted) if (folder / HELD_BACK).is_dir() else None
        return Matrix(sealed, held, Labels.from_json(sealed.predicate["labels"]), {}, ())

    def submit(
        self,
        work: str | Path | Matrix,
        spec: TrainingSpec | SweepSpec | None = None,
        *,
        zone: str = AUTO,
        purpose: str = "",
        justification: str = "",
        token: str = "",
        queue: QueueSpec | None = None,
        network: Callable[[int, int], Any] | None = None,
    ) -> QueuedJob:
        """Put work into the queue and return at once; the dispatcher decides where and when it runs.

        Args:
            work: a job file, or a matrix to train or search on.
            spec: what to do with the matrix; the file says it itself.
            token: names the submission; the same token again is the same job.
            queue: priority, deadline, estimate; a file's own by default.
            network: as of `train`; it is read now, and kept inside until the job's turn.

        Raises:
            InvalidInput: what is wrong with it; nothing is queued.
            CapsuleRefused: the network carries something that must not cross; nothing is queued.
            Refused: policy lets this person submit no such job.
        """
        store = open_queue(self.session.config, self.session.home)
        try:
            if isinstance(work, Matrix):
                wish = wish_of_matrix(
                    self.session,
                    matrix_name(work.sealed),
                    spec or TrainingSpec(),
                    work.labels,
                    zone=zone,
                    purpose=purpose or work.sealed.purpose,
                    justification=justification,
                    queue=queue or QueueSpec(),
                )
            else:
                wish = wish_of_file(self.session, self.session.config.path.parent / work, {}, queue=queue)
            if (code := self._code(network)) is not None:
                wish = with_code(wish, code.sealed)
            row, _ = submit(self.session, store, wish, token=token)
        except BaseException:
            store.close()
            raise
        return QueuedJob(row.id, store, self._result_of)

    def job(self, name: str) -> QueuedJob:
        """Return a queued job by its id or its submit token.

        Raises:
            InvalidInput: `JOB_UNKNOWN`.
        """
        store = open_queue(self.session.config, self.session.home)
        return QueuedJob(store.find(name).id, store, self._result_of)

    def _result_of(self, row: Row) -> Run:
        matrix = self.matrix(row.matrix)
        work = row.body["spec"]
        spec = TrainingSpec.model_validate(work if row.body["kind"] == "training" else work["training"])
        if row.body["kind"] == "sweep":
            spec = SweepSpec.model_validate(work).trials()[trial_of(self.session, row.result)]
        layout = Layout.of(matrix.sealed.columns, spec.task)
        network = bursting.kept_code(self.session, row.body[CODE]).network if CODE in row.body else None
        return Run(kept_model(self.session, row.result, spec, layout, network=network))

    def plan(
        self,
        matrix: Matrix,
        *,
        zone: str = "public",
        purpose: str = "",
        justification: str = "",
        code: training.Code | None = None,
    ) -> EgressPlan:
        """Say what would move to `zone` and what policy says of it; nothing moves, nothing is recorded.

        Args:
            code: a network that was sealed before and would go along.

        Raises:
            InvalidInput: `UNKNOWN_ZONE`.
        """
        errand = self._errand(matrix, zone, purpose, justification)
        cargo = Cargo(matrix=matrix.sealed, capsule=code.sealed if code else None)
        decisions = self.session.border.decide(cargo, errand)
        return plan_of(matrix.sealed, matrix.staying, errand.zone, decisions)

    def explain(
        self,
        matrix: Matrix,
        recipe: Recipe,
        *,
        zone: str = "",
        purpose: str = "",
        justification: str = "",
        code: str = "",
    ) -> Explanation:
        """Say for every zone, or one, whether the matrix may go there, which rules say so, and what would change it.

        Args:
            code: digest of the capsule that would go with it.

        Raises:
            InvalidInput: `UNKNOWN_ZONE`.
        """
        return planning.plan_work(
            self.session,
            recipe,
            records=recipe.records,
            signed=matrix.sealed.signed,
            zone=zone,
            purpose=purpose,
            justification=justification,
            code=code,
        )

    def train(
        self,
        matrix: Matrix,
        spec: TrainingSpec | None = None,
        *,
        zone: str = "public",
        purpose: str = "",
        justification: str = "",
        network: Callable[[int, int], Any] | training.Code | None = None,
        progress: Callable[[Epoch], None] = lambda epoch: None,
        moves: training.Moves | None = None,
    ) -> Run:
        """Train a model on the matrix in `zone` and bring it back.

        Args:
            spec: what to train; the defaults of `TrainingSpec` if none is given.
            purpose: by default the matrix's own.
            justification: why the work leaves the private zone.
            network: makes a torch module from its number of inputs and outputs, and crosses as a capsule; or such a one
                that was sealed before.
            progress: called with the losses at each checkpoint.
            moves: who may send it to another zone while it runs; nobody by default.

        Raises:
            Refused: by policy or the border; nothing has moved.
            RemoteFailure: the workers failed more often than the spec allows.
        """
        errand = self._errand(matrix, zone, purpose, justification)
        spec = spec or TrainingSpec()
        code = self._code(network)
        model = training.train(
            self.session, matrix.sealed, spec, errand, code=code, progress=progress, moves=moves or training.Stays()
        )
        return Run(model)

    def sweep(
        self,
        matrix: Matrix,
        spec: SweepSpec,
        *,
        zone: str = "public",
        purpose: str = "",
        justification: str = "",
        network: Callable[[int, int], Any] | training.Code | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Sweep:
        """Train every combination of the sweep in `zone`, all fed by one crossing, and bring the best model back.

        Raises:
            Refused: by policy or the border; nothing has moved.
            RemoteFailure: no trial succeeded.
        """
        errand = self._errand(matrix, zone, purpose, justification)
        code = self._code(network)
        return Sweep(sweeping.sweep(self.session, matrix.sealed, spec, errand, code=code, progress=progress))

    def burst(
        self,
        fn: Callable[..., Any],
        matrix: Matrix,
        *,
        zone: str = "public",
        purpose: str = "",
        justification: str = "",
        **parameters: Any,
    ) -> Any:
        """Run `fn(table, **parameters)` over the matrix in `zone` and return its result.

        Raises:
            CapsuleRefused: `fn` carries something that must not cross; the message names it and the fix.
            Refused: by policy or the border.
            RemoteFailure: `fn` failed; only its error's class is known.
        """
        return bursting.burst(
            self.session,
            matrix.sealed,
            fn,
            self._errand(matrix, zone, purpose, justification),
            inspect_text=self._inspector.inspect_text,
            parameters=parameters,
        )

    def xray(self, fn: Callable[..., Any]) -> XRay:
        """Show what would cross with `fn`, without sending it."""
        return xray(fn, inspect_text=self._inspector.inspect_text)

    def evidence(self) -> Evidence:
        """Return the evidence of everything this fabric did."""
        return Evidence.of(self.session.ledger, self.session.key.public)

    @cached_property
    def _inspector(self) -> Inspector:
        return Inspector()

    def _errand(self, matrix: Matrix, zone: str, purpose: str, justification: str) -> Errand:
        return self.session.errand(
            zone=zone, labels=matrix.labels, purpose=purpose or matrix.sealed.purpose, justification=justification
        )

    def _order(self, names: list[str], recipe: Recipe, labels: Labels, hold_back: float, seed: int) -> worker.Order:
        issued, config, home = now(), self.session.config, self.session.home
        records = {name: config.source(name).path for name in names}
        limit = config.risk_limit(labels.data_classification, recipe.purpose)
        limits = risk.Limits(k=limit.k, l=limit.l, t=limit.t) if limit else risk.LIMITS[labels.data_classification]
        releases = Releases(home.releases)
        order = worker.Order(
            records=records,
            recipe=recipe,
            hold_back=hold_back,
            seed=seed,
            chunk_rows=CHUNK_ROWS,
            work=home.path,
            surrogates=home.surrogates,
            labels=labels.to_json(),
            limits=limits,
            releases=home.releases,
            earlier=releases.earlier_quasi(recipe.sources),
            sequence=releases.sequence(recipe.sources),
            key_path=home.signing_key_file,
            secret_path=home.sanitizing_key(),
            predicate_type=MATRIX_TYPE,
            issued_at=issued,
            expires_at=issued + timedelta(days=config.statement_days),
        )
        return replace(order, work=home.work(order.digest))

    def _sanitized(self, order: worker.Order, workers: int, progress: Callable[[actor.Progress], None]) -> Matrix:
        """Have the pool do the order, and take what it sealed into the home."""
        private = self.session.config.private
        pool = actor.Pool(order, private.resource, private.node_label, size=workers, progress=progress)
        spool = Spool(order.work)
        sweep(order.work.parent, order.issued_at.timestamp() - WORK_LASTS_S)
        with spool.alone():  # the same call made twice at once: the second waits, and does it again
            try:
                delivery = pool.run()
                name = digest((delivery.folder / TRAIN / STATEMENT).read_bytes()).removeprefix("sha256:")[:32]
                folder = self.session.home.keep_matrix(delivery.folder, name)
            except ClusterUnavailable:
                raise  # the work stays, so that the same order goes on from there
            except FabricError:
                spool.clear()
                raise
            spool.clear()
        held = folder / HELD_BACK
        return Matrix(
            SealedMatrix.load(folder / TRAIN, trusted=self.session.trusted),
            SealedMatrix.load(held, trusted=self.session.trusted) if HELD_BACK in delivery.finished.rows else None,
            Labels.from_json(order.labels),
            delivery.dictionaries,
            delivery.finished.staying,
        )

    def _attach(self, sealed: SealedMatrix) -> str:
        return self.session.ledger.attach(sealed.signed.envelope)

    def _code(self, network: Callable[[int, int], Any] | training.Code | None) -> training.Code | None:
        if network is None or isinstance(network, training.Code):
            return network
        sealed = bursting.seal(self.session, network, self._inspector.inspect_text)
        return training.Code(sealed=sealed, network=network)


def _trial_row(trial: sweeping.Trial) -> tuple[str, ...]:
    spec = trial.spec
    hidden = "x".join(map(str, spec.model.hidden)) or "linear"
    loss = "failed" if trial.validation is None else f"{trial.validation:.4f}"
    return (
        str(trial.number), f"{spec.learning_rate:g}", str(spec.batch_size), hidden, f"{spec.model.dropout:g}", loss
    )  # fmt: skip
