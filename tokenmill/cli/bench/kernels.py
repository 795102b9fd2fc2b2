"""``tokenmill bench kernels``: each CPU kernel's speed, and its share of what this machine can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.output import note, print_table

SHAPES = ("qwen3-0.6b", "llama-3.2-1b")


@click.command()
@click.option("--shape", default=SHAPES[0], show_default=True, type=click.Choice(SHAPES), help="Whose layers.")
@click.option("--rows", multiple=True, type=click.IntRange(1, 8192), help="Rows at once; may be repeated. [1 8 32 512]")
@click.option("--num-threads", type=click.IntRange(1), help="One per core if not given.")
@click.option(
    "--repeat", default=9, show_default=True, type=click.IntRange(1), help="Runs, of which the median counts."
)
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def kernels(
    shape: str, rows: tuple[int, ...], num_threads: int | None, repeat: int, output: Path | None, as_json: bool
) -> None:
    """Measure every CPU kernel at the sizes of a model's layer, against ceilings measured in the same run."""
    from tokenmill.bench.kernels import run
    from tokenmill.launch import available_cores

    figures = run(
        shape,
        rows=rows or (1, 8, 32, 512),
        num_threads=num_threads or available_cores(),
        repeat=repeat,
        progress=lambda name: note(f"{name} …"),
    )
    finish("kernels", figures, output, as_json, _print)


def _print(result: dict[str, Any]) -> None:
    ceilings = result["ceilings"]
    print(
        f"{result['shape']}, {result['isa']}, {result['threads']} threads; this machine reads "
        f"{ceilings['gigabytes_per_s']:.1f} GB/s and multiplies {ceilings['bf16_gigaops_per_s']:.0f} GFLOP/s in bf16, "
        f"{ceilings['int8_gigaops_per_s']:.0f} GOP/s in int8\n"
    )
    rows: list[tuple[object, ...]] = [("kernel", "size", "µs", "GB/s", "Gop/s", "bound by", "share of it")]
    for found in result["kernels"]:
        speeds = (f"{found[name]:,.1f}" for name in ("microseconds", "gigabytes_per_s", "gigaops_per_s"))
        rows.append((found["kernel"], found["size"], *speeds, found["bound"], f"{found['share']:.0%}"))
    print_table(rows, right=(2, 3, 4, 6))
