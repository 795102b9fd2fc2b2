"""``tokenmill diagnose``: where an engine's time goes, what holds it back, and what would help."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.output import note, print_table

API_KEY_VARIABLE = "TOKENMILL_API_KEY"


@click.command()
@click.argument("source")
@click.option("--seconds", default=10.0, show_default=True, help="How long to look at a running server.")
@click.option("--hardware", help="A device's name, or a file of tokenmill probe.  [default: what was measured]")
@click.option("--model", help="What runs, if the source does not say it: a name, a folder, a config.json.")
@click.option("--precision", default="bf16", show_default=True, help="Of another engine's weights.")
@click.option("--tp", default=1, show_default=True, type=click.IntRange(1), help="Devices that share its matrices.")
@click.option("--eager", is_flag=True, help="The other engine captures nothing (enforce_eager).")
@click.option("--batch", type=click.IntRange(1), help="Which batch of a result of bench step.  [default: its first]")
@click.option("--slo", default="", help="Limits in seconds: ttft=0.5,itl=0.05,tpot=0.05,e2e=10.")
@click.option("--api-key", help=f"Of the server; or set {API_KEY_VARIABLE}.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def diagnose(source: str, slo: str, api_key: str | None, output: Path | None, as_json: bool, **wishes: Any) -> None:
    """Diagnose SOURCE: a server's address (http://…), a journal (serve --journal), or a result of bench step."""
    from tokenmill.bench.diagnose import Wishes, parse_slo, run

    found = run(
        source,
        Wishes(slo=parse_slo(slo), api_key=api_key or os.environ.get(API_KEY_VARIABLE), **wishes),
        progress=lambda text: note(f"{text} …"),
    )
    finish("diagnose", {"source": source, **found.as_dict()}, output, as_json, _print)


def _print(found: dict[str, Any]) -> None:
    print(f"{found['regime'] or 'no regime can be named'}: {found['because']}\n")
    if found["steps"]:
        print(
            f"{found['steps']:,.0f} steps of {found['rows']:.1f} sequences, {found['step_s'] * 1e3:.2f} ms each, "
            f"{found['tokens_per_s']:,.0f} tokens/s while busy"
        )
    if found["mbu"] is not None:
        ceilings = found["ceilings"]
        print(
            f"MBU {found['mbu']:.0%} of {ceilings['bytes_per_s'] / 1e9:,.1f} GB/s, MFU {found['mfu']:.1%} "
            f"({ceilings['device']}: {ceilings['source']}); the model of these steps is off by {found['fit_error']:.1%}"
        )
    rows: list[tuple[object, ...]] = [("part", "seconds", "share")]
    for name, seconds in sorted(found["parts"].items(), key=lambda item: -item[1]):
        if seconds:
            rows.append((name, f"{seconds:.3f}", f"{seconds / found['wall_s']:.1%}"))
    print()
    watched = "" if found["watched_s"] is None else f"of {found['watched_s']:.3f} s watched"
    print_table([*rows, ("together", f"{found['wall_s']:.3f}", watched)], right=(1, 2))
    _print_more(found)


def _print_more(found: dict[str, Any]) -> None:
    if found["elasticities"]:
        print("\ntwice of this        would bring")
    for name, change in found["elasticities"].items():
        step = f", {change['step_s']:+.0%} time per step" if "step_s" in change else ""
        print(f"  {name:22} {change['tokens_per_s']:+.0%} tokens/s{step}")
    if found["changes"]:
        print("\nwhat would help, by prediction, best first")
    for change in found["changes"]:
        print(f"  {change['option']}: {_effect(change)}\n      {change['why']}")
    for row in found["slo"]:
        print("\n" + _slo_text(row))
    for sentence in found["unknown"]:
        print(f"\nnot known: {sentence}")


def _effect(change: dict[str, Any]) -> str:
    if change["metric"] == "step_s":
        return f"step {change['before'] * 1e3:.2f} → {change['after'] * 1e3:.2f} ms ({change['effect']:+.0%})"
    return f"{change['before']:,.0f} → {change['after']:,.0f} tokens/s ({change['effect']:+.0%})"


def _slo_text(row: dict[str, Any]) -> str:
    limit = f"{row['metric']} within {row['limit_s']:g} s"
    if row["p99_s"] is None:
        return f"{limit}: not known from this source"
    if row["met"]:
        return f"{limit}: met (99 % within {row['p99_s']:.3g} s)"
    remedy = f"; enough by prediction: {row['remedy']}" if row["remedy"] else "; no single change is predicted to do"
    return f"{limit}: missed (99 % within {row['p99_s']:.3g} s){remedy}"
