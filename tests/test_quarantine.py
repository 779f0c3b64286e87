"""What comes back: bounded plain files, the declared network, finite numbers, nothing that executes."""

import os
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from fabric.artifacts import digest
from fabric.config import Environment
from fabric.crossing import CHECKPOINT_TYPE
from fabric.errors import InvalidInput, Reason
from fabric.learning import CHECKPOINT_FILES, Arrays, Layout, Trainer, evaluate, load_model, read_history, share
from fabric.quarantine import MODEL_TYPE, admit_checkpoint, admit_model
from fabric.recording import now
from fabric.session import Session
from fabric.specs import ModelSpec, TrainingSpec
from fabric.starter import write_starter
from fabric.statements import verify
from fabric.stores import read_bounded

SPEC = TrainingSpec(epochs=4, batch_size=16, learning_rate=0.01, checkpoint_every=2, model=ModelSpec(hidden=[4]))
LAYOUT = Layout(numeric=("a", "b"), encoded=(("c", 3),), target="y", classes=0)


def arrays(rows=64):
    generator = torch.Generator().manual_seed(0)
    numeric = torch.randn(rows, 2, generator=generator)
    codes = torch.randint(0, 3, (rows, 1), generator=generator)
    return Arrays(numeric, codes, numeric[:, 0] * 3 + codes[:, 0] + 10)


@pytest.fixture
def session(tmp_path):
    write_starter(tmp_path)
    opened = Session.open(Environment.read({"FABRIC_PERSON": "someone"}), config_path=tmp_path)
    yield opened
    opened.ledger.close()


@pytest.fixture
def checkpoint(session):
    trainer = Trainer(SPEC, LAYOUT, arrays())
    list(trainer.epochs())
    folder = session.home.outbox("public") / "run" / "checkpoint_1"
    folder.mkdir(parents=True)
    trainer.save(folder)
    return folder


def bring(session, folder, spec=SPEC):
    return admit_model(session, folder, spec=spec, layout=LAYOUT, network=None, zone="public", provenance={"spec": "x"})


def refused(session, folder, **options):
    with pytest.raises(InvalidInput) as caught:
        bring(session, folder, **options)
    assert caught.value.reason is Reason.RESULT_REFUSED
    assert list(session.home.models.iterdir()) == list(session.home.quarantine.iterdir()) == []
    assert [entry.record["action"] for entry in session.ledger.entries()] == ["refusal"]
    return caught.value


def test_a_model_comes_back_signed_with_its_history(session, checkpoint):
    model = bring(session, checkpoint)
    assert len(model.history) == 4
    assert {p.name for p in model.path.iterdir()} == {"model.safetensors", "state.json", "statement.json"}
    assert [e.record["phase"] for e in session.ledger.entries()] == ["intent", "outcome"]


def test_a_pickle_in_place_of_the_model_is_refused_unopened(session, checkpoint):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(checkpoint / "executed"),)

    (checkpoint / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    refused(session, checkpoint)
    assert not (checkpoint / "executed").exists()


def test_the_tensors_of_another_network_are_refused(session, checkpoint):
    refused(session, checkpoint, spec=SPEC.model_copy(update={"model": ModelSpec(hidden=[5])}))


def test_a_tensor_too_many_is_refused(session, checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    save_file({**tensors, "smuggled": torch.zeros(3)}, checkpoint / "model.safetensors")
    refused(session, checkpoint)


def test_numbers_that_are_not_finite_are_refused(session, checkpoint):
    tensors = load_file(checkpoint / "model.safetensors")
    tensors["mean"][0] = float("nan")
    save_file(tensors, checkpoint / "model.safetensors")
    refused(session, checkpoint)


def test_a_link_out_of_the_outbox_is_not_followed(session, checkpoint, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (checkpoint / "state.json").unlink()
    (checkpoint / "state.json").symlink_to(tmp_path / "secret")
    refused(session, checkpoint)


def test_a_folder_outside_the_outbox_is_refused(session, checkpoint, tmp_path):
    link = session.home.outbox("public") / "out"
    link.symlink_to(tmp_path)
    refused(session, link)


def test_a_missing_file_is_refused(session, checkpoint):
    (checkpoint / "model.safetensors").unlink()
    refused(session, checkpoint)


def test_a_pipe_in_place_of_a_file_does_not_hang(session, checkpoint):
    (checkpoint / "state.json").unlink()
    os.mkfifo(checkpoint / "state.json")
    refused(session, checkpoint)


def test_a_file_over_its_limit_is_refused(tmp_path):
    (tmp_path / "a").write_bytes(b"12345")
    assert read_bounded(tmp_path, {"a": 5}) == {"a": b"12345"}
    with pytest.raises(InvalidInput, match="larger than 4 bytes"):
        read_bounded(tmp_path, {"a": 4})


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b'{"history": []}', b'{"history": [{"epoch": 1}]}', b"[" * 100_000,
     b'{"history": [{"epoch": Infinity, "training": 1, "validation": 1}]}',
     b'{"history": [{"epoch": 1, "training": 1' + b"0" * 400 + b', "validation": 1}]}',
     b'{"history": [{"epoch": 1, "training": NaN, "validation": 1}]}', b'{"history": 7}'],
)  # fmt: skip
def test_a_history_that_is_no_list_of_finite_losses_is_refused(content):
    with pytest.raises(InvalidInput) as caught:
        read_history(content)
    assert caught.value.reason is Reason.RESULT_REFUSED


def test_training_resumed_from_a_checkpoint_ends_where_unbroken_training_ends(tmp_path):
    whole = Trainer(SPEC, LAYOUT, arrays())
    list(whole.epochs())
    first = Trainer(SPEC, LAYOUT, arrays())
    for epoch in first.epochs():
        if epoch.epoch == 2:
            first.save(tmp_path)
            break
    second = Trainer(SPEC, LAYOUT, arrays())
    second.resume({name: (tmp_path / name).read_bytes() for name in CHECKPOINT_FILES})
    list(second.epochs())
    assert second.history == whole.history
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name]), name


def test_a_model_learns_and_is_measured_against_the_baseline():
    import pyarrow as pa

    data = arrays(512)
    trainer = Trainer(SPEC.model_copy(update={"epochs": 40}), LAYOUT, data)
    list(trainer.epochs())
    table = pa.table({"a": data.numeric[:, 0].numpy(), "b": data.numeric[:, 1].numpy(), "c": data.codes[:, 0].numpy(),
        "y": data.target.numpy()})  # fmt: skip
    quality = evaluate(trainer.model, table)
    assert quality.metric == "r2"
    assert quality.value > 0.9 > quality.baseline


def test_a_classification_is_learned_too(tmp_path):
    import pyarrow as pa

    layout = Layout(numeric=("a", "b"), encoded=(), target="y", classes=2)
    data = arrays(512)
    labelled = Arrays(data.numeric, torch.zeros(512, 0, dtype=torch.int64), (data.numeric[:, 0] > 0).long())
    spec = SPEC.model_copy(update={"task": "classification", "epochs": 30})
    trainer = Trainer(spec, layout, labelled)
    list(trainer.epochs())
    trainer.save(tmp_path)
    model = load_model((tmp_path / "model.safetensors").read_bytes(), spec, layout)
    table = pa.table({"a": data.numeric[:, 0].numpy(), "b": data.numeric[:, 1].numpy(), "y": labelled.target.numpy()})
    quality = evaluate(model, table)
    assert quality.metric == "accuracy"
    assert quality.value > 0.9 > quality.baseline


def test_a_missing_number_counts_as_the_mean():
    trainer = Trainer(SPEC, LAYOUT, arrays())
    list(trainer.epochs())
    model = trainer.model.eval()
    codes = torch.zeros(1, 1, dtype=torch.int64)
    mean = model(model.mean.unsqueeze(0), codes)
    assert torch.allclose(model(torch.full((1, 2), float("nan")), codes), mean)


def test_a_task_that_does_not_fit_the_target_is_refused():
    columns = {"a": {"role": "feature", "levels": 0}, "y": {"role": "target", "levels": 3}}
    with pytest.raises(InvalidInput, match="3 classes"):
        Layout.of(columns, "regression")
    with pytest.raises(InvalidInput, match="no target"):
        Layout.of({"a": {"role": "feature"}}, "regression")


def test_a_models_statement_verifies_and_names_its_files_and_its_making(session, checkpoint):
    model = bring(session, checkpoint)
    envelope = (model.path / "statement.json").read_bytes()
    signed = verify(envelope, trusted=session.trusted, predicate_type=MODEL_TYPE, now=None)
    assert signed.statement.subjects["model.safetensors"] == model.digest
    assert signed.statement.predicate["spec"] == "x"
    assert signed.statement.predicate["zone"] == "public"


# --- a checkpoint, from which another attempt goes on


MATRIX = "sha256:" + "1" * 64


def reported(folder):
    return {name: digest((folder / name).read_bytes()) for name in CHECKPOINT_FILES}


def go_on(session, folder, stated=None, spec=SPEC, network=None):
    return admit_checkpoint(
        session, folder, reported=stated or reported(folder), spec=spec, layout=LAYOUT, network=network, zone="public",
        provenance={"matrix_statement": MATRIX, "spec": "x", "purpose": "test"},
    )  # fmt: skip


def nothing_goes_on(session, folder, stated=None, **options):
    with pytest.raises(InvalidInput) as caught:
        go_on(session, folder, stated, **options)
    assert caught.value.reason is Reason.RESULT_REFUSED
    (record,) = [entry.record for entry in session.ledger.entries()]
    assert (record["action"], record["body"]["what"]) == ("refusal", "checkpoint")


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_checkpoint_altered_after_it_was_reported_is_refused(session, checkpoint, name):
    stated = reported(checkpoint)
    content = (checkpoint / name).read_bytes()
    # The lowest bit of the last number: it still reads, and is still finite.
    place = content.rindex(b"1") if name == "state.json" else len(content) - 4
    (checkpoint / name).write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    nothing_goes_on(session, checkpoint, stated)


@pytest.mark.parametrize("name", CHECKPOINT_FILES)
def test_a_pickle_in_place_of_a_checkpoint_is_refused_unopened_though_it_was_reported(session, checkpoint, name):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(checkpoint / "executed"),)

    for written in (pickle.dumps(Bomb()), pickle.dumps({"history": []})):
        (checkpoint / name).write_bytes(written)
        with pytest.raises(InvalidInput) as caught:
            go_on(session, checkpoint)
        assert caught.value.reason is Reason.RESULT_REFUSED
    assert not (checkpoint / "executed").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda held: held.pop("0.step"),
        lambda held: held.update({"0.exp_avg": torch.zeros(1)}),
        lambda held: held.update({"0.exp_avg": held["0.exp_avg"].double()}),
        lambda held: held.update({"0.exp_avg_sq": torch.full_like(held["0.exp_avg_sq"], float("nan"))}),
        lambda held: held.update({"99.step": torch.tensor(1.0)}),
        lambda held: held.update({"0.smuggled": torch.zeros(3)}),
        lambda held: held.update({"smuggled": torch.zeros(3)}),
    ],
)
def test_the_state_of_another_optimizer_is_refused(session, checkpoint, change):
    held = load_file(checkpoint / "optimizer.safetensors")
    change(held)
    save_file(held, checkpoint / "optimizer.safetensors")
    nothing_goes_on(session, checkpoint)


def test_a_checkpoint_of_more_epochs_than_were_asked_for_is_refused(session, checkpoint):
    nothing_goes_on(session, checkpoint, spec=SPEC.model_copy(update={"epochs": 3}))


def test_a_checkpoint_of_another_network_or_without_its_optimizer_is_refused(session, checkpoint):
    nothing_goes_on(session, checkpoint, spec=SPEC.model_copy(update={"model": ModelSpec(hidden=[5])}))
    stated = reported(checkpoint)
    (checkpoint / "optimizer.safetensors").unlink()
    with pytest.raises(InvalidInput):
        go_on(session, checkpoint, stated)


def test_a_checkpoint_that_was_checked_is_signed_recorded_and_written_anew(session, checkpoint):
    save_file(load_file(checkpoint / "model.safetensors"), checkpoint / "model.safetensors", metadata={"note": "ZQX"})
    sealed = go_on(session, checkpoint)
    assert verify(sealed.signed.envelope, trusted=session.trusted, predicate_type=CHECKPOINT_TYPE, now=now())
    assert sealed.signed.statement.subjects == {name: digest(content) for name, content in sealed.files.items()}
    assert sealed.signed.statement.predicate["epochs"] == 4
    assert b"ZQX" not in b"".join(sealed.files.values())
    (record,) = [entry.record for entry in session.ledger.entries()]
    assert (record["action"], record["body"]["kind"]) == ("return", "checkpoint")
    assert record["body"]["subjects"] == dict(sealed.signed.statement.subjects)
    whole = Trainer(SPEC.model_copy(update={"epochs": 6}), LAYOUT, arrays())
    whole.resume(sealed.files)
    assert [epoch.epoch for epoch in whole.epochs()] == [5, 6]


def test_a_checkpoint_of_a_network_with_a_frozen_layer_comes_back(session, tmp_path):
    def network(inputs, outputs):
        first = torch.nn.Linear(inputs, 3)
        first.requires_grad_(requires_grad=False)
        return torch.nn.Sequential(first, torch.nn.Linear(3, outputs))

    trainer = Trainer(SPEC, LAYOUT, arrays(), network=network)
    list(trainer.epochs())
    folder = session.home.outbox("public") / "run" / "checkpoint_1"
    folder.mkdir(parents=True)
    trainer.save(folder)
    Trainer(SPEC, LAYOUT, arrays(), network=network).resume(go_on(session, folder, network=network).files)


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_what_one_number_of_workers_trains_on_no_other_number_validates_on(world):
    parts = [share(103, rank, world, 0.1) for rank in range(world)]
    validated = {int(row) for rows, held in parts for row in rows[:held]}
    trained = {int(row) for rows, held in parts for row in rows[held:]}
    assert validated <= set(range(10))
    assert trained <= set(range(10, 103))
    assert len(trained) == sum(len(rows) - held for rows, held in parts) == 93 // world * world
    assert len({(len(rows), held) for rows, held in parts}) == 1
