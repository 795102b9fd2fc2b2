"""``tokenmill bench start``: from the command to the first token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.output import counting, print_table
from tokenmill.core.errors import ConfigError
from tokenmill.core.precision import DEFAULT_WEIGHTS


@click.command()
@click.argument("model")
@click.option(
    "--weights",
    type=click.Choice(("bf16", "int8", "int4")),
    default=DEFAULT_WEIGHTS,
    show_default=True,
    help="How the kernels hold weights.",
)
@click.option(
    "--repeat", default=5, show_default=True, type=click.IntRange(1), help="Starts, of which the median counts."
)
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def start(model: str, weights: str, repeat: int, output: Path | None, as_json: bool) -> None:
    """Start MODEL in new processes and time every stage up to its first token."""
    from tokenmill.bench.start import run

    with counting("starts", repeat + 1) as bar:
        try:
            figures = run(model, {"weights": weights}, repeat=repeat, progress=lambda done, total: bar.update(done))
        except RuntimeError as error:
            raise ConfigError(f"{model} does not start: {error}") from error
    finish("start", figures, output, as_json, _print)


def _print(result: dict[str, Any]) -> None:
    rows: list[tuple[object, ...]] = [("stage", "seconds")]
    rows += [(name, f"{seconds:.2f}") for name, seconds in result["stages"].items()]
    rows.append(("total, median", f"{result['total_s']:.2f}"))
    print_table(rows, right=(1,))
    print(
        f"the first start took {result['first_run_s']:.1f} s; at its peak the process held "
        f"{result['peak_bytes'] / 1e6:,.0f} MB, of them weights {result['weights_bytes'] / 1e6:,.0f} MB"
    )
