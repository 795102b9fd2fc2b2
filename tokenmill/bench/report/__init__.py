"""Result files, drawn: one HTML page with a picture and its numbers for everything that the files allow.

``read`` checks a file and says what it lacks; ``loads``, ``kernels`` and ``score`` turn results into ``Picture``s,
which hold their numbers and know how to draw themselves; ``draw`` is the only place that knows matplotlib's looks;
``page`` puts the pictures into HTML. Nothing is written before everything is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenmill.bench.report.draw import Picture, as_png, as_svg, need_matplotlib
from tokenmill.bench.report.kernels import roofline, step_account
from tokenmill.bench.report.loads import latency_by_rate, measured_and_simulated, throughput_by_latency, ttft_by_length
from tokenmill.bench.report.page import page
from tokenmill.bench.report.read import KINDS, Result, read_result
from tokenmill.bench.report.score import prediction_errors
from tokenmill.core.errors import ConfigError

__all__ = ["KINDS", "Picture", "Result", "make_report", "pictures_of", "read_result"]

PICTURES = (
    ttft_by_length,
    latency_by_rate,
    throughput_by_latency,
    roofline,
    step_account,
    measured_and_simulated,
    prediction_errors,
)


def pictures_of(results: Sequence[Result]) -> list[Picture]:
    """Every picture for which the results hold numbers."""
    return [picture for make in PICTURES if (picture := make(results)) is not None]


def _try_out(result: Result) -> None:
    """Make the tables of one result, so that a figure of the wrong kind is blamed on its file."""
    try:
        pictures_of([result])
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(f"{result.path}: not the form of a {result.kind} result: {error}") from error


def make_report(paths: Sequence[Path], output: Path, png_folder: Path | None = None) -> list[Picture]:
    """Draw ``paths`` into the page ``output``, and each picture into a PNG if there is a folder for them.

    Raises:
        ConfigError: a file that is no result, lacks a field or holds what is no number; or nothing can be drawn.
        SetupError: matplotlib is missing.
    """
    results = [read_result(path) for path in paths]
    for result in results:
        _try_out(result)
    pictures = pictures_of(results)
    if not pictures:
        raise ConfigError(
            "these results hold nothing to draw: a picture of rates needs a sweep (bench serve --rate 1 --rate 2), "
            "one of throughput against latency two runs"
        )
    need_matplotlib()
    html = page(results, [(picture, as_svg(picture)) for picture in pictures])
    images = [(picture.name, as_png(picture)) for picture in pictures] if png_folder is not None else []
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(html, encoding="utf-8")
    if png_folder is not None:
        png_folder.mkdir(parents=True, exist_ok=True)
        for name, image in images:
            (png_folder / f"{name}.png").write_bytes(image)
    return pictures
