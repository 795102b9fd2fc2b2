"""``tokenmill bench step``: where a decoding step's time goes, kernel by kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.output import note, print_table


@click.command()
@click.argument("model", default="story")
@click.option("--weights", type=click.Choice(("bf16", "int8", "int4")), help="How the kernels hold weights.")
@click.option("--lm-head", type=click.Choice(("bf16", "int8", "int4")), help="The same for the output matrix.")
@click.option("--weight-only", is_flag=True, default=None, help="Activations stay in bf16.")
@click.option("--kv", type=click.Choice(("bf16", "int8")), help="How they hold keys and values.")
@click.option("--batch", "batches", multiple=True, type=click.IntRange(1), help="Sequences; may be repeated. [1 8 32]")
@click.option("--context", default=128, show_default=True, type=click.IntRange(1), help="Tokens before the first step.")
@click.option("--num-steps", default=40, show_default=True, type=click.IntRange(1), help="Steps at each batch size.")
@click.option("--num-threads", type=click.IntRange(1), help="One per core if not given.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def step(
    model: str,
    batches: tuple[int, ...],
    context: int,
    num_steps: int,
    output: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Decode with MODEL and say where each step's time goes: kernels, host, and the share of the bandwidth."""
    from tokenmill.bench.step import run

    figures = run(
        model,
        {name: value for name, value in options.items() if value is not None},
        batches=batches or (1, 8, 32),
        context=context,
        num_steps=num_steps,
        progress=lambda name: note(f"{name} …"),
    )
    finish("step", figures, output, as_json, _print)


def _print(result: dict[str, Any]) -> None:
    print(
        f"{result['model']}, {result['precision']}, {result['threads']} threads; "
        f"this machine reads {result['bandwidth_gigabytes_per_s']:.1f} GB/s\n"
    )
    rows: list[tuple[object, ...]] = [("batch", "ms", "tokens/s", "GB/s", "of bandwidth", "host µs", "of the step")]
    for found in result["batches"]:
        rows.append(
            (
                found["batch"],
                f"{found['milliseconds']:.2f}",
                f"{found['tokens_per_s']:.1f}",
                f"{found['gigabytes_per_s']:.1f}",
                f"{found['bandwidth_share']:.0%}",
                f"{found['host_microseconds']:.0f}",
                f"{found['host_share']:.1%}",
            )
        )
    print_table(rows, right=(0, 1, 2, 3, 4, 5, 6))
    for found in result["batches"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in found["kernel_share"].items() if share >= 0.005)
        print(f"\nkernels at batch {found['batch']}: {shares}")
