"""``tokenmill bench kv-waste``: how much of the KV memory held by sequences holds nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.output import counting


@click.command()
@click.argument("lengths", type=click.Path(path_type=Path))
@click.option("--num-requests", default=2000, show_default=True, type=click.IntRange(1), help="The first so many rows.")
@click.option("--block-size", default=16, show_default=True, type=click.IntRange(1), help="Token positions per block.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def kv_waste(lengths: Path, num_requests: int, block_size: int, output: Path | None, as_json: bool) -> None:
    """Run the prompt and answer lengths of a CSV (ContextTokens,GeneratedTokens) through the real scheduler."""
    from itertools import islice

    from tokenmill.bench.kv_waste import read_lengths, run

    rows = list(islice(read_lengths(lengths), num_requests))
    with counting("requests", len(rows)) as bar:
        figures = run(rows, block_size=block_size, progress=lambda done, total: bar.update(done))
    finish("kv-waste", figures, output, as_json, _print)


def _print(result: dict[str, Any]) -> None:
    for name, value in result.items():
        if isinstance(value, int | float):
            print(f"{name.replace('_', ' ')}: {value:.4g}")
