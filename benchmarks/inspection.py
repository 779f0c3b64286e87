"""What inspection costs, beside Presidio's own batch engine, in one run on the same table and configuration.

    python benchmarks/inspection.py [--quick] [--rows 100000] [--sample 1500]

Three things are measured, in CPU seconds of this process.

1. Each column of a table of 22: `Inspector.scan` reads all rows. Presidio's `BatchAnalyzerEngine` reads the sampled
   rows only, and its time is scaled to the whole by the cell. Every finding of every cell that it read is compared,
   one by one: entity, start, end, score and order. One difference ends the run with status 1.
2. `Inspector.inspect_column`, the counts that a verdict needs, with its other spellings and its audit.
3. The verdict of the border: exhaustive on the columns that would cross, over at the first proof on those that cannot.

The audit is on. `--quick` reads 10,000 rows, too few to show what a long column of few values saves.

With `--differential N` it compares N made-up texts instead, on the project's recognizers and on every recognizer that
Presidio has for English.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from presidio_analyzer import (
    AnalyzerEngine,
    BatchAnalyzerEngine,
    EntityRecognizer,
    PatternRecognizer,
    RecognizerRegistry,
)
from presidio_analyzer import predefined_recognizers as known
from presidio_analyzer.nlp_engine import NoOpNlpEngine

from sanitize.inspection import Inspector
from sanitize.recognizers import RecognizerSet
from sanitize.verdict import Thresholds
from sanitize.weakening import Untranslatable, example

IDENTIFIERS = ("email", "ssn", "card", "phone", "ip", "uuid", "iban")
CLEAN = ("status", "city", "drug", "dose", "visits", "flag", "name")
SYLLABLES = ("ba", "de", "fi", "go", "lu", "ma", "ne", "ro", "sa", "ti", "va", "wen", "zor", "kel", "min", "tor")
SENTENCES = (
    "Seen in clinic for review, no new complaints.",
    "Blood pressure stable at 120/80, afebrile.",
    "Advised rest and fluids; return if worse.",
    "Dose of metformin raised to 500 mg twice daily.",
    "Lungs clear, heart sounds normal, no oedema.",
    "Discussed results with the family at length.",
)
MENTIONS = ("Call {phone}.", "Write to {email}.", "SSN {ssn}.", "Card {card}.", "Logged in from {ip}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """CPU microseconds a cell, ours and Presidio's, and what was compared."""

    column: str
    ours_us: float
    counted_us: float
    presidio_us: float
    distinct: int
    findings: int
    different: int


def cpu(work: Callable[[], object]) -> tuple[float, object]:
    """Return the CPU seconds of `work` and what it returned."""
    before = time.process_time()
    made = work()
    return time.process_time() - before, made


def _luhn(body: str) -> str:
    digits = [int(c) for c in reversed(body)]
    total = sum(d if place % 2 else sum(divmod(2 * d, 10)) for place, d in enumerate(digits))
    return f"{body}{-total % 10}"


def _iban(number: int) -> str:
    return f"DE{98 - int(f'{number:018d}131400') % 97:02d}{number:018d}"


def table(rows: int, seed: int = 11) -> pa.Table:
    """Return made-up records: 22 columns, half of them identifiers of a kind."""
    r = np.random.default_rng(seed)
    word = np.array([a + b for a in SYLLABLES for b in SYLLABLES])
    first, last = (np.char.capitalize(r.choice(word, rows)) for _ in range(2))
    tens = r.integers(0, 10**9, rows)
    area, mid, end = r.integers(201, 989, rows), r.integers(200, 999, rows), r.integers(0, 9_999, rows)
    ways = ("({}) {}-{:04d}", "{}-{}-{:04d}", "+1 {} {} {:04d}", "{}.{}.{:04d}")
    when = np.datetime64("2012-01-01T00:00:00") + r.integers(0, 400_000_000, rows).astype("timedelta64[s]")
    born = np.datetime64("1935-01-01") + r.integers(0, 30_000, rows).astype("timedelta64[D]")
    raw = r.bytes(16 * rows).hex()
    people = {
        "email": [
            f"{a.lower()}.{b.lower()}{n % 997}@mail{n % 7}.example.com"
            for a, b, n in zip(first, last, tens, strict=True)
        ],
        "ssn": [f"{n % 650 + 1:03d}-{n // 650 % 98 + 1:02d}-{n // 7 % 9998 + 1:04d}" for n in tens],
        "card": [_luhn(f"4{n:09d}{m:05d}") for n, m in zip(tens, tens[::-1] % 99_999, strict=True)],
        "phone": [ways[n % 4].format(a, b, c) for n, a, b, c in zip(tens, area, mid, end, strict=True)],
        "ip": [f"{n % 223 + 1}.{n // 223 % 256}.{n // 57_088 % 256}.{n % 254 + 1}" for n in tens],
    }
    notes = []
    for place in range(rows):
        said = [SENTENCES[tens[place] % 6], SENTENCES[tens[place] // 6 % 6], f"Weight {tens[place] % 900 / 10} kg."]
        if tens[place] % 3 == 0:
            mention = MENTIONS[tens[place] // 3 % 5]
            said.insert(1, mention.format(**{name: values[place] for name, values in people.items()}))
        notes.append(" ".join(said))
    return pa.table(
        {
            "row_id": np.arange(rows) + 1_000_000,
            "amount": np.round(r.lognormal(4, 1, rows), 2),
            "visits": r.integers(0, 500, rows),
            "score": r.random(rows),
            "seen_at": pa.array(when),
            "flag": r.random(rows) < 0.5,
            "name": [f"{a} {b}" for a, b in zip(first, last, strict=True)],
            **people,
            "born": np.datetime_as_string(born),
            "order": [f"ORD-{n % 10**8:08d}" for n in tens],
            "uuid": [_uuid(raw[32 * n : 32 * n + 32]) for n in range(rows)],
            "iban": [_iban(int(n) * 999_983) for n in tens],
            "status": r.choice(["active", "pending", "closed", "unknown"], rows),
            "icd": r.choice([f"{c}{n:02d}.{m}" for c in "ABEIJKMN" for n in range(0, 60, 4) for m in (0, 1, 9)], rows),
            "city": np.char.capitalize(r.choice(word, rows)),
            "drug": r.choice([f"{a}{b}pril" for a in SYLLABLES for b in SYLLABLES[:4]], rows),
            "dose": r.choice([f"{n} mg" for n in (5, 10, 20, 40, 80, 120)], rows),
            "notes": notes,
        }
    )


def _uuid(raw: str) -> str:
    return f"{raw[:8]}-{raw[8:12]}-4{raw[13:16]}-a{raw[17:20]}-{raw[20:32]}"


def texts_of(column: pa.ChunkedArray) -> pa.Array:
    """Return a column as text, once and for both."""
    if pa.types.is_floating(column.type):
        return pa.array([np.format_float_positional(value, trim="-") for value in column.to_numpy()])
    return column.cast(pa.string()).combine_chunks()


def engine(recognizers: Sequence[EntityRecognizer]) -> AnalyzerEngine:
    """Return Presidio's engine over the same recognizers, without a model."""
    return AnalyzerEngine(
        registry=RecognizerRegistry(recognizers=list(recognizers), supported_languages=["en"]),
        nlp_engine=NoOpNlpEngine(models=[{"lang_code": "en", "model_name": "no_op"}]),
        supported_languages=["en"],
    )


def measure(
    name: str, values: pa.ChunkedArray, inspector: Inspector, batch: BatchAnalyzerEngine, sample: int
) -> Measured:
    """Read one column both ways and compare every finding that Presidio had."""
    texts = texts_of(values)
    ours_s, found = cpu(lambda: inspector.scan(texts, [name]))
    counted_s, _ = cpu(lambda: inspector.inspect_column(name, values))
    places = np.sort(np.random.default_rng(5).choice(len(texts), min(sample, len(texts)), replace=False))
    some = texts.take(pa.array(places)).to_pylist()
    theirs_s, results = cpu(
        lambda: list(batch.analyze_iterator(some, language="en", context=[name], score_threshold=0))
    )
    at = dict(zip(found.values.to_pylist(), range(len(found.values)), strict=True))
    pairs = [
        (tuple((r.entity_type, r.start, r.end, r.score) for r in cell), found.found.get(at[text], ()))
        for text, cell in zip(some, results, strict=True)
    ]
    return Measured(
        column=name,
        ours_us=1e6 * ours_s / len(texts),
        counted_us=1e6 * counted_s / len(texts),
        presidio_us=1e6 * theirs_s / len(some),
        distinct=len(at),
        findings=sum(len(theirs) for theirs, _ in pairs),
        different=sum(theirs != mine for theirs, mine in pairs),
    )


def crosses(name: str, values: pa.ChunkedArray, inspector: Inspector, limits: Thresholds) -> str:
    """Return why a column cannot cross as it is; empty if it may. The rules are those of `sanitize.verdict`."""
    if pa.types.is_boolean(values.type):
        return ""
    if pa.types.is_temporal(values.type):
        return "dates and times do not cross as they are"
    if pa.types.is_floating(values.type):
        numbers = values.to_numpy()
        if (np.round(numbers, limits.decimals) != numbers).any():
            return "too many decimals"
    elif not pa.types.is_integer(values.type):
        if objection := inspector.first_objection(name, values.slice(0, 32)):
            return objection.entity
        if pc.count_distinct(values).as_py() > limits.levels:
            return "too many levels"
    elif pc.count_distinct(values).as_py() > limits.unique_share * len(values):
        return "it tells rows apart"
    objection = inspector.first_objection(name, values)
    return objection.entity if objection else ""


def compare_columns(rows: int, sample: int) -> int:
    """Print the comparison; return how many cells differ."""
    made = table(rows)
    inspector = Inspector()
    batch = BatchAnalyzerEngine(engine(RecognizerSet.standard().build()))
    print(
        f"{rows:,} rows x {made.num_columns} columns; Presidio reads {sample:,} rows, scaled by the cell; CPU us a cell"
    )
    print(f"{'column':<10}{'distinct':>9}{'Presidio':>10}{'scan':>9}{'ratio':>9}{'counts':>9}{'ratio':>9}  compared")
    measured = [measure(name, made[name], inspector, batch, sample) for name in made.column_names]
    for one in measured:
        _print(one)
    theirs = sum(one.presidio_us for one in measured)
    _total("all columns", measured, measured)
    _total("identifiers", measured, [one for one in measured if one.column in IDENTIFIERS])
    _total("clean", measured, [one for one in measured if one.column in CLEAN])
    limits = Thresholds()
    verdict_s, verdicts = cpu(lambda: {n: crosses(n, made[n], inspector, limits) for n in made.column_names})
    print(f"verdict of the border: {1e6 * verdict_s / rows:.1f} us a row, {theirs * rows / 1e6 / verdict_s:,.0f} x")
    assert isinstance(verdicts, dict)  # noqa: S101
    print("may cross: " + ", ".join(name for name, why in verdicts.items() if not why))
    print("not: " + "; ".join(f"{name} ({why})" for name, why in verdicts.items() if why))
    different = sum(one.different for one in measured)
    print(f"cells with other findings: {different} of {sample * len(measured):,}")
    return different


def everything() -> RecognizerSet:
    """Return every recognizer of Presidio's that reads English patterns or phone numbers."""
    names = sorted({kind.__name__ for name in dir(known) if _usable(kind := getattr(known, name))})
    entries = "".join(f"  - {{name: {name}, supported_languages: [en], type: predefined}}\n" for name in names)
    return RecognizerSet.from_yaml("recognizers:\n" + entries, source="every recognizer")


def _usable(kind: object) -> bool:
    abstract = (PatternRecognizer, known.ZaPhoneNumberRecognizer) if hasattr(known, "ZaPhoneNumberRecognizer") else ()
    return (
        isinstance(kind, type) and issubclass(kind, PatternRecognizer | known.PhoneRecognizer) and kind not in abstract
    )


def compare_texts(many: int) -> int:
    """Compare made-up texts on two sets of recognizers; return how many texts differ."""
    wrong = 0
    for chosen in (RecognizerSet.standard(), everything()):
        inspector, made = Inspector(chosen), chosen.build()
        theirs = engine(made)
        for seed, context in enumerate(((), ("ssn", "phone number"), ("card", "email", "member policy"))):
            texts = made_up(made, many // 3, random.Random(seed))  # noqa: S311 - no secret
            spent_s, findings = cpu(partial(inspector.scan, pa.array(texts), context))
            at = dict(zip(findings.values.to_pylist(), range(len(findings.values)), strict=True))
            different = 0
            for text in at:
                results = theirs.analyze(text, language="en", score_threshold=0, context=list(context))
                there = tuple((r.entity_type, r.start, r.end, r.score) for r in results)
                different += there != findings.found.get(at[text], ())
            wrong += different
            print(f"{chosen.source}, context {context}: {len(at):,} texts, {different} differ, {spent_s:.1f} CPU s")
        print(f"  slow: {', '.join(inspector.coverage().slow) or 'none'}")
    return wrong


GLUE = (
    *" .,-/:xA0@#+(_'\n\t",
    "é",
    "٣",
    "İ",
    "K",
    "\u200b",
    " ssn ",
    " card no ",
    " 212-555-0187 ",
    "2024-01-05 10:00",
)


def made_up(recognizers: Sequence[EntityRecognizer], many: int, source: random.Random) -> list[str]:
    """Return texts made from the recognizers' patterns, joined and mutated; about a quarter holds other characters."""
    patterns = [(p.regex, int(r.global_regex_flags)) for r in recognizers for p in getattr(r, "patterns", ())]
    texts = []
    while len(texts) < many:
        try:
            text = example(*source.choice(patterns), source)
            while source.random() < 0.35:
                text += source.choice(GLUE) + example(*source.choice(patterns), source)
        except Untranslatable:
            continue
        for _ in range(source.choice((0, 0, 0, 1, 2))):
            place = source.randrange(len(text) + 1)
            text = text[:place] + source.choice(GLUE) + text[place + source.randint(0, 1) :]
        if source.random() < 0.15:
            text += source.choice("é٣İKſ　")
        texts.append(text[:600])
    return texts


def _print(one: Measured) -> None:
    print(
        f"{one.column:<10}{one.distinct:>9,}{one.presidio_us:>10.0f}{one.ours_us:>9.2f}"
        f"{one.presidio_us / one.ours_us:>8,.0f}x{one.counted_us:>9.2f}{one.presidio_us / one.counted_us:>8,.0f}x"
        f"  {one.findings:,}" + (f" DIFFERENT {one.different}" if one.different else "")
    )


def _total(title: str, measured: Sequence[Measured], part: Sequence[Measured]) -> None:
    theirs, ours, counted = (
        sum(getattr(one, field) for one in part) for field in ("presidio_us", "ours_us", "counted_us")
    )
    ratios: Mapping[str, float] = {one.column: one.presidio_us / one.ours_us for one in part}
    least = min(ratios, key=lambda name: ratios[name])
    print(f"{title}: {theirs / ours:,.1f} x (counts {theirs / counted:,.1f} x); least {least}, {ratios[least]:,.1f} x")


def main() -> None:
    """Measure, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--sample", type=int, default=1_500)
    parser.add_argument("--differential", type=int, default=0)
    asked = parser.parse_args()
    rows, sample = (10_000, 150) if asked.quick else (asked.rows, asked.sample)
    if asked.differential:
        sys.exit(1 if compare_texts(asked.differential) else 0)
    sys.exit(1 if compare_columns(rows, sample) else 0)


if __name__ == "__main__":
    main()
