"""Loss curves as text for a terminal and as SVG for a notebook."""

from __future__ import annotations

import html
from collections.abc import Sequence

from fabric.learning import Epoch

_BARS = "▁▂▃▄▅▆▇█"


def curve_text(history: Sequence[Epoch]) -> str:
    """Return one sparkline each for training and validation loss, with first and last value."""
    return "\n".join(
        f"{name:<11}{sparkline(values)}  {values[0]:.4f} → {values[-1]:.4f}" for name, values in _series(history)
    )


def sparkline(values: Sequence[float], *, width: int = 60) -> str:
    """Return `values` as up to `width` bars."""
    step = max(1, -(-len(values) // width))
    shown = values[::step]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_BARS[round((value - low) / span * (len(_BARS) - 1))] for value in shown)


def curve_svg(history: Sequence[Epoch], *, width: int = 480, height: int = 200) -> str:
    """Return the losses over epochs as a stand-alone SVG element."""
    series = _series(history)
    low = min(min(values) for _, values in series)
    high = max(max(values) for _, values in series)
    span = (high - low) or 1.0
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" width="{width}" height="{height}">'
        f"<title>Loss by epoch, 1 to {len(history)}</title>"
    ]
    for (name, values), colour in zip(series, ("#1f77b4", "#d62728"), strict=True):
        steps = max(1, len(values) - 1)
        points = " ".join(
            f"{10 + (width - 20) * i / steps:.1f},{10 + (height - 40) * (high - v) / span:.1f}"
            for i, v in enumerate(values)
        )
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>')
        x = 10 if name == "training" else width // 2
        label = html.escape(f"{name} {values[-1]:.4f}")
        parts.append(f'<text x="{x}" y="{height - 8}" fill="{colour}" font-size="12">{label}</text>')
    return "".join(parts) + "</svg>"


def _series(history: Sequence[Epoch]) -> list[tuple[str, list[float]]]:
    return [("training", [e.training for e in history]), ("validation", [e.validation for e in history])]
