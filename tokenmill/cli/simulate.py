"""``tokenmill simulate``: what clients would see of a model on hardware that need not be here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.options import ENGINE_HELP, byte_size, given, record_options
from tokenmill.cli.output import counting, print_table
from tokenmill.core.engine_config import CacheConfig, EngineConfig, SchedulerConfig
from tokenmill.core.errors import ConfigError

if TYPE_CHECKING:
    from tokenmill.engine.routing import ScalingConfig
    from tokenmill.perf.simulate import Failure, PoolConfig, Trace
    from tokenmill.perf.simulate.cluster import ClusterConfig
    from tokenmill.perf.simulate.deployment import Simulated

CACHE_OPTIONS = ("block_size", "num_blocks", "kv_memory_bytes", "prefix_caching")
SCHEDULER_OPTIONS = ("max_seqs", "max_step_tokens", "policy", "batching", "batch_wait_s", "preemption", "itl_slo_s")
USUAL = {"max_seqs": 256, "max_step_tokens": 2048}
"""What engines on accelerators are started with; the configuration's own defaults are for processors."""
SCALING_NAMES = {
    "min": "min_replicas", "max": "max_replicas", "target": "target_requests", "interval": "interval_s",
    "up": "up_after_s", "down": "down_after_s", "cold": "cold_start_s",
}  # fmt: skip
LATENCIES = {
    "ttft_s": "first token", "tpot_s": "per output token", "itl_s": "between tokens", "e2e_s": "end to end",
    "queue_s": "in the queue",
}  # fmt: skip

_HELP = {name: ENGINE_HELP[name] for name in (*CACHE_OPTIONS, *SCHEDULER_OPTIONS, "depth")} | {
    "num_blocks": "Blocks in the KV pool of a replica; if not given, what the device's memory holds.",
    "kv_memory_bytes": "Memory for KV blocks per device; if not given, what weights and reserve leave.",
    "prefix_caching": "Reuse computed blocks for equal prefixes; if not given, where the trace knows of any.",
}


@click.command()
@click.option("--model", required=True, help="A name, a config.json, or a folder that holds one.")
@click.option("--hardware", required=True, help="A name (tokenmill hardware lists them) or a TOML file.")
@click.option("--trace", type=click.Path(path_type=Path), help="Requests as they were recorded.")
@click.option("--format", "form", help="The trace's format: azure, mooncake, servegen, lengths, vllm-run, journal.")
@click.option("--workload", help="Instead of a trace: input=500,output=200,rate=100 (lengths may be ranges: 100-900).")
@click.option("--requests", type=click.IntRange(1), help="The first so many; of a description, how many to draw.")
@click.option("--rate", type=float, help="Requests a second; a trace with times is sped up or slowed to it.")
@click.option("--arrivals", default="poisson", show_default=True, help="poisson, gamma:cv=3, bursty:on=5,off=20 …")
@click.option("--window", help="Only what arrives from A to B: A:B, in seconds of the trace.")
@click.option("--max-context", type=click.IntRange(2), help="Clip longer requests; the model's own if not given.")
@click.option("--seed", default=0, show_default=True, help="Of what is drawn.")
@click.option("--precision", help="Of the weights: bf16, fp8, int4 …; the checkpoint's if not given.")
@click.option("--kv", help="Precision of keys and values; what goes with the weights' if not given.")
@click.option("--tp", default=1, show_default=True, type=click.IntRange(1), help="Tensor-parallel devices.")
@click.option("--pp", default=1, show_default=True, type=click.IntRange(1), help="Pipeline stages.")
@click.option(
    "--ep", default=1, show_default=True, type=click.IntRange(1), help="Devices that experts are spread over."
)
@click.option("--dp", default=1, show_default=True, type=click.IntRange(1), help="Data-parallel groups in a replica.")
@click.option("--engine", help="Calibrated for this engine (vllm, sglang …); the hardware's calibration if not given.")
@click.option("--engine-version", help="And this version of it.")
@click.option("--calibration", type=click.Path(path_type=Path), help="Factors learnt by tokenmill calibrate, on top.")
@click.option("--memory-share", default=0.9, show_default=True, type=click.FloatRange(0.05, 1.0), help="Of a device.")
@click.option("--reserved", type=byte_size, help="Of that for activations and buffers; foreseen if not given.")
@click.option("--price", type=click.FloatRange(0.0), help="Of a device and hour, if the hardware's file has none.")
@click.option("--replicas", default=1, show_default=True, type=click.IntRange(0), help="Engines behind the router.")
@click.option("--router", default="least_loaded", show_default=True, help="round_robin, least_loaded, prefix, session.")
@click.option("--prefill-replicas", type=click.IntRange(1), help="Compute prompts here …")
@click.option("--decode-replicas", type=click.IntRange(1), help="… and answers there.")
@click.option("--transfer-bandwidth", type=byte_size, help="Between them, bytes a second (50GB); the hardware's links.")
@click.option("--transfer-latency", default=0.001, show_default=True, type=click.FloatRange(0.0), help="In seconds.")
@click.option("--transfer-overlap", is_flag=True, help="Send layers while the next ones are computed.")
@click.option("--autoscale", help="min=0,max=8,target=32,interval=5,up=10,down=120,cold=60 (requests and seconds).")
@click.option("--fail", "failures", multiple=True, help="t=60,replica=0,down=30: a node dies; may be repeated.")
@click.option("--every-step", is_flag=True, help="Plan each step, even where nothing can be decided: the same, slower.")
@click.option("--slo", help="Limits that count as good, in seconds: ttft=0.5,tpot=0.05,itl=0.2,e2e=10.")
@record_options(CacheConfig, {name: _HELP[name] for name in CACHE_OPTIONS})
@record_options(SchedulerConfig, {name: _HELP[name] for name in SCHEDULER_OPTIONS})
@record_options(EngineConfig, {"depth": _HELP["depth"]})
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result in this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def simulate(output: Path | None, as_json: bool, **options: Any) -> int:
    """Serve a trace in virtual time: the real scheduler, with steps as long as the hardware would need."""
    figures = _simulate(options)
    finish("simulate", figures, output, as_json, _print)
    return 1 if figures["requests"]["failed"] else 0


def _simulate(options: Mapping[str, Any]) -> dict[str, Any]:
    from time import perf_counter, process_time

    from tokenmill.bench.serve import parse_slo
    from tokenmill.perf.simulate import Cluster
    from tokenmill.perf.simulate.report import Economics, make_report

    simulated = _simulated(options)
    deployment = simulated.deployment
    slo = parse_slo(options["slo"])
    trace = _trace(options, deployment.shape.max_context)
    config, about = _cluster(options, simulated, trace)
    begin_s, begin_cpu_s = perf_counter(), process_time()
    with counting("requests", len(trace.requests)) as bar:
        outcome = Cluster(config, keep_gaps=slo.itl_s is not None).run(trace.requests, bar.update)
    wall_s, cpu_s = perf_counter() - begin_s, process_time() - begin_cpu_s
    hardware = deployment.hardware
    price = hardware.price_per_hour if options["price"] is None else options["price"]
    report = make_report(outcome, trace, slo, Economics(deployment.layout.num_devices, price, hardware.tdp_w))
    return {
        "engine": about,
        "model": deployment.shape.name,
        **report,
        "simulation": {
            "simulated_s": outcome.end_s,
            "wall_s": wall_s,
            "processor_s": cpu_s,
            "speed_factor": outcome.end_s / wall_s,
            "engine_speed_factor": sum(pool["alive_s"] for pool in report["pools"].values()) / wall_s,
            "seed": options["seed"],
        },
    }


# ---- from options to configuration -----------------------------------------------------------------------


def _simulated(options: Mapping[str, Any]) -> Simulated:
    from tokenmill.perf.calibrate import calibration_for, load_effects, shipped_effects
    from tokenmill.perf.costs import Layout, served_formats
    from tokenmill.perf.hardware import find
    from tokenmill.perf.simulate.deployment import Simulated, find_shape
    from tokenmill.perf.terms import Deployment

    shape, hardware = find_shape(options["model"]), find(options["hardware"])
    engine = options["engine"] or ("tokenmill" if hardware.kind == "cpu" else None)
    precision = options["precision"] or shape.quantization or "bf16"
    formats = served_formats(precision, options["kv"], engine, shape.head_dim, hardware.kind)
    layout = Layout(tp=options["tp"], pp=options["pp"], dp=options["dp"], ep=options["ep"])
    layout.check(shape)
    path = options["calibration"]
    effects = shipped_effects().and_(load_effects(path)) if path else None
    calibration = calibration_for(
        hardware, engine, options["engine_version"], shape=shape, formats=formats, effects=effects
    )
    return Simulated(Deployment(shape, formats, layout, hardware), calibration)


def _trace(options: Mapping[str, Any], model_context: int) -> Trace:
    from tokenmill.perf.simulate import select
    from tokenmill.perf.simulate.traces import Draw, detect, read_trace, synthetic

    workload = _pairs(options["workload"] or "", "--workload", ("input", "output", "rate", "requests", "arrivals"))
    if (options["trace"] is None) == (not workload):
        raise ConfigError("give either --trace FILE or --workload input=500,output=200,rate=100")
    window, count = _window(options["window"]), options["requests"]
    rate = options["rate"] if "rate" not in workload else _number(workload["rate"], "--workload rate")
    if rate is not None and not rate > 0:
        raise ConfigError(f"--rate must be above 0 requests a second, not {rate:g}")
    if "requests" in workload:
        count = int(_number(workload["requests"], "--workload requests"))
    draw = Draw(count, rate, workload.get("arrivals", options["arrivals"]), window, options["seed"])
    context = options["max_context"] or model_context or None
    if workload:
        from tokenmill.bench.load import parse_range

        ranges = parse_range(workload.get("input", "500")), parse_range(workload.get("output", "200"))
        return select(synthetic(*ranges, draw), max_context=context)
    form = options["form"] or detect(options["trace"])
    trace = read_trace(options["trace"], draw, form)
    if form in ("servegen", "lengths"):
        return select(trace, max_context=context)
    part = select(trace, first=count, window_s=window, max_context=context)
    if rate is not None and part.rate_per_s is not None:
        part = select(part, speed=rate / part.rate_per_s)
    return part


def _cluster(options: Mapping[str, Any], simulated: Simulated, trace: Trace) -> tuple[ClusterConfig, dict[str, Any]]:
    """What is to be simulated, and the same in words for the report."""
    from dataclasses import asdict, replace

    from tokenmill.perf.simulate import ClusterConfig, PoolConfig

    cache = CacheConfig(
        **{"prefix_caching": trace.shares_prefixes, **given({name: options[name] for name in CACHE_OPTIONS})}
    )
    scheduler = SchedulerConfig(**{**USUAL, **given({name: options[name] for name in SCHEDULER_OPTIONS})})
    engine = simulated.engine(
        cache,
        scheduler,
        depth=options["depth"] or 1,
        memory_share=options["memory_share"],
        reserved=options["reserved"],
    )
    engine = replace(engine, fast_forward=not options["every_step"])
    scaling = _scaling(options["autoscale"])
    router, apart = options["router"], (options["prefill_replicas"], options["decode_replicas"])
    if (apart[0] is None) != (apart[1] is None):
        raise ConfigError("--prefill-replicas and --decode-replicas go together")
    serve = PoolConfig(engine, apart[0] or options["replicas"], router, scaling)
    decode: PoolConfig | None = None
    transfer = None
    if apart[1] is not None:
        decode = PoolConfig(engine, apart[1], "least_loaded", scaling)
        transfer = simulated.transfer(
            options["transfer_bandwidth"], options["transfer_latency"], overlap=options["transfer_overlap"]
        )
    config = ClusterConfig(serve, decode, transfer, tuple(_failure(text) for text in options["failures"]))
    deployment = simulated.deployment
    formats = deployment.formats
    return config, {
        "hardware": deployment.hardware.name,
        "layout": str(deployment.layout),
        "devices": deployment.layout.num_devices,
        "weights": formats.weights.name,
        "kv": formats.kv.name,
        "calibration": options["engine"],
        "weight_bytes": simulated.weight_bytes,
        "kv_bytes_per_token": simulated.kv_bytes_per_token,
        "num_blocks": engine.cache.num_blocks,
        "block_size": engine.cache.block_size,
        "prefix_caching": engine.cache.prefix_caching,
        **{name: getattr(scheduler, name) for name in SCHEDULER_OPTIONS},
        "depth": engine.depth,
        "transfer": asdict(transfer) if transfer else None,
    }


def _scaling(text: str | None) -> ScalingConfig | None:
    from tokenmill.engine.routing import ScalingConfig

    if text is None:
        return None
    values = {
        name: _number(value, f"--autoscale {name}")
        for name, value in _pairs(text, "--autoscale", SCALING_NAMES).items()
    }
    whole: dict[str, Any] = {n: int(value) if n in ("min", "max") else value for n, value in values.items()}
    return ScalingConfig(**{SCALING_NAMES[name]: value for name, value in whole.items()})


def _failure(text: str) -> Failure:
    from tokenmill.perf.simulate import Failure

    found = {
        name: _number(value, f"--fail {name}")
        for name, value in _pairs(text, "--fail", ("t", "replica", "down")).items()
    }
    if not {"t", "replica"} <= found.keys():
        raise ConfigError(f"--fail {text!r}: say when and which, such as t=60,replica=0")
    return Failure(found["t"], int(found["replica"]), found.get("down"))


def _pairs(text: str, option: str, known: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """``a=1,b=2`` → names and values, as text."""
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals or name.strip() not in known:
            raise ConfigError(f"{option} {text!r}: {part!r} is not one of {', '.join(f'{one}=…' for one in known)}")
        found[name.strip()] = value.strip()
    return found


def _number(text: str, where: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not abs(number) < 1e15:
        raise ConfigError(f"{where}: {text!r} is not a number")
    return number


def _window(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    begin, colon, end = text.partition(":")
    bounds = (_number(begin or "0", "--window"), _number(end or "1e14", "--window"))
    if not colon or not 0 <= bounds[0] < bounds[1]:
        raise ConfigError(f"--window {text!r}: write A:B, in seconds, such as 600:1200")
    return bounds


# ---- printing --------------------------------------------------------------------------------------------


def _print(result: dict[str, Any]) -> None:
    engine, requests, simulation = result["engine"], result["requests"], result["simulation"]
    rate = result["rate_per_s"]
    print(
        f"{result['model']} ({engine['weights']}, KV {engine['kv']}) on {engine['hardware']}, {engine['layout']}\n"
        f"{requests['sent']} requests {'all at once' if rate is None else f'at {rate:.3g} a second'}: "
        f"{requests['completed']} completed, {requests['failed']} failed"
    )
    for message, count in result["errors"].items():
        print(f"  {count} × {message}")
    found = result["throughput"]
    print(
        f"per second  requests {found['requests_per_s']:.3g}, tokens in {found['input_tokens_per_s']:,.0f}, "
        f"tokens out {found['output_tokens_per_s']:,.0f}, within the SLO {result['goodput']['share']:.1%} of requests\n"
    )
    rows: list[tuple[object, ...]] = [("milliseconds", "mean", "p50", "p90", "p95", "p99", "max")]
    for name, title in LATENCIES.items():
        if result["latency"][name]:
            rows.append((title, *(f"{value * 1000:,.1f}" for value in result["latency"][name].values())))
    print_table(rows, right=range(1, 7))
    print()
    _print_pools(result["pools"])
    _print_rest(result)
    several = sum(pool["replicas_started"] for pool in result["pools"].values()) > 1
    print(
        f"\n{simulation['simulated_s']:,.0f} s simulated in {simulation['wall_s']:.2f} s: "
        f"{simulation['speed_factor']:,.3g} times as fast as real time"
        + (f", {simulation['engine_speed_factor']:,.3g} engine seconds a second" if several else "")
    )


def _print_pools(pools: Mapping[str, Mapping[str, Any]]) -> None:
    heading = ("pool", "replicas", "busy", "mean batch", "most waiting", "KV use", "prefix hits", "preempted", "bound")
    rows: list[tuple[object, ...]] = [heading]
    for name, pool in pools.items():
        bounds = pool["bound_share"]
        bound = max(bounds, key=lambda one: bounds[one] or 0.0) if bounds else "–"
        batch = "–" if pool["mean_batch"] is None else f"{pool['mean_batch']:.1f}"
        shares = (_percent(pool[field]) for field in ("kv_use_mean", "prefix_hit_share"))
        count, busy = f"{pool['replicas_mean']:.3g}", _percent(pool["utilisation"])
        rows.append((name, count, busy, batch, pool["max_waiting"], *shares, pool["preemptions"], bound))
    print_table(rows, right=range(1, 8))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.1%}"


def _print_rest(result: Mapping[str, Any]) -> None:
    events, cost = result["events"], result["cost"]
    if events["failures"]:
        print(f"{events['failures']} nodes failed, {events['restarts']} requests began anew")
    if events["transfers"]:
        print(f"{events['transfers']} transfers, {events['transfer_wait_mean_s'] * 1000:.1f} ms each on average")
    if "price" in cost:
        print(f"{cost['device_hours']:.3g} device hours cost {cost['price']:.4g}", end="")
        million = cost["price_per_million_output_tokens"]
        print("" if million is None else f", {million:.3g} per million output tokens")
