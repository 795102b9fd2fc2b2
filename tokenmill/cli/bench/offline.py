"""``tokenmill bench offline``: how many tokens a second the engine makes without a network."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.options import ENGINE_HELP, PIECES, given, record_options
from tokenmill.cli.output import note, print_table

FILE = click.Path(path_type=Path)


def with_engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Every engine option, passed on by name."""
    for piece in reversed(PIECES):
        command = record_options(piece, ENGINE_HELP)(command)
    return command


@click.command()
@click.argument("model", default="story")
@with_engine_options
@click.option("--num-prompts", default=32, show_default=True, type=click.IntRange(1), help="Answered together.")
@click.option("--prompt-tokens", default="16-256", show_default=True, help="A number or a range, drawn uniformly.")
@click.option("--output-tokens", default="16-128", show_default=True, help="A number or a range, drawn uniformly.")
@click.option("--lengths", type=FILE, help="CSV of lengths instead (ContextTokens,GeneratedTokens).")
@click.option(
    "--compare", multiple=True, metavar="NAME=VALUE,…", help="Options that take turns with others; may be repeated."
)
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Turns; the median counts.")
@click.option("--seed", default=0, show_default=True, help="Of lengths and prompts.")
@click.option("--output", type=FILE, help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def offline(
    model: str,
    num_prompts: int,
    prompt_tokens: str,
    output_tokens: str,
    lengths: Path | None,
    compare: tuple[str, ...],
    repeat: int,
    seed: int,
    output: Path | None,
    as_json: bool,
    **engine: Any,
) -> int:
    """Answer prompts with MODEL as fast as they go, and say what memory and bandwidth that took."""
    from tokenmill.bench.load import csv_lengths, parse_range, uniform_lengths
    from tokenmill.bench.offline import run
    from tokenmill.perf.result import runs_of

    rng = random.Random(seed)
    if lengths is not None:
        wanted = csv_lengths(lengths, num_prompts, rng)
    else:
        wanted = uniform_lengths(num_prompts, parse_range(prompt_tokens), parse_range(output_tokens), rng)
    shared = _given(engine)
    sets = [shared | _parse(text) for text in compare] or [shared]
    figures = run(model, sets, wanted, repeat=repeat, seed=seed, progress=lambda text: note(f"{text} …"))
    drawn = {"prompt": prompt_tokens, "output": output_tokens}
    figures["load"]["lengths"] = lengths.name if lengths else drawn
    finish("offline", figures, output, as_json, _print)
    return 1 if any(point["requests"]["failed"] for point in runs_of(figures)) else 0


def _parse(text: str) -> dict[str, Any]:
    """``"weights=int4,max_seqs=8"`` → options, read as the command line reads them."""
    words: list[str] = []
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        flag = name.replace("_", "-")
        if value in ("true", "false"):
            words.append(f"--{flag}" if value == "true" else f"--no-{flag}")
        else:
            words += [f"--{flag}", value]
    reader = click.command("--compare")(with_engine_options(lambda: None))
    return _given(reader.make_context("--compare", words).params)


def _given(engine: Mapping[str, Any]) -> dict[str, Any]:
    options = given(engine)
    return options | ({"tenant_weights": dict(weights)} if (weights := options.get("tenant_weights")) else {})


def _print(result: dict[str, Any]) -> None:
    from tokenmill.perf.result import runs_of

    points = runs_of(result)
    load = result["load"]
    requests = points[0]["requests"]
    print(
        f"{result['model']}, {points[0]['threads']} threads: {requests['sent']} prompts at once, "
        f"{points[0]['tokens']['input']} tokens in, {points[0]['tokens']['output']} out; median of {load['repeat']}\n"
    )
    rows: list[tuple[object, ...]] = [
        (
            *("options", "out/s", "in/s", "all/s", "×", "of foreseen"),
            *("TTFT p50 ms", "p99", "TPOT p50 ms", "p99", "peak MB", "predicted", "BW"),
        )
    ]
    rows += [_row(point) for point in points]
    print_table(rows, right=range(1, 13))
    for point in points:
        for message, count in point["errors"].items():
            print(f"  {count} × {message}")
    print("\n×: against the first, turn by turn. BW: share of this machine's bandwidth, measured beside each turn.")
    print("Of foreseen: measured over what the cost model says under those ceilings; out/s, TTFT and TPOT.")


def _row(point: Mapping[str, Any]) -> tuple[object, ...]:
    options = ", ".join(f"{name}={value}" for name, value in point["options"].items()) or point["precision"]
    throughput, latency, memory = point["throughput"], point["latency"], point["memory"]
    times = [latency[name].get(q) for name in ("ttft_s", "tpot_s") for q in ("p50", "p99")]
    bandwidth = point["bandwidth"]
    return (
        options,
        *(f"{throughput[f'{name}_tokens_per_s']:.0f}" for name in ("output", "input", "total")),
        f"{point['ratio']:.2f}",
        _foreseen(point["foreseen"]),
        *("–" if value is None else f"{value * 1e3:.1f}" for value in times),
        f"{memory['peak_bytes'] / 1e6:,.0f}",
        f"{memory['predicted_bytes'] / 1e6:,.0f}",
        "–" if bandwidth is None else f"{bandwidth['share']:.0%}",
    )


def _foreseen(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    ratios = found["measured_to_foreseen"]
    return " ".join(f"{ratios[name]:.2f}" for name in ("output_tokens_per_s", "ttft_s", "tpot_s") if name in ratios)
