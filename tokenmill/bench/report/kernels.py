"""Pictures of one step: its kernels under this machine's roof, and where its time goes.

A kernel that does ``I`` operations per byte can do no more than ``min(peak, I * bandwidth)`` of them a second (the
roofline of Williams, Waterman and Patterson, 2009): the slope is memory's, the flat part arithmetic's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenmill.bench.report.draw import COLOURS, INK, MARKS, MUTED, Picture, number, plain_log
from tokenmill.bench.report.read import Data, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PEAKS = {"bf16_gigaops_per_s": "bf16", "int8_gigaops_per_s": "int8"}
SMALL_SHARE = 0.01
"""Kernels below this share of every step are one part together."""
HOST, OTHERS = "host", "other kernels"


def roofline(results: Sequence[Result]) -> Picture | None:
    """Every kernel of the ``bench kernels`` results that reads memory and calculates."""
    found = [
        (result, row)
        for result in results
        if result.kind == "kernels"
        for row in result.data["kernels"]
        if min(row["gigabytes_per_s"], row["gigaops_per_s"], row["bandwidth_gigabytes_per_s"]) > 0
    ]
    if not found:
        return None
    several = len({result.label for result, _ in found}) > 1
    points = [
        (
            _family(row) + (f" ({result.label})" if several else ""),
            row["gigaops_per_s"] / row["gigabytes_per_s"],
            row["gigaops_per_s"],
        )
        for result, row in found
    ]
    ceilings = [result.data["ceilings"] for result in results if result.kind == "kernels"]
    bandwidths = [row["bandwidth_gigabytes_per_s"] for _, row in found]
    peaks = {name: max(one[key] for one in ceilings) for key, name in PEAKS.items()}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        families = list(dict.fromkeys(name for name, _, _ in points))
        for i, family in enumerate(families):
            own = [(x, y) for name, x, y in points if name == family]
            colour, mark = COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]
            axes.plot(*zip(*own, strict=True), ls="", c=colour, marker=mark, ms=5.5, alpha=0.85, label=family)
        _draw_roof(axes, [x for _, x, _ in points], (min(bandwidths), max(bandwidths)), peaks)
        axes.set_xlabel("operations per byte of memory read")
        axes.set_ylabel("billion operations/s")
        figure.legend(loc="outside right upper")

    shares = sorted(row["share"] for _, row in found)
    return Picture(
        name="roofline",
        title="Kernels under the roof",
        text="The slope is this machine's memory, the flat lines its arithmetic, all measured in the same run. The "
        "band is how much the memory's speed changed during it; a kernel's share is of the speed measured beside it. "
        "A mark above the slope found its data in a cache.",
        alt=f"Roofline of {len(points)} kernel sizes: memory {min(bandwidths):.3g} to {max(bandwidths):.3g} GB/s, "
        + ", ".join(f"{name} {peak:.3g} Gop/s" for name, peak in peaks.items())
        + f"; shares of the ceiling from {shares[0]:.0%} to {shares[-1]:.0%}.",
        columns=(
            *(("file",) if several else ()),
            *("kernel", "size", "op/byte", "Gop/s", "GB/s", "memory's GB/s", "share of the ceiling"),
        ),
        rows=_roof_rows(found, several=several),
        size=(9.0, 5.0),
        draw=draw,
    )


def _roof_rows(found: Sequence[tuple[Result, Data]], *, several: bool) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (
            *((result.label,) if several else ()),
            *(row["kernel"], row["size"], number(row["gigaops_per_s"] / row["gigabytes_per_s"])),
            *(number(row["gigaops_per_s"]), number(row["gigabytes_per_s"])),
            *(number(row["bandwidth_gigabytes_per_s"]), f"{row['share']:.0%}"),
        )
        for result, row in found
    )


def _family(row: Data) -> str:
    """``linear bf16 qkv`` → ``linear bf16``: what is drawn alike."""
    return " ".join(str(row["kernel"]).split()[:2])


def _draw_roof(
    axes: Axes, intensities: Sequence[float], bandwidths: tuple[float, float], peaks: dict[str, float]
) -> None:
    low, high = min(intensities) / 2, max(max(intensities) * 2, 2 * max(peaks.values()) / bandwidths[0])
    highest = max(peaks.values())
    xs = [low, highest / bandwidths[1], highest / bandwidths[0], high]
    upper, lower = ([min(bandwidth * x, highest) for x in xs] for bandwidth in reversed(bandwidths))
    axes.fill_between(xs, lower, upper, color=MUTED, alpha=0.18, lw=0)
    axes.plot(xs, upper, c=MUTED, lw=1.2)
    axes.set_xlim(low, high)
    for name, peak in peaks.items():
        axes.plot([peak / bandwidths[1], high], [peak, peak], c=MUTED, lw=1.2)
        axes.annotate(
            f"{name} {peak:,.0f} Gop/s", (high, peak), xytext=(-4, 4), textcoords="offset points", ha="right",
            fontsize=8.5, color=INK,
        )  # fmt: skip
    middle = math.sqrt(low * highest / bandwidths[1])
    axes.annotate(
        f"memory {bandwidths[0]:.0f}–{bandwidths[1]:.0f} GB/s", (middle, bandwidths[1] * middle), xytext=(-10, 2),
        textcoords="offset points", ha="right", fontsize=8.5, color=INK,
    )  # fmt: skip
    axes.set_yscale("log")
    axes.set_ylim(top=highest * 2.2)
    plain_log(axes, "x")
    plain_log(axes, "y")


def step_account(results: Sequence[Result]) -> Picture | None:
    """A bar per batch size of the ``bench step`` results: milliseconds by kernel, and the host's."""
    steps = [(result, row) for result in results if result.kind == "step" for row in result.data["batches"]]
    if not steps:
        return None
    parts = [_parts(row) for _, row in steps]
    largest: dict[str, float] = {}
    for row_parts in parts:
        total = sum(row_parts.values())
        for name, ms in row_parts.items():
            largest[name] = max(largest.get(name, 0.0), ms / total)
    own = sorted((n for n in largest if largest[n] >= SMALL_SHARE and n != HOST), key=lambda n: -largest[n])
    names = [*own, *([OTHERS] if len(own) + 1 < len(largest) else []), HOST]
    for row_parts in parts:
        row_parts[OTHERS] = sum(ms for name, ms in row_parts.items() if name not in (*own, HOST))
    labels = [f"{r.data['model']}, {r.data['precision']}, batch {row['batch']}" for r, row in steps]
    rows = tuple(
        (
            label,
            *(number(row_parts.get(name, 0.0)) for name in names),
            number(row["milliseconds"]),
            f"{row['bandwidth_share']:.0%}",
        )
        for label, row_parts, (_, row) in zip(labels, parts, steps, strict=True)
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        left = [0.0] * len(steps)
        for i, name in enumerate(names):
            widths = [row_parts.get(name, 0.0) for row_parts in parts]
            colour = MUTED if name == HOST else COLOURS[i % len(COLOURS)]
            axes.barh(range(len(steps)), widths, left=left, height=0.62, color=colour, label=name)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        for i, (_, row) in enumerate(steps):
            text = f"{row['milliseconds']:.1f} ms, {row['bandwidth_share']:.0%} of the bandwidth"
            axes.annotate(text, (left[i], i), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5)
        axes.set_yticks(range(len(steps)), labels)
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.set_xlim(right=max(left) * 1.5)  # room for what stands beside the longest bar
        axes.set_xlabel("milliseconds a step")
        figure.legend(loc="outside lower center", ncols=min(5, len(names)))

    return Picture(
        name="step-account",
        title="Where a decoding step's time goes",
        text="One bar a batch size: the kernels, and the host's planning and bookkeeping between them. Beside it, "
        "which share of this machine's memory bandwidth the step used: at small batches that is the ceiling.",
        alt="Stacked bars of milliseconds a step: "
        + "; ".join(f"{label}: {row['milliseconds']:.3g} ms" for label, (_, row) in zip(labels, steps, strict=True))
        + ".",
        columns=("milliseconds of", *names, "all", "of the bandwidth"),
        rows=rows,
        size=(9.4, 1.5 + 0.42 * len(steps)),
        draw=draw,
    )


def _parts(row: Data) -> dict[str, float]:
    """Milliseconds by kernel, and ``HOST``. A host's share below 0 is noise between two means."""
    host = max(row["host_share"], 0.0)
    kernels_ms = row["milliseconds"] * (1 - host)
    shares = row["kernel_share"].items()
    return {name: share * kernels_ms for name, share in shares} | {HOST: row["milliseconds"] * host}
