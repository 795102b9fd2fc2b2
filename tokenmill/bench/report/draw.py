"""What every picture has in common: its numbers, its looks, and how it becomes SVG or PNG.

Pictures are drawn by matplotlib, without a display. In SVG the ink is a variable of the page, so that one picture reads
well on light and on dark ground; text stays text, which can be searched and read aloud. Colours are told apart by
those who see few of them (after Okabe and Ito), and every series has a mark of its own beside its colour.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from tokenmill.core.errors import SetupError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1b1f24", "#5c6570", "#cdd2d9"
VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)"}
COLOURS = ("#2b83c6", "#e08a00", "#0d9f76", "#d1495b", "#9b6bc4", "#4fb3d9", "#a98b2d", "#8a919b")
MARKS = ("o", "s", "^", "D", "v", "P", "X", "*")
PNG_DPI = 160
LOOKS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial", "sans-serif"],
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "tokenmill",
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture and its numbers."""

    name: str
    """Of its file."""
    title: str
    text: str
    """What it shows and how to read it."""
    alt: str
    """The same for who cannot see it: what the numbers say."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    size: tuple[float, float]
    """Inches."""
    draw: Callable[[Figure], None]


def number(value: float | None) -> str:
    """Four digits that count; a dash for what is not there."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.4g}"


def need_matplotlib() -> None:
    """Raises ``SetupError`` where pictures cannot be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SetupError("drawing a report needs matplotlib: pip install tokenmill[report]") from error


def as_svg(picture: Picture) -> str:
    """An ``<svg>`` element for an HTML page that defines ``--ink``, ``--muted`` and ``--grid``."""
    text = _render(picture, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))).decode()
    text = text[text.index("<svg") :]
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, variable)
    # Several pictures stand in one page: what they call the same must not be the same.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{picture.name}-", text)
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(picture.alt)}" ', 1)


def as_png(picture: Picture) -> bytes:
    """On white ground."""
    return _render(picture, format="png", dpi=PNG_DPI, facecolor="white")


def _render(picture: Picture, **how: Any) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(LOOKS):
        figure = Figure(figsize=picture.size, layout="constrained")
        picture.draw(figure)
        file = io.BytesIO()
        figure.savefig(file, **how)
    return file.getvalue()


def plain_log(axes: Axes, which: str, *, ticks: Sequence[float] | None = None) -> None:
    """A logarithmic axis labelled with plain numbers."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set_xscale("log") if which == "x" else axes.set_yscale("log")
    low, high = axes.get_xlim() if which == "x" else axes.get_ylim()
    few = high / low < 100  # decades alone would leave the axis bare
    axis.set_major_locator(FixedLocator(list(ticks)) if ticks else LogLocator(subs=(1, 2, 5) if few else (1,)))
    axis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
