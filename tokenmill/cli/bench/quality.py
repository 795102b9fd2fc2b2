"""``tokenmill bench quality``: what each precision costs, in perplexity and KL against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.output import counting, print_table
from tokenmill.core.errors import ConfigError


@click.command()
@click.argument("model")
@click.option("--text", type=click.Path(path_type=Path), required=True, help="A text file to read; UTF-8.")
@click.option("--window", default=256, show_default=True, type=click.IntRange(2), help="Tokens read at once.")
@click.option("--num-windows", default=40, show_default=True, type=click.IntRange(1), help="The first so many.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def quality(model: str, text: Path, window: int, num_windows: int, output: Path | None, as_json: bool) -> None:
    """Compare every precision of the fast kernels with the float32 reference on a text."""
    from tokenmill.bench.quality import run

    try:
        content = text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --text {text}: {error}") from error
    with counting("windows", num_windows) as bar:
        try:
            figures = run(
                model, content, window=window, num_windows=num_windows, progress=lambda done, total: bar.update(done)
            )
        except ValueError as error:
            raise ConfigError(f"--text {text}: {error}") from error
    finish("quality", figures, output, as_json, _print)


def _print(result: dict[str, Any]) -> None:
    rows: list[tuple[object, ...]] = [("setting", "perplexity", "KL nats", "±", "same likeliest token")]
    for name, found in result["settings"].items():
        kl, error = f"{found['kl_nats']:.5f}", f"{found['kl_standard_error']:.5f}"
        rows.append((name, f"{found['perplexity']:.3f}", kl, error, f"{found['agreement']:.1%}"))
    print_table(rows, right=(1, 2, 3, 4))
    print(f"{result['positions']} positions of {result['model']}, windows of {result['window']} tokens")
