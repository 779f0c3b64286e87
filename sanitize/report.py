"""The report of a matrix: its signed statement as a page that a person can read, and as a part of a notebook.

The page stands alone: no script, nothing loaded from elsewhere, charts as SVG within it; it prints. All text is
escaped. It says what the statement says and adds nothing, unless levels are passed: a page with levels says at its
top that it stays inside. A statement of an older shape lacks keys; what it does not say is left out.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_MOST_LEVELS = 1_000
_CSS = """
body{font:15px/1.5 system-ui,sans-serif;color:#1a1a1a;background:#fff;max-width:70rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2rem;border-bottom:1px solid #767676}
table{border-collapse:collapse;width:100%;margin:.5rem 0 1rem}caption{text-align:left;font-weight:600;padding:.3rem 0}
th,td{border:1px solid #949494;padding:.25rem .5rem;text-align:left;vertical-align:top;overflow-wrap:anywhere}
th{background:#eee}td.n{text-align:right;font-variant-numeric:tabular-nums}code{font-size:.9em;overflow-wrap:anywhere}
.inside{border:3px solid #a40000;color:#a40000;padding:.5rem 1rem;font-weight:600}svg{max-width:100%;height:auto}
@media print{body{margin:0;max-width:none;font-size:11px}h2{break-after:avoid}tr,figure,svg{break-inside:avoid}}
"""
_INK, _BAR = "#1a1a1a", "#1f5a96"

Json = Mapping[str, Any]


def report_html(
    predicate: Json, *, envelope_digest: str, dictionaries: Mapping[str, Sequence[str]] | None = None
) -> str:
    """Return the whole page.

    Args:
        predicate: of a verified statement about a sanitized matrix.
        envelope_digest: digest of the signed envelope, by which the page can be held against the evidence.
        dictionaries: the level behind each code, by column: the page must then stay inside.
    """
    title = f"Sanitized matrix: {_text(predicate.get('recipe_name')) or 'unnamed recipe'}"
    inside = '<p class="inside" role="note">This page shows levels of the records: it stays in the private zone.</p>'
    body = "".join(
        (
            f"<h1>{title}</h1>",
            inside if dictionaries else "",
            _summary(predicate, envelope_digest),
            _section("Risk of the whole", _risk(predicate)),
            _section("Columns", _columns(_notes(predicate)) + _charts(predicate)),
            _section("Findings", _findings(_notes(predicate)) + _inspection(predicate)),
            _section("Levels behind the codes", _levels(dictionaries or {})),
            _section("Where it comes from", _origins(predicate)),
        )
    )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_CSS}</style></head><body><main>{body}</main></body></html>"
    )


def report_fragment(predicate: Json) -> str:
    """Return the short form for a notebook: figures, the cells' sizes, the columns."""
    risk = _map(predicate.get("risk"))
    return "<div>" + _figures(predicate) + _histogram(risk) + _columns(_notes(predicate)) + "</div>"


def _summary(predicate: Json, envelope_digest: str) -> str:
    dates = [("Issued", predicate.get("issued_at")), ("Expires", predicate.get("expires_at"))]
    return _figures(predicate) + _pairs(
        "What was signed",
        [
            ("Purpose", predicate.get("purpose")),
            ("Part", predicate.get("part")),
            *dates,
            ("Signed envelope", envelope_digest),
            ("Recipe", predicate.get("recipe")),
        ],
    )


def _figures(predicate: Json) -> str:
    before, after = predicate.get("classification_before"), predicate.get("classification_after")
    limits, risk = _map(predicate.get("risk_limits")), _map(predicate.get("risk"))
    return _pairs(
        "In short",
        [
            ("Rows read", predicate.get("rows_in")),
            ("Rows in this part", predicate.get("rows")),
            ("Rows left out of small cells", predicate.get("suppressed")),
            ("Columns out", len(_notes(predicate)) or None),
            ("Columns that stayed inside", predicate.get("dropped")),
            ("Classification", f"{before} before, {after} after" if before and after else before or after),
            ("Fewest subjects in a cell (k)", _beside(risk.get("k"), limits.get("k"), "at least")),
            ("Earlier releases considered", predicate.get("releases_considered")),
        ],
    )


def _risk(predicate: Json) -> str:
    risk, limits = _map(predicate.get("risk")), _map(predicate.get("risk_limits"))
    if not risk:
        return ""
    few = _map(risk.get("small"))
    figures = _pairs(
        "How well rows can be told apart by their quasi-identifiers",
        [
            ("Quasi-identifiers", ", ".join(map(str, _list(risk.get("quasi")))) or "none"),
            ("Subjects", risk.get("subjects")),
            ("Cells", risk.get("cells")),
            ("Fewest subjects in a cell (k)", _beside(risk.get("k"), limits.get("k"), "at least")),
            ("Share of subjects alone in a cell", risk.get("uniqueness")),
            (f"Cells of fewer than {few.get('under', '?')} subjects", few.get("cells")),
            ("Share of subjects in such cells", few.get("share")),
        ],
    )
    rows = [
        (
            each.get("column"),
            _beside(each.get("l"), limits.get("l"), "at least"),
            each.get("entropy_l"),
            _beside(each.get("t"), limits.get("t"), "at most"),
            f"{each.get('values', '?')} values, {each.get('distance', '?')} distance"
            + (", in bins" if each.get("binned") else ""),
        )
        for each in _maps(risk.get("sensitive"))
    ]
    head = ("column", "distinct l", "entropy l", "t", "measured over")
    return figures + _histogram(risk) + _table("What a cell tells of sensitive columns", head, rows)


def _histogram(risk: Json) -> str:
    sizes = [(f"{bar.get('subjects', '?')} subjects", _count(bar.get("cells"))) for bar in _maps(risk.get("histogram"))]
    return _bars("Cells by how many subjects they hold", sizes, "cells")


def _columns(notes: Sequence[Json]) -> str:
    numbers = ("levels", "nulls", "clipped", "folded", "distinct")
    words = ("name", "from", "treatment", "role", "type")
    rows = [
        (
            *(note.get(key) for key in words),
            "; ".join(filter(None, (str(note.get("why") or ""), _noise(note)))),
            *(note.get(key) for key in numbers),
            "crosses",
        )
        for note in notes
    ]
    return _table("Each outgoing column", (*words, "why", *numbers, "fate"), rows)


def _noise(note: Json) -> str:
    epsilon, tokens = note.get("epsilon"), note.get("tokens")
    noise = f"noise of epsilon {epsilon}" if epsilon else ""
    return "; ".join(filter(None, (noise, f"{tokens} tokens" if tokens else "")))


def _charts(predicate: Json) -> str:
    rows = _count(predicate.get("rows_in"))
    of = f" of {rows:,} rows" if rows else ""
    drawn = []
    for key, what in (("nulls", "Missing cells"), ("clipped", "Cells held within bounds"), ("folded", "Folded levels")):
        bars = [(str(note.get("name", "?")), _count(note.get(key))) for note in _notes(predicate)]
        of_rows = of if key != "folded" else ""
        drawn.append(_bars(f"{what} by column{of_rows}", [bar for bar in bars if bar[1]], key))
    return "".join(drawn)


def _findings(notes: Sequence[Json]) -> str:
    rows = [
        (note.get("name"), entity, _map(hits).get("strong"), _map(hits).get("weak"), _map(hits).get("respelled", 0))
        for note in notes
        for entity, hits in sorted(_map(note.get("findings")).items())
    ]
    if notes and not rows:
        return "<p>Nothing that looks like an identifier was found in any value that crosses.</p>"
    head = ("column", "looks like", "strong", "weak", "spelt again")
    return _table("What looked like an identifier, in distinct values", head, rows)


def _inspection(predicate: Json) -> str:
    inspection = _map(predicate.get("inspection"))
    lists = [(f"Recognizers on the {way} path", _list(inspection.get(way))) for way in ("fast", "slow")]
    return _pairs(
        "How values were inspected",
        [
            *((name, ", ".join(map(str, found)) or None) for name, found in lists),
            ("Values read a second time by the whole engine", inspection.get("audited")),
            *((f"Version of {name}", version) for name, version in sorted(_map(predicate.get("engines")).items())),
        ],
    )


def _levels(dictionaries: Mapping[str, Sequence[str]]) -> str:
    shown = []
    for name, levels in dictionaries.items():
        more = len(levels) - _MOST_LEVELS
        rows = [(code, level) for code, level in enumerate(levels[:_MOST_LEVELS])]
        table = _table(f"Codes of {name}", ("code", "level"), rows)
        shown.append(table + (f"<p>and {more:,} more</p>" if more > 0 else ""))
    return "".join(shown)


def _origins(predicate: Json) -> str:
    inputs = sorted(_map(predicate.get("inputs")).items())
    labels = sorted(_map(predicate.get("labels")).items())
    unmatched = sorted(_map(predicate.get("unmatched")).items())
    return (
        _table("Records, each version under a keyed digest", ("records", "version"), inputs)
        + _table("Rows without a match in joined records", ("records", "rows"), unmatched)
        + _table("Labels", ("label", "value"), [(name, _plain(value)) for name, value in labels])
    )


def _plain(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def _beside(value: object, limit: object, word: str) -> str | None:
    if value in (None, ""):
        return None
    shown = f"{value:,}" if isinstance(value, int) else str(value)
    return f"{shown} ({word} {limit} asked)" if limit not in (None, "") else shown


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>" if body else ""


def _pairs(caption: str, pairs: Iterable[tuple[str, object]]) -> str:
    """Return a table of names and values, without those that are not stated."""
    rows = [
        f'<tr><th scope="row">{_text(name)}</th>{_cell(value)}</tr>' for name, value in pairs if value not in (None, "")
    ]
    return f"<table><caption>{_text(caption)}</caption><tbody>{''.join(rows)}</tbody></table>" if rows else ""


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    if not rows:
        return ""
    names = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><caption>{_text(caption)}</caption><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f'<td class="n">{value:,}</td>'
    text = _text(value)
    return f"<td><code>{text}</code></td>" if "sha256:" in text else f"<td>{text}</td>"


def _bars(title: str, bars: Sequence[tuple[str, int]], unit: str) -> str:
    """Return a chart of horizontal bars as SVG, which says in words what it shows."""
    if not bars:
        return ""
    most, height = max(count for _, count in bars) or 1, 24 * len(bars) + 8
    told = "; ".join(f"{name}: {count:,} {unit}" for name, count in bars)
    drawn = "".join(
        f'<text x="190" y="{24 * i + 20}" text-anchor="end">{_text(_short(name))}</text>'
        f'<rect x="200" y="{24 * i + 6}" width="{360 * count // most}" height="18" fill="{_BAR}"/>'
        f'<text x="{206 + 360 * count // most}" y="{24 * i + 20}">{count:,}</text>'
        for i, (name, count) in enumerate(bars)
    )
    return (
        f'<figure><figcaption>{_text(title)}</figcaption><svg xmlns="http://www.w3.org/2000/svg" role="img" '
        f'viewBox="0 0 680 {height}" width="680" height="{height}" font-size="13" fill="{_INK}" '
        f'aria-label="{_text(f"{title}. {told}")}">'
        f"<title>{_text(title)}</title><desc>{_text(told)}</desc>{drawn}</svg></figure>"
    )


def _short(name: str) -> str:
    return name if len(name) <= 26 else name[:25] + "…"


def _text(value: object) -> str:
    return "" if value is None else html.escape(str(value), quote=True)


def _notes(predicate: Json) -> list[Json]:
    return _maps(predicate.get("columns"))


def _map(value: object) -> Json:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _maps(value: object) -> list[Json]:
    return [_map(each) for each in _list(value)]


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
