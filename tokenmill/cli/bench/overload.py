"""``tokenmill bench overload``: what a running server does with far more than it can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.bench.target import with_target
from tokenmill.cli.output import note, print_table


@click.command()
@with_target
@click.option("--clients", default=64, show_default=True, type=click.IntRange(1), help="Closed loop, for the capacity.")
@click.option("--factor", default=5.0, show_default=True, help="How many times its capacity the server is sent.")
@click.option("--seconds", default=20.0, show_default=True, help="Length of each run.")
@click.option("--prompt-tokens", default="16-128", show_default=True, help="A number or a range, drawn uniformly.")
@click.option("--output-tokens", default="16-64", show_default=True, help="A number or a range, drawn uniformly.")
@click.option("--slo", default="ttft=2", show_default=True, help="Limits that count as good, in seconds.")
@click.option("--timeout", "timeout_s", default=120.0, show_default=True, help="Seconds a request may take.")
@click.option("--seed", default=0, show_default=True, help="Of arrivals, lengths and words.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def overload(
    url: str, api_key: str | None, slo: str, timeout_s: float, output: Path | None, as_json: bool, **load: Any
) -> None:
    """Find a server's capacity and peak goodput, then send a multiple of it and watch what it does."""
    import asyncio

    from tokenmill.bench.http import Client
    from tokenmill.bench.overload import OverloadOptions, measure_overload
    from tokenmill.bench.serve import parse_slo

    def progress(what: str, count: int) -> Callable[[int, int], None]:
        note(f"{what}: {count} requests …")
        return lambda answered, failed: None

    client = Client(url.rstrip("/").removesuffix("/v1"), api_key, timeout_s)
    figures = asyncio.run(measure_overload(client, OverloadOptions(**load), parse_slo(slo), progress))
    finish("overload", figures, output, as_json, _print)


def _print(result: Mapping[str, Any]) -> None:
    over = result["overload"]
    rows: list[tuple[object, ...]] = [("load", "sent/s", "completed/s", "goodput/s", "refused", "TTFT p99 ms")]
    runs = [("closed loop", result["capacity"])]
    runs += [(f"{point['part_of_capacity']:g} × capacity", point) for point in result["points"]]
    for name, run in [*runs, (f"{over['factor']:g} × capacity", over)]:
        ttft = run["latency"]["ttft_s"].get("p99")
        rows.append(
            (
                name,
                f"{run['rate_per_s']:.1f}" if "rate_per_s" in run else "–",
                f"{run['sustained']['completed_per_s']:.1f}",
                f"{run['sustained']['goodput_per_s']:.1f}",
                run["refusals"]["count"],
                "–" if ttft is None else f"{ttft * 1e3:.0f}",
            )
        )
    print_table(rows, right=range(1, 6))
    refused, health = over["refusals"], over["health"]
    print(f"\ngoodput under overload: {result['goodput_share_of_peak']:.0%} of its peak")
    if refused["count"]:
        print(f"refusals answered within {refused['answer_s']['p99'] * 1e3:.0f} ms (p99)")
    print(f"other errors: {refused['other_errors']}")
    if health["answer_s"]:
        print(f"/health/ready: {health['answer_s']['p99'] * 1e3:.0f} ms (p99), {health['failed']} unanswered")
