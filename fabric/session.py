"""A session: one person's work with one fabric, wired together. Imports no Ray, so that the command line is quick.

It holds the configuration, the evidence, the policy and the border, and knows the labels of every records source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from pathlib import Path

from fabric.approvals import Approvals, Approver, kept
from fabric.border import Border, Errand
from fabric.config import Config, Environment, check_zones, find_config, load_config
from fabric.crossing import SealedCapsule
from fabric.errors import InvalidInput, Reason
from fabric.labels import Labels, most_restrictive
from fabric.ledger import Ledger
from fabric.placement import Placement, place
from fabric.policy import Policy
from fabric.policy_files import load_policy
from fabric.recording import new_id, now, open_ledger
from fabric.requests import RunRequest
from fabric.statements import PublicKey, SigningKey
from fabric.stores import Home
from fabric.zones import find_zone
from sanitize.releases import Releases

CODE_SUFFIXES = frozenset({".py", ".pyi", ".toml", ".md", ".sh"})
"""What a job's working directory may hold: Ray copies it to every node, public ones too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Everything that work needs, wired once.

    Attributes:
        job: id under which this work stands in the evidence.
        job_labels: labels that the job itself was given; None where none were, as in a notebook.
        trusted: keys whose statements are believed.
        acts_for: pseudonym of whoever submitted this work, where another's process does it; empty for one's own.
    """

    config: Config
    environment: Environment
    home: Home
    ledger: Ledger
    policy: Policy
    border: Border
    key: SigningKey
    trusted: tuple[PublicKey, ...]
    job: str
    job_labels: Labels | None
    acts_for: str = ""

    @classmethod
    def open(cls, environment: Environment, *, config_path: Path | None = None) -> Session:
        """Read the configuration and open the evidence.

        Raises:
            InvalidInput: what is wrong with `fabric.toml`, or `UNKNOWN_LABEL` and the like for the job's metadata.
            Refused: a site's policy files are not signed, or not by a declared signer.
            FabricError: `EVIDENCE_UNWRITABLE`.
        """
        config = load_config(find_config(environment, config_path, Path.cwd()))
        job_labels = Labels.parse(environment.job_labels) if environment.job_labels else None
        if job_labels is not None:
            check_zones(job_labels, config.zones)
        settings = config.policy
        policy = load_policy(settings.files, settings.signature, settings.signers, now=now())
        home = Home.open(config.state)
        key = home.signing_key()
        ledger = open_ledger(config, home, key, person=environment.person)
        return cls(
            config=config,
            environment=environment,
            home=home,
            ledger=ledger,
            policy=policy,
            border=_border(config, home, ledger, policy, key),
            key=key,
            trusted=ledger.keys,
            job=environment.job_id or f"session-{new_id()}",
            job_labels=job_labels,
        )

    @property
    def person(self) -> str:
        """Return the pseudonym of whoever this work is for: policy and second persons are asked about them."""
        return self.acts_for or self.home.pseudonym(self.environment.person)

    def labels(self, *records: str) -> Labels:
        """Return the labels of work on `records`: as sensitive as the most sensitive of them and of the job.

        Raises:
            InvalidInput: `UNKNOWN_RECORDS`, `LABELS_CONFLICT`.
        """
        declared = [self.config.source(name).labels for name in records]
        if self.job_labels is not None:
            # What the job leaves unsaid is the records' to say; what it says can only make things stricter.
            declared.append(_filled(self.job_labels, self.environment.job_labels, most_restrictive(*declared)))
        return most_restrictive(*declared)

    def with_job_labels(self, given: Mapping[str, str]) -> Session:
        """Return a session of a job that was given these labels; given none, this one.

        Raises:
            InvalidInput: `UNKNOWN_LABEL`, `LABEL_INVALID`, `UNKNOWN_ZONE`.
        """
        if not given:
            return self
        labels = Labels.parse(given)
        check_zones(labels, self.config.zones)
        return replace(self, job_labels=labels, environment=replace(self.environment, job_labels=dict(given)))

    def kept_capsule(self, name: str) -> SealedCapsule:
        """Return outbound code that was kept for a job that waits, by its digest, under its newest statement, verified.

        Raises:
            InvalidInput: `CAPSULE_UNREADABLE` if it is gone or was changed.
            Refused: as `Border.read_capsule`.
        """
        return self.border.read_capsule(*self.home.kept_code(name))

    def errand(self, *, zone: str, labels: Labels, purpose: str, justification: str) -> Errand:
        """Return the errand of moving something to `zone`.

        Raises:
            InvalidInput: `UNKNOWN_ZONE`.
        """
        return Errand(
            zone=find_zone(self.config.zones, zone),
            labels=labels,
            purpose=purpose,
            justification=justification,
            justification_key=self.home.keyed(justification),
            job=self.job,
            person=self.person,
        )

    def place(self, errand: Errand, *, workers: int, reads_records: bool = False) -> Placement:
        """Decide where the errand's work runs, and make it concrete; a refusal is recorded.

        Raises:
            Refused: `POLICY_DENIED` or `ZONE_HAS_NO_ROOM`.
        """
        request = RunRequest(
            person=errand.person,
            zone=errand.zone,
            labels=errand.labels,
            purpose=errand.purpose,
            justification=errand.justification,
            reads_records=reads_records,
        )
        self.home.keep_justification(errand.justification)
        with self.border.refusals("place", errand.zone, errand.job) as decided:
            decision = self.policy.decide(request)
            decided.append(decision)
            return place(decision, workers=workers)

    def check_carried(self, folder: Path) -> None:
        """Refuse a job that carries anything but code to every node.

        Args:
            folder: the job's working directory; looked at only if the job has one of its own.

        Raises:
            InvalidInput: `WORKING_DIR_CARRIES_DATA`, with the names of up to five files.
        """
        with self.border.refusals("working_dir", None, self.job):
            if self.environment.carried:
                raise InvalidInput(
                    Reason.WORKING_DIR_CARRIES_DATA,
                    f"the job's runtime environment has {' and '.join(self.environment.carried)}, "
                    "which Ray gives to every node",
                    "install modules on the nodes, and set variables where they start",
                )
            found = _not_code(folder) if self.environment.working_dir else []
            if found:
                raise InvalidInput(
                    Reason.WORKING_DIR_CARRIES_DATA,
                    f"the job's working directory carries {len(found)} files that are not code: {', '.join(found[:5])}",
                    "Ray copies it to every node: submit without --working-dir, or from a folder of code alone, "
                    "and name data in fabric.toml",
                )


def _border(config: Config, home: Home, ledger: Ledger, policy: Policy, key: SigningKey) -> Border:
    return Border(
        home_zone=config.private,
        policy=policy,
        ledger=ledger,
        key=key,
        trusted=ledger.keys,
        grant_lasts=timedelta(minutes=config.crossing_minutes),
        clock=now,
        new_id=new_id,
        releasing=lambda matrix, zone: Releases(home.releases).crossed(matrix.digest, zone.name, now()),
        approvals=Approvals(
            approvers=approvers_of(config, home),
            envelopes=lambda: kept(approvals_folder(home)),
            seen=lambda: newest_time(ledger),
        ),
    )


def approvers_of(config: Config, home: Home) -> tuple[Approver, ...]:
    """Return the declared approvers, each with the pseudonym under which they stand in the evidence."""
    return tuple(
        Approver(name=one.name, person=home.pseudonym(one.name), key=one.key, roles=one.roles)
        for one in config.policy.approvers
    )


def approvals_folder(home: Home) -> Path:
    """Return the folder of the approvals that were given."""
    return home.path / "approvals"


def newest_time(ledger: Ledger) -> datetime | None:
    """Return the newest time in the evidence; None where it holds no record."""
    times = [datetime.fromisoformat(entry.record["at"]) for entry in ledger.entries()]
    return max(times, default=None)


def _not_code(folder: Path) -> list[str]:
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    compiled = [path for path in files if path.suffix == ".pyc" and path.parent.name == "__pycache__"]
    return [p.as_posix() for p in files if p.suffix.lower() not in CODE_SUFFIXES and p not in compiled]


def _filled(job: Labels, given: Mapping[str, str], records: Labels) -> Labels:
    unsaid = [field.name for field in fields(records) if field.name not in given]
    return replace(job, **{name: getattr(records, name) for name in unsaid})
