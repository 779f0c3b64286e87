"""Ways through parameters, specs and search spaces."""

from __future__ import annotations

from datetime import date

from attacks.lab import CAPSULE, NOT_STOPPED, PARAMETERS, SPECS, person, way
from fabric.errors import Reason
from fabric.specs import ModelSpec, SearchSpace, SweepSpec, TrainingSpec, parse

REFUSED = Reason.PARAMETERS_REFUSED
INVALID = Reason.CONFIG_INVALID
UNKNOWN = Reason.UNKNOWN_KEY


def pass_on(lab, **parameters):
    lab.burst(lambda table, **parameters: len(parameters), parameters)


@way(PARAMETERS, REFUSED)
def parameter_table(lab):
    """A table as a parameter."""
    pass_on(lab, rows=lab.records)


@way(PARAMETERS, REFUSED)
def parameter_rows(lab):
    """Rows as a list of dicts."""
    pass_on(lab, rows=lab.records.slice(0, 3).select(["visits", "income"]).to_pylist())


@way(PARAMETERS, REFUSED)
def parameter_column(lab):
    """A column as a list of numbers."""
    pass_on(lab, visits=lab.records["visits"].to_pylist())


@way(PARAMETERS, REFUSED)
def parameter_identifier(lab):
    """An identifier as a text."""
    pass_on(lab, who=person(lab)["national_id"])


@way(PARAMETERS, REFUSED)
def parameter_name(lab):
    """A name, which no pattern finds."""
    pass_on(lab, who=person(lab)["name"])


@way(PARAMETERS, REFUSED)
def parameter_note(lab):
    """A note of free text."""
    pass_on(lab, prompt=person(lab)["notes"])


@way(PARAMETERS, REFUSED)
def parameter_date(lab):
    """A birth date as text, and as a date."""
    born = person(lab)["birth_date"]
    pass_on(lab, since=born.isoformat() if isinstance(born, date) else born)


@way(PARAMETERS, REFUSED)
def parameter_amount(lab):
    """An income."""
    pass_on(lab, over=person(lab)["income"])


@way(PARAMETERS, REFUSED)
def parameter_measurement(lab):
    """A cost in cents."""
    pass_on(lab, over=person(lab)["cost"])


@way(PARAMETERS, REFUSED)
def parameter_number_as_identifier(lab):
    """A phone number as a number."""
    pass_on(lab, over=int(person(lab)["phone"].replace("-", "")))


@way(PARAMETERS, REFUSED)
def parameter_in_parts(lab):
    """An identifier in parts, over several parameters."""
    digits = person(lab)["national_id"]
    pass_on(lab, a=digits[:3], b=digits[3:6], c=digits[6:])


@way(PARAMETERS, REFUSED)
def parameter_characters(lab):
    """A note as character codes."""
    pass_on(lab, codes=list(person(lab)["email"].encode()))


@way(PARAMETERS, REFUSED)
def parameter_key(lab):
    """An identifier as the name of a parameter."""
    pass_on(lab, settings={person(lab)["email"]: 1})


@way(PARAMETERS, REFUSED)
def parameter_key_of_words(lab):
    """A name as the name of a parameter."""
    pass_on(lab, **{person(lab)["name"]: 1})


@way(PARAMETERS, REFUSED)
def parameter_bytes(lab):
    """Bytes, which are no JSON."""
    pass_on(lab, blob=person(lab)["notes"].encode())


@way(PARAMETERS, REFUSED)
def parameter_not_a_number(lab):
    """A NaN, whose bits nobody reads."""
    pass_on(lab, rate=float("nan"))


@way(PARAMETERS, REFUSED)
def parameter_large_number(lab):
    """A note as one integer."""
    pass_on(lab, number=int.from_bytes(person(lab)["notes"].encode(), "big"))


@way(PARAMETERS, REFUSED)
def parameter_subclass_of_text(lab):
    """A subclass of str that shows another text to whoever asks."""

    class Text(str):
        __slots__ = ()

        def __str__(self):
            return "harmless"

    pass_on(lab, who=Text(person(lab)["name"]))


@way(PARAMETERS, REFUSED)
def parameter_size_bomb(lab):
    """A text of a megabyte."""
    pass_on(lab, text="x" * 1_000_000)


@way(PARAMETERS, REFUSED)
def parameter_depth_bomb(lab):
    """A list nested a hundred thousand deep."""
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    pass_on(lab, deep=deep)


@way(PARAMETERS, REFUSED)
def parameter_recursive(lab):
    """A list that holds itself."""
    around: list = []
    around.append(around)
    pass_on(lab, around=around)


@way(SPECS, INVALID, needs="train")
def spec_subclass(lab):
    """A training spec of a class of one's own, with a field for a note."""

    class Mine(TrainingSpec):
        note: str = ""

    lab.train(Mine(note=person(lab)["notes"]))


@way(SPECS, INVALID, needs="train")
def spec_part_subclass(lab):
    """A model spec of a class of one's own, with a field for a note."""

    class Mine(ModelSpec):
        note: str = ""

    lab.train(TrainingSpec(model=Mine(note=person(lab)["notes"])))


@way(SPECS, INVALID, needs="train")
def spec_unchecked(lab):
    """A training spec that pydantic was asked to make without checking, with a note for a learning rate."""
    lab.train(TrainingSpec().model_copy(update={"learning_rate": person(lab)["notes"]}))


@way(SPECS, needs="train")
def spec_with_another_field(lab):
    """A training spec made without checking, with a field that it does not have; the field stays behind."""
    lab.train(TrainingSpec().model_copy(update={"note": person(lab)["notes"]}))


def search(lab, **space):
    lab.train(parse(SweepSpec, f"[search]\n{_toml(space)}", source="sweep.toml"))


def _toml(space):
    return "\n".join(f"{name} = {values!r}" for name, values in space.items())


@way(SPECS, INVALID, needs="train")
def search_space_of_a_column(lab):
    """A column as the values of a search space."""
    search(lab, batch_size=[max(1, cell % 1_000_000) for cell in lab.records["income"].to_pylist()])


@way(SPECS, INVALID, needs="train")
def search_space_of_measurements(lab):
    """A column of costs as learning rates."""
    search(lab, learning_rate=[cell / 1e6 + 1e-9 for cell in lab.records["cost"].to_pylist()])


@way(SPECS, INVALID, needs="train")
def search_space_of_texts(lab):
    """Names as the values of a search space."""
    search(lab, learning_rate=lab.records["name"].to_pylist()[:3])


@way(SPECS, UNKNOWN, needs="train")
def search_space_of_another_name(lab):
    """A choice under a name that a search space does not have."""
    search(lab, frames=[1, 2])


@way(SPECS, INVALID, needs="train")
def search_space_of_many_layers(lab):
    """A column as the widths of hundreds of layers."""
    search(lab, hidden=[[cell + 1 for cell in lab.records["visits"].to_pylist()]])


@way(SPECS, INVALID, needs="train")
def search_space_of_many_combinations(lab):
    """Two short lists with more combinations than a search has."""
    search(lab, batch_size=list(range(1, 33)), learning_rate=[n / 1000 for n in range(1, 33)], dropout=[0.1, 0.2])


@way(SPECS, INVALID, needs="train")
def search_space_callable(lab):
    """A search space made without checking, with a function that has closed over a frame."""
    space = SearchSpace().model_copy(update={"learning_rate": [lambda: lab.records]})
    lab.train(SweepSpec(search=SearchSpace()).model_copy(update={"search": space}))


@way(SPECS, INVALID, needs="train")
def search_space_of_frames(lab):
    """A search space made without checking, with a choice of frames."""
    space = SearchSpace().model_copy(update={"hidden": [lab.records, lab.records.slice(1)]})
    lab.train(SweepSpec(search=SearchSpace()).model_copy(update={"search": space}))


@way(CAPSULE, Reason.CAPSULE_CAPTURES_DATA, needs="train")
def network_with_a_frame(lab):
    """A user's network that has closed over a frame."""
    records = lab.records
    lab.train(TrainingSpec(), network=lambda inputs, outputs: (records, inputs, outputs))


@way(NOT_STOPPED)
def parameters_of_few_digits(lab):
    """Sixty-four numbers of five digits, or as many words, passed as parameters on purpose: about 130 bytes a burst."""
    pass_on(lab, visits=lab.records["visits"].to_pylist()[:60], region=person(lab)["region"])


@way(NOT_STOPPED, needs="train")
def spec_numbers(lab):
    """The dozen numbers of a training spec, chosen on purpose."""
    lab.train(TrainingSpec(seed=1_951_072))
