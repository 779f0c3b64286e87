"""Do a queued job's work: `python -m jobs.queued prepare JOB` or `run JOB`. The dispatcher starts it, inside.

Everything that the work is made from comes out of the queue and the home folder, never off the command line: Ray tells
every node what stands there.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import fabric
from fabric.attending import Attendance
from fabric.errors import ClusterUnavailable, FabricError, InvalidInput, Reason, nearest
from fabric.job_store import JobStore, Row, State, open_queue
from fabric.judgement import matrix_name
from fabric.recording import now
from fabric.sdk import Fabric
from fabric.specs import JobSpec
from jobs import sweep, train
from jobs.running import attend
from sanitize.recipe import parse_recipe

_PASSING = (Reason.EVIDENCE_UNWRITABLE, Reason.EVIDENCE_UNWITNESSED, Reason.CLOCK_SET_BACK)


def main(arguments: list[str]) -> int:
    """Do one step of one job and return the exit status."""
    try:
        if len(arguments) != 2 or arguments[0] not in _STEPS:
            raise InvalidInput(Reason.CONFIG_INVALID, "name a step and a job", nearest("", _STEPS))
        with fabric.connect() as session:
            store = open_queue(session.session.config, session.session.home)
            try:
                row = store.find(arguments[1])
                # The cluster's process does it; whoever submitted it may still not approve it.
                inner = replace(session.session, acts_for=str(row.body["person"]))
                _STEPS[arguments[0]](Fabric(inner), store, row)
            finally:
                store.close()
    except FabricError as error:
        print(f"Error: {error}", file=sys.stderr, flush=True)
        return error.exit_status
    return 0


def _prepare(session: Fabric, store: JobStore, row: Row) -> None:
    """Sanitize the records of a waiting job, so that policy can say where the work may go."""
    if row.matrix or row.state is not State.QUEUED:
        return
    body = row.body
    try:
        recipe = parse_recipe(session.session.home.kept_recipe(body["recipe_file"]), source="the submitted recipe")
        matrix = session.sanitize(
            session.records(body["records"]), recipe, hold_back=body["hold_back"], seed=body["seed"]
        )
    except FabricError as error:
        if isinstance(error, ClusterUnavailable) or error.reason in _PASSING:
            raise  # nothing is wrong with the job: it is tried again
        store.withdraw(row.id, State.REFUSED, error.reason.value, now().timestamp())
        raise
    store.prepared(row.id, matrix_name(matrix.sealed))
    print(f"job {row.id}: {matrix}", flush=True)


def _run(session: Fabric, store: JobStore, row: Row) -> None:
    """Take the job's place and do its work there."""
    body, inner = row.body, session.session
    matrix = session.matrix(row.matrix)
    spec = JobSpec.model_validate(
        {
            "records": body["records"],
            "recipe": "",
            "zone": row.zone,
            "justification": inner.home.justification(body["justification"]),
            body["kind"]: body["spec"],
        }
    )
    work = train.work if body["kind"] == "training" else sweep.work
    attendance = Attendance(
        session=inner,
        store=store,
        job=row.id,
        driver=inner.job,
        labels=matrix.labels,
        tell=lambda line: print(line, flush=True),
    )
    attend(session, attendance, spec, matrix, work)


_STEPS = {"prepare": _prepare, "run": _run}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
