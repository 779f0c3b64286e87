"""The border service: exactly what a crossing names, to exactly whom it names; and results back, unread."""

import hashlib
from datetime import UTC, datetime

import pytest
from border_lab import lab

from fabric.crossing import Cargo, admit


@pytest.fixture
def made(tmp_path):
    with lab(tmp_path) as one:
        yield one


def test_a_crossing_is_fetched_and_admitted_with_all_that_goes_with_it(made):
    matrix = made.matrix()
    ticket = made.export(Cargo(matrix=matrix, parameters=b'{"depth":3}', checkpoint=made.checkpoint(matrix)))
    admitted = admit(ticket.collect([0, 1, 2]), zone="public", trusted=made.ledger.keys, now=datetime.now(UTC))
    assert admitted.table.num_rows == 40
    assert admitted.parameters == b'{"depth":3}'
    assert set(admitted.checkpoint) == {"model.safetensors", "state.json"}


def test_what_is_returned_lies_in_the_inbox_as_it_was_sent(made):
    ticket = made.export()
    big = hashlib.sha256(b"x").digest() * 100_000
    ticket.deliver(0, {"model.safetensors": big, "state.json": b"{}"})
    (folder,) = made.inbox.deliveries(ticket.crossing).values()
    assert (folder / "model.safetensors").read_bytes() == big
    assert (folder / "state.json").read_bytes() == b"{}"
