"""Bursts without a cluster: parameters are settings, results are bounded, a worker's answer is not trusted."""

import base64
import json
import math

import pyarrow as pa
import pytest
from conftest import PLANTED

from fabric.constants import CapsuleLimits, Constants
from fabric.errors import FabricError, InvalidInput, Reason, RemoteFailure
from fabric.parameters import unfit as unfit_in
from fabric.results import MAX_JSON_VALUES, MAX_RESULT_BYTES, decode, encode
from fabric.searching import outcomes
from fabric.specs import SweepSpec, parse
from fabric.sweeping import rank
from sanitize.inspection import Inspector


@pytest.fixture(scope="module")
def inspect_text():
    return Inspector().inspect_text


def unfit(inspect_text, **parameters):
    return unfit_in(parameters, Constants(inspect_text, CapsuleLimits()))


def test_settings_are_parameters(inspect_text):
    assert unfit(inspect_text, column="visits", quantiles=[0.1, 0.5, 0.9], deep={"log": True, "base": None}) == ""


ATTACKS = {
    "rows": {"rows": [["Zyx", "1951-07-23", 7], ["Qwe", "1950-01-01", 3]] * 20},
    "records": {"rows": [{"n": 1, "m": 2}, {"n": 3, "m": 4}]},
    "many numbers": {"values": [15_000 + n for n in range(300)]},
    "identifier": {"who": PLANTED["national_id"]},
    "identifier as a key": {PLANTED["email"]: 1},
    "identifier in parts": {"a": "987-65", "b": "-4399"},
    "base64": {"blob": base64.b64encode(json.dumps(PLANTED).encode()).decode()},
    "number": {"phone": 2025550177},
}


@pytest.mark.parametrize("parameters", ATTACKS.values(), ids=ATTACKS.keys())
def test_data_is_no_parameter(inspect_text, parameters):
    assert unfit(inspect_text, **parameters) != ""


@pytest.mark.parametrize("value", [1, 2.5, "text", [1, None], {"a": [True]}])
def test_json_comes_back_as_it_was(value):
    assert decode(encode(value)) == value


def test_a_table_of_numbers_comes_back_as_it_was():
    table = pa.table({"a": [1, 2], "b": [0.5, math.pi]})
    assert decode(encode(table)).to_pydict() == table.to_pydict()


@pytest.mark.parametrize("value", [object(), math.nan, {1, 2}, b"bytes"])
def test_what_is_neither_json_nor_a_table_is_refused_where_it_was_made(value):
    with pytest.raises(InvalidInput) as caught:
        encode(value)
    assert caught.value.reason is Reason.RESULT_REFUSED


def test_a_table_that_unfolds_is_refused():
    sink = pa.BufferOutputStream()
    table = pa.table({"a": [0] * 1_000_000})
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    with pytest.raises(FabricError) as caught:
        decode(("table", b'[["a", "int64"]]', bytes(sink.getvalue())))
    assert caught.value.reason in (Reason.RESULT_REFUSED, Reason.MATRIX_MALFORMED)


@pytest.mark.parametrize(
    "answer",
    [None, "json", ("json",), ("json", "text"), ("json", b"{"), ("json", b"[" * 100_000), ("table", b"{}", b"x"),
     ("table", b"7"), ("refusal", b"{}"), ("refusal", b'{"code": "NO_SUCH", "message": "", "hint": ""}')],
)  # fmt: skip
def test_an_answer_of_another_shape_is_refused(answer):
    with pytest.raises((InvalidInput, RemoteFailure)) as caught:
        decode(answer)
    assert caught.value.reason in (Reason.RESULT_REFUSED, Reason.REMOTE_FAILED, Reason.MATRIX_MALFORMED)


def test_a_result_that_would_take_many_times_its_bytes_of_memory_is_refused_before_it_is_read():
    content = b"[" + b"[]," * MAX_JSON_VALUES + b"[]]"
    with pytest.raises(InvalidInput, match="values") as caught:
        decode(("json", content))
    assert caught.value.reason is Reason.RESULT_REFUSED
    assert len(content) < MAX_RESULT_BYTES


def test_of_a_remote_error_only_the_class_is_told():
    with pytest.raises(RemoteFailure, match="KeyError"):
        decode(("error", b"KeyError"))


class _Tuned:
    def __init__(self, number, loss):
        self.config = {"trial": number}
        self.metrics = {"validation": loss}
        self.error = None
        self.checkpoint = type("Checkpoint", (), {"path": f"/{number}"})


def test_a_trial_that_diverged_does_not_take_the_others_with_it():
    ranked = sorted(outcomes([_Tuned(0, math.nan), _Tuned(1, 0.3), _Tuned(2, 0.2)]), key=rank)
    assert [trial.number for trial in ranked] == [2, 1, 0]
    assert ranked[-1].validation is None
    assert ranked[-1].folder is None


def test_a_sweep_whose_trials_want_several_workers_is_refused():
    with pytest.raises(InvalidInput, match="one worker"):
        parse(SweepSpec, "[search]\n[training]\nworkers = 2", source="sweep.toml")
