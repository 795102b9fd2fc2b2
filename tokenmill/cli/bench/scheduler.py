"""``tokenmill bench scheduler``: what deciding costs, in microseconds per step, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.output import counting, print_table


@click.command()
@click.option("--num-requests", default=100_000, show_default=True, type=click.IntRange(1), help="Over all sizes.")
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=click.IntRange(1),
    default=(1, 64, 256),
    show_default=True,
    help="Sequences kept running; may be repeated.",
)
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def scheduler(num_requests: int, batch_sizes: tuple[int, ...], output: Path | None, as_json: bool) -> None:
    """Time the real scheduler and engine loop under a virtual clock, with an executor that does nothing."""
    from tokenmill.bench.scheduler import run

    with counting("requests", num_requests) as bar:
        figures = run(batch_sizes=batch_sizes, num_requests=num_requests, progress=lambda done, total: bar.update(done))
    finish("scheduler", figures, output, as_json, _print)


def _print(result: dict[str, Any]) -> None:
    rows: list[tuple[object, ...]] = [("batch", "steps", "µs/step median", "mean", "µs/sequence/step median", "mean")]
    for row in result["rows"]:
        names = ("us_per_step_median", "us_per_step_mean", "us_per_sequence_step_median", "us_per_sequence_step_mean")
        rows.append((row["batch"], row["steps"], *(f"{row[name]:.2f}" for name in names)))
    print_table(rows, right=range(6))
