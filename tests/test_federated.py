"""A hostile or unlucky cluster of another zone, from its jobs API to its deliveries, against a zone's real site."""

import json
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from border_lab import ERRAND, PUBLIC, lab
from test_outside import says, served

from fabric.artifacts import digest
from fabric.border_client import BorderTicket
from fabric.config import Environment
from fabric.crossing import Cargo
from fabric.errors import ClusterUnavailable, FabricError, InvalidInput, Reason, Refused, RemoteFailure
from fabric.federated import Federated
from fabric.learning import CHECKPOINT_FILES, Arrays, Layout, Trainer
from fabric.matrix import columns_of, open_table
from fabric.outside import _until_refused
from fabric.outside_jobs import job_id
from fabric.placement import Placement
from fabric.reaching import abandon
from fabric.session import Session
from fabric.specs import ModelSpec, SearchSpace, SweepSpec, TrainingSpec
from fabric.training import train

HERE = Placement(zone=PUBLIC, workers=1, resources_per_worker={}, use_gpu=False, decision=None)
SPEC = TrainingSpec(epochs=2, batch_size=16, max_failures=0, model=ModelSpec(hidden=[4]))


@pytest.fixture
def made(tmp_path):
    with lab(tmp_path) as one:
        yield one


class Outside:
    """The other zone's cluster: a jobs API, and what its one job does with its ticket.

    Attributes:
        broken: calls of the API that answer with a status of failure.
    """

    def __init__(self, made, work, *, broken=()):
        self.made, self.work, self.broken = made, work, set(broken)
        self.state, self.stopped = "RUNNING", 0

    def _run(self, ticket):
        self.work(ticket)
        self.state = "FAILED"

    def answer(self, handler):
        verb = "state" if handler.command == "GET" else "stop" if handler.path.endswith("/stop") else "submit"
        if verb in self.broken:
            return says(b"", 503)(handler)
        self.stopped += verb == "stop"
        return says(json.dumps({"status": self.state}).encode())(handler)

    def attempt(self, does):
        """Do an attempt in that cluster by its site, and return what came of it."""
        made = self.made
        session = Session.open(Environment.read({"FABRIC_PERSON": "someone"}), config_path=made.folder)
        crossing = made.border.export(Cargo(matrix=made.matrix()), ERRAND, made.carrier())
        worker = threading.Thread(target=self._run, args=(crossing.ticket,), daemon=True)
        worker.start()
        try:
            with served(self.answer) as (jobs, _):
                site = Federated(
                    session=session, zone=PUBLIC, jobs=jobs, border=made.carrier(), lost_s=5.0, sends_papers=True
                )
                return does(site, crossing)
        finally:
            worker.join(30)
            session.ledger.close()


def files(epoch, **more):
    told = {"epoch": epoch, "training": 0.5, "validation": 0.5, "files": dict.fromkeys(CHECKPOINT_FILES, "sha256:0")}
    return {**dict.fromkeys(CHECKPOINT_FILES, b"x"), "progress.json": json.dumps(told).encode(), **more}


def answer(kind, content=b"1", **more):
    return {"answer.json": json.dumps({"kind": kind}).encode(), "content": content, **more}


def returns(*deliveries):
    """Return work that returns these deliveries, for as long as it may."""

    def work(ticket):
        for slot, one in enumerate(deliveries):
            try:
                ticket.deliver(slot, one)
            except FabricError:
                return

    return work


def fit(site, crossing):
    reports = []
    folder = site.fit(crossing, SPEC, HERE, progress=lambda _: None, leave=lambda: False, reports=reports)
    return folder, reports


def search(site, crossing):
    return site.search(crossing, SweepSpec(search=SearchSpace(learning_rate=[0.1])), HERE, progress=lambda: None)


def call(site, crossing):
    return site.call(crossing, HERE)


def left(made):
    """Return what lies in the folders that the border or another zone fills."""
    folders = (made.home.border / "offers", made.home.border / "inbox", made.home.outbox("public"))
    return [path for folder in folders for path in folder.iterdir()]


@pytest.mark.parametrize(
    ("does", "deliveries"),
    [
        (call, [{"model.safetensors": b"x"}]),
        (call, [answer("pickle")]),
        (call, [{"answer.json": b'{"kind": "json"}'}]),
        (fit, [files(1), files(1)]),
        (fit, [files(3)]),
        (fit, [files(1, content=b"to fill the disk")]),
        (fit, [files(1), files(2, **{"chunk-000000": b"to fill the disk"})]),
        (search, [{"progress.json": b'{"ended": 2}'}]),
        (search, [answer("done", **{"progress.json": b'{"ended": 1, "validation": ["nan"], "best": 0}'})]),
    ],
)
def test_what_is_refused_of_another_zone_leaves_nothing_in_any_folder(made, does, deliveries):
    with pytest.raises(InvalidInput) as caught:
        Outside(made, returns(*deliveries)).attempt(does)
    assert caught.value.reason is Reason.RESULT_REFUSED
    assert left(made) == []


def test_a_job_is_stopped_though_its_cluster_cannot_say_how_it_stands(made):
    outside = Outside(made, returns(answer("json")), broken=["state"])
    assert outside.attempt(call) == ("json", b"1")
    assert outside.stopped == 1


def test_a_training_that_ends_before_its_last_epoch_is_no_model_but_a_failure_to_go_on_from(made):
    with pytest.raises(RemoteFailure) as caught:
        Outside(made, returns(files(1), answer("done"))).attempt(fit)
    assert caught.value.reason is Reason.REMOTE_FAILED


def test_a_checkpoint_that_did_not_get_through_a_link_that_was_down_does_not_silence_those_after_it():
    sent, down = [], [True]

    def send(line):
        if down.pop() if down else False:
            raise ClusterUnavailable(Reason.BORDER_UNREACHABLE, "down")
        if line == "refused":
            raise InvalidInput(Reason.RESULT_REFUSED, "no")
        sent.append(line)

    tell = _until_refused(send)
    for line in ("1", "2", "3", "refused", "4"):
        tell(line)
    assert sent == ["2", "3"]


def test_a_program_whose_crossing_is_closed_is_ended_and_one_that_is_refused_goes_on():
    program = """
import sys, time
from fabric.errors import Reason, Refused
from fabric.outside import _until_refused
from fabric.outside_jobs import job_id

def send(line):
    raise Refused(Reason(line), "no", "")

try:
    _until_refused(send)(sys.argv[1])
    time.sleep(0.1)
    print("goes on")
finally:
    print("cleaned up")
"""
    prelude = "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(15))\n"  # as Ray's drivers have it
    ended = {
        reason: subprocess.run([sys.executable, "-c", prelude + program, reason], capture_output=True, text=True)
        for reason in ("CROSSING_CLOSED", "RESULT_REFUSED")
    }
    assert (ended["CROSSING_CLOSED"].returncode, ended["CROSSING_CLOSED"].stdout) == (15, "cleaned up\n")
    assert ended["RESULT_REFUSED"].stdout == "goes on\ncleaned up\n"


def test_what_a_dead_driver_left_in_another_cluster_is_closed_and_stopped_once(made):
    made.config.write_text(made.config.read_text().replace("[fabric]", '[fabric]\ntopology = "federated"'))
    crossing = made.border.export(Cargo(matrix=made.matrix()), ERRAND, made.carrier())
    other = made.border.export(Cargo(matrix=made.matrix()), replace(ERRAND, job="job-2"), made.carrier())
    with served(lambda handler: says(b"{}")(handler)) as (jobs, asked):
        (made.folder / "token").write_text("of-that-cluster")
        made.config.write_text(
            f'{made.config.read_text()}\n[outside.public]\njobs = "{jobs.url}"\ntoken_file = "token"\n'
        )
        session = Session.open(Environment.read({"FABRIC_PERSON": "someone"}), config_path=made.folder)
        try:
            assert abandon(session, "job-1") == [crossing.id]
            assert abandon(session, "job-1") == []
        finally:
            session.ledger.close()
    assert [path for verb, path, *_ in asked if verb == "POST"] == [f"/api/jobs/{job_id(crossing.id)}/stop"]
    assert made.staging.crossings() == [other.id]
    with pytest.raises(Refused) as caught:
        crossing.ticket.deliver(0, answer("json"))
    assert caught.value.reason is Reason.CROSSING_CLOSED


def test_a_training_whose_job_dies_after_its_last_checkpoint_has_its_model(made, tmp_path):
    trained = Path(tmp_path / "trained")
    trained.mkdir()
    matrix = made.matrix()
    layout = Layout.of(columns_of(matrix.signed), SPEC.task)
    trainer = Trainer(SPEC, layout, Arrays.of(open_table(matrix.signed, dict(enumerate(matrix.chunks))), layout))
    losses = list(trainer.epochs())[-1]
    trainer.save(trained)
    content = {name: (trained / name).read_bytes() for name in CHECKPOINT_FILES}
    told = {
        "epoch": losses.epoch, "training": losses.training, "validation": losses.validation,
        "files": {name: digest(each) for name, each in content.items()},
    }  # fmt: skip
    outside = Outside(made, returns({**content, "progress.json": json.dumps(told).encode()}))

    def answers(handler):
        if handler.command == "POST" and not handler.path.endswith("/stop"):
            # The handler has read the body; the ticket is in what was asked.
            threading.Thread(target=works, daemon=True).start()
        outside.answer(handler)

    def works():
        ticket = json.loads(json.loads(asked[0][3])["runtime_env"]["env_vars"]["FABRIC_TICKET"])
        outside._run(BorderTicket.from_json(ticket))

    with served(answers) as (jobs, asked):
        (made.folder / "token").write_text(jobs.token)
        text = made.config.read_text().replace("port = 0", f"port = {made.port}")
        text = text.replace('name = "lab"', 'name = "lab"\ntopology = "federated"')
        made.config.write_text(f'{text}\n[outside.public]\njobs = "{jobs.url}"\ntoken_file = "token"\n')
        session = Session.open(Environment.read({"FABRIC_PERSON": "someone"}), config_path=made.folder)
        try:
            # The border of the lab knows the matrix, which nobody sanitized.
            model = train(replace(session, border=made.border), matrix, SPEC, ERRAND)
        finally:
            session.ledger.close()
    assert [epoch.epoch for epoch in model.history] == [1, 2]
    outcomes = [e.record["body"]["status"] for e in made.ledger.entries() if e.record["phase"] == "outcome"]
    assert set(outcomes) == {"done"}
