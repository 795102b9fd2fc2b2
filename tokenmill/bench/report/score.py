"""How wrong the predictions are: the groups of ``tokenmill score``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokenmill.bench.report.draw import COLOURS, MARKS, Picture
from tokenmill.bench.report.read import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STATISTICS = ("median", "mean", "p90")


def prediction_errors(results: Sequence[Result]) -> Picture | None:
    """A line per group: median, mean and 90th percentile of the relative error."""
    scores = [result for result in results if result.kind == "score"]
    groups = [
        (name if len(scores) == 1 else f"{result.label}: {name}", group)
        for result in scores
        for name, group in result.data["groups"].items()
        if group["n"]
    ]
    if not groups:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        labels = [f"{name} (n = {group['n']})" for name, group in groups]
        for statistic, colour, mark in zip(STATISTICS, COLOURS, MARKS, strict=False):
            errors = [group[statistic] * 100 for _, group in groups]
            axes.plot(errors, range(len(groups)), ls="", c=colour, marker=mark, ms=6.5, label=statistic)
        axes.set_yticks(range(len(groups)), labels)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_xlabel("error, %")
        figure.legend(loc="outside lower center", ncols=3)

    return Picture(
        name="prediction-errors",
        title="How wrong the predictions are",
        text="The relative error of predicted against published or measured figures, by group.",
        alt="; ".join(f"{name}: median error {group['median']:.1%}" for name, group in groups) + ".",
        columns=("group", "n", *STATISTICS),
        rows=tuple((name, str(group["n"]), *(f"{group[s]:.1%}" for s in STATISTICS)) for name, group in groups),
        size=(8.6, 1.5 + 0.34 * len(groups)),
        draw=draw,
    )
