"""Attacks on the way from records to a matrix: each is a way in which a raw value was, or might have been, got out.

First the ways that once worked, then those that were stopped all along. What is still open stands in ARCHITECTURE.md.
"""

import base64
import hashlib
import json
import os
import pickle
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fabric.artifacts import canonical, chunk_name, digest_of
from fabric.errors import FabricError, Reason
from sanitize import settling
from sanitize.inspection import ColumnFindings, Inspector
from sanitize.pipeline import course, sanitize
from sanitize.reading import RawTable, read_records
from sanitize.recipe import Column, Role, Round, column_of, parse_recipe
from sanitize.releases import Releases
from sanitize.report import report_html
from sanitize.risk import Limits
from sanitize.sealing import open_chunk
from sanitize.sources import open_source
from sanitize.spool import Spool, sweep
from sanitize.treatment import Secrets, make
from sanitize.verdict import Shape, Thresholds, objections
from sanitize.worker import Order, Sanitizer

LIMITS = Limits(k=11, l=2)
NOW = datetime(2026, 1, 2, tzinfo=UTC)
PLANTED = "Zyxwanda Quorvex 987-65-4399"
RANDOM = np.random.default_rng(17)
ROWS = 400
SMALL = RANDOM.integers(0, 9, ROWS)
IDS = RANDOM.choice(565_999_999, 20_000, replace=False) + 100_000_000


@pytest.fixture(scope="module")
def inspector():
    return Inspector()


def recipe_of(*, subject="", records="people", name="n", purpose="p", risk="", **columns):
    head = f"name = {json.dumps(name)}\npurpose = {json.dumps(purpose)}\nrecords = {json.dumps(records)}\n"
    head += f"subject = {json.dumps(subject)}\n" if subject else ""
    feature = 'role = "feature"'
    lines = [f"{column} = {{{made}, {'' if 'role' in made else feature}}}" for column, made in columns.items()]
    lines = [line.replace(", }", "}") for line in lines]
    return parse_recipe(f"{head}{risk}\n[columns]\n" + "\n".join(lines) + "\n", source="r.toml")


def keep(source):
    return f'from = "{source}", treatment = "keep"'


def run(inspector, recipe, columns, *, limits=LIMITS, **settings):
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    raw = RawTable(name=recipe.records, table=table, version="sha256:0", order_key=b"k" * 32)
    given = {"inspector": inspector, "hold_back": 0.0, "seed": 1, "limits": limits} | settings
    return sanitize({recipe.records: raw}, recipe, **given)


def opened(part):
    return pa.Table.from_batches([open_chunk(chunk, part.columns) for chunk in part.chunks])


def refused(attempt):
    with pytest.raises(FabricError) as caught:
        attempt()
    error = caught.value
    assert PLANTED not in f"{error!r} {error} {error.to_json()}"
    return error


def ordered(folder, path, recipe, *, seed=1, **settings):
    """Return an order as a driver gives it, with the releases known by now."""
    releases = Releases(folder / "releases")
    for name, content in (("secret", b"s" * 32), ("key", b"k" * 32)):
        (folder / name).write_bytes(content)
    order = Order(
        records={recipe.records: path}, recipe=recipe, hold_back=0.0, seed=seed, chunk_rows=65_536, work=folder,
        surrogates=folder / "surrogates.sqlite", labels={"data_classification": "restricted"}, limits=LIMITS,
        releases=releases.folder, earlier=releases.earlier_quasi(recipe.sources),
        sequence=releases.sequence(recipe.sources), key_path=folder / "key", secret_path=folder / "secret",
        predicate_type="matrix", issued_at=NOW, expires_at=NOW + timedelta(days=1), **settings,
    )  # fmt: skip
    return replace(order, work=folder / "work" / order.digest)


def worked(order, between=lambda stage: None):
    """Do an order in this process."""
    sanitizer = Sanitizer(order)

    def told(found):
        if isinstance(found, FabricError):
            raise found
        return found

    def call(stage, items):
        between(stage)
        return [told(sanitizer.do(stage, item)) for item in items]

    call("open", ["all"])
    return told(sanitizer.finish(course(call, chunk_rows=order.chunk_rows)))


def let_out(folder, path, recipe, **settings):
    """Sanitize and cross."""
    order = ordered(folder, path, recipe, **settings)
    done = worked(order)
    chunks = done.finished.digests["matrix"]
    matrix = digest_of({chunk_name(index): chunk for index, chunk in enumerate(chunks)})
    Releases(order.releases).crossed(matrix, "public", NOW)
    return done


WHO = RANDOM.integers(0, 300, 1_200)
VISITS = pa.table(
    {
        "who": [f"P{n}" for n in WHO],
        "born": pa.array(RANDOM.integers(-5_000, 5_000, 300)[WHO], pa.int32()).cast(pa.date32()),
        "income": np.round(RANDOM.lognormal(8, 1, 1_200)),
        "pulse": RANDOM.integers(50, 120, 1_200),
    }
)
PULSE = {"pulse": keep("pulse")}


def rounded(to):
    return {"income": f'from = "income", treatment = "round", to = {to}'}


@pytest.fixture
def visits(tmp_path):
    path = tmp_path / "people.parquet"
    pq.write_table(VISITS, path, row_group_size=300)
    return path


# --- ways that once worked: numbers in parts


PARTS = {
    "digit by digit": [IDS // 10**place % 10 for place in range(8, -1, -1)],
    "as they are grouped": [IDS // 10**6, IDS // 10**4 % 100, IDS % 10**4],
    "words of three digits": [IDS // 10**6, IDS // 10**3 % 1_000, IDS % 10**3],
    "digits of base 36": [IDS // 36**place % 36 for place in range(5, -1, -1)],
    "digits that are scaled and shifted": [(IDS // 10**place % 10) * 7 - 100 for place in range(8, -1, -1)],
    "digits as text": [np.char.add("d", (IDS // 10**place % 10).astype(str)) for place in range(8, -1, -1)],
}


@pytest.mark.parametrize("how", PARTS)
def test_a_number_cut_into_columns_is_refused(inspector, how):
    columns = {f"part{chr(97 + place)}": part for place, part in enumerate(PARTS[how])}
    kind = "encode" if PARTS[how][0].dtype.kind == "U" else "keep"
    recipe = recipe_of(**{name: f'from = "{name}", treatment = "{kind}"' for name in columns})
    assert "side by side" in refused(lambda: run(inspector, recipe, columns)).message


def test_measures_side_by_side_are_no_digits(inspector):
    spread = {name: np.round(RANDOM.normal(80, 12, 20_000)) for name in "abcdef"}
    run(inspector, recipe_of(**{name: keep(name) for name in spread}), spread)


@pytest.mark.parametrize("name", ["patientid", "CustomerNumber", "pid", "userName", "creditcard"])
def test_a_key_that_hides_in_one_word_is_refused(inspector, name):
    recipe = recipe_of(x=f'from = "{name}", treatment = "keep"', subject="who")
    columns = {name: np.repeat(np.arange(100), 40), "who": np.arange(4_000)}
    assert "direct identifier" in refused(lambda: run(inspector, recipe, columns)).message


@pytest.mark.parametrize(
    "treatment", ['"round", to = 0.000001', '"perturb", low = 0, high = 90, epsilon = 9, to = 0.0001']
)
def test_steps_too_fine_to_take_anything_away_are_refused(treatment):
    column = recipe_of(x=f'from = "y", treatment = {treatment}').columns[0]
    found = ColumnFindings(entities={}, distinct=800_000, cells=1_000_000)
    shape = Shape(distinct=800_000, holders=1_000_000, steps=2_000_000, decimals=0)
    against = objections(column, found, shape, levels=None, subject_known=True, limits=Thresholds())
    assert any("decimals" in why for why in against)


# --- ways that once worked: times


def test_a_duration_from_a_fixed_day_is_refused_because_it_tells_the_other(inspector):
    days = np.datetime64("2024-01-01") + RANDOM.integers(0, 700, 4_000)
    recipe = recipe_of(x='from = "anchor", treatment = "duration", until = "seen", to = 1440')
    for few in (1, 10):
        anchor = np.datetime64("2023-12-01") + np.arange(4_000) % few
        error = refused(lambda anchor=anchor: run(inspector, recipe, {"anchor": anchor, "seen": days}))
        assert "tell 'seen' itself" in error.message
    run(inspector, recipe, {"anchor": days, "seen": days + RANDOM.integers(0, 30, 4_000)})


@pytest.mark.parametrize(
    "made", ['treatment = "duration", until = "birth_date"', 'treatment = "age", at = "birth_date"']
)
def test_a_birth_date_at_the_other_end_is_refused(inspector, made):
    born = np.datetime64("2014-01-01") + RANDOM.integers(0, 3_000, 4_000)
    columns = {"anchor": born - RANDOM.integers(0, 900, 4_000), "birth_date": born}
    recipe = recipe_of(x=f'from = "anchor", {made}')
    assert "named after a birth date" in refused(lambda: run(inspector, recipe, columns)).message


def test_ages_at_many_days_are_weighed_together(inspector):
    born = np.datetime64("1940-01-01") + RANDOM.integers(0, 20_000, 4_000)
    ages = {f"age{chr(97 + m)}": f'from = "b", treatment = "age", at = "2026-{m + 1:02}-01"' for m in range(12)}
    assert refused(lambda: run(inspector, recipe_of(**ages), {"b": born})).reason is Reason.RISK_TOO_HIGH


# --- ways that once worked: words that go into statements and messages


@pytest.mark.parametrize("where", ["name", "purpose", "records", "column"])
@pytest.mark.parametrize("text", ["ssn_987-65-4399", "zyxwanda@planted.example", "call 202-555-0177", "n 9876543"])
def test_a_recipe_whose_own_words_are_data_is_refused(inspector, where, text):
    words = {"x": keep("a")}
    if where == "column":
        token = "c" + "".join(c if c.isalnum() else "_" for c in text.lower())
        if "@" in text:
            pytest.skip("a column's name cannot spell an address")
        words = {token: keep("a")}
    else:
        words[where] = text
    error = refused(lambda: run(inspector, recipe_of(**words), {"a": SMALL}))
    assert error.reason is Reason.RECIPE_INVALID
    assert "987" not in str(error)


@pytest.mark.parametrize("name", ["SSN 987654399", "SSN 987\u200b654399", "SSN ９８７６５４３９９", "۹۸۷۶۵۴۳۹۹"])
def test_a_column_that_is_named_by_an_identifier_is_refused(inspector, name):
    error = refused(lambda: run(inspector, recipe_of(x=keep("a")), {"a": SMALL, name: SMALL}))
    assert error.reason is Reason.RECORDS_UNREADABLE
    assert name not in str(error)


class Extension(pa.ExtensionType):
    def __init__(self):
        super().__init__(pa.int64(), PLANTED)

    def __arrow_ext_serialize__(self):
        return PLANTED.encode()

    @classmethod
    def __arrow_ext_deserialize__(cls, storage, serialized):
        return cls()


TYPES = {
    "names of a struct's fields": pa.array([{PLANTED: 1}] * ROWS),
    "a time zone": pa.array([1] * ROWS, pa.timestamp("us", tz=PLANTED)),
    "an extension's name": pa.ExtensionArray.from_storage(Extension(), pa.array(SMALL)),
    "names in a list": pa.array([[{PLANTED: 1}]] * ROWS),
}


@pytest.mark.parametrize("how", TYPES)
@pytest.mark.parametrize("treatment", ["keep", "vectorise"])
def test_a_type_that_carries_a_value_is_not_quoted(inspector, how, treatment):
    recipe = recipe_of(x=f'from = "a", treatment = "{treatment}"')
    assert refused(lambda: run(inspector, recipe, {"a": TYPES[how]})).reason is Reason.COLUMN_REFUSED


def test_a_first_row_taken_for_the_header_is_not_listed_in_a_hint(inspector):
    columns = {"Zyxwanda": SMALL, "Quorvex": SMALL}
    error = refused(lambda: run(inspector, recipe_of(x=keep("income"), y=keep("visits")), columns))
    assert error.reason is Reason.COLUMN_MISSING
    assert "Zyxwanda" not in str(error)
    assert "header" in error.hint


def test_an_error_carries_neither_what_it_was_made_from_nor_its_frames(tmp_path):
    path = tmp_path / "people.parquet"
    pq.write_table(pa.table({"a": [b"\xff" + PLANTED.encode()] * ROWS}), path)
    sanitizer = Sanitizer(ordered(tmp_path, path, recipe_of(x='from = "a", treatment = "vectorise"')))
    for stage, item in (("open", "all"), ("start", "all"), ("treat", "0")):
        error = sanitizer.do(stage, item)
    assert isinstance(error, FabricError)
    assert (error.__cause__, error.__context__, error.__traceback__) == (None, None, None)
    assert PLANTED.encode() not in pickle.dumps(error)


# --- ways that once worked: who is counted


@pytest.mark.parametrize("name", ["patient_id", "PATIENT", "memberId", "customer_id"])
def test_visits_of_one_person_do_not_count_as_persons_because_nobody_named_them(inspector, name):
    columns = {name: np.arange(ROWS) // 20, "age": np.arange(ROWS) // 20}
    recipe = recipe_of(x='from = "age", treatment = "keep", role = "quasi-identifier"')
    error = refused(lambda: run(inspector, recipe, columns))
    assert f'subject = "{name}"' in error.hint
    run(inspector, recipe, columns, limits=Limits())  # of public records nothing is asked


SPELLINGS = {
    "spaces": lambda n: " " * (n % 20) + "P" + str(n // 20),
    "case": lambda n: ("p" if n % 2 else "P") + str(n // 20),
    "unseen marks": lambda n: "\u200b" * (n % 20) + "P" + str(n // 20),
    "full width": lambda n: ("Ｐ" if n % 2 else "P") + str(n // 20),
    "a tail of zeros": lambda n: f"{n // 20}" + ("." + "0" * (n % 20) if n % 20 else ""),
}


@pytest.mark.parametrize("how", SPELLINGS)
def test_one_person_in_many_spellings_counts_once(inspector, how):
    who = [SPELLINGS[how](n) for n in range(2_000)]
    columns = {"who": who, "age": np.arange(2_000) // 20}
    recipe = recipe_of(subject="who", x='from = "age", treatment = "bin", edges = [50], role = "quasi-identifier"')
    assert run(inspector, recipe, columns).report["risk"]["subjects"] == 100
    fine = recipe_of(subject="who", x='from = "age", treatment = "encode", role = "quasi-identifier"')
    assert run(inspector, fine, columns).report["columns"][0]["folded"] == 100


def test_a_recipe_cannot_let_levels_of_fewer_people_out_than_the_limit(inspector):
    recipe = recipe_of(x='from = "a", treatment = "encode", min_count = 2')
    levels = [f"level {n // 2}" for n in range(ROWS)]
    assert run(inspector, recipe, {"a": levels}).report["columns"][0]["distinct"] == 1
    assert run(inspector, recipe, {"a": levels}, limits=Limits()).report["columns"][0]["distinct"] == ROWS // 2


ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
DISGUISES = {
    "Arabic-Indic digits": lambda text: text.translate(ARABIC),
    "en dashes": lambda text: text.replace("-", "–"),
    "combining marks": "\u0301".join,
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) for c in text),
    "zero-width spaces": "\u200b".join,
    "a right-to-left mark": lambda text: "\u202e" + text,
    "mathematical digits": lambda text: "".join(chr(0x1D7CE + int(c)) if c.isdigit() else c for c in text),
}


@pytest.mark.parametrize("how", DISGUISES)
def test_levels_that_are_identifiers_in_disguise_need_a_subject(inspector, how):
    numbers = [DISGUISES[how](f"{219 + n // 20:03}-09-9{n // 20:03}") for n in range(ROWS)]
    error = refused(lambda: run(inspector, recipe_of(x='from = "a", treatment = "encode"'), {"a": numbers}))
    assert "US_SSN" in error.message


# --- ways that once worked: release after release


def test_a_number_that_leaves_in_other_steps_each_time_is_refused(tmp_path, visits):
    let_out(tmp_path, visits, recipe_of(subject="who", **PULSE, **rounded(100)))
    let_out(tmp_path, visits, recipe_of(subject="who", name="other", **PULSE, **rounded(100)), seed=5)
    for to in (70, 1_000):
        error = refused(lambda to=to: let_out(tmp_path, visits, recipe_of(subject="who", **PULSE, **rounded(to))))
        assert error.reason is Reason.RISK_TOO_HIGH
        assert "'people.income'" in error.message


def test_noise_is_not_averaged_away_by_other_seeds_recipes_and_purposes(inspector):
    noise = 'from = "a", treatment = "perturb", low = 0, high = 90, epsilon = 1, to = 10'
    columns = {"a": np.full(ROWS, 50.0)}

    def values(*, key=b"k" * 32, **words):
        seed = words.pop("seed", 1)
        raw = RawTable(name="people", table=pa.table(columns), version="sha256:0", order_key=key)
        done = sanitize({"people": raw}, recipe_of(**words), inspector=inspector, hold_back=0.0, seed=seed)
        return sorted(opened(done.train).column(0).to_pylist())

    one = values(x=noise)
    assert values(x=noise, seed=2) == values(y=noise, name="m") == values(x=noise, purpose="q") == one
    assert values(x=noise, key=b"other bytes of the same table!!!") != one
    # Of one key at two scales value and noise could be worked out.
    other = values(x=noise.replace("epsilon = 1", "epsilon = 2"))
    assert [50 + (cell - 50) / 2 for cell in one] != other


def test_people_counted_in_another_way_than_before_are_refused(tmp_path, visits):
    let_out(tmp_path, visits, recipe_of(subject="who", **PULSE))
    error = refused(lambda: let_out(tmp_path, visits, recipe_of(**PULSE)))
    assert "'who' was the subject then" in error.message


@pytest.mark.parametrize("gone", [1, 3])
def test_the_same_people_from_a_re_exported_file_of_another_name_are_recognised(tmp_path, visits, gone):
    let_out(tmp_path, visits, recipe_of(subject="who", **PULSE))
    rest = VISITS.filter(pa.array(np.isin(WHO, np.unique(WHO)[gone:])))
    again = tmp_path / "again.parquet"
    pq.write_table(rest.take(RANDOM.permutation(rest.num_rows)), again)
    recipe = recipe_of(subject="who", records="copy", name="quite-another", **PULSE)
    error = refused(lambda: let_out(tmp_path, again, recipe, seed=9))
    assert f"{gone} fewer subjects" in error.message


def test_the_same_file_under_another_name_is_recognised(tmp_path, visits):
    let_out(tmp_path, visits, recipe_of(**PULSE, **rounded(100)))
    error = refused(lambda: let_out(tmp_path, visits, recipe_of(records="copy", **PULSE, **rounded(70))))
    assert "call it 'people' again" in error.message


def test_no_name_of_a_column_gives_out_what_an_earlier_release_told(inspector):
    earlier = column_of(
        {"name": "age", "from": "born", "treatment": "age", "at": "2026-01-01", "role": "quasi-identifier"}
    )
    columns = {"born": np.full(ROWS, np.datetime64("1951-07-23")), "a": SMALL}
    done = run(inspector, recipe_of(earlier_0=keep("a")), columns, earlier=(earlier,))
    assert sorted(opened(done.train).column(0).to_pylist()) == sorted(SMALL)


def test_records_without_what_an_earlier_release_told_say_so(tmp_path, visits):
    age = 'from = "born", treatment = "age", at = "2026-01-01", band = 40, role = "quasi-identifier"'
    let_out(tmp_path, visits, recipe_of(subject="who", age=age, **PULSE))
    pq.write_table(VISITS.drop_columns(["born"]), visits)
    error = refused(lambda: let_out(tmp_path, visits, recipe_of(subject="who", **PULSE)))
    assert error.reason is Reason.RISK_TOO_HIGH
    assert "'born'" in error.message


# --- ways that once worked: files and folders


@pytest.mark.parametrize("stage", ["start", "treat"])
def test_records_swapped_during_work_are_refused_though_size_and_time_are_set_back(tmp_path, visits, stage):
    def swap(now):
        if now == stage:
            found, content = visits.stat(), bytearray(visits.read_bytes())
            visits.write_bytes(content)
            os.utime(visits, ns=(found.st_atime_ns, found.st_mtime_ns))

    error = refused(lambda: worked(ordered(tmp_path, visits, recipe_of(subject="who", **PULSE)), swap))
    assert "changed" in error.message


def test_records_written_to_while_they_are_read_are_refused(tmp_path):
    path = tmp_path / "people.arrow"
    with pa.ipc.new_file(path, pa.schema([("a", pa.int64())])) as writer:
        for _ in range(3):
            writer.write_table(pa.table({"a": np.arange(1_000)}))
    blocks = open_source(path, name="people", stage=tmp_path).read(0, ["a"])
    next(blocks)
    found = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert "changed" in refused(lambda: list(blocks)).message


def test_two_drivers_of_one_order_take_turns(tmp_path):
    spool, turns = Spool(tmp_path / "work" / "one"), []

    def second():
        with Spool(tmp_path / "work" / "one").alone():
            turns.append("second")

    with spool.alone():
        other = threading.Thread(target=second)
        other.start()
        spool.prepare()
        time.sleep(0.2)
        spool.clear()
        turns.append("first")
    other.join(timeout=1800)
    assert turns == ["first", "second"]


def test_work_that_was_abandoned_is_removed_and_work_that_goes_on_is_not(tmp_path):
    old, fresh, held, outside = (tmp_path / name for name in ("work/old", "work/fresh", "work/held", "outside"))
    for folder in (old, fresh, held, outside):
        Spool(folder).prepare()
        Spool(folder).put_levels("x", 0, [PLANTED])
    (tmp_path / "work" / "link").symlink_to(outside)
    for folder in (old, held, outside):
        for path in (*folder.iterdir(), folder):
            os.utime(path, (1, 1))
    with Spool(held).alone():
        assert sweep(tmp_path / "work", before=1_000_000) == 1
    assert [path.is_dir() for path in (old, fresh, held, outside)] == [False, True, True, True]
    assert sweep(tmp_path / "nowhere", before=1_000_000) == 0


# --- ways that were stopped all along


PLAIN = IDS[:ROWS]
NUMBERS = {
    "negative": -PLAIN,
    "with a half": PLAIN + 0.5,
    "decimal": pa.array([Decimal(int(n)) for n in PLAIN], pa.decimal128(20, 2)),
    "with a point inside": PLAIN / 10_000,
    "wide decimal": pa.array([Decimal(int(n)) * 10**30 for n in PLAIN], pa.decimal256(60, 0)),
    "text": [str(n) for n in PLAIN],
    "bytes": [str(n).encode() for n in PLAIN],
    "seconds since 1970": pa.array(PLAIN, pa.timestamp("s")),
    "a time of day": pa.array((PLAIN % 86_400).astype(np.int32)).cast(pa.time32("s")),
    "a span": pa.array(PLAIN, pa.duration("s")),
    "an interval": pa.array([(1, int(n), 3) for n in PLAIN], pa.month_day_nano_interval()),
    "lists": pa.array([[int(n)] for n in PLAIN]),
    "maps": pa.array([[("n", int(n))] for n in PLAIN], pa.map_(pa.string(), pa.int64())),
    "runs": pa.RunEndEncodedArray.from_arrays(pa.array([ROWS], pa.int32()), pa.array([int(PLAIN[0])])),
    "denormals": PLAIN * 5e-324,
    "low bits": SMALL + PLAIN * 2.0**-48,
    "views": pa.array([str(n) for n in PLAIN], pa.string_view()),
}


@pytest.mark.parametrize("how", NUMBERS)
def test_an_identifier_is_refused_in_whatever_type_it_is_spelt(inspector, how):
    error = refused(lambda: run(inspector, recipe_of(x=keep("a")), {"a": NUMBERS[how]}))
    assert error.reason is Reason.COLUMN_REFUSED
    assert str(PLAIN[0]) not in str(error)


@pytest.mark.parametrize("one", [2_025_550_177, -2_025_550_177, 987_654_399, 987_654_399.1, 4_012_888_888_881_881])
def test_one_identifier_among_counts_is_refused(inspector, one):
    assert refused(lambda: run(inspector, recipe_of(x=keep("a")), {"a": [*SMALL.tolist(), one]}))


def test_a_code_of_fine_bins_is_refused_like_the_number(inspector):
    edges = ", ".join(str(n) for n in range(0, 1_000_000, 10_000))
    recipe = recipe_of(x=f'from = "a", treatment = "bin", edges = [{edges}]')
    who = np.arange(0, 1_000_000, 10_000)[:100] + 5
    assert refused(lambda: run(inspector, recipe, {"a": who}))


def test_the_bits_of_a_missing_number_and_of_a_negative_zero_do_not_leave(inspector):
    marker = 0x7FF8_5A59_5857_4144
    cells = np.where(SMALL < 3, np.uint64(marker), SMALL.astype(np.float64).view(np.uint64)).view(np.float64)
    done = run(inspector, recipe_of(x=keep("a")), {"a": np.where(SMALL == 5, -0.0, cells)})
    sealed = b"".join(done.train.chunks)
    assert marker.to_bytes(8, "little") not in sealed
    assert np.float64(-0.0).tobytes() not in opened(done.train).column(0).combine_chunks().buffers()[1].to_pybytes()


def test_what_arrow_keeps_unseen_does_not_leave(inspector):
    unused = pa.DictionaryArray.from_arrays(np.zeros(ROWS, np.int32), [PLANTED[:8] * 0 + "seen", PLANTED])
    under = pa.Array.from_buffers(
        pa.int64(), ROWS, [pa.py_buffer(bytes(ROWS // 8)), pa.py_buffer(np.full(ROWS, 987_654_399).tobytes())]
    )
    schema = pa.schema([pa.field("a", unused.type, metadata={b"x": PLANTED.encode()}), pa.field("b", pa.int64())])
    table = pa.Table.from_arrays([unused, under], schema=schema.with_metadata({b"pandas": PLANTED.encode()}))
    done = run(inspector, recipe_of(x='from = "a", treatment = "encode"', y=keep("b")), table)
    leaves = b"".join(done.train.chunks) + canonical(dict(done.report)) + repr(done.dictionaries).encode()
    assert PLANTED.encode() not in leaves
    assert np.int64(987_654_399).tobytes() not in leaves
    assert np.float64(987_654_399).tobytes() not in leaves


def planted_file(folder):
    """Return a Parquet file that carries a value wherever Parquet can, in columns that stay."""
    table = VISITS.append_column(pa.field("note", pa.string(), metadata={b"k": PLANTED.encode()}), [[PLANTED] * 1_200])
    path = folder / "people.parquet"
    table = table.replace_schema_metadata({b"pandas": json.dumps({"index": PLANTED}).encode()})
    pq.write_table(table, path, write_statistics=True, row_group_size=300)
    return path


def traces(text):
    """Return a value and its plain hashes, in the ways in which they may be written."""
    raw = text.encode()
    hashes = [hashlib.new(kind, raw, usedforsecurity=False) for kind in ("md5", "sha1", "sha256", "sha512", "blake2b")]
    found = [raw, base64.b64encode(raw), raw.hex().encode(), text.encode("utf-16-le")]
    for each in hashes:
        found += [each.digest(), each.hexdigest().encode(), base64.b64encode(each.digest())]
        found += [each.digest()[:8], str(int.from_bytes(each.digest()[:8])).encode()]
    return found


def test_neither_a_value_nor_a_plain_hash_of_one_is_in_what_is_sealed_signed_or_marked(tmp_path):
    path = planted_file(tmp_path)
    token = {"token": 'from = "who", treatment = "pseudonymise", by = "hmac"'}
    text = {"text": 'from = "note", treatment = "vectorise", size = 8, cap = 9'}
    done = worked(ordered(tmp_path, path, recipe_of(subject="who", **PULSE, **token, **text)))
    files = [file for file in (*done.folder.rglob("*"), *(done.folder.parent / "marks").iterdir()) if file.is_file()]
    files += [file for file in (tmp_path / "releases").iterdir() if file.is_file()]
    bodies = [file.read_bytes() for file in files]
    bodies += [base64.b64decode(json.loads(body)["payload"]) for file, body in zip(files, bodies, strict=True)
               if file.name == "statement.json"]  # fmt: skip
    assert len(bodies) > 10
    for value in (PLANTED, "P0", "P7", "P123"):
        kept = traces(value) if len(value) > 4 else traces(value)[4:]
        assert not [trace for trace in kept for body in bodies if len(trace) > 6 and trace in body]


def test_tokens_and_vectors_need_the_key_of_the_fabric_and_the_purpose():
    table = pa.table({"a": ["Zyxwanda", "Quorvex"]})
    for made in ('treatment = "pseudonymise", by = "hmac"', 'treatment = "vectorise"'):
        column = recipe_of(x=f'from = "a", {made}').columns[0]
        told = [
            make(column, table, first_row=0, secrets=Secrets(rows=bytes(32), purpose=bytes([key]) * 32)).values
            for key in (1, 2)
        ]
        assert not all(np.array_equal(told[0][name], told[1][name]) for name in told[0])


def test_the_order_of_rows_tells_nothing_to_who_knows_the_seed_but_not_the_bytes(inspector):
    cells = np.arange(ROWS) // 4
    raw = [
        RawTable(name="people", table=pa.table({"a": cells}), version="v", order_key=bytes([key]) * 32)
        for key in (1, 2)
    ]
    recipe = recipe_of(x=keep("a"))
    one, other = (sanitize({"people": each}, recipe, inspector=inspector, hold_back=0.0, seed=1) for each in raw)
    agree = np.array(opened(one.train).column(0)) == np.array(opened(other.train).column(0))
    assert agree.mean() < 0.05


def test_rows_without_a_subject_are_one_person(inspector):
    columns = {"who": [None] * 300 + [f"P{n}" for n in range(300)], "a": RANDOM.integers(0, 9, 600)}
    done = run(inspector, recipe_of(subject="who", x=keep("a")), columns)
    assert done.report["risk"]["subjects"] == 301


def test_a_hundred_copies_of_one_person_hide_nobody(inspector):
    columns = {"who": np.repeat(np.arange(60), 100), "age": np.repeat(np.arange(60), 100)}
    recipe = recipe_of(subject="who", x='from = "age", treatment = "round", to = 5, role = "quasi-identifier"')
    assert refused(lambda: run(inspector, recipe, columns)).reason is Reason.RISK_TOO_HIGH


@pytest.mark.parametrize("cells", [pa.nulls(ROWS), pa.nulls(ROWS, pa.int64()), [float("nan")] * ROWS])
def test_a_column_of_nothing_says_nothing(inspector, cells):
    assert np.isnan(opened(run(inspector, recipe_of(x=keep("a")), {"a": cells}).train).column(0)).all()


def test_an_empty_table_is_refused(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.int64())}), tmp_path / "people.parquet")
    error = refused(lambda: read_records(tmp_path / "people.parquet", name="people"))
    assert error.reason is Reason.RECORDS_EMPTY


def test_groups_of_one_row_give_the_same_bytes(tmp_path):
    sealed = []
    for rows in (1, 400):
        folder = tmp_path / str(rows)
        folder.mkdir()
        path = folder / "people.parquet"
        pq.write_table(VISITS, path, row_group_size=rows)
        order = ordered(folder, path, recipe_of(subject="who", **PULSE))
        worked(order)
        sealed.append(sorted(np.fromfile(order.work / "pulse.col")))
    assert sealed[0] == sealed[1]


def test_columns_of_one_name_are_refused(inspector):
    table = pa.table([pa.array(SMALL), pa.array(PLAIN)], names=["a", "a"])
    assert refused(lambda: run(inspector, recipe_of(x=keep("a")), table)).reason is Reason.RECORDS_UNREADABLE


def test_more_levels_than_memory_holds_are_refused(inspector, monkeypatch):
    monkeypatch.setattr(settling, "MAX_LEVELS", 300)
    error = refused(lambda: run(inspector, recipe_of(x='from = "a", treatment = "encode"'), {"a": PLAIN.astype(str)}))
    assert "not a category" in error.message


def test_a_huge_cell_neither_hangs_nor_passes_unread(inspector):
    huge = "x" * 500_000 + " 078-05-1126 " + "y" * 500_000
    columns = {"a": [huge] * ROWS}
    assert refused(lambda: run(inspector, recipe_of(x='from = "a", treatment = "encode"'), columns))


CSVS = {
    "a quote that is never closed": b'a,b\n1,"2\n',
    "NUL bytes": b"a,b\n1,2\0\n",
    "UTF-16": "a,b\n1,2\n".encode("utf-16"),
    "Latin-1": b"a,b\n1,Zyxwanda\xe9\n",
    "cells too many": b"a,b\n1,2,Zyxwanda\n",
    "cells too few": b"a,b\n1,2\nZyxwanda\n",
    "a row for a header": b"a,987-65-4399\n1,2\n",
    "an address for a header": b"a,zyxwanda@planted.example\n1,2\n",
    "two names alike": b"a,a\n1,2\n",
    "no end": b"a,b\n1,Zyxwan",
}


@pytest.mark.parametrize("how", CSVS)
def test_a_malformed_csv_is_refused_and_quoted_nowhere(tmp_path, how):
    path = tmp_path / "people.csv"
    path.write_bytes(CSVS[how])
    error = refused(lambda: read_records(path, name="people"))
    assert not any(word in repr(error) for word in ("Zyxwanda", "987"))
    assert not list(tmp_path.glob("*.part"))


def test_a_mark_of_byte_order_is_no_part_of_a_name(tmp_path):
    path = tmp_path / "people.csv"
    path.write_bytes("\ufeffSSN,b\n1,2\n".encode())
    assert read_records(path, name="people").table.column_names == ["SSN", "b"]


def test_a_link_that_points_elsewhere_meanwhile_is_refused(tmp_path, visits):
    other, link = tmp_path / "other.parquet", tmp_path / "link.parquet"
    pq.write_table(VISITS.slice(0, 600), other)
    link.symlink_to(visits)

    def swap(stage):
        if stage == "treat":
            link.unlink()
            link.symlink_to(other)

    error = refused(lambda: worked(ordered(tmp_path, link, recipe_of(subject="who", **PULSE)), swap))
    assert "changed" in error.message


@pytest.mark.parametrize("name", ["x/../../y", "@subject", "x.level", "x@again", "X", "1"])
def test_a_column_cannot_be_named_into_another_file_of_the_work(name):
    columns = (Column(name=name, source="a", treatment=Round(to=Decimal(1)), role=Role.FEATURE),)
    refused(lambda: replace(recipe_of(x=keep("a")), columns=columns))


def test_a_mark_that_was_altered_is_not_believed(tmp_path, visits):
    order = ordered(tmp_path, visits, recipe_of(subject="who", **PULSE))

    def spoil(stage):
        if stage == "cut":
            (order.work / "marks" / "judge.all").write_bytes(b"{")
            (order.work / "marks" / "inspect.pulse").unlink()

    assert refused(lambda: worked(order, spoil)).reason is Reason.INSPECTION_FAILED


def test_a_page_about_a_matrix_runs_nothing_that_a_recipe_says(inspector):
    done = run(inspector, recipe_of(name="<script>alert(1)</script>", x=keep("a")), {"a": SMALL})
    assert "<script" not in report_html(done.report, envelope_digest="sha256:0")
