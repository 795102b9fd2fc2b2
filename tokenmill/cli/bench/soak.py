"""``tokenmill bench soak``: a server of its own, under load and chaos for as long as one likes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.output import note, print_table


@click.command()
@click.argument("model", default="story", required=False)
@click.option("--minutes", default=30.0, show_default=True, help="How long.")
@click.option("--isolate", is_flag=True, help="The engine in a process of its own, which is killed now and then.")
@click.option("--clients", default=6, show_default=True, type=click.IntRange(1), help="Good clients at one time.")
@click.option("--misdoers", default=3, show_default=True, type=click.IntRange(0), help="Bad ones beside them.")
@click.option(
    "--health-limit", "health_limit_s", default=0.25, show_default=True, help="Seconds within which health must answer."
)
@click.option("--seed", default=0, show_default=True, help="Of everything that is drawn.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def soak(output: Path | None, as_json: bool, **options: Any) -> int:
    """Start MODEL behind the real server and do to it what clients and machines do; exit code 1 if anything gave."""
    import asyncio
    import signal

    from tokenmill.bench.soak.run import SoakOptions
    from tokenmill.bench.soak.run import soak as run

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # its server must end with it
    figures = asyncio.run(run(SoakOptions(**options), note))
    finish("soak", figures, output, as_json, _print)
    return 0 if figures["passed"] else 1


def _print(result: Mapping[str, Any]) -> None:
    rows: list[tuple[object, ...]] = [("request", "outcomes")]
    for kind, counts in result["outcomes"].items():
        rows.append((kind, ", ".join(f"{count} {outcome}" for outcome, count in counts.items())))
    print_table(rows, right=())
    print()
    rows = [("invariant", "worst", "limit", "")]
    for found in result["invariants"]:
        rows.append(
            (found["name"], f"{found['worst']:.3g}", f"{found['limit']:.3g}", "ok" if found["ok"] else "BROKEN")
        )
    print_table(rows, right=(1, 2))
    for trend in (found for found in result["invariants"] if "a thousand requests" in found["what"]):
        print(f"  {trend['what']}")
    for kill in result["kills"]:
        print(f"{kill['signal']} at {kill['at_s']:.0f} s: another engine served after {kill['recovery_s']:.1f} s")
    for breach in result["breaches"][:20]:
        print(f"at {breach['at_s']:.1f} s, {breach['invariant']}: {breach['what']}")
    verdict = "all that must hold held" if result["passed"] else "NOT all that must hold held"
    print(f"\n{result['requests']} requests in {result['seconds'] / 60:.1f} minutes: {verdict}")
