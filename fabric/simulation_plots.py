"""Plots of simulations: cost against missed deadlines, GPUs held over time, and how long jobs waited."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fabric.comparison import Summary, summary, table
from fabric.errors import InvalidInput, Reason
from fabric.fleet import MICROS
from fabric.simulation import Result

_COLOURS = ("#0b6e4f", "#c8553d", "#3d5a80", "#8d6a9f", "#e0a458", "#7f8c8d", "#444444")
_SUFFIXES = (".svg", ".png", ".html")


def plot(results: Sequence[Result], knob: Sequence[tuple[int, Summary]], path: Path, *, capacity: int) -> None:
    """Write one picture: SVG or PNG, or an HTML page with the table under it.

    Raises:
        InvalidInput: `CONFIG_INVALID` for another kind of file, or where matplotlib is not installed;
            `FILE_EXISTS` where it cannot be written.
    """
    if path.suffix not in _SUFFIXES:
        raise InvalidInput(Reason.CONFIG_INVALID, f"{path.name} is no kind of picture", "end it in .svg, .png or .html")
    try:
        import matplotlib  # noqa: PLC0415 - an optional extra

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt  # noqa: PLC0415
    except ImportError:
        raise InvalidInput(
            Reason.CONFIG_INVALID, "plots need matplotlib, which is not installed", 'pip install "zonefabric[plots]"'
        ) from None
    # Without these an SVG holds the time and random ids, and the same run makes another file.
    matplotlib.rcParams["svg.hashsalt"] = "fabric"
    figure, axes = plt.subplots(1, 3, figsize=(17, 5.2), layout="constrained")
    rows = [summary(result) for result in results]
    _frontier(axes[0], rows, knob)
    _usage(axes[1], results[0], capacity)
    _waits(axes[2], results)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color="#e6e6e6", linewidth=0.7)
        axis.set_axisbelow(True)
    buffer = io.BytesIO()
    kind = "png" if path.suffix == ".png" else "svg"
    figure.savefig(buffer, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    plt.close(figure)
    content = buffer.getvalue()
    if path.suffix == ".html":
        content = _page(content, [*rows, *(row for _, row in knob)]).encode()
    try:
        path.write_bytes(content)
    except OSError:
        hint = "name a file in a folder you may write to"
        raise InvalidInput(Reason.FILE_EXISTS, f"{path} cannot be written", hint) from None


def _frontier(axis: Any, rows: Sequence[Summary], knob: Sequence[tuple[int, Summary]]) -> None:
    ours = sorted(
        [*(row for _, row in knob), *(row for row in rows if row.rule == "ours")], key=lambda row: row.cost_micros
    )
    if len(ours) > 1:
        axis.plot(
            [row.cost_micros / MICROS for row in ours], [max(0.5, row.missed) for row in ours],
            "o-", color=_COLOURS[0], markersize=4, linewidth=1.6, label="ours, over what a miss may cost",
        )  # fmt: skip
    for number, row in enumerate(rows):
        marker = "*" if row.rule == "ours" else "s"
        axis.plot(
            [row.cost_micros / MICROS], [max(0.5, row.missed)], marker, color=_COLOURS[number % len(_COLOURS)],
            markersize=15 if row.rule == "ours" else 8, linestyle="none", label=row.rule,
        )  # fmt: skip
    axis.set_yscale("log")
    axis.set_xlabel("cost outside, egress included")
    axis.set_ylabel("missed deadlines (log)")
    axis.set_title("Cost against deadlines: lower left is better", fontsize=11)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.legend(frameon=False, fontsize=8.5)


def _usage(axis: Any, result: Result, capacity: int) -> None:
    if not result.usage:
        return
    # A trace may begin with months of next to nothing: shown is from two days before work first left.
    start_s = next((at_s - 2 * 86_400 for at_s, _, outside, _ in result.usage if outside), result.usage[0][0])
    start_s = max(start_s, result.usage[0][0])
    days = [(at_s - start_s) / 86_400 for at_s, *_ in result.usage]
    inside, outside = [u[1] for u in result.usage], [u[2] for u in result.usage]
    axis.stackplot(
        days, inside, outside, labels=("inside", "outside"), colors=(_COLOURS[0], _COLOURS[1]), step="post", alpha=0.85
    )
    axis.set_xlim(0, days[-1])
    axis.axhline(capacity, color="#222222", linewidth=0.9, linestyle="--", label="private capacity")
    axis.set_xlabel("days")
    axis.set_ylabel("GPUs held")
    axis.set_title(f"GPUs over time: {result.rule}", fontsize=11)
    axis.legend(frameon=False, fontsize=8.5, loc="upper left")


def _waits(axis: Any, results: Sequence[Result]) -> None:
    for number, result in enumerate(results):
        outcomes = result.outcomes.values()
        waits = sorted(o.first_start_s - o.submitted_s for o in outcomes if o.first_start_s == o.first_start_s)
        if not waits:
            continue
        every = max(1, len(waits) // 2_000)
        shares = [(n + 1) / len(waits) for n in range(len(waits))]
        axis.plot(
            [max(1.0, wait) for wait in waits[::every]], shares[::every],
            color=_COLOURS[number % len(_COLOURS)], linewidth=1.6, label=result.rule,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xticks([1, 60, 3_600, 86_400], ["1 s", "1 min", "1 h", "1 day"])
    axis.minorticks_off()
    axis.set_xlabel("time until the first start (log)")
    axis.set_ylabel("share of jobs")
    axis.set_title("How long jobs waited", fontsize=11)
    axis.legend(frameon=False, fontsize=8.5, loc="lower right")


def _page(picture: bytes, rows: Sequence[Summary]) -> str:
    image = base64.b64encode(picture).decode("ascii")
    return (
        "<!doctype html><meta charset=utf-8><title>fabric simulate</title>"
        "<style>body{font:15px system-ui;margin:2rem;max-width:1500px}img{width:100%}pre{font-size:13px}</style>"
        f'<h1>fabric simulate</h1><img alt="comparison" src="data:image/svg+xml;base64,{image}">'
        f"<pre>{html.escape(table(rows))}</pre>\n"
    )
