"""``tokenmill plan``: the cheapest or quickest way to serve a model within limits, and why not another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenmill.cli.output import print_json, print_table
from tokenmill.core.errors import ConfigError

if TYPE_CHECKING:
    from tokenmill.perf.costs import Layout
    from tokenmill.perf.hardware import Hardware
    from tokenmill.perf.plan import Workload
    from tokenmill.perf.shape import ModelShape

SHOWN = ("ttft_p99", "itl_p99", "e2e_p99")


@click.command()
@click.option("--model", default="story", show_default=True, help="A name, a folder, a config.json, or built-in.")
@click.option("--slo", default="", help="Limits: ttft_p99=0.5,itl_p99=50ms,e2e_p99=10; a bare metric means p99.")
@click.option("--workload", default="", help="input=500,output=200,rate=100; also cached=0.3 and burst=4.")
@click.option(
    "--trace", type=click.Path(path_type=Path), help="Take the load from a trace; --workload rate=N plays it."
)
@click.option("--hardware", multiple=True, help="Only this: a name or a TOML file; may be repeated.")
@click.option("--precision", multiple=True, help="Only this, fp8 for example; may be repeated.")
@click.option("--layout", help="Only this: tp=4,pp=2.")
@click.option("--max-devices", type=click.IntRange(1), help="No more devices than this.")
@click.option(
    "--objective",
    type=click.Choice(["cost", "speed"]),
    default="cost",
    show_default=True,
    help="What is best: the cheapest that keeps the limits, or the quickest.",
)
@click.option("--price", multiple=True, help="Of a device an hour: H100=2.5; may be repeated.")
@click.option("--calibration", type=click.Path(path_type=Path), help="A calibration file on top of what ships.")
@click.option("--top", default=5, show_default=True, type=click.IntRange(1, 50), help="Plans to show.")
@click.option("--simulate/--no-simulate", default=True, show_default=True, help="Simulate the best three.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def plan(model: str, simulate: bool, output: Path | None, as_json: bool, **options: Any) -> int:
    """Find the best deployments of a model for a load and its limits; exit code 1 if there is none."""
    from tokenmill.perf.plan import Prices, Problem, make_report, parse_price, parse_slo

    hardware = _hardware(options["hardware"])
    shape = _shape(model)
    workload = _workload(options["workload"], options["trace"])
    if shape.max_context and workload.inputs.mean + workload.outputs.mean > shape.max_context:
        raise ConfigError(
            f"--workload: {workload.inputs.mean:.0f} + {workload.outputs.mean:.0f} tokens are more than the "
            f"{shape.max_context} that {shape.name} was made for"
        )
    problem = Problem(
        shape,
        workload,
        parse_slo(options["slo"]),
        hardware,
        _precisions(options["precision"]),
        _layout(options["layout"], shape),
        options["max_devices"],
        options["objective"],
        Prices.among(hardware, dict(parse_price(text, hardware) for text in options["price"])),
        _effects(options["calibration"]),
        options["top"],
    )
    report = make_report(problem, model, simulated=simulate)
    if output is not None:
        from tokenmill.bench.machine import make_result, write_result

        write_result(output, make_result("plan", report))
    if as_json:
        print_json(report)
    else:
        _print(report)
    return 0 if report["feasible"] else 1


# ---- reading ---------------------------------------------------------------------------------------------


def _shape(model: str) -> ModelShape:
    from tokenmill.builtin import NAMES, path
    from tokenmill.perf.simulate.deployment import find_shape

    return find_shape(str(path(model)) if model in NAMES and not Path(model).exists() else model)


def _hardware(names: tuple[str, ...]) -> tuple[Hardware, ...]:
    from tokenmill.perf.hardware import catalogue, find

    found = [find(name) for name in names] or list(catalogue().values())
    return tuple({device.name: device for device in found}.values())


def _workload(text: str, trace: Path | None) -> Workload:
    from tokenmill.perf.plan import parse_workload, workload_of
    from tokenmill.perf.simulate.traces import Draw, read_trace

    if trace is None:
        return parse_workload(text)
    rate = None
    if text:
        key, _, value = text.partition("=")
        if key.strip() != "rate":
            raise ConfigError("--workload: beside --trace only rate=N is taken, which plays the trace at that rate")
        rate = parse_workload(f"input=1,output=1,rate={value}").rate
    return workload_of(read_trace(trace, Draw(rate=rate)), rate)


def _precisions(names: tuple[str, ...]) -> tuple[str, ...] | None:
    from tokenmill.perf.costs import format_named

    return tuple(dict.fromkeys(format_named(name).name for name in names)) or None


def _layout(text: str | None, shape: ModelShape) -> Layout | None:
    """Refused here, by name, if the model cannot be cut so."""
    from tokenmill.perf.costs import Layout

    if text is None:
        return None
    sizes: dict[str, int] = {}
    for part in text.split(","):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in ("tp", "pp", "dp", "ep"):
            raise ConfigError(f"--layout: unknown key {key!r}; there are tp, pp, dp and ep, like tp=4,pp=2")
        if not (value.isdecimal() and 1 <= int(value) <= 4096):
            raise ConfigError(f"--layout: {key} must be a whole number of at least 1, not {value!r}")
        sizes[key] = int(value)
    layout = Layout(sizes.get("tp", 1), sizes.get("pp", 1), sizes.get("dp", 1), sizes.get("ep", 1))
    layout.check(shape)
    return layout


def _effects(path: Path | None) -> Any:
    from tokenmill.perf.calibrate import load_effects, shipped_effects

    return None if path is None else shipped_effects().and_(load_effects(path))


# ---- printing --------------------------------------------------------------------------------------------


def _print(report: dict[str, Any]) -> None:
    if not report["feasible"]:
        print(f"infeasible: {report['reason']}")
        for remedy in report["remedies"]:
            print(f"  feasible: {remedy['change']} ({remedy['devices']} in all: {remedy['plan']})")
        if not report["remedies"]:
            print("  no single change that was tried makes it feasible")
        return
    _print_plans(report["plans"])
    print(f"\nranked by {report['ranked_by']}; intervals hold 90 %, and limits are judged at their upper end")
    for text in report["assumptions"]:
        print(f"assumed: {text}")
    _print_simulated(report["plans"])
    best = report["plans"][0]
    print(f"\nbest: {report['reason']}")
    print(f"bottleneck: {best['relief']}")
    print(f"start it ({best['command_note']}):\n{best['command']}")
    if report["rejected"]:
        print("\nwhy not:")
        print_table([(f"  {one['what']}", one["reason"]) for one in report["rejected"]])


def _print_plans(plans: list[dict[str, Any]]) -> None:
    money = plans[0]["cost_per_hour"] is not None
    heading = ["", "hardware", "layout", "precision", "instances", "batch"]
    heading += [name.replace("_", " ") for name in SHOWN]
    rows: list[list[str]] = [[*heading, "tokens/s", "used", *(["per hour", "per 1M"] if money else ["watts"]), "bound"]]
    for number, one in enumerate(plans, 1):
        cost = (
            [f"{one['cost_per_hour']:.2f}", f"{one['cost_per_million_tokens']:.2f}"]
            if money
            else [f"{one['power_w']:.0f}"]
        )
        row = [str(number), f"{one['devices']} × {one['hardware']}", _layout_of(one), one["precision"]]
        row += [_instances(one), f"{one['batch']:.0f} of {one['max_seqs']}"]
        row += [_interval(one["predicted"], name) for name in SHOWN]
        row += [f"{one['throughput']['output_tokens_per_s']:.0f}", f"{one['utilization']:.0%}", *cost]
        rows.append([*row, one["bottleneck"]])
    print_table(rows)


def _layout_of(plan: dict[str, Any]) -> str:
    def spell(layout: dict[str, int]) -> str:
        return " ".join(f"{name}{size}" for name, size in layout.items() if size > 1) or "one device"

    drafts = f" +{plan['speculation']['length']} drafts" if plan["speculation"] else ""
    pools = plan["pools"]
    return " | ".join(spell(pool["layout"]) for pool in pools.values()) if pools else spell(plan["layout"]) + drafts


def _instances(plan: dict[str, Any]) -> str:
    pools = plan["pools"]
    return " | ".join(str(pool["replicas"]) for pool in pools.values()) if pools else str(plan["replicas"])


def _interval(predicted: dict[str, float], name: str) -> str:
    from tokenmill.perf.plan.slo import show

    low, high = (show(predicted[f"{name}_s_{end}"]) for end in ("low", "high"))
    return f"{show(predicted[f'{name}_s'])} ({low} - {high})"


def _print_simulated(plans: list[dict[str, Any]]) -> None:
    from tokenmill.perf.plan.slo import show

    done = [(number, one) for number, one in enumerate(plans, 1) if "simulated" in one]
    if not done:
        return
    rows = [["simulated", *(f"{name.replace('_', ' ')} (predicted)" for name in SHOWN), ""]]
    for number, one in done:
        found = one["simulated"]
        if "not_simulated" in found:
            rows.append([str(number), "-", "-", "-", found["not_simulated"]])
            continue
        cells = [f"{show(found.get(f'{name}_s', 0.0))} ({show(one['predicted'][f'{name}_s'])})" for name in SHOWN]
        rows.append([str(number), *cells, "breaks " + ", ".join(found["breaks"]) if found["breaks"] else ""])
    print()
    print_table(rows)
