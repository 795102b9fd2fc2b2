"""Pictures of runs under load: measured ones (serve, offline), simulated ones, and the one against the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenmill.bench.report.draw import COLOURS, INK, MARKS, MUTED, Picture, number, plain_log
from tokenmill.bench.report.read import Result
from tokenmill.perf.metrics import percentile
from tokenmill.perf.result import GOOD_SHARE, RUN_KINDS, goodput_knee, offered_rate, pareto_front

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = Mapping[str, Any]
COMPARED = (
    ("ttft_s", "p50"), ("ttft_s", "p90"), ("ttft_s", "p99"), ("tpot_s", "p50"), ("tpot_s", "p99"), ("e2e_s", "p50"),
    ("e2e_s", "p99"),
)  # fmt: skip
TITLES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "end to end"}
NEAR = 0.10
"""Drawn as a band: the error that a prediction may have."""
SAME_RATE = 0.10
"""A drawn load has another rate than was asked for."""
MAX_LABELLED = 12


def _loads(results: Sequence[Result]) -> list[Result]:
    return [result for result in results if result.kind in RUN_KINDS]


def _name(result: Result, run: Run) -> str:
    """``serve-story, 4/s``."""
    if run.get("options"):
        return f"{result.label}, " + ", ".join(f"{key}={value}" for key, value in run["options"].items())
    if run.get("concurrency"):
        return f"{result.label}, {run['concurrency']} clients"
    return result.label if run.get("rate_per_s") is None else f"{result.label}, {run['rate_per_s']:g}/s"


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3


# ---- time to first token against input length -------------------------------------------------------------


def ttft_by_length(results: Sequence[Result]) -> Picture | None:
    """A dot per request; the numbers by doublings of the length."""
    series = [
        (_name(result, run), run["samples"]["input_tokens"], run["samples"]["ttft_s"])
        for result in _loads(results)
        for run in _outermost([run for run in result.runs if run.get("samples", {}).get("ttft_s")])
    ]
    if not series:
        return None
    rows = []
    for name, lengths, times in series:
        octaves: dict[int, list[float]] = {}
        for length, seconds in zip(lengths, times, strict=True):
            octaves.setdefault(int(math.log2(max(length, 1))), []).append(seconds * 1e3)
        for octave, found in sorted(octaves.items()):
            middle, tail = percentile(found, 50), percentile(found, 90)
            span = f"{2**octave}–{2 ** (octave + 1) - 1}"
            rows.append((name, span, str(len(found)), number(middle), number(tail)))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for (name, lengths, times), (colour, mark) in zip(series, _looks(len(series)), strict=True):
            xs, ys = [max(length, 1) for length in lengths], [seconds * 1e3 for seconds in times]
            axes.scatter(xs, ys, s=13, c=colour, marker=mark, alpha=0.55, linewidths=0, label=name)
        plain_log(axes, "x")
        plain_log(axes, "y")
        axes.set_xlabel("input tokens")
        axes.set_ylabel("time to first token, ms")
        _legend(figure, axes)

    return Picture(
        name="ttft-by-length",
        title="Time to first token against input length",
        text="Each mark is a request, from the moment at which it was meant to be sent. A cloud that rises with the "
        "length is prompt computation; one that is high at every length is waiting. Of a sweep, the lowest and the "
        "highest rate.",
        alt=f"Scatter of time to first token in milliseconds over input tokens, both logarithmic: {_list(series)}.",
        columns=("series", "input tokens", "requests", "TTFT p50, ms", "TTFT p90, ms"),
        rows=tuple(rows),
        size=(8.6, 4.4),
        draw=draw,
    )


def _outermost(runs: Sequence[Run]) -> Sequence[Run]:
    """The lowest and the highest rate: more clouds than that cover one another."""
    ordered = sorted(runs, key=offered_rate)
    return ordered if len(ordered) < 3 else [ordered[0], ordered[-1]]


# ---- latency against rate ---------------------------------------------------------------------------------


def latency_by_rate(results: Sequence[Result]) -> Picture | None:
    """What becomes of latency and goodput as the rate grows."""
    series = [(name, sorted(runs, key=offered_rate), goodput_knee(runs)) for name, runs in _sweeps(results)]
    if not series:
        return None

    def draw(figure: Figure) -> None:
        panels = figure.subplots(1, 3)
        for row, ((name, runs, knee), (colour, mark)) in enumerate(zip(series, _looks(len(series)), strict=True)):
            rates = [offered_rate(run) for run in runs]
            for axes, metric in zip(panels, ("ttft_s", "tpot_s"), strict=False):
                for q, line in (("p50", "-"), ("p99", "--")):
                    times = [_ms(run["latency"][metric].get(q)) or math.nan for run in runs]
                    axes.plot(rates, times, line, c=colour, marker=mark, label=f"{name} {q}")
            panels[2].plot(rates, [run["goodput"]["requests_per_s"] for run in runs], c=colour, marker=mark, label=name)
            if knee is not None:
                for axes in panels:
                    axes.axvline(knee, c=colour, lw=1, ls=":")
                last = knee == rates[-1]  # the edge was not found
                panels[2].annotate(
                    f"knee {'≥ ' if last else ''}{knee:g}/s", (knee, 0.02 + 0.07 * row), color=INK, fontsize=8.5,
                    xycoords=("data", "axes fraction"), xytext=(-4 if last else 4, 2), textcoords="offset points",
                    ha="right" if last else "left",
                )  # fmt: skip
        _finish_rate_panels(panels)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), handlelength=3.5)

    knees = [f"{name} at {knee:g} a second" for name, _, knee in series if knee is not None]
    return Picture(
        name="latency-by-rate",
        title="Latency against rate",
        text="Solid lines are medians, dashed ones the 99th percentile. The dotted line is the goodput knee: the "
        f"highest rate up to which {GOOD_SHARE:.0%} of the requests keep every limit. On the right, the requests a "
        "second that keep them; the grey line is where all would.",
        alt=f"Time to first token, time per output token and goodput over the offered rate: {_list(series)}. "
        + (f"Goodput knee: {'; '.join(knees)}." if knees else "No goodput knee."),
        columns=(
            "series",
            "requests/s",
            "TTFT p50, ms",
            "p99",
            "TPOT p50, ms",
            "p99",
            "goodput, requests/s",
            "in limits",
        ),
        rows=_rate_rows(series),
        size=(10.4, 3.9),
        draw=draw,
    )


def _sweeps(results: Sequence[Result]) -> list[tuple[str, Sequence[Run]]]:
    """Files with several rates, and files of one kind and model with one rate each."""
    loads = [result for result in _loads(results) if result.kind != "offline"]
    found: list[tuple[str, Sequence[Run]]] = [(load.label, load.runs) for load in loads if len(load.runs) > 1]
    single: dict[str, list[Run]] = {}
    for load in loads:
        if len(load.runs) == 1 and load.runs[0].get("rate_per_s"):
            single.setdefault(f"{load.kind} {load.data['model']}", []).append(load.runs[0])
    return found + [(name, runs) for name, runs in single.items() if len(set(map(offered_rate, runs))) > 1]


def _rate_rows(series: Sequence[tuple[str, Sequence[Run], float | None]]) -> tuple[tuple[str, ...], ...]:
    rows = []
    for name, runs, knee in series:
        for run in runs:
            times = [
                number(_ms(run["latency"][metric].get(q))) for metric in ("ttft_s", "tpot_s") for q in ("p50", "p99")
            ]
            limits = f"{run['goodput']['share']:.0%}" if run.get("slo") else "–"
            marked = " (knee)" if knee == offered_rate(run) else ""
            good = number(run["goodput"]["requests_per_s"]) if run.get("slo") else "–"
            rows.append((name, number(offered_rate(run)) + marked, *times, good, limits))
    return tuple(rows)


def _finish_rate_panels(panels: Sequence[Axes]) -> None:
    titles = ("Time to first token, ms", "Time per output token, ms", "Goodput, requests/s")
    for axes, title in zip(panels, titles, strict=True):
        axes.set_title(title)
        axes.set_xlabel("requests/s offered")
        axes.set_xlim(left=0)
    plain_log(panels[0], "y")
    panels[1].set_ylim(bottom=0)
    limit = panels[2].get_xlim()[1]
    panels[2].set_ylim(bottom=0, top=max(panels[2].get_ylim()[1], 1e-9))
    panels[2].plot([0, limit], [0, limit], c=MUTED, lw=0.8, zorder=0, scalex=False, scaley=False)


# ---- throughput against latency ---------------------------------------------------------------------------


def throughput_by_latency(results: Sequence[Result]) -> Picture | None:
    """All runs that have both, with the front of those that no other beats in both."""
    runs = [(result, run) for result in _loads(results) for run in result.runs if run["latency"]["tpot_s"].get("p50")]
    if len(runs) < 2:
        return None
    points = [(run["latency"]["tpot_s"]["p50"] * 1e3, run["throughput"]["output_tokens_per_s"]) for _, run in runs]
    labels = [result.label for result, _ in runs]
    fronts = _fronts([result.data["model"] for result, _ in runs], points)
    on_front = {index for front in fronts for index in front}
    rows = tuple(
        (_name(*runs[i]), number(points[i][0]), number(points[i][1]), "yes" if i in on_front else "no")
        for i in sorted(range(len(runs)), key=lambda i: points[i])
    )

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = list(dict.fromkeys(labels))
        for name, (colour, mark) in zip(names, _looks(len(names)), strict=True):
            own = [point for point, label in zip(points, labels, strict=True) if label == name]
            axes.plot(*zip(*own, strict=True), ls="", c=colour, marker=mark, ms=7, label=name)
        for front in fronts:
            axes.step(*zip(*(points[i] for i in front), strict=True), where="post", c=MUTED, lw=1, zorder=0)
        for i in sorted(on_front)[:MAX_LABELLED]:
            short = _name(*runs[i]).removeprefix(labels[i]).removeprefix(", ")
            axes.annotate(
                short, points[i], xytext=(-7, 5), textcoords="offset points", ha="right", fontsize=8, color=INK
            )
        axes.margins(0.12)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("time per output token, median, ms")
        axes.set_ylabel("output tokens/s")
        _legend(figure, axes)

    return Picture(
        name="throughput-by-latency",
        title="Throughput against latency",
        text="Up and to the left is better. The line is the Pareto front of a model: from each run on it, one of the "
        "two can only be bettered by giving up some of the other.",
        alt=f"Output tokens/s over median time per output token for {len(runs)} runs, {len(on_front)} on a front.",
        columns=("run", "TPOT p50, ms", "output tokens/s", "on the front"),
        rows=rows,
        size=(8.6, 4.4),
        draw=draw,
    )


def _fronts(models: Sequence[str], points: Sequence[tuple[float, float]]) -> list[list[int]]:
    """The front of each model: runs of different models are not to be compared."""
    found = []
    for model in dict.fromkeys(models):
        own = [i for i, other in enumerate(models) if other == model]
        found.append([own[i] for i in pareto_front([points[i] for i in own])])
    return found


# ---- measured against simulated ---------------------------------------------------------------------------


def measured_and_simulated(results: Sequence[Result]) -> Picture | None:
    """Each measured run against the simulated one of the same model at the same rate."""
    pairs = [
        (_name(measured, run), run, other)
        for measured in _loads(results)
        if measured.kind != "simulate"
        for simulated in _loads(results)
        if simulated.kind == "simulate" and measured.data["model"] == simulated.data["model"]
        for run in measured.runs
        if (other := _same_load(run, simulated.runs)) is not None
    ]
    rows, ratios = [], []
    for name, run, other in pairs:
        for what, real, guess in _compared(run, other):
            rows.append((name, what, number(real), number(guess), f"{guess / real - 1:+.1%}"))
            ratios.append((name, what, guess / real))
    if not ratios:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names, whats = list(dict.fromkeys(r[0] for r in ratios)), list(dict.fromkeys(r[1] for r in ratios))
        for name, (colour, mark) in zip(names, _looks(len(names)), strict=True):
            own = [(ratio, whats.index(what)) for label, what, ratio in ratios if label == name]
            axes.plot(*zip(*own, strict=True), ls="", c=colour, marker=mark, ms=7, label=name)
        axes.axvspan(1 - NEAR, 1 + NEAR, color=MUTED, alpha=0.15, lw=0)
        axes.axvline(1, c=MUTED, lw=1)
        furthest = max(max(ratio, 1 / ratio) for _, _, ratio in ratios) * 1.08
        axes.set_xlim(1 / max(furthest, 1.3), max(furthest, 1.3))
        plain_log(axes, "x", ticks=[0.1, 0.2, 0.5, 0.8, 0.9, 1, 1.1, 1.25, 2, 5, 10])
        axes.set_yticks(range(len(whats)), whats)
        axes.set_ylim(len(whats) - 0.5, -0.5)
        axes.set_xlabel("simulated / measured")
        _legend(figure, axes)

    worst = max(abs(ratio - 1) for _, _, ratio in ratios)
    return Picture(
        name="measured-and-simulated",
        title="Measured against simulated",
        text=f"1 is a prediction that came true; the band is {NEAR:.0%} to either side.",
        alt=f"Simulated over measured for {len(ratios)} figures; the furthest is {worst:.1%} off.",
        columns=("run", "figure", "measured", "simulated", "error"),
        rows=tuple(rows),
        size=(8.6, 1.6 + 0.32 * len({what for _, what, _ in ratios})),
        draw=draw,
    )


def _same_load(run: Run, others: Sequence[Run]) -> Run | None:
    """The one with the nearest rate, if that is near; a closed loop's load is its clients."""

    def load(one: Run) -> tuple[str, float]:
        if one.get("concurrency"):
            return "clients", float(one["concurrency"])
        return ("at once", 1.0) if one.get("rate_per_s") is None else ("rate", float(one["rate_per_s"]))

    kind, amount = load(run)
    same = [other for other in others if load(other)[0] == kind]
    nearest = min(same, key=lambda other: abs(load(other)[1] - amount), default=None)
    return nearest if nearest is not None and abs(load(nearest)[1] - amount) <= SAME_RATE * amount else None


def _compared(run: Run, other: Run) -> list[tuple[str, float, float]]:
    found = [
        (f"{TITLES[metric]} {q}, ms", run["latency"][metric].get(q), other["latency"][metric].get(q))
        for metric, q in COMPARED
    ]
    known = [(what, real * 1e3, guess * 1e3) for what, real, guess in found if real and guess]
    rates = run["throughput"]["output_tokens_per_s"], other["throughput"]["output_tokens_per_s"]
    return known + ([("output tokens/s", *rates)] if all(rates) else [])


# ---- what they share --------------------------------------------------------------------------------------


def _looks(count: int) -> list[tuple[str, str]]:
    return [(COLOURS[i % len(COLOURS)], MARKS[i % len(MARKS)]) for i in range(count)]


def _list(series: Sequence[tuple[Any, ...]]) -> str:
    return ", ".join(str(one[0]) for one in series)


def _legend(figure: Figure, axes: Axes) -> None:
    """Beside the picture, where it covers nothing; none for a single series that the page names anyway."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        figure.legend(handles, labels, loc="outside right upper")
    elif labels:
        axes.set_title(labels[0])
