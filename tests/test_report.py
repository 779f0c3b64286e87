"""The report: it stands alone, escapes what it is given, says what was signed, and lacks what was not."""

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanitize.report import report_fragment, report_html
from sanitize.risk import Limits, measure

EVIL = "\"'><script>alert(1)</script><img src=x onerror=y>"
ENVELOPE = "sha256:" + "ab" * 32


def predicate():
    quasi = {"age": np.arange(100) // 20, "sex": np.arange(100) % 2}
    measured = measure(quasi, sensitive={"dx": (np.arange(100) % 3).astype(np.int32)}, subjects=None)
    return {
        "recipe": "sha256:" + "cd" * 32,
        "recipe_name": "readmission",
        "columns": [
            {
                "name": "age",
                "from": "BIRTHDATE",
                "treatment": "age",
                "why": "whole years, over 89 as 90",
                "role": "quasi-identifier",
                "type": "double",
                "levels": 0,
                "nulls": 12,
                "clipped": 3,
                "folded": 0,
                "distinct": 61,
                "findings": {"PHONE_NUMBER": {"strong": 0, "weak": 2}},
            },
            {"name": "cost", "treatment": "perturb", "epsilon": "0.5", "findings": {}, "nulls": 0},
            {"name": "who", "treatment": "pseudonymise", "tokens": "random", "findings": {}, "folded": 7},
        ],
        "dropped": 4,
        "unmatched": {"patients": 0},
        "rows_in": 1_234,
        "rows_out": 1_200,
        "rows": 1_000,
        "suppressed": 34,
        "engines": {"presidio-analyzer": "2.2.366"},
        "inspection": {"fast": ["US_SSN"], "slow": ["UK_NHS"], "audited": 3_200},
        "inputs": {"encounters": "hmac-sha256:" + "ef" * 32},
        "part": "matrix",
        "purpose": "readmission-model",
        "labels": {"data_classification": "restricted", "allowed_execution_zone": ["private", "public"]},
        "classification_before": "restricted",
        "classification_after": "confidential",
        "releases_considered": 2,
        "risk": measured.to_json(),
        "risk_limits": Limits(k=5, l=2).to_json(),
        "issued_at": "2026-01-01T00:00:00.000000+00:00",
        "expires_at": "2026-02-01T00:00:00.000000+00:00",
    }


class Page(HTMLParser):
    """Collects tags, attributes and text; a tag that is not closed is an error."""

    VOID = frozenset({"meta"})

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(self.words)


def everywhere(text):
    """Return a predicate that holds `text` wherever a statement has words."""

    def put(value):
        if isinstance(value, dict):
            return {f"{key}{text}" if key == "US_SSN" else key: put(each) for key, each in value.items()}
        if isinstance(value, list):
            return [put(each) for each in value]
        return value if isinstance(value, int) else text

    whole = put(predicate())
    for holder in ("inputs", "labels", "engines", "unmatched"):
        whole[holder] = {text: text}
    whole["columns"][0]["findings"] = {text: {"strong": 1, "weak": 0}}
    return whole


def test_nothing_that_a_statement_says_becomes_markup():
    page = report_html(everywhere(EVIL), envelope_digest=EVIL, dictionaries={EVIL: [EVIL]})
    assert "<script" not in page
    assert "<img" not in page
    assert {"script", "img"}.isdisjoint(Page(page).tags)
    assert not any(name.startswith("on") for name, _ in Page(page).attributes)
    assert {"script", "img"}.isdisjoint(Page(report_fragment(everywhere(EVIL))).tags)


def test_the_page_loads_nothing_and_runs_nothing():
    page = report_html(predicate(), envelope_digest=ENVELOPE)
    attributes = Page(page).attributes
    assert not {name for name, _ in attributes} & {"src", "href", "srcset", "action", "style", "onload"}
    assert {value for _, value in attributes if value and "://" in value} == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(", page)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in attributes


def test_the_page_says_what_was_signed():
    text = Page(report_html(predicate(), envelope_digest=ENVELOPE)).text
    for said in (
        *("readmission-model", ENVELOPE, "1,234", "34", "restricted before, confidential after"),
        *("10 (at least 5 asked)", "PHONE_NUMBER", "whole years, over 89 as 90", "noise of epsilon 0.5"),
        *("random tokens", "US_SSN", "UK_NHS", "3,200", "2.2.366", "hmac-sha256:" + "ef" * 32),
        *("2026-02-01T00:00:00.000000+00:00", "private, public", "equal distance", "Cells by how many subjects"),
    ):
        assert said in text, said


def test_the_fragment_has_figures_cells_and_columns_and_no_page_around_them():
    fragment = report_fragment(predicate())
    assert "1,234" in Page(fragment).text
    assert "10 (at least 5 asked)" in Page(fragment).text
    assert "svg" in Page(fragment).tags
    assert {"html", "head", "style"}.isdisjoint(Page(fragment).tags)


def test_levels_are_shown_only_where_they_are_passed_and_the_page_says_that_it_stays():
    without = report_html(predicate(), envelope_digest=ENVELOPE)
    assert "stays in the private zone" not in without
    shown = report_html(predicate(), envelope_digest=ENVELOPE, dictionaries={"dx": ["(other)", "Gout"]})
    assert "Gout" in shown
    assert "stays in the private zone" in shown
    many = report_html(predicate(), envelope_digest=ENVELOPE, dictionaries={"dx": [f"L{i}" for i in range(1_500)]})
    assert "L999<" in many
    assert "L1000<" not in many
    assert "and 500 more" in many


def test_every_table_has_a_caption_and_every_chart_says_in_words_what_it_shows():
    page = report_html(predicate(), envelope_digest=ENVELOPE)
    assert page.count("<table>") == page.count("<caption>") > 5
    charts = re.findall(r"<svg.*?</svg>", page)
    assert len(charts) == 4  # cells, missing, clipped, folded
    for chart in charts:
        root = ElementTree.fromstring(chart)
        space = "{http://www.w3.org/2000/svg}"
        assert root.get("role") == "img"
        assert root.find(f"{space}title").text
        assert root.find(f"{space}desc").text in root.get("aria-label")
    assert ElementTree.fromstring(charts[0]).find(f"{space}desc").text.startswith("1 subjects: 0 cells")
    assert '<html lang="en">' in page


def test_bars_are_as_long_as_what_they_count():
    page = report_html(
        predicate() | {"risk": {"histogram": [{"subjects": "1", "cells": 5}, {"subjects": "2", "cells": 10}]}},
        envelope_digest=ENVELOPE,
    )
    (chart,) = [each for each in re.findall(r"<svg.*?</svg>", page) if "Cells by" in each]
    assert re.findall(r'<rect[^>]* width="(\d+)"', chart) == ["180", "360"]


def contrast(ink, paper):
    """Return WCAG 2's contrast ratio."""

    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((light(ink), light(paper)))
    return (lighter + 0.05) / (darker + 0.05)


def test_text_and_bars_stand_out_from_the_paper():
    page = report_html(predicate(), envelope_digest=ENVELOPE)
    inks = {*re.findall(r'fill="(#[0-9a-f]{6})"', page), *re.findall(r"[;{]color:(#[0-9a-f]{6})", page)}
    assert len(inks) == 3
    assert min(contrast(ink, "#ffffff") for ink in inks) > 4.5


@pytest.mark.parametrize("missing", [*predicate(), "everything"])
def test_a_statement_of_an_older_shape_still_has_a_report(missing):
    said = {} if missing == "everything" else {key: each for key, each in predicate().items() if key != missing}
    for page in (report_html(said, envelope_digest=ENVELOPE), report_fragment(said)):
        Page(page)
        assert "None" not in page


junk = st.recursive(
    st.none() | st.integers() | st.text() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(predicate())), junk))
def test_no_shape_of_a_statement_breaks_the_page(changed):
    Page(report_html(predicate() | changed, envelope_digest=ENVELOPE))
    Page(report_fragment(predicate() | changed))
