"""What a program says itself, and what it must have computed."""

import linecache
import sys
import types

import pytest

from fabric.bytecode import unreached_bytes, without_unread
from fabric.capsule import seal_capsule, xray
from fabric.constants import is_setting
from fabric.errors import CapsuleRefused, Reason
from fabric.literals import Program
from fabric.readings import readings_of, readings_of_bytes, readings_of_number

RATE = 0.000123456
EIGHT, TWO = [n * 17 for n in range(8)], [n * 19 for n in range(2)]
LONG = "a text of several words that stands in this file"
NAMES = ["first of the names", "second of the names"]


def nothing(text):
    return ()


def uses_what_is_written(table, by=1 / 3 * 0.125, *, steps=64 * 1024):
    return table, RATE, LONG, NAMES, by, steps


def test_what_the_file_says_may_be_captured():
    assert not xray(uses_what_is_written, inspect_text=nothing).refused


def holding(value):
    return lambda table: value


@pytest.mark.parametrize(
    "value",
    ["Some Body", "2020-" + str(101), 1234567 + 1, 0.1 * 1.23456, [1.5] * 9, {"k": "x y"}, b"ab" * 2, ("a" * 40,)],
    ids=repr,
)
def test_what_the_program_computed_is_refused_unless_it_is_a_short_setting(value):
    computed = eval(repr(value))  # not the object that the compiler made of this file
    with pytest.raises(CapsuleRefused) as caught:
        seal_capsule(holding([computed, "not " + "here".upper() + str(len(sys.argv))]), inspect_text=nothing)
    assert caught.value.reason is Reason.CAPSULE_CAPTURES_DATA
    assert "computed" in caught.value.message
    assert "pass it as a parameter" in caught.value.hint


@pytest.mark.parametrize("value", ["mean", "region_code", 12_345, 1_000_000, 0.001, -2.5, 1e-9, True, None, 1j])
def test_words_and_five_digits_are_settings(value):
    assert is_setting(value)


@pytest.mark.parametrize("value", ["two words", "1951-07-23", "a@b.example", 1_234_567, 8765.43, "x" * 33, b"x", [1]])
def test_texts_dates_and_measurements_are_none(value):
    assert not is_setting(value)


def test_eight_computed_settings_may_be_captured_and_nine_may_not():
    assert not xray(holding([n * 13 for n in range(8)]), inspect_text=nothing).refused
    assert xray(holding([n * 13 for n in range(9)]), inspect_text=nothing).refused
    assert xray(lambda table: (EIGHT, TWO), inspect_text=nothing).refused


def test_small_numbers_that_stand_in_the_program_one_by_one_are_written_only_if_they_stand_there_together():
    digits = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert not xray(holding(digits), inspect_text=nothing).refused
    visits = [*digits[::2], *digits[::3]]
    assert xray(holding(visits), inspect_text=nothing).refused


def test_a_choice_of_words_that_stand_in_the_program_may_be_captured_and_a_column_of_them_may_not():
    words = ["north wing", "south wing", "east wing", "west wing"]
    assert not xray(holding(words[1:]), inspect_text=nothing).refused
    assert xray(holding(words * 5), inspect_text=nothing).refused


@pytest.fixture
def settings_module(tmp_path, monkeypatch):
    path = tmp_path / "settings_of_a_job.py"
    path.write_text('WORDS = ["several words of one", "several words of two"]\n')
    module = types.ModuleType("settings_of_a_job")
    module.__file__ = str(path)
    exec(path.read_text(), vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_what_another_module_of_the_program_says_may_be_captured_if_it_was_imported(settings_module):
    words = settings_module.WORDS
    assert not xray(holding(words), inspect_text=nothing).refused


def test_what_another_module_computed_may_not(settings_module):
    settings_module.READ = [f"row {n} of a file" for n in range(3)]
    assert xray(holding(settings_module.READ), inspect_text=nothing).refused


def test_a_cell_of_a_notebook_says_what_the_cells_before_it_said(monkeypatch):
    first, second = "title = 'a text of several words'\n", "def work(table):\n    return title, table\n"
    for name, text in (("/tmp/none/cell-1", first), ("/tmp/none/cell-2", second)):
        monkeypatch.setitem(linecache.cache, name, (len(text), None, text.splitlines(keepends=True), name))
    namespace: dict = {"__name__": "__main__"}
    exec(compile(first, "/tmp/none/cell-1", "exec"), namespace)
    exec(compile(second, "/tmp/none/cell-2", "exec"), namespace)
    assert not xray(namespace["work"], inspect_text=nothing).refused


def test_a_file_that_does_not_compile_says_nothing(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("x = 'a text'\ndef (")
    program = Program()
    program.holds(str(path))
    assert not program.says("a text")


def test_one_and_true_are_not_the_same_word():
    program = Program()
    program.holds(__file__)
    assert program.says(LONG)
    assert not program.says(float(64 * 1024))


def test_what_nothing_reads_does_not_stay_in_code():
    def work(table):
        """A docstring."""
        return [table, "kept"]

    code = work.__code__.replace(co_consts=(*work.__code__.co_consts, "hidden"), co_names=("hidden",))
    clean = without_unread(code)
    assert "kept" in clean.co_consts
    assert not {"hidden", "A docstring."} & {*clean.co_consts, *clean.co_names}
    assert types.FunctionType(clean, {})(1) == [1, "kept"]


def test_every_byte_of_compiled_code_can_run():
    source = (
        "def f(x):\n try:\n  return [i for i in x if i]\n except ValueError as e:\n  raise\n finally:\n  print(x)\n"
    )
    source += "async def g(x):\n async with x as y:\n  yield y\n while True:\n  match x:\n   case 1: break\n"
    pending = [compile(source, "x", "exec")]
    while pending:
        code = pending.pop()
        pending += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
        assert unreached_bytes(code) == 0, code.co_name


def test_an_encoding_that_unfolds_without_end_is_read_no_further():
    import zlib

    bomb = zlib.compress(b"a" * 10_000_000)
    assert max(map(len, readings_of_bytes(bomb))) <= max(len(bomb), 4_096)


def test_readings_are_what_a_text_may_stand_for():
    assert "219-09-9999" in readings_of("MjE5LTA5LTk5OTk=")
    assert "219-09-9999" in readings_of("9999-90-912")
    assert "219-09-9999" in readings_of_number(219099999)
    assert "219-09-9999" in readings_of_bytes("219-09-9999".encode("utf-16-be"))
