"""``tokenmill bench grammar``: what structured output costs, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.output import counting, print_table


@click.command()
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder with a checkpoint's tokenizer; that of the built-in model if not given.",
)
@click.option("--steps", default=500, show_default=True, type=click.IntRange(1), help="Tokens drawn per grammar.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def grammar(tokenizer: Path | None, steps: int, output: Path | None, as_json: bool) -> None:
    """Time compiling grammars of several kinds, and finding the tokens that may come next."""
    from tokenmill import builtin
    from tokenmill.bench.grammar import GRAMMARS, run

    with counting("grammars", len(GRAMMARS)) as bar:
        folder = tokenizer or builtin.path("story")
        figures = run(folder, steps=steps, progress=lambda done, total: bar.update(done))
    finish("grammar", figures, output, as_json, _print)


def _print(result: dict[str, Any]) -> None:
    print(f"{result['vocab_size']} tokens; the first grammar took {result['first_s']:.2f} s")
    rows: list[tuple[object, ...]] = [("grammar", "compile ms", "found µs", "begin ms", "mask µs median", "p99", "max")]
    names = ("compile_ms", "found_us", "begin_ms", "mask_us_median", "mask_us_p99", "mask_us_max")
    rows += [(row["grammar"], *(f"{row[name]:.1f}" for name in names)) for row in result["rows"]]
    print_table(rows, right=range(1, 7))
