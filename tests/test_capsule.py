"""Attacks on outbound code, each named; then what must pass."""

from __future__ import annotations

import array
import base64
import builtins
import dataclasses
import enum
import functools
import io
import json
import os
import pickle
import re
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st
from presidio_analyzer.predefined_recognizers import UsSsnRecognizer
from torch import nn

from fabric.artifacts import digest
from fabric.capsule import CapsuleLimits, open_capsule, seal_capsule, xray
from fabric.constants import Constants
from fabric.errors import CapsuleRefused, Reason
from fabric.literals import Program
from fabric.payload import read_payload

PLANTED = "219-09-9999"
_PATTERN = re.compile(r"(?<!\d)219-?09-?9999(?!\d)")

DATA = Reason.CAPSULE_CAPTURES_DATA
IDENTIFIER = Reason.CAPSULE_IDENTIFIER
UNREADABLE = Reason.CAPSULE_UNREADABLE
TOO_LARGE = Reason.CAPSULE_TOO_LARGE


def inspect_text(text: str) -> set[str]:
    return {"US_SSN"} if _PATTERN.search(text) else set()


def refusal(fn, reason: Reason, *, limits: CapsuleLimits | None = None) -> CapsuleRefused:
    """Seal `fn`, expect a refusal for `reason`, and expect nothing shown about it to hold the planted value."""
    settings = {"inspect_text": inspect_text} | ({"limits": limits} if limits else {})
    with pytest.raises(CapsuleRefused) as caught:
        seal_capsule(fn, **settings)
    seen = xray(fn, **settings)
    assert seen.refused
    for shown in (str(caught.value), repr(caught.value), str(seen), repr(seen), json.dumps(seen.to_json())):
        assert PLANTED not in shown
        assert PLANTED.replace("-", "") not in shown
    assert PLANTED not in seen._repr_html_()
    assert caught.value.__cause__ is None
    assert caught.value.reason is reason, str(caught.value)
    return caught.value


def people(rows: int = 40_000) -> pa.Table:
    return pa.table({"ssn": [PLANTED] * rows, "age": range(rows)})


# --- data captured by the function itself


def closing_over(value):
    def train(table):
        return value, table

    return train


@pytest.mark.parametrize(
    ("value", "type_name", "size"),
    [
        (people(), "pyarrow.Table", "40,000 rows x 2 columns"),
        (people(3).to_batches()[0], "pyarrow.RecordBatch", "3 rows x 2 columns"),
        (people(3)["ssn"], "pyarrow.ChunkedArray", "3 items"),
        (pa.array([PLANTED]), "pyarrow.StringArray", "1 items"),
        (pa.py_buffer(PLANTED.encode()), "pyarrow.Buffer", "11 items"),
        (pa.scalar(PLANTED), "pyarrow.StringScalar", ""),
        (pd.DataFrame({"ssn": [PLANTED] * 5, "age": range(5)}), "pandas.DataFrame", "5 rows x 2 columns"),
        (pd.Series([PLANTED] * 5), "pandas.Series", "5 values"),
        (np.array([[219, 9], [9999, 0]]), "numpy.ndarray", "2 x 2 values, 32 B"),
        (np.arange(1_000_000)[3:5], "numpy.ndarray", "2 values"),
        (np.float64(0.5), "numpy.float64", "one value"),
        (torch.ones(3, 2), "torch.Tensor", "3 x 2 values, 24 B"),
        (torch.ones(1_000_000).narrow(0, 5, 2), "torch.Tensor", "2 values"),
        (nn.Linear(2, 2), "torch.nn.modules.linear.Linear", ""),
        (memoryview(PLANTED.encode()), "memoryview", "11 values"),
        (bytearray(PLANTED.encode()), "bytearray", "11 items"),
        (array.array("l", [219, 9, 9999]), "array.array", "3 items"),
        (io.StringIO(PLANTED), "_io.StringIO", ""),
        ([{"ssn": PLANTED, "age": 1}, {"ssn": PLANTED, "age": 2}], "list", "2 items"),
        ([(1, 2, 3, 4), (5, 6, 7, 8)], "list", "2 items"),
        (list(range(1_200)), "list", "1,200 items"),
        ({n: n for n in range(100)}, "dict", "100 items"),
        ({"deep": {"deeper": [people(2)]}}, "dict", "pyarrow.Table"),
        ("word " * 1_000, "str", "5,000 characters"),
        ("x" * 500, "str", "500 characters"),
        (b"x" * 500, "bytes", "500 bytes"),
        (1 << 4_000, "int", "4,001 bits"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_data_in_a_closure_is_refused_by_name_type_and_size(value, type_name, size):
    error = refusal(closing_over(value), DATA)
    assert "`value` (" in error.message
    assert type_name in error.message
    assert size in error.message
    assert "captured as a closure variable at line" in error.hint
    assert "pass the matrix as the function's argument" in error.hint


def test_the_fix_is_one_line_with_the_name_the_type_the_size_and_the_line():
    people_table = people()

    def train(matrix):
        # one line above the use
        return people_table.num_rows + matrix.num_rows

    line = train.__code__.co_firstlineno + 2
    error = refusal(train, DATA)
    assert re.fullmatch(
        r"`people_table` \(pyarrow\.Table, 40,000 rows x 2 columns, \d+\.\d [kM]B\) is captured as a closure variable "
        rf"at line {line}: pass the matrix as the function's argument instead of closing over it",
        error.hint,
    )


def test_the_hint_is_about_the_largest_of_several():
    a_small, large, other = people(1), people(1_000), PLANTED
    error = refusal(lambda: (a_small, large, other), DATA)
    assert "`a_small`" in error.message
    assert "`other`" in error.message
    assert error.hint.startswith("`large`")


def test_a_subclass_of_a_frame_is_refused_as_a_frame():
    class Cohort(pd.DataFrame):
        pass

    refusal(closing_over(Cohort({"ssn": [PLANTED]})), DATA)


def test_a_frame_that_lies_about_its_class_is_refused():
    class Liar(pd.DataFrame):
        __class__ = int

    refusal(closing_over(Liar({"ssn": [PLANTED]})), DATA)


def test_a_text_that_is_a_subclass_of_str_is_refused():
    class Name(str):
        __slots__ = ()

    refusal(closing_over(Name(PLANTED)), DATA)


TABLE = people(7)


def reads_a_global():
    return TABLE


def test_a_table_in_a_module_global_is_refused():
    error = refusal(reads_a_global, DATA)
    assert "captured as a global" in error.hint
    assert error.hint.endswith("instead of reading a global")


def calls_one_that_reads_a_global():
    return reads_a_global()


def test_a_table_in_a_global_of_a_called_function_is_refused():
    assert "`TABLE` (pyarrow.Table, 7 rows" in refusal(calls_one_that_reads_a_global, DATA).message


def test_a_table_in_a_nested_lambda_is_refused():
    table = people(3)

    def outer():
        return lambda: lambda: table

    refusal(outer, DATA)


def test_a_table_as_a_default_is_refused():
    def train(matrix, known=TABLE):
        return matrix, known

    assert "is captured as a default at line" in refusal(train, DATA).hint


def test_a_table_as_a_keyword_only_default_is_refused():
    def train(matrix, *, known=TABLE):
        return matrix, known

    assert "`known` (pyarrow.Table" in refusal(train, DATA).hint
    assert "captured as a keyword default" in refusal(train, DATA).hint


def test_a_table_in_a_class_attribute_is_refused():
    class Job:
        cache = TABLE

        def run(self):
            return self.cache

    assert "`" in refusal(lambda: Job().run(), DATA).message
    assert "captured as a class attribute" in refusal(lambda: Job().run(), DATA).hint


def test_a_table_in_a_base_class_or_metaclass_is_refused():
    class Meta(type):
        cache = TABLE

    class Base(metaclass=Meta):
        pass

    class Job(Base):
        pass

    refusal(lambda: Job(), DATA)


@pytest.mark.parametrize("wrap", [staticmethod, classmethod, property])
def test_a_table_behind_a_descriptor_is_refused(wrap):
    job = type("Job", (), {"run": wrap(closing_over(TABLE))})
    refusal(lambda: job, DATA)


def test_a_table_in_the_object_of_a_bound_method_is_refused():
    class Job:
        def run(self):
            return 1

    job = Job()
    job.people = TABLE
    error = refusal(job.run, DATA)
    assert "`Job.people` (pyarrow.Table, 7 rows" in error.message
    assert "captured as an instance attribute" in error.hint


def test_a_table_in_a_slot_is_refused():
    class Job:
        __slots__ = ("people",)

        def run(self):
            return 1

    job = Job()
    job.people = TABLE
    refusal(job.run, DATA)


def test_a_table_in_a_list_of_slots_or_match_arguments_is_refused():
    class Job:
        pass

    Job.__match_args__ = (TABLE,)
    refusal(lambda: Job, DATA)


def test_a_method_of_a_table_is_refused():
    refusal(TABLE.to_pylist, DATA)


def test_a_table_in_a_partial_is_refused():
    assert "partial argument" in refusal(functools.partial(closing_over(1), TABLE), DATA).hint
    refusal(functools.partial(closing_over(1), table=TABLE), DATA)
    refusal(functools.partial(closing_over(TABLE), 1), DATA)


def test_a_table_in_a_function_attribute_is_refused():
    def train():
        return train.cache

    train.cache = TABLE
    refusal(train, DATA)


def test_a_table_behind_a_decorator_is_refused():
    def once(fn):
        @functools.wraps(fn)
        def wrapper(*args):
            return 1

        return wrapper

    @once
    def train(matrix, known=TABLE):
        return matrix, known

    refusal(train, DATA)


def test_a_table_planted_among_the_constants_of_the_code_is_refused():
    def train():
        return 1

    train.__code__ = train.__code__.replace(co_consts=(*train.__code__.co_consts, TABLE))
    refusal(train, DATA)


def test_a_table_in_a_dataclass_default_or_factory_is_refused():
    @dataclasses.dataclass
    class Factory:
        known: object = dataclasses.field(default_factory=lambda: TABLE)

    @dataclasses.dataclass
    class Metadata:
        known: int = dataclasses.field(default=1, metadata={"people": TABLE})

    refusal(lambda: Factory, DATA)
    assert "captured as a class attribute" in refusal(lambda: Metadata, DATA).hint


def test_an_enum_that_holds_rows_is_refused():
    class People(enum.Enum):
        ONE = tuple(range(100))

    refusal(lambda: People.ONE, DATA)


def test_a_table_of_literals_in_the_code_is_refused():
    numbers = ", ".join(str(n) for n in range(100, 800))
    made: dict = {}
    exec(f"def train():\n    return [x for x in ({numbers})]", made)
    assert "700 items) is captured as a constant at line 2" in refusal(made["train"], DATA).hint
    calls = "\n    ".join(f"print({n})" for n in range(1_000, 1_600))
    exec(f"def train():\n    {calls}", made)
    assert "captured as a constant at line" in refusal(made["train"], DATA).hint
    assert "captured as a constant" in refusal(lambda x: x in ((1, 2, 3, 4), (5, 6, 7, 8)), DATA).hint


def test_many_small_lists_are_too_many_together():
    a, b, c = list(range(30)), list(range(30, 60)), list(range(60, 90))
    refusal(lambda: (a, b, c), DATA)


# --- what cannot be read


def numbers():
    yield PLANTED


@pytest.mark.parametrize(
    "value",
    [
        numbers(),
        threading.Lock(),
        threading.Thread(),
        socket.socket(),
        os,
        types.ModuleType("math"),
        socket.create_connection,
        threading.Event,
        functools.lru_cache(closing_over(1)),
        type("Odd", (), {"__reduce__": lambda self: (str, (PLANTED,))})(),
        type("Odd", (), {"__reduce_ex__": lambda self, _: (str, (PLANTED,))})(),
        type("Odd", (), {"__getstate__": lambda self: {"ssn": PLANTED}})(),
        type("Odd", (), {"__getattribute__": object.__getattribute__})(),
        ValueError(1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_read_is_refused(value):
    with pytest.raises(CapsuleRefused) as caught:
        seal_capsule(closing_over(value), inspect_text=inspect_text)
    assert caught.value.reason is UNREADABLE
    assert PLANTED not in str(caught.value)


def test_a_coroutine_is_refused():
    async def work():
        return PLANTED

    coroutine = work()
    refusal(closing_over(coroutine), UNREADABLE)
    coroutine.close()


def test_an_open_file_is_refused(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(PLANTED)
    with path.open() as file:
        refusal(closing_over(file), DATA)


def test_a_reference_into_the_private_cluster_is_refused():
    @ray.remote
    def work():
        return 1

    refusal(closing_over(ray.ObjectRef.from_random()), DATA)
    refusal(closing_over(work), DATA)


def test_a_module_that_holds_data_is_refused(monkeypatch):
    module = types.ModuleType("cohort")
    module.TABLE = TABLE
    monkeypatch.setitem(sys.modules, "cohort", module)

    def train():
        return module.TABLE

    error = refusal(train, UNREADABLE)
    assert "from module import" in error.hint


def test_a_function_that_claims_an_approved_module_travels_by_value():
    def exp(known=TABLE):
        return known

    exp.__module__, exp.__qualname__ = "numpy", "exp"
    refusal(closing_over(exp), DATA)


def test_an_object_that_raises_its_data_is_refused_without_it():
    class Odd:
        @property
        def __dict__(self):
            raise type(PLANTED, (Exception,), {})(PLANTED)

    refusal(closing_over(Odd()), UNREADABLE)


def test_a_function_that_claims_to_be_cloudpickle_still_leaves_its_place_behind():
    def train():
        return 1

    train.__module__ = "cloudpickle.cloudpickle"
    capsule = seal_capsule(train, inspect_text=inspect_text)
    assert b"test_capsule.py" not in capsule.payload


def test_functions_nested_too_deep_are_refused():
    value = closing_over(1)
    for _ in range(2_000):
        value = closing_over(value)
    refusal(value, UNREADABLE)


def test_an_inspector_that_fails_lets_nothing_cross():
    def fails(text):
        raise ValueError(text)

    with pytest.raises(CapsuleRefused) as caught:
        seal_capsule(closing_over(PLANTED), inspect_text=fails)
    assert caught.value.reason is Reason.INSPECTION_FAILED
    assert caught.value.__cause__ is None
    assert PLANTED not in str(caught.value)


# --- identifiers in the code


def made(source: str):
    """Return the function `train` that `source` defines."""
    namespace: dict = {"__name__": __name__}
    exec(source, namespace)
    return namespace["train"]


FULL_WIDTH = "".join(chr(ord(c) + 0xFEE0) for c in PLANTED)
SUPERSCRIPT = "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(c)] if c.isdigit() else c for c in PLANTED)
ARABIC = "".join(chr(ord(c) + 0x630) if c.isdigit() else c for c in PLANTED)
ZERO_WIDTH = "\u200b".join(PLANTED)
HIDDEN = {
    "a constant": f"def train():\n return 'ssn {PLANTED}'",
    "bytes": f"def train():\n return b'ssn {PLANTED}'",
    "utf-16 bytes": f"def train():\n return {PLANTED.encode('utf-16-le')!r}",
    "a tuple": f"def train():\n return ('a', ('b', '{PLANTED}'))",
    "a set": f"def train(x):\n return x in {{'a', '{PLANTED}'}}",
    "a docstring": f"def train():\n '''Like {PLANTED}.'''",
    "an annotation": f"def train(x: 'like {PLANTED}'):\n return x",
    "a return annotation": f"def train() -> 'like {PLANTED}':\n return 1",
    "an integer": "def train():\n return 219099999",
    "a negative integer": "def train():\n return -219099999",
    "a float": "def train():\n return 219099999.0",
    "a complex number": "def train():\n return 219099999j",
    "base64": f"def train():\n return '{base64.b64encode(PLANTED.encode()).decode()}'",
    "base64 without padding": f"def train():\n return '{base64.b64encode(PLANTED.encode()).decode().rstrip('=')}'",
    "base64 in base64": f"def train():\n return '{base64.b64encode(base64.b64encode(PLANTED.encode())).decode()}'",
    "base64 on two lines": "def train():\n return 'MjE5LTA5\\nLTk5OTk='",
    "hex": f"def train():\n return '{PLANTED.encode().hex()}'",
    "full-width digits": f"def train():\n return '{FULL_WIDTH}'",
    "superscript digits": f"def train():\n return '{SUPERSCRIPT}'",
    "arabic digits": f"def train():\n return '{ARABIC}'",
    "zero-width characters": f"def train():\n return '{ZERO_WIDTH}'",
    "a non-breaking hyphen": f"def train():\n return '{PLANTED.replace('-', chr(0x2011))}'",
    "an f-string": f"def train(x):\n return f'{{x}} {PLANTED} {{x}}'",
    "a folded sum": "def train():\n return '219-09' + '-9999'",
    "two constants": "def train():\n a = '219-09'\n b = '-9999'\n return a + b",
    "an inner function": f"def train():\n def inner():\n  return '{PLANTED}'\n return inner",
    "a default": f"def train(x='{PLANTED}'):\n return x",
    "a keyword default": f"def train(*, x='{PLANTED}'):\n return x",
    "a global": f"x = ['{PLANTED}']\ndef train():\n return x",
    "a dict key": f"x = {{'{PLANTED}': 1}}\ndef train():\n return x",
    "a pattern": f"import re\nx = re.compile('{PLANTED}')\ndef train():\n return x",
    "a variable's name": "def train():\n ssn_219_09_9999 = 1\n return ssn_219_09_9999",
    "an attribute's name": f"def train():\n return 1\nsetattr(train, '{PLANTED}', 1)",
    "the function's name": f"def train():\n return 1\ntrain.__name__ = '{PLANTED}'",
    "a class attribute": f"class Job:\n x = '{PLANTED}'\ndef train():\n return Job",
    "a class's docstring": f"class Job:\n '''{PLANTED}'''\ndef train():\n return Job",
    "a class's name": f"Job = type('{PLANTED}', (), {{}})\ndef train():\n return Job",
    "an attribute's name in a class": f"Job = type('Job', (), {{'{PLANTED}': 1}})\ndef train():\n return Job",
    "an enum": f"import enum\nclass Mode(enum.Enum):\n A = '{PLANTED}'\ndef train():\n return Mode.A",
    "an enum's member name": f"import enum\nM = enum.Enum('M', {{'{PLANTED}': 1}})\ndef train():\n return M",
    "a dataclass default": f"import dataclasses\n@dataclasses.dataclass\nclass C:\n x: str = '{PLANTED}'\n"
    "def train():\n return C()",
    "an object's attribute": f"class C:\n pass\nc = C()\nc.x = '{PLANTED}'\ndef train():\n return c",
    "a property's docstring": f"class C:\n x = property(lambda s: 1, doc='{PLANTED}')\ndef train():\n return C",
}


@pytest.mark.parametrize("source", HIDDEN.values(), ids=HIDDEN.keys())
def test_an_identifier_is_refused_wherever_it_hides(source):
    error = refusal(made(source), IDENTIFIER)
    assert "US_SSN" in error.message
    assert "delete the identifier" in error.hint


def test_an_identifier_in_the_exception_table_is_refused():
    def train():
        return 1

    train.__code__ = train.__code__.replace(co_exceptiontable=f"{PLANTED} ".encode())
    with pytest.raises(CapsuleRefused) as caught:
        seal_capsule(train, inspect_text=inspect_text)
    assert caught.value.reason in (IDENTIFIER, UNREADABLE)


def test_an_identifier_in_the_line_table_or_a_qualified_name_does_not_cross():
    def train():
        return 1

    train.__code__ = train.__code__.replace(
        co_linetable=f"{PLANTED} ".encode(), co_filename=PLANTED, co_qualname=PLANTED
    )
    train.__module__ = train.__qualname__ = PLANTED
    capsule = seal_capsule(train, inspect_text=inspect_text)
    assert PLANTED.encode() not in capsule.payload
    assert PLANTED not in str(capsule.xray)


def test_bytecode_is_read_for_printable_identifiers():
    constants = Constants(inspect_text, CapsuleLimits())
    assert constants.machine_code(b"\x00\x97" + PLANTED.encode() + b"\x00").reason is IDENTIFIER
    assert constants.machine_code(typical.__code__.co_code) is None


def test_an_identifier_is_counted_by_entity_and_placed_by_line():
    def train():
        first = "nothing"
        second = "ssn 219-09-9999"
        return first, second

    seen = xray(train, inspect_text=inspect_text)
    assert dict(seen.entities) == {"US_SSN": 1}
    (bad,) = seen.refusals
    assert bad.kind == "constant"
    assert bad.line == train.__code__.co_firstlineno + 2
    assert bad.where == f"train, line {bad.line}"


def test_presidio_itself_refuses_an_identifier():
    recognizer = UsSsnRecognizer()

    def presidio(text):
        return {found.entity_type for found in recognizer.analyze(text, ["US_SSN"]) if found.score >= 0.4}

    with pytest.raises(CapsuleRefused) as caught:
        seal_capsule(made(HIDDEN["zero-width characters"]), inspect_text=presidio)
    assert caught.value.reason is IDENTIFIER
    assert not xray(typical, inspect_text=presidio).refused


def test_a_value_encoded_on_purpose_is_a_known_limit():
    """No reading of constants can stop an author who wants to hide a value; this states where the check ends."""
    shifted = "".join(chr(ord(char) - 1) for char in PLANTED)
    added = made(f"def train():\n return ''.join(chr(ord(c) + 1) for c in {shifted!r})")
    assert not xray(added, inspect_text=inspect_text).refused


def test_names_in_code_are_not_taken_for_web_addresses():
    def presidio_like(text):
        return {"URL"} if re.search(r"[a-z]\.(cloudpickle|nn|su|net|clone|rate)", text, re.IGNORECASE) else set()

    assert not xray(typical, inspect_text=presidio_like).refused
    assert xray(made("def train():\n return 'clinic.net'"), inspect_text=presidio_like).refused


def test_a_name_of_an_approved_module_cannot_carry_an_identifier(monkeypatch):
    def named():
        return 1

    named.__module__, named.__qualname__, named.__name__ = "numpy", PLANTED, PLANTED
    monkeypatch.setattr(np, PLANTED, named, raising=False)
    refusal(closing_over(named), IDENTIFIER)


def test_names_are_escaped_in_html():
    def train():
        return 1

    train.__qualname__ = "<script>"
    html = xray(train, inspect_text=inspect_text)._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


# --- the bytes


def swapping(planted):
    """Return a function, and an inspector that plants a value in it after the walk has read its closure."""
    box = [0]

    def train():
        return box

    train.last = "the last text that the walk reads"

    def inspect_and_swap(text):
        if text == train.last:
            train.__closure__[0].cell_contents = planted
        return inspect_text(text)

    return train, inspect_and_swap


@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        (TABLE, DATA),
        (np.arange(3), DATA),
        (torch.ones(3), DATA),
        (list(range(1_000)), DATA),
        ([{"a": 1}, {"a": 2}], DATA),
        ("x" * 1_000, DATA),
        (b"x" * 1_000, DATA),
        (bytearray(b"x"), UNREADABLE),
        (PLANTED, IDENTIFIER),
        ([[PLANTED]], IDENTIFIER),
        (219099999, IDENTIFIER),
        (os, UNREADABLE),
        (os.system, UNREADABLE),
        (Path(), UNREADABLE),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_swapped_in_after_the_walk_is_refused_in_the_bytes(planted, reason):
    fn, inspect_and_swap = swapping(planted)
    with pytest.raises(CapsuleRefused) as caught:
        seal_capsule(fn, inspect_text=inspect_and_swap)
    assert caught.value.reason is reason
    assert "part of the bytes" in caught.value.hint
    assert PLANTED not in str(caught.value)


class Reducing:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


class Persisting(pickle.Pickler):
    def persistent_id(self, obj):
        return PLANTED if obj == "x" else None


def persisted() -> bytes:
    buffer = io.BytesIO()
    Persisting(buffer).dump(["x"])
    return buffer.getvalue()


@pytest.mark.parametrize(
    "payload",
    [
        pickle.dumps(Reducing(os.system, ("true",))),
        pickle.dumps(Reducing(eval, ("1",))),
        pickle.dumps(Reducing(builtins.exec, ("1",))),
        pickle.dumps(Reducing(base64.b64decode, ("eA==",))),
        pickle.dumps(Reducing(bytes, ([1, 2],))),
        b"\x80\x04\x8c\x05numpy\x8c\x07ndarray\x93)\x81.",
        pickle.dumps(bytearray(b"x" * 9)),
        pickle.dumps([1, 2], protocol=0),
        persisted(),
        b"\x80\x04\x82\x01.",
        b"\x80\x04(i__main__\nX\n.",
        b"not a pickle",
        b"",
    ],
    ids=repr,
)
def test_bytes_that_plain_code_never_makes_are_refused(payload):
    (bad, *_) = read_payload(payload, Constants(inspect_text, CapsuleLimits()), Program())
    assert bad.reason in (UNREADABLE, DATA)


def test_reading_the_bytes_runs_nothing(tmp_path):
    left = tmp_path / "left"
    payload = pickle.dumps(Reducing(os.system, (f"touch {left}",)))
    read_payload(payload, Constants(inspect_text, CapsuleLimits()), Program())
    assert not left.exists()


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(payload):
    constants = Constants(inspect_text, CapsuleLimits())
    assert all(bad.reason for bad in read_payload(b"\x80\x05" + payload, constants, Program()))


@given(
    st.lists(st.integers(-99_999, 99_999), max_size=6),
    st.from_regex(r"[a-z_]{1,32}", fullmatch=True),
    st.integers(-99_999, 99_999).map(lambda n: n / 1_000),
)
def test_small_settings_cross_unchanged(numbers, text, number):
    capsule = seal_capsule(closing_over((numbers, {"text": text}, number)), inspect_text=inspect_text)
    assert open_capsule(capsule.payload, capsule.digest)(None) == ((numbers, {"text": text}, number), None)


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_planted_value_never_crosses_in_a_text(before, after):
    text = f"{before} {PLANTED} {after}"
    assert xray(closing_over(text), inspect_text=inspect_text).refused


def test_a_huge_function_is_refused():
    refusal(made(f"def train(x):\n{'  x = x + x * x' + chr(10)}" + "  x = x + x * x\n" * 20_000), TOO_LARGE)
    error = refusal(typical, TOO_LARGE, limits=CapsuleLimits(payload_bytes=1_000))
    assert "shorten" in error.hint


def test_many_texts_are_too_many_together():
    texts = [f"{'word ' * 300}{number}" for number in range(30)]
    refusal(made("def train():\n" + "".join(f" x = '{text}'\n" for text in texts)), TOO_LARGE)


def test_no_place_of_this_machine_crosses():
    capsule = seal_capsule(typical, inspect_text=inspect_text)
    assert str(Path(__file__).parent).encode() not in capsule.payload
    assert b"test_capsule.py" not in capsule.payload
    assert b"a note that stays" not in capsule.payload


def test_a_future_import_is_not_taken_for_a_number_of_six_digits():
    def six_digits(text):
        return {"NUMBER"} if re.search(r"\d{6}", text) else set()

    assert not xray(made("from __future__ import annotations\ndef train(): pass"), inspect_text=six_digits).refused


def test_the_same_function_has_the_same_digest():
    first, second = (seal_capsule(typical, inspect_text=inspect_text) for _ in range(2))
    assert first.digest == second.digest


_WITH_SETS = """
import sys
sys.dont_write_bytecode = True
from fabric.capsule import open_capsule, seal_capsule
import networks
sealed = seal_capsule(networks.network, inspect_text=lambda text: ())
opened = open_capsule(sealed.payload, sealed.digest)
print(sealed.digest, *opened("tanh", 3), *opened("other", 3))
"""


def test_the_same_function_has_the_same_digest_in_another_process_however_its_sets_are_ordered(tmp_path):
    (tmp_path / "networks.py").write_text("""
import enum
from torch import nn
Kind = enum.Enum("Kind", ["ONE", "TWO", "THREE"])
NAMES = {"relu", "tanh", "gelu", "silu", "elu"}
KINDS = frozenset({nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU, nn.ELU})
ENUMS, PAIRS = {Kind.ONE, Kind.TWO, Kind.THREE}, {("a", 1), ("b", 2.5), ("c", None)}
class Network:
    sizes = {8, "small", b"large", 1.5}
def network(kind, outputs, among=frozenset({"x", "y", "z"})):
    found = kind in {"relu", "tanh", "gelu", "silu"}
    counts = map(len, (KINDS, ENUMS, PAIRS, Network.sizes, among))
    return [str(found), *map(str, counts), *(NAMES & {kind})]
""")
    said = {
        subprocess.run(
            [sys.executable, "-c", _WITH_SETS],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2", "3")
    }
    assert len(said) == 1, said
    assert said.pop().split(" ", 1)[1] == "True 5 3 3 4 3 tanh False 5 3 3 4 3\n"


def test_a_capsule_that_was_changed_does_not_open():
    capsule = seal_capsule(closing_over(1), inspect_text=inspect_text)
    with pytest.raises(CapsuleRefused) as caught:
        open_capsule(capsule.payload + b".", capsule.digest)
    assert caught.value.reason is Reason.DIGEST_MISMATCH


def test_a_capsule_of_another_python_does_not_open():
    payload = pickle.dumps(("2.7", len))
    with pytest.raises(CapsuleRefused, match=r"sealed with Python 2\.7"):
        open_capsule(payload, digest(payload))


def test_a_capsule_that_cannot_be_opened_says_so_without_its_content():
    payload = pickle.dumps(PLANTED)[:-2]
    with pytest.raises(CapsuleRefused) as caught:
        open_capsule(payload, digest(payload))
    assert caught.value.reason is UNREADABLE
    assert PLANTED not in str(caught.value)


# --- what must pass


class Mode(enum.Enum):
    SUM = "sum"
    MEAN = "mean"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    rate: float = 0.01
    mode: Mode = Mode.SUM
    layers: tuple[int, ...] = (4, 2)
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Steps:
    epochs: int = 3


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(1, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).sum(1)


SETTINGS = Settings()
STEPS = Steps()
WORD = re.compile("[a-z]+")


@torch.no_grad()
def evaluated(net, x):
    return float(net(x).sum())


def scaled(column, by: float = 2.0, *, mode: Mode = Mode.MEAN) -> "a note that stays":  # noqa: F722
    return pc.multiply(column, by)


def typical(table: pa.Table) -> dict:
    """Train a small net and add a few numbers up."""
    torch.manual_seed(0)
    net = Net(SETTINGS.layers[0])
    x = torch.tensor(np.asarray(scaled(table["x"])), dtype=torch.float32).reshape(-1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=SETTINGS.rate)
    losses = []
    for _ in range(STEPS.epochs):
        optimizer.zero_grad()
        loss = net(x).pow(2).mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    if SETTINGS.mode is not Mode.SUM:
        raise ValueError("no such mode")
    return {
        "losses": losses,
        "sum": pc.sum(table["x"]).as_py(),
        "evaluated": evaluated(net, x),
        "words": WORD.findall("ab c"),
        "settings": dataclasses.asdict(STEPS),
    }


_OPENER = """
import json, sys
import pyarrow as pa
from fabric.capsule import open_capsule
payload = sys.stdin.buffer.read()
print(json.dumps(open_capsule(payload, sys.argv[1])(pa.table({"x": [1.0, 2.0, 3.0]}))))
"""


def test_a_typical_training_function_gives_the_same_result_in_a_fresh_process(tmp_path):
    capsule = seal_capsule(typical, inspect_text=inspect_text)
    done = subprocess.run(
        [sys.executable, "-c", _OPENER, capsule.digest],
        input=capsule.payload,
        capture_output=True,
        cwd=tmp_path,
        check=True,
    )
    assert json.loads(done.stdout) == typical(pa.table({"x": [1.0, 2.0, 3.0]}))


@pytest.mark.parametrize(
    "named",
    [
        torch.exp,
        torch.float32,
        torch.nn.functional.linear,
        nn.Linear,
        np.exp,
        np.concatenate,
        np.linalg.norm,
        np.float32,
        pc.sum,
        pa.table,
        len,
        functools.reduce,
        dataclasses.MISSING,
        pc,
        nn,
    ],
    ids=lambda named: getattr(named, "__name__", None) or type(named).__name__,
)
def test_what_approved_modules_define_crosses_as_its_name(named):
    capsule = seal_capsule(closing_over(named), inspect_text=inspect_text)
    assert open_capsule(capsule.payload, capsule.digest)(1) == (named, 1)
    assert len(capsule.payload) < 1_000


def test_an_xray_of_a_clean_function_lists_what_crosses():
    seen = xray(typical, inspect_text=inspect_text)
    assert not seen.refused
    named = {(c.name, c.kind) for c in seen.captures}
    assert {("SETTINGS", "global"), ("scaled", "global"), ("by", "default"), ("mode", "keyword default")} <= named
    assert seen.size_bytes == len(seal_capsule(typical, inspect_text=inspect_text).payload)
    assert seen.to_json()["refused"] is False
    assert "nothing is refused" in str(seen)


def test_inspecting_changes_nothing():
    before = dict(vars(typical)), typical.__code__, dict(typical.__annotations__), dict(Net.__dict__)
    seal_capsule(typical, inspect_text=inspect_text)
    assert before == (dict(vars(typical)), typical.__code__, dict(typical.__annotations__), dict(Net.__dict__))


def test_the_module_imports_no_data_library():
    code = "import sys, fabric.capsule; print({'ray', 'torch', 'pyarrow', 'pandas', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
