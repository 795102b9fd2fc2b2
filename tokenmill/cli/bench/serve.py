"""``tokenmill bench serve``: what the clients of a running server would see under a given load."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.bench.target import with_target
from tokenmill.cli.output import counting, note, print_table

FILE = click.Path(path_type=Path)
LATENCIES = {
    "ttft_s": "first token",
    "ttft_after_send_s": "  after the send",
    "tpot_s": "per output token",
    "itl_s": "between pieces",
    "e2e_s": "end to end",
}
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "max")
LAG_SHARE = 0.1
"""Of the median time to first token: a client that is later than this measured itself."""


@click.command()
@with_target
@click.option("--num-requests", default=100, show_default=True, type=click.IntRange(1), help="How many in all.")
@click.option(
    "--rate", "rates", multiple=True, type=float, help="Open loop, requests a second; may be repeated. [all at once]"
)
@click.option("--arrivals", default="poisson", show_default=True, help="Or uniform, gamma:cv=3, bursty:on=5,off=20.")
@click.option(
    "--concurrency",
    "concurrencies",
    multiple=True,
    type=click.IntRange(1),
    help="Closed loop: so many clients, each waiting for its answer; may be repeated.",
)
@click.option("--prompt-tokens", default="16-256", show_default=True, help="A number or a range, drawn uniformly.")
@click.option("--output-tokens", default="16-128", show_default=True, help="A number or a range, drawn uniformly.")
@click.option("--lengths", type=FILE, help="CSV of lengths instead (ContextTokens,GeneratedTokens).")
@click.option("--trace", type=FILE, help="Replay lengths and moments of a recorded trace (Azure, Mooncake, …).")
@click.option("--trace-speed", default=1.0, show_default=True, help="How much faster than it was recorded.")
@click.option("--max-context", type=int, help="Scale longer requests to this; the server's own if it tells.")
@click.option(
    "--ignore-eos/--no-ignore-eos", default=True, show_default=True, help="Force lengths, or let answers end early."
)
@click.option("--warmup", default="0", show_default=True, help="Leave out the first N requests, or seconds: 5s.")
@click.option(
    "--cancel", default=0.0, show_default=True, type=click.FloatRange(0, 1), help="Share of answers to give up."
)
@click.option("--slo", help="Limits that count as good, in seconds: ttft=0.5,tpot=0.05,itl=0.2,e2e=10.")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds a request may take.")
@click.option("--calibrate", is_flag=True, help="First measure this client against a server that does nothing.")
@click.option("--metrics", metavar="URL", help="Read the server's Prometheus metrics every second.")
@click.option("--seed", default=0, show_default=True, help="Of arrivals, lengths and words.")
@click.option("--output", type=FILE, help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def serve(url: str, api_key: str | None, timeout_s: float, output: Path | None, as_json: bool, **load: Any) -> int:
    """Send load to a server of OpenAI's API: at its moments, whatever the server does, or in a closed loop."""
    import asyncio

    from tokenmill.bench.http import Client
    from tokenmill.bench.serve_sweep import Point, ServeOptions, measure
    from tokenmill.perf.result import runs_of

    client = Client(url.rstrip("/").removesuffix("/v1"), api_key, timeout_s)
    options = ServeOptions(**load)
    total = max(1, len(options.rates), len(options.concurrencies)) * options.num_requests
    with counting("requests", total) as bar:
        done = itertools.count()

        def progress(point: Point, count: int) -> Callable[[int, int], None]:
            if total > options.num_requests:
                note(f"{point} …")
            start = next(done) * count
            return lambda answered, failed: bar.update(
                start + answered + failed, f" ({failed} failed)" if failed else ""
            )

        figures = asyncio.run(measure(client, options, progress))
    finish("serve", figures, output, as_json, _print)
    bad = any(run["requests"]["failed"] or run["blocks_in_use"] for run in runs_of(figures))
    return 1 if bad else 0


def _print(result: dict[str, Any]) -> None:
    from tokenmill.perf.result import goodput_knee, runs_of

    runs = runs_of(result)
    for run in runs:
        _print_run(result, run)
    if len(runs) > 1:
        _print_sweep(runs)
        if (knee := goodput_knee(runs)) is not None:
            print(f"\n90 % of the requests keep the limits up to {knee:g} requests a second")


def _print_run(result: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    requests, tokens = run["requests"], run["tokens"]
    parts = [f"{requests[name]} {name}" for name in ("completed", "failed", "cancelled", "truncated")]
    print(
        f"{requests['sent']} requests {_pace(result, run)} to {result['model']}, "
        f"{run['window']['duration_s']:.1f} s: {', '.join(parts)}"
        + (f"; {requests['warmup']} before them as warm-up" if requests["warmup"] else "")
    )
    for message, count in run["errors"].items():
        print(f"  {count} × {message}")
    if requests["truncated"]:
        print("  truncated: ended before the length asked for; --no-ignore-eos lets answers end where they end")
    print(f"tokens  in {tokens['input']} ({tokens['cached']} cached), out {tokens['output']}{_counted(run)}\n")
    _print_latencies(run)
    print("\nper second, whole run   " + _rates(run))
    if (steady := run["steady"]) is None:
        print("no steady window: the last request went out before the load had built up")
    else:
        window = steady["window"]
        print(f"steady, {window['begin_s']:.1f} to {window['end_s']:.1f} s   {_rates(steady)}")
        _print_latencies(steady)
    _print_client(run)
    held = run["blocks_in_use"]
    print("KV blocks in use afterwards:", "not told by the server" if held is None else f"{held:g}")
    if "metrics" in run:
        _print_metrics(run["metrics"])
        _print_agreement(run["agreement"])
    print()


def _pace(result: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    if result["load"]["arrivals"] == "trace":
        return f"from {result['load']['lengths']}"
    if run["concurrency"] is not None:
        return f"in a closed loop of {run['concurrency']}"
    rate = run["rate_per_s"]
    return "all at once" if rate is None else f"at {rate:g} a second ({result['load']['arrivals']})"


def _counted(run: Mapping[str, Any]) -> str:
    others = [name for name in run["counted_by"] if name != "usage"]
    return f" (the server sends no usage: counted by {' and '.join(others)})" if others else ""


def _rates(run: Mapping[str, Any]) -> str:
    found = run["throughput"]
    limits = ", ".join(f"{name.removesuffix('_s')} ≤ {limit:g} s" for name, limit in run["slo"].items())
    goodput = f", goodput {run['goodput']['requests_per_s']:.2f} within {limits}" if limits else ""
    return (
        f"requests {found['requests_per_s']:.2f}, tokens in {found['input_tokens_per_s']:.0f}, "
        f"tokens out {found['output_tokens_per_s']:.0f}{goodput}"
    )


def _print_latencies(run: Mapping[str, Any]) -> None:
    rows: list[tuple[object, ...]] = [("milliseconds", *STATISTICS)]
    for name, title in LATENCIES.items():
        if found := run["latency"].get(name):
            rows.append((title, *(f"{found[statistic] * 1000:.1f}" for statistic in STATISTICS)))
    print_table(rows, right=range(1, 1 + len(STATISTICS)))


def _print_client(run: Mapping[str, Any]) -> None:
    client, ttft = run["client"], run["latency"]["ttft_s"]
    loop_s, send_s = client["loop_lag_s"].get("p99", 0.0), client["send_lag_s"].get("p99", 0.0)
    print(
        f"\nthis client: event loop late by {loop_s * 1e3:.1f} ms (p99), sends by {send_s * 1e3:.1f} ms (p99), "
        f"{client['cpu_share']:.0%} of a core"
    )
    if audit := client["calibration"]:
        per_piece = audit["per_piece_s"].get("p50", 0.0)
        print(
            f"  on a server that does nothing: first token {audit['ttft_s']['p50'] * 1e3:.2f} ms, "
            f"a piece {per_piece * 1e6:.0f} µs (medians)"
        )
    if ttft and max(loop_s, send_s) > LAG_SHARE * ttft["p50"]:
        print("  that is not small beside the first token: part of these latencies is the client's")


def _print_metrics(metrics: Mapping[str, Any]) -> None:
    if not metrics["samples"]:
        print(f"no metrics from {metrics['url']}: {metrics['error']}")
        return
    print(f"server's metrics, {metrics['samples']} samples")
    rows: list[tuple[object, ...]] = [("", "before", "after")]
    for name, after in metrics["after"].items():
        rows.append((name, f"{metrics['before'].get(name, 0.0):g}", f"{after:g}"))
    print_table(rows, right=(1, 2))


def _print_agreement(found: Mapping[str, Any] | None) -> None:
    if found is None:
        return
    print("\nthe server's own figures over this client's")
    rows: list[tuple[object, ...]] = [("", "client", "between", "server", "ratio", "accounted")]
    for name, each in found.items():
        between = f"{each['between_s']:.3g}" if "between_s" in each else ""
        accounted = f"{each['accounted']:.4f}" if "accounted" in each else ""
        ours = f"{each['client']:.6g}", between, f"{each['server']:.6g}"
        rows.append((name, *ours, f"{each['ratio']:.4f}", accounted))
    print_table(rows, right=range(1, 6))


def _print_sweep(runs: list[Mapping[str, Any]]) -> None:
    rows: list[tuple[object, ...]] = [
        ("load", "completed", "tokens out/s", "TTFT p50 ms", "p99", "TPOT p50 ms", "p99", "within limits")
    ]
    for run in runs:
        latency = run["latency"]
        times = [latency[name].get(q) for name in ("ttft_s", "tpot_s") for q in ("p50", "p99")]
        load = f"{run['concurrency']} clients" if run["concurrency"] is not None else f"{run['rate_per_s']:g}/s"
        rows.append(
            (
                load,
                run["requests"]["completed"],
                f"{run['throughput']['output_tokens_per_s']:.0f}",
                *("–" if value is None else f"{value * 1e3:.1f}" for value in times),
                f"{run['goodput']['share']:.0%}" if run["slo"] else "–",
            )
        )
    print_table(rows, right=range(1, 8))
