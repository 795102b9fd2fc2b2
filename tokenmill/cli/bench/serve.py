"""``tokenmill bench serve``: what the clients of a running server would see under a given load."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.output import counting, print_table

CONTEXT_SHARE = 0.9
"""Of the context, what prompt and answer may take: the prompt's length in tokens is foreseen, not exact."""
LATENCIES = {"ttft_s": "first token", "tpot_s": "per output token", "itl_s": "between tokens", "e2e_s": "end to end"}


@click.command()
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server's address.")
@click.option("--model", help="Which of its models; the first if not given.")
@click.option("--api-key", envvar="TOKENMILL_API_KEY", help="Its key; or set TOKENMILL_API_KEY.")
@click.option("--num-requests", default=100, show_default=True, type=click.IntRange(1), help="How many in all.")
@click.option("--rate", type=float, help="Poisson arrivals, requests a second; all at once if not given.")
@click.option("--prompt-tokens", default="16-256", show_default=True, help="A number or a range, drawn uniformly.")
@click.option("--output-tokens", default="16-128", show_default=True, help="A number or a range, drawn uniformly.")
@click.option(
    "--lengths", type=click.Path(path_type=Path), help="CSV of lengths instead (ContextTokens,GeneratedTokens)."
)
@click.option("--max-context", type=int, help="Scale longer requests to this; the server's own if it tells.")
@click.option("--slo", help="Limits that count as good, in seconds: ttft=0.5,tpot=0.05,itl=0.2,e2e=10.")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds a request may take.")
@click.option("--seed", default=0, show_default=True, help="Of arrivals, lengths and words.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def serve(url: str, model: str | None, api_key: str | None, timeout_s: float, as_json: bool, **load: Any) -> int:
    """Send an open-loop load: requests go out at their moments, whatever the server does."""
    import asyncio

    from tokenmill.bench.http import Client

    client = Client(url.rstrip("/").removesuffix("/v1"), api_key, timeout_s)
    output: Path | None = load.pop("output")
    figures = asyncio.run(_measure(client, model, **load))
    finish("serve", figures, output, as_json, _print)
    return 1 if figures["results"]["failed"] or figures["blocks_in_use"] else 0


async def _measure(
    client: Any,
    model: str | None,
    *,
    num_requests: int,
    rate: float | None,
    prompt_tokens: str,
    output_tokens: str,
    lengths: Path | None,
    max_context: int | None,
    slo: str | None,
    seed: int,
) -> dict[str, Any]:
    from tokenmill.bench import load as loads
    from tokenmill.bench import serve as bench

    limits = bench.parse_slo(slo)
    rng = random.Random(seed)
    if lengths is not None:
        wanted = loads.csv_lengths(lengths, num_requests, rng)
    else:
        ranges = loads.parse_range(prompt_tokens), loads.parse_range(output_tokens)
        wanted = loads.uniform_lengths(num_requests, *ranges, rng)
    server = await bench.inspect(client, model)
    context = max_context or server.max_context
    num_scaled = 0
    if context is not None:
        wanted, num_scaled = loads.scale_to_context(wanted, int(context * CONTEXT_SHARE))
    load = loads.plan_load(wanted, rate, rng)
    with counting("requests", num_requests) as bar:

        def progress(answered: int, failed: int) -> None:
            bar.update(answered + failed, f" ({failed} failed)" if failed else "")

        outcomes = await bench.run_load(server, load, seed, progress)
    return {
        "server": {"url": client.base_url, "model": server.model, "max_context": context},
        "load": {
            "requests": num_requests,
            "rate_per_s": rate,
            "lengths": os.fspath(lengths.name) if lengths else {"prompt": prompt_tokens, "output": output_tokens},
            "scaled_to_context": num_scaled,
            "seed": seed,
        },
        "results": bench.figures(outcomes, limits),
        "blocks_in_use": await bench.blocks_in_use(client),
    }


def _print(result: dict[str, Any]) -> None:
    found, rate = result["results"], result["load"]["rate_per_s"]
    pace = "all at once" if rate is None else f"at {rate:g} a second"
    print(
        f"{found['requests']} requests {pace} to {result['server']['model']}, {found['duration_s']:.1f} s: "
        f"{found['completed']} completed, {found['failed']} failed"
    )
    for message, count in found["errors"].items():
        print(f"  {count} × {message}")
    print(
        f"tokens  in {found['prompt_tokens']} ({found['cached_tokens']} cached), out {found['output_tokens']}\n"
        f"per second  requests {found['requests_per_s']:.2f}, tokens in {found['input_tokens_per_s']:.0f}, "
        f"tokens out {found['output_tokens_per_s']:.0f}, "
        f"goodput {found['goodput_per_s']:.2f} requests {_slo_text(found['slo'])}\n"
    )
    rows: list[tuple[object, ...]] = [("milliseconds", "mean", "p50", "p90", "p95", "p99", "max")]
    for name, title in LATENCIES.items():
        if found[name]:
            rows.append((title, *(f"{value * 1000:.1f}" for value in found[name].values())))
    lag = found["client_lag_s"]
    rows.append(("client's own lag", *(f"{value * 1000:.1f}" for value in lag.values())))
    print_table(rows, right=range(1, 7))
    held = result["blocks_in_use"]
    print("\nKV blocks in use afterwards:", "not told by the server" if held is None else f"{held:g}")


def _slo_text(slo: dict[str, float]) -> str:
    limits = ", ".join(f"{name.removesuffix('_s')} ≤ {limit:g} s" for name, limit in slo.items())
    return f"within {limits}" if limits else "(no SLO given)"
