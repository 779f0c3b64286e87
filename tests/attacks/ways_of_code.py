"""Ways through outbound code: what a function captures, and what its own text can hold."""

from __future__ import annotations

import array
import asyncio
import base64
import codecs
import copyreg
import dataclasses
import dis
import enum
import functools
import gzip
import io
import itertools
import linecache
import math
import mmap
import operator
import re
import sys
import types
import weakref
import zlib
from collections import OrderedDict, UserDict, defaultdict, deque

import cloudpickle
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import torch
from torch import nn

from attacks.lab import CAPSULE, NOT_STOPPED, person, way
from fabric.errors import Reason

DATA = Reason.CAPSULE_CAPTURES_DATA
IDENTIFIER = Reason.CAPSULE_IDENTIFIER
UNREADABLE = Reason.CAPSULE_UNREADABLE
TOO_LARGE = Reason.CAPSULE_TOO_LARGE


def holding(value):
    """Return a function that has closed over `value`."""

    def work(table):
        return table.num_rows if value is not None else 0

    return work


def written(source: str):
    """Return the function `work` that `source` defines."""
    namespace: dict = {"__name__": "attacks_written"}
    exec(source, namespace)
    return namespace["work"]


# --- frames and lists


@way(CAPSULE, DATA)
def closure_table(lab):
    """A raw table that the function closes over."""
    lab.burst(holding(lab.records))


@way(CAPSULE, DATA)
def closure_frame(lab):
    """A pandas frame that the function closes over."""
    lab.burst(holding(lab.records.to_pandas()))


@way(CAPSULE, DATA)
def closure_list_of_texts(lab):
    """A short list of names, in which Presidio finds no identifier."""
    lab.burst(holding(lab.records["name"].to_pylist()[-40:]))


@way(CAPSULE, DATA, IDENTIFIER)
def closure_list_of_numbers(lab):
    """A short list of incomes."""
    lab.burst(holding(lab.records["income"].to_pylist()[-40:]))


@way(CAPSULE, DATA)
def closure_list_of_small_numbers(lab):
    """A short list of numbers so small that each could be a setting."""
    lab.burst(holding(lab.records["visits"].to_pylist()[-40:]))


@way(CAPSULE, DATA, IDENTIFIER)
def closure_one_row(lab):
    """One row of the records as a dict."""
    lab.burst(holding(person(lab)))


@way(CAPSULE, DATA)
def closure_one_note(lab):
    """One cell of free text without any identifier in it."""
    lab.burst(holding(person(lab)["notes"]))


@way(CAPSULE, DATA)
def closure_one_amount(lab):
    """One number read from a record."""
    lab.burst(holding(person(lab)["income"]))


@way(CAPSULE, DATA)
def closure_one_date(lab):
    """One date read from a record, as text."""
    lab.burst(holding(str(person(lab)["birth_date"])))


@way(CAPSULE, DATA)
def closure_statistic(lab):
    """A mean computed from raw records, in full precision."""
    lab.burst(holding(pc.mean(lab.records["cost"]).as_py()))


@way(CAPSULE, DATA)
def closure_many_small_containers(lab):
    """A column cut into many small lists, each below the limit."""
    cells = lab.records["visits"].to_pylist()
    a, b, c, d = (cells[start : start + 20] for start in range(0, 80, 20))
    lab.burst(lambda table: (a, b, c, d, table.num_rows)[4])


@way(CAPSULE, DATA, UNREADABLE)
def closure_iterator(lab):
    """A list iterator, which holds its list."""
    lab.burst(holding(iter(lab.records["income"].to_pylist())))


@way(CAPSULE, DATA, UNREADABLE)
def closure_itertools(lab):
    """An itertools object of an approved module, which keeps what it goes over."""
    lab.burst(holding(itertools.cycle(lab.records["name"].to_pylist())))


@way(CAPSULE, DATA)
def closure_deque(lab):
    """A deque of cells."""
    lab.burst(holding(deque(lab.records["name"].to_pylist()[:3])))


@way(CAPSULE, DATA, UNREADABLE)
def closure_dict_subclasses(lab):
    """An OrderedDict, a defaultdict and a UserDict of cells."""
    cells = {"note": person(lab)["notes"]}
    lab.burst(holding([OrderedDict(cells), defaultdict(str, cells), UserDict(cells)]))


@way(CAPSULE, DATA)
def closure_recursive(lab):
    """A list that holds itself, and a cell."""
    around: list = [person(lab)["notes"]]
    around.append(around)
    lab.burst(holding(around))


# --- where a function keeps things


@way(CAPSULE, DATA)
def default_argument(lab):
    """A table as a default argument."""

    def work(table, known=lab.records):
        return table.num_rows

    lab.burst(work)


@way(CAPSULE, DATA)
def keyword_default(lab):
    """A note as a keyword-only default."""
    note = person(lab)["notes"]

    def work(table, *, known=note):
        return table.num_rows

    lab.burst(work)


@way(CAPSULE)
def annotation(lab):
    """A note as an annotation of an argument, which stays behind."""

    def work(table):
        return table.num_rows

    work.__annotations__["table"] = person(lab)["notes"]
    lab.burst(work)


@way(CAPSULE)
def docstring(lab):
    """A note as the docstring, which stays behind."""

    def work(table):
        """Replaced below."""
        return table.num_rows

    work.__doc__ = person(lab)["notes"]
    lab.burst(work)


@way(CAPSULE)
def docstring_in_the_code(lab):
    """A note as a docstring that the source holds, which stays behind."""
    lab.burst(written(f"def work(table):\n {person(lab)['notes']!r}\n return table.num_rows"))


@way(CAPSULE, DATA)
def function_attribute(lab):
    """A note in the function's own `__dict__`."""

    def work(table):
        return table.num_rows

    work.cache = person(lab)["notes"]
    lab.burst(work)


@way(CAPSULE)
def qualified_name(lab):
    """A note as the function's qualified name and module, which stay behind."""

    def work(table):
        return table.num_rows

    work.__qualname__ = work.__module__ = person(lab)["notes"]
    lab.burst(work)


@way(CAPSULE)
def places_of_the_code(lab):
    """A note as the code's file name, qualified name and line table, which stay behind."""

    def work(table):
        return table.num_rows

    note = person(lab)["notes"]
    work.__code__ = work.__code__.replace(co_filename=note, co_qualname=note, co_linetable=note.encode() * 2)
    lab.burst(work)


@way(CAPSULE, IDENTIFIER)
def name_of_the_code(lab):
    """An identifier as the code's own name."""

    def work(table):
        return table.num_rows

    work.__code__ = work.__code__.replace(co_name=person(lab)["email"])
    lab.burst(work)


@way(CAPSULE, IDENTIFIER)
def name_of_a_variable(lab):
    """An identifier as the name of a local variable."""

    def work(table):
        for rows in range(table.num_rows):
            table = rows
        return 1

    row = person(lab)
    work.__code__ = work.__code__.replace(co_varnames=("table", row["email"]))
    lab.burst(work)


@way(CAPSULE, DATA)
def names_that_nothing_uses(lab):
    """A note among the names of the code, which no instruction uses."""

    def work(table):
        return table.num_rows

    work.__code__ = work.__code__.replace(co_names=(*work.__code__.co_names, person(lab)["notes"]))
    lab.burst(work)


@way(CAPSULE)
def constants_that_nothing_loads(lab):
    """A note among the constants of the code that no instruction loads; it stays behind."""

    def work(table):
        return table.num_rows

    work.__code__ = work.__code__.replace(co_consts=(*work.__code__.co_consts, person(lab)["notes"]))
    lab.burst(work)


@way(CAPSULE, UNREADABLE)
def bytecode_that_never_runs(lab):
    """Cells as the arguments of instructions behind the last return of the code."""

    def work(table):
        return table.num_rows

    cells = "|".join(lab.records["notes"].to_pylist()[-20:]).encode()
    hidden = b"".join(bytes((dis.opmap["NOP"], byte)) for byte in cells)
    work.__code__ = work.__code__.replace(co_code=work.__code__.co_code + hidden)
    lab.burst(work)


@way(CAPSULE, IDENTIFIER, UNREADABLE)
def exception_table(lab):
    """An identifier in the code's exception table."""

    def work(table):
        return table.num_rows

    work.__code__ = work.__code__.replace(co_exceptiontable=f"{person(lab)['email']} ".encode())
    lab.burst(work)


@way(CAPSULE, DATA)
def nested_lambda(lab):
    """A table three lambdas deep."""
    table = lab.records
    lab.burst(lambda _: (lambda: lambda: table.num_rows)()())


@way(CAPSULE, UNREADABLE)
def generator(lab):
    """A generator that is halfway through the records."""
    cells = (cell for cell in lab.records["name"].to_pylist())
    next(cells)
    lab.burst(holding(cells))


@way(CAPSULE, UNREADABLE)
def coroutine(lab):
    """A coroutine that has closed over a row."""
    row = person(lab)

    async def wait():
        return row

    waiting = wait()
    try:
        lab.burst(holding(waiting))
    finally:
        waiting.close()


@way(CAPSULE, UNREADABLE)
def future(lab):
    """An asyncio future that holds a row."""
    loop = asyncio.new_event_loop()
    try:
        held = loop.create_future()
        held.set_result(person(lab))
        lab.burst(holding(held))
    finally:
        loop.close()


@way(CAPSULE, DATA)
def partial_argument(lab):
    """A note as an argument of functools.partial."""
    lab.burst(functools.partial(lambda table, note: table.num_rows, note=person(lab)["notes"]))


@way(CAPSULE, DATA)
def partial_attribute(lab):
    """A table as an attribute of functools.partial."""
    work = functools.partial(lambda table: table.num_rows)
    work.cache = lab.records
    lab.burst(work)


@way(CAPSULE, DATA, UNREADABLE)
def partial_method(lab):
    """A note in functools.partialmethod."""
    note = person(lab)["notes"]

    class Job:
        def run(self, note):
            return note

        bound = functools.partialmethod(run, note)

    lab.burst(lambda table: (Job, table.num_rows)[1])


@way(CAPSULE, DATA, UNREADABLE)
def cached_results(lab):
    """The contents of functools.lru_cache."""
    records = lab.records

    @functools.lru_cache
    def rows():
        return records.to_pylist()

    rows()
    lab.burst(lambda table: (rows, table.num_rows)[1])


@way(CAPSULE, DATA, UNREADABLE)
def weak_reference(lab):
    """A weak reference to an object that holds a row."""

    class Box:
        pass

    box = Box()
    box.row = person(lab)
    lab.burst(holding(weakref.ref(box)))


@way(CAPSULE, DATA)
def descriptor(lab):
    """A table kept by a descriptor of a class."""

    class Keeping:
        def __init__(self, kept):
            self.kept = kept

        def __get__(self, owner, kind):
            return 1

    class Job:
        rows = Keeping(lab.records)

    lab.burst(lambda table: (Job, table.num_rows)[1])


@way(CAPSULE, DATA)
def property_closure(lab):
    """A table that a property's getter closes over."""
    records = lab.records

    class Job:
        @property
        def rows(self):
            return records.num_rows

    lab.burst(lambda table: (Job, table.num_rows)[1])


@way(CAPSULE, DATA)
def class_attribute(lab):
    """A note as a class attribute."""

    class Job:
        note = person(lab)["notes"]

    lab.burst(lambda table: (Job, table.num_rows)[1])


@way(CAPSULE, DATA)
def metaclass_attribute(lab):
    """A table in a metaclass."""
    meta = type("Meta", (type,), {"cache": lab.records})
    made = meta("Job", (), {})
    lab.burst(lambda table: (made, table.num_rows)[1])


@way(CAPSULE, DATA)
def slot(lab):
    """A note in a slot of an object."""

    class Job:
        __slots__ = ("note",)

    job = Job()
    job.note = person(lab)["notes"]
    lab.burst(lambda table: (job, table.num_rows)[1])


@way(CAPSULE, DATA)
def bound_method(lab):
    """A table in the object of a bound method."""

    class Job:
        def run(self, table):
            return table.num_rows

    job = Job()
    job.cache = lab.records
    lab.burst(job.run)


@way(CAPSULE, DATA)
def dataclass_metadata(lab):
    """A note in the metadata of a dataclass field."""

    @dataclasses.dataclass
    class Job:
        rate: float = dataclasses.field(default=0.5, metadata={"note": person(lab)["notes"]})

    lab.burst(lambda table: (Job, table.num_rows)[1])


@way(CAPSULE, DATA)
def enum_member(lab):
    """A note as the value of an enum's member."""
    made = enum.Enum("Notes", {"FIRST": person(lab)["notes"]})
    lab.burst(lambda table: (made, table.num_rows)[1])


@way(CAPSULE, DATA)
def name_of_an_attribute(lab):
    """A name as the name of an attribute of an object."""

    class Job:
        pass

    job = Job()
    vars(job)[person(lab)["name"]] = 1
    lab.burst(lambda table: (job, table.num_rows)[1])


@way(CAPSULE, DATA)
def name_of_a_keyword(lab):
    """A name as a keyword of functools.partial."""
    lab.burst(functools.partial(lambda table, **known: table.num_rows, **{person(lab)["name"]: 1}))


@way(CAPSULE, DATA)
def name_in_a_refusal(lab):
    """A note as the qualified name of a function that is refused, so that the refusal would tell it."""

    records = lab.records

    def work(table):
        return records

    work.__qualname__ = person(lab)["notes"]
    lab.burst(work)


@way(CAPSULE, DATA, UNREADABLE)
def class_plumbing(lab):
    """A note in an attribute that the walk takes for the plumbing of an enum or an abstract class."""
    note = person(lab)["notes"]
    made = type("Job", (), {"_member_map_": {"note": note}, "_abc_impl": note})
    lab.burst(lambda table: (made, table.num_rows)[1])


@way(CAPSULE, DATA)
def list_of_slots(lab):
    """A note in `__slots__` and `__match_args__`, written after the class was made."""

    class Job:
        pass

    Job.__slots__ = Job.__match_args__ = [person(lab)["notes"]]
    lab.burst(lambda table: (Job, table.num_rows)[1])


@way(CAPSULE, DATA)
def regular_expression(lab):
    """A note as a compiled pattern."""
    pattern = re.compile(person(lab)["notes"])
    lab.burst(lambda table: (pattern, table.num_rows)[1])


CACHE: dict = {}


def reads_the_cache(table):
    return table.num_rows + len(CACHE)


@way(CAPSULE, DATA)
def module_global(lab):
    """A note in a dict that is a global of the module."""
    CACHE["note"] = person(lab)["notes"]
    try:
        lab.burst(reads_the_cache)
    finally:
        CACHE.clear()


@way(CAPSULE, UNREADABLE)
def module_object(lab):
    """A module of the user's own that holds a table."""
    module = types.ModuleType("cohort")
    module.TABLE = lab.records
    lab.burst(lambda table: (module, table.num_rows)[1])


# --- pickling hooks


def hooked(name, hook):
    return type("Odd", (), {name: hook})()


@way(CAPSULE, UNREADABLE)
def reduce_hook(lab):
    """A class whose `__reduce__` gives a row."""
    row = person(lab)
    lab.burst(holding(hooked("__reduce__", lambda self: (dict, (row,)))))


@way(CAPSULE, UNREADABLE)
def reduce_ex_hook(lab):
    """A class whose `__reduce_ex__` gives a row."""
    row = person(lab)
    lab.burst(holding(hooked("__reduce_ex__", lambda self, protocol: (dict, (row,)))))


@way(CAPSULE, UNREADABLE)
def getstate_hook(lab):
    """A class whose `__getstate__` gives a row."""
    row = person(lab)
    lab.burst(holding(hooked("__getstate__", lambda self: row)))


@way(CAPSULE, UNREADABLE, DATA)
def copyreg_hook(lab):
    """A reducer that copyreg knows for a plain class."""
    row = person(lab)

    class Plain:
        pass

    copyreg.pickle(Plain, lambda plain: (dict, (row,)))
    try:
        lab.burst(holding(Plain()))
    finally:
        del copyreg.dispatch_table[Plain]


@way(CAPSULE)
def copyreg_hook_for_code(lab):
    """A reducer that copyreg knows for every function and code object; it is not asked."""
    note = person(lab)["notes"]
    copyreg.pickle(types.FunctionType, lambda fn: (str, (note,)))
    copyreg.pickle(types.CodeType, lambda code: (str, (note,)))
    try:
        lab.burst(written("def work(table):\n return table.num_rows"))
    finally:
        del copyreg.dispatch_table[types.FunctionType], copyreg.dispatch_table[types.CodeType]


@way(CAPSULE, DATA, UNREADABLE)
def reducer_override(lab):
    """cloudpickle's own table of reducers, changed so that every code object gives a note."""
    note = person(lab)["notes"]
    table = cloudpickle.CloudPickler.dispatch_table
    before = table[types.CodeType]
    table[types.CodeType] = lambda code: (str, (note,))
    try:
        lab.burst(written("def work(table):\n return table.num_rows"))
    finally:
        table[types.CodeType] = before


@way(CAPSULE, UNREADABLE)
def pickled_by_value(lab):
    """A module of the user's own that cloudpickle was told to pickle by value."""
    module = types.ModuleType("cohort_by_value")
    module.TABLE = lab.records
    sys.modules["cohort_by_value"] = module
    cloudpickle.register_pickle_by_value(module)
    try:
        lab.burst(lambda table: (module, table.num_rows)[1])
    finally:
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules["cohort_by_value"]


@way(CAPSULE, UNREADABLE)
def approved_module_by_value(lab):
    """An approved module that holds a note, and that cloudpickle was told to pickle by value."""
    math.note = person(lab)["notes"]
    cloudpickle.register_pickle_by_value(math)
    try:
        lab.burst(written("import math\ndef work(table):\n return math.note"))
    finally:
        cloudpickle.unregister_pickle_by_value(math)
        del math.note


@way(CAPSULE)
def approved_module_patched(lab):
    """A note set on an approved module; only the module's name crosses."""
    math.note = person(lab)["notes"]
    try:
        lab.burst(written("import math\ndef work(table):\n return len(getattr(math, 'note', ''))"))
    finally:
        del math.note


@way(CAPSULE, UNREADABLE)
def approved_module_replaced(lab):
    """A module of one's own under the name of an approved one, not in its place."""
    module = types.ModuleType("math")
    module.note = person(lab)["notes"]
    lab.burst(lambda table: (module, table.num_rows)[1])


@way(CAPSULE)
def approved_module_replaced_in_place(lab):
    """A module of one's own put into sys.modules for an approved one; its name crosses, and not what it holds."""
    module = types.ModuleType("statistics")
    module.note = person(lab)["notes"]
    before = sys.modules.get("statistics")
    sys.modules["statistics"] = module
    try:
        lab.burst(lambda table: (module, table.num_rows)[1])
    finally:
        if before is None:
            del sys.modules["statistics"]
        else:
            sys.modules["statistics"] = before


@way(CAPSULE, DATA)
def approved_name_claimed(lab):
    """A function that claims to be one of numpy's and has a table as its default."""

    def exp(table, known=lab.records):
        return table.num_rows

    exp.__module__, exp.__qualname__ = "numpy", "exp"
    lab.burst(holding(exp))


@way(CAPSULE, DATA)
def subclass_of_an_approved_type(lab):
    """A subclass of int that hides a table in its attributes."""
    kind = type("Number", (int,), {})
    number = kind(3)
    number.cache = lab.records
    lab.burst(holding(number))


@way(CAPSULE, DATA)
def lying_class(lab):
    """A frame whose `__class__` says it is an int."""
    kind = type("Liar", (pd.DataFrame,), {"__class__": int})
    lab.burst(holding(kind(lab.records.to_pandas())))


@way(CAPSULE, DATA, UNREADABLE)
def operator_getter(lab):
    """A note as the item that operator.itemgetter gets."""
    lab.burst(holding(operator.itemgetter(person(lab)["notes"])))


@way(CAPSULE, DATA, UNREADABLE)
def exception_argument(lab):
    """An exception, with its traceback, that holds a row."""
    try:
        raise ValueError(person(lab))
    except ValueError as error:
        lab.burst(holding(error))


@way(CAPSULE, DATA, UNREADABLE)
def changed_after_the_walk(lab):
    """A closure cell that another thread fills after it was read; here the inspector does it."""
    box = [0]
    note = person(lab)["notes"]

    def work(table):
        return (box, table.num_rows)[1]

    work.last = "the_last_word"
    before = lab.inspect_text

    def inspect_and_swap(text):
        if text == work.last:
            work.__closure__[0].cell_contents = [note]
        return before(text)

    lab.inspect_text = inspect_and_swap
    lab.burst(work)


changed_after_the_walk = dataclasses.replace(changed_after_the_walk, needs="local")


@way(CAPSULE)
def source_changed_after_the_check(lab):
    """A function redefined after its capsule was sealed; the bytes that were read are those that cross."""
    note = person(lab)["notes"]

    def work(table):
        return table.num_rows

    seen = lab.burst(work)
    work.__code__ = written(f"def work(table):\n return {note!r}").__code__
    assert seen == lab.matrix.rows
    assert all(note.encode() not in part for part in lab.carried)


source_changed_after_the_check = dataclasses.replace(source_changed_after_the_check, needs="local")


# --- Arrow, numpy and torch


@way(CAPSULE, DATA)
def arrow_slice(lab):
    """An Arrow array of one cell that is a slice of the whole column."""
    lab.burst(holding(lab.records["name"].chunk(0).slice(0, 1)))


@way(CAPSULE, DATA)
def arrow_scalar(lab):
    """An Arrow scalar."""
    lab.burst(holding(lab.records["name"][0]))


@way(CAPSULE, DATA)
def arrow_schema_metadata(lab):
    """An Arrow schema whose metadata holds a note."""
    lab.burst(holding(lab.records.schema.with_metadata({"note": person(lab)["notes"]})))


@way(CAPSULE, DATA)
def arrow_expression(lab):
    """An Arrow expression with a cell as its literal."""
    lab.burst(holding(pc.field("name") == person(lab)["name"]))


@way(CAPSULE, DATA)
def numpy_view(lab):
    """A numpy view of two values whose base is the whole column."""
    lab.burst(holding(lab.records["income"].to_numpy()[3:5]))


@way(CAPSULE, DATA)
def numpy_scalar(lab):
    """A numpy scalar."""
    lab.burst(holding(np.float64(person(lab)["cost"])))


@way(CAPSULE, DATA)
def numpy_dtype_metadata(lab):
    """A numpy dtype whose metadata holds a note."""
    lab.burst(holding(np.dtype("f8", metadata={"note": person(lab)["notes"]})))


@way(CAPSULE, DATA)
def memory_view(lab):
    """A memoryview of the records' bytes."""
    lab.burst(holding(memoryview(person(lab)["notes"].encode())))


@way(CAPSULE, DATA)
def memory_map(lab):
    """An anonymous memory map with a note in it."""
    with mmap.mmap(-1, 4096) as mapped:
        mapped.write(person(lab)["notes"].encode())
        lab.burst(holding(mapped))


@way(CAPSULE, DATA)
def byte_array(lab):
    """A bytearray and an array.array."""
    lab.burst(holding([bytearray(b"x"), array.array("d", lab.records["cost"].to_pylist()[:3])]))


@way(CAPSULE, DATA)
def in_memory_file(lab):
    """A file in memory."""
    lab.burst(holding(io.StringIO(person(lab)["notes"])))


@way(CAPSULE, DATA)
def narrowed_tensor(lab):
    """A tensor of two values whose storage is the whole column."""
    lab.burst(holding(torch.from_numpy(lab.records["income"].to_numpy().copy()).narrow(0, 0, 2)))


@way(CAPSULE, DATA)
def tensor_storage(lab):
    """The storage of a tensor itself."""
    lab.burst(holding(torch.tensor([1.0, float(person(lab)["cost"])]).untyped_storage()))


@way(CAPSULE, DATA)
def model_state(lab):
    """The state_dict of a model trained on raw records."""
    lab.burst(holding(nn.Linear(2, 1).state_dict()))


@way(CAPSULE, DATA, UNREADABLE)
def optimizer_state(lab):
    """A torch optimizer with its moments."""
    lab.burst(holding(torch.optim.AdamW(nn.Linear(2, 1).parameters())))


@way(CAPSULE, DATA, UNREADABLE)
def data_loader(lab):
    """A torch DataLoader over raw rows, and its iterator."""
    rows = torch.utils.data.TensorDataset(torch.tensor(lab.records["income"].to_pylist()[:4]))
    lab.burst(holding([torch.utils.data.DataLoader(rows), iter(torch.utils.data.DataLoader(rows))]))


@way(CAPSULE, DATA, UNREADABLE)
def random_state(lab):
    """A torch generator, whose state may be any 5,000 bytes."""
    lab.burst(holding(torch.Generator()))


# --- values in the code itself


def literal(lab, text):
    """Burst a function that has `text` as a constant."""
    lab.burst(written(f"def work(table):\n return len({text!r})"))


@way(CAPSULE, IDENTIFIER)
def constant(lab):
    """An identifier as a constant of the code."""
    literal(lab, person(lab)["national_id"])


@way(CAPSULE, IDENTIFIER)
def constant_in_nested_code(lab):
    """An identifier as a constant of a function in the function."""
    text = person(lab)["email"]
    lab.burst(written(f"def work(table):\n def inner():\n  return lambda: {text!r}\n return len(inner()())"))


@way(CAPSULE, IDENTIFIER)
def constant_in_a_tuple(lab):
    """An identifier in a tuple of tuples, and in a frozenset."""
    text = person(lab)["email"]
    lab.burst(written(f"def work(table):\n return ('a', ('b', {text!r})) and 'a' in {{{text!r}, 'b'}}"))


@way(CAPSULE, IDENTIFIER)
def constant_in_an_f_string(lab):
    """An identifier in the fixed part of an f-string."""
    lab.burst(written(f"def work(table):\n return f'{{table.num_rows}} {person(lab)['email']}'"))


@way(CAPSULE, IDENTIFIER)
def dict_key(lab):
    """An identifier as the key of a dict."""
    lab.burst(written(f"x = {{{person(lab)['email']!r}: 1}}\ndef work(table):\n return len(x)"))


@way(CAPSULE, IDENTIFIER)
def type_hint(lab):
    """An identifier in a type hint."""
    lab.burst(written(f"def work(table: 'of {person(lab)['email']}'):\n return 1"))


@way(CAPSULE, IDENTIFIER)
def two_constants(lab):
    """An identifier split over two constants."""
    text = person(lab)["national_id"]
    lab.burst(written(f"def work(table):\n a = {text[:6]!r}\n b = {text[6:]!r}\n return len(a + b)"))


@way(CAPSULE, IDENTIFIER)
def two_constants_backwards(lab):
    """An identifier split over two constants, the second part first."""
    text = person(lab)["national_id"]
    lab.burst(written(f"def work(table):\n a = {text[6:]!r}\n b = {text[:6]!r}\n return len(b + a)"))


@way(CAPSULE, IDENTIFIER, DATA)
def two_captures(lab):
    """An identifier split over two captured values."""
    text = person(lab)["email"]
    first, second = text[:10], text[10:]
    lab.burst(lambda table: (first, second, table.num_rows)[2])


@way(CAPSULE, IDENTIFIER)
def number(lab):
    """A national id as a number, and as a float."""
    digits = person(lab)["national_id"].replace("-", "")
    lab.burst(written(f"def work(table):\n return table.num_rows + {digits}"))


@way(CAPSULE, IDENTIFIER)
def number_as_float(lab):
    """A phone number as a float."""
    digits = person(lab)["phone"].replace("-", "")
    lab.burst(written(f"def work(table):\n return table.num_rows + {digits}.0"))


@way(CAPSULE, IDENTIFIER)
def number_of_bytes(lab):
    """An identifier as bytes in a tuple of small numbers."""
    lab.burst(written(f"def work(table):\n return len(bytes({tuple(person(lab)['email'].encode())}))"))


@way(CAPSULE, IDENTIFIER)
def number_of_digits(lab):
    """An identifier as a list of digits."""
    digits = [int(char) for char in person(lab)["phone"] if char.isdigit()]
    lab.burst(written(f"def work(table):\n return [{', '.join(map(str, digits))}][0]"))


@way(CAPSULE, IDENTIFIER, DATA)
def number_from_bytes(lab):
    """An identifier as one large number made of its bytes."""
    lab.burst(written(f"def work(table):\n return {int.from_bytes(person(lab)['national_id'].encode(), 'big')}"))


@way(CAPSULE, IDENTIFIER)
def base_64(lab):
    """An identifier in base64, also twice and in the URL's alphabet."""
    literal(lab, base64.urlsafe_b64encode(base64.b64encode(person(lab)["email"].encode())).decode())


@way(CAPSULE, IDENTIFIER)
def base_32(lab):
    """An identifier in base32."""
    literal(lab, base64.b32encode(person(lab)["email"].encode()).decode())


@way(CAPSULE, IDENTIFIER)
def base_85(lab):
    """An identifier in base85."""
    literal(lab, base64.b85encode(person(lab)["email"].encode()).decode())


@way(CAPSULE, IDENTIFIER)
def ascii_85(lab):
    """An identifier in Ascii85."""
    literal(lab, base64.a85encode(person(lab)["email"].encode()).decode())


@way(CAPSULE, IDENTIFIER)
def hexadecimal(lab):
    """An identifier in hex."""
    literal(lab, person(lab)["email"].encode().hex())


@way(CAPSULE, IDENTIFIER)
def hexadecimal_spaced(lab):
    """An identifier in hex, a colon between the bytes."""
    literal(lab, person(lab)["national_id"].encode().hex(":"))


@way(CAPSULE, IDENTIFIER)
def character_codes(lab):
    """An identifier as character codes in a text."""
    literal(lab, " ".join(str(ord(char)) for char in person(lab)["national_id"]))


@way(CAPSULE, IDENTIFIER)
def rot_13(lab):
    """An e-mail address in ROT13."""
    literal(lab, codecs.encode(person(lab)["email"], "rot13"))


@way(CAPSULE, IDENTIFIER)
def backwards(lab):
    """An identifier backwards."""
    literal(lab, person(lab)["national_id"][::-1])


@way(CAPSULE, IDENTIFIER)
def percent_encoded(lab):
    """An identifier as a URL writes it, every character encoded."""
    literal(lab, "".join(f"%{byte:02X}" for byte in person(lab)["email"].encode()))


@way(CAPSULE, IDENTIFIER)
def html_entities(lab):
    """An identifier as HTML entities."""
    literal(lab, "".join(f"&#{ord(char)};" for char in person(lab)["email"]))


@way(CAPSULE, IDENTIFIER)
def escaped(lab):
    """An identifier as escape sequences in a raw text."""
    literal(lab, "".join(f"\\u{ord(char):04x}" for char in person(lab)["national_id"]))


@way(CAPSULE, IDENTIFIER)
def utf_16_bytes(lab):
    """An identifier as UTF-16 bytes."""
    literal(lab, person(lab)["national_id"].encode("utf-16-le"))


@way(CAPSULE, IDENTIFIER)
def ebcdic_bytes(lab):
    """An identifier in EBCDIC."""
    literal(lab, person(lab)["national_id"].encode("cp500"))


@way(CAPSULE, IDENTIFIER)
def compressed_bytes(lab):
    """An identifier compressed by zlib."""
    literal(lab, zlib.compress(person(lab)["email"].encode()))


@way(CAPSULE, IDENTIFIER)
def compressed_in_base_64(lab):
    """An identifier compressed by gzip, in base64."""
    literal(lab, base64.b64encode(gzip.compress(person(lab)["email"].encode(), mtime=0)).decode())


@way(CAPSULE, IDENTIFIER)
def zero_width(lab):
    """An identifier with zero-width characters in it."""
    literal(lab, "\u200b".join(person(lab)["national_id"]))


@way(CAPSULE, IDENTIFIER)
def combining_marks(lab):
    """An identifier with a combining mark on every digit."""
    literal(lab, "".join(char + "\u0336" for char in person(lab)["national_id"]))


@way(CAPSULE, IDENTIFIER)
def full_width(lab):
    """An identifier in full-width digits."""
    literal(lab, "".join(chr(ord(char) + 0xFEE0) for char in person(lab)["national_id"]))


@way(CAPSULE, IDENTIFIER)
def homoglyphs(lab):
    """An e-mail address in which Cyrillic letters stand for Latin ones."""
    literal(lab, person(lab)["email"].translate(str.maketrans("aeopcx", "аеорсх")))


@way(CAPSULE, IDENTIFIER)
def letters_for_digits(lab):
    """A national id in which letters stand for digits."""
    literal(lab, person(lab)["national_id"].replace("5", "S").replace("6", "G"))


@way(CAPSULE, IDENTIFIER)
def spaced_out(lab):
    """An identifier with a space between any two characters."""
    literal(lab, " ".join(person(lab)["national_id"]))


@way(CAPSULE, DATA)
def table_of_literals(lab):
    """A column written out as a tuple."""
    lab.burst(written(f"def work(table):\n return len({tuple(lab.records['cost'].to_pylist()[:200])})"))


@way(CAPSULE, DATA)
def many_small_integers(lab):
    """A column written out as one small number per line."""
    lines = "\n".join(f" x = {visits} + table.num_rows" for visits in range(300, 900))
    lab.burst(written(f"def work(table):\n{lines}\n return x"))


@way(CAPSULE, DATA)
def one_long_text(lab):
    """A column written out as one text."""
    literal(lab, "|".join(map(str, lab.records["cost"].to_pylist())))


@way(CAPSULE, TOO_LARGE)
def many_texts(lab):
    """Notes written out as hundreds of texts, each short enough."""
    rows = zip(
        *(lab.records[column].to_pylist()[:300] for column in ("name", "region", "condition", "plan")), strict=True
    )
    lines = "\n".join(f" x = {(' '.join(row) + ', ') * 5!r}" for row in rows)
    lab.burst(written(f"def work(table):\n{lines}\n return len(x)"))


@way(CAPSULE, DATA)
def one_large_number(lab):
    """A note as one integer of many digits."""
    lab.burst(written(f"def work(table):\n return {int.from_bytes(person(lab)['notes'].encode(), 'big')}"))


@way(CAPSULE, TOO_LARGE)
def size_bomb(lab):
    """A function of a megabyte."""
    lab.burst(written("def work(table):\n x = table.num_rows\n" + " x = x + x * x\n" * 20_000 + " return 1"))


@way(CAPSULE, UNREADABLE)
def deep_nesting(lab):
    """Two thousand functions, each in the closure of the next."""
    work = holding(1)
    for _ in range(2_000):
        work = holding(work)
    lab.burst(work)


@way(CAPSULE, DATA)
def written_beside(lab):
    """A value that stands in some file of the machine, but in none of the program's."""
    note = person(lab)["notes"]
    name = "<a cell that is none>"
    linecache.cache[name] = (len(note), None, [f"x = {note!r}\n"], name)
    try:
        lab.burst(holding(note))
    finally:
        del linecache.cache[name]


# --- what reading code cannot stop, in principle: bounded by the limits of a capsule


@way(NOT_STOPPED)
def arithmetic(lab):
    """A value computed from constants that spell nothing: bounded by the 256 KiB of a capsule."""
    shifted = "".join(chr(ord(char) + 1) for char in person(lab)["name"])
    lab.burst(written(f"def work(table):\n return ''.join(chr(ord(c) - 1) for c in {shifted!r}) and 1"))


@way(NOT_STOPPED)
def words_in_the_code(lab):
    """A name or note typed into the code, in which no pattern sees an identifier: bounded by 32,000 characters."""
    literal(lab, person(lab)["name"])


@way(NOT_STOPPED)
def short_settings(lab):
    """Eight short captured values that the program computed, each a word or five digits."""
    region, visits = person(lab)["region"], person(lab)["visits"]
    lab.burst(lambda table: (region, visits, table.num_rows)[2])
