"""From a row to a question that the roofline can answer: what ran, under which load, and what number was printed.

A ``Scenario`` holds the deployment (``score/deployed``), weighted steps whose seconds make the answer
(``perf/steady``), and how they become the row's unit. Whatever the row leaves open and its source does not say
elsewhere is ``NotPredicted``, with the reason; nothing is filled in by taste.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokenmill.core.errors import TokenmillError
from tokenmill.perf import steady
from tokenmill.perf.costs import Work
from tokenmill.perf.score.deployed import (
    TIGHT,
    Deployed,
    NotPredicted,
    deployed_of,
    disaggregated_of,
    engine_of,
    replicas_of,
    rule_of,
)
from tokenmill.perf.score.rows import Row
from tokenmill.perf.terms import Deployment


@dataclass(frozen=True, slots=True)
class Scenario:
    group: str
    """Where the row is reported: ``max_throughput_dense``, ``tpot`` …"""
    engine: str
    deployment: Deployment
    steps: steady.Steps
    """Seconds = Σ weight · step time …"""
    amount: float | None
    """… which are the answer in milliseconds (None), or make this many of the row's unit."""
    batch: float
    input_len: float
    output_len: float
    requests: float = 0.0
    """How many times the host's time for a request is part of it."""
    waiting: float = 0.0
    """Clients without a place in memory, over those with one."""


REQUESTS: Mapping[tuple[int, int], int] = {
    (128, 128): 30000,
    (128, 2048): 3000,
    (128, 4096): 1500,
    (500, 2000): 3000,
    (1000, 1000): 3000,
    (1000, 2000): 1500,
    (1024, 2048): 1500,
    (2048, 128): 3000,
    (2048, 2048): 1500,
    (5000, 500): 1500,
    (20000, 2000): 1000,
}
"""How many requests TensorRT-LLM's tables queue, by lengths (its perf-overview page)."""
USUAL_REQUESTS = 2000
LARGEST_BATCH = 4096

DATASETS: Mapping[str, tuple[float, float]] = {
    "llama2-70b": (294, 294.5),
    "mixtral-8x7b": (280, 144.8),
    "llama3.1-405b": (9400, 684.7),
    "llama3.1-8b": (780, 128),
    "gptj": (780, 70),
    "deepseek-r1": (800, 3886.2),
    "gpt-oss-120b": (200, 1278.2),
}
"""MLPerf's mean lengths: outputs as its rules give them, inputs as counted by others (it publishes none)."""

SERVED = ("docs.nvidia.com/nim", "docs.vultr.com", "AI-Hypercomputer", "vllm-project")
"""Sources whose numbers were measured by clients of a server."""

SHORT_PROMPT, SHORT_OUTPUT = 8.0, 200.0
"""Where a table says only that the context is short."""


def scenario_of(row: Row) -> Scenario:
    """Raises ``NotPredicted`` with the reason."""
    try:
        if row.load.startswith("open-loop"):
            raise NotPredicted("requests arrive by chance: percentiles of a queue are simulated, not computed")
        if row.source.startswith("MLPerf"):
            return _mlperf(row)
        if row.pools is not None:
            return _disaggregated(row)
        if row.load == "max":
            return _max_throughput(row)
        if ("attn_dp" in row.note or row.source.startswith(SERVED)) and not row.metric.endswith("_speed"):
            return _closed_loop(row)
        return _static(row)
    except TokenmillError as error:
        raise NotPredicted(error.message) from error


def _lengths(row: Row) -> tuple[float, float]:
    if row.input_len is None or row.output_len is None:
        raise NotPredicted("the row does not say how long inputs and outputs are")
    return row.input_len, row.output_len


def _clients(row: Row) -> float:
    if row.batch is None or row.batch < 1:
        raise NotPredicted(f"the load {row.load!r} is not a number of requests")
    return row.batch


# ---- saturation --------------------------------------------------------------------------------------------


def _max_throughput(row: Row) -> Scenario:
    found, engine = deployed_of(row), engine_of(row)
    inputs, outputs = _lengths(row)
    fitting = _fitting(found, engine, inputs + outputs)
    requests = REQUESTS.get((int(inputs), int(outputs)), USUAL_REQUESTS)
    batch = float(min(fitting, LARGEST_BATCH, requests))
    group = "max_throughput_moe" if found.deployment.shape.has_experts else "max_throughput_dense"
    amount = _per_unit(row, batch * found.replicas)
    if row.metric == "input_throughput":
        amount *= inputs / max(outputs, 1.0)
    # In flow every stage has a micro-batch of its own: one pass of all stages brings pp micro-batches their tokens.
    stages = found.deployment.layout.pp
    steps = steady.saturated(batch / stages, inputs, outputs)
    return Scenario(group, engine, found.deployment, steps, amount, batch, inputs, outputs)


def _fitting(found: Deployed, engine: str, tokens: float) -> int:
    fitting = steady.capacity(found.deployment, rule_of(engine), tokens)
    fitting = fitting or steady.capacity(found.deployment, TIGHT, tokens)
    if fitting < 1:
        raise NotPredicted("by the ledger, weights and one sequence do not fit into the devices' memory")
    return fitting


def _per_unit(row: Row, amount: float) -> float:
    if row.metric.endswith("_per_gpu"):
        return amount / (row.devices or 1)
    return amount


def _mlperf(row: Row) -> Scenario:
    """Replicas of the smallest group that fits; server and interactive runs keep their latency limits."""
    name = row.model.removesuffix("-99.9").removesuffix("-99")
    if name not in DATASETS:
        raise NotPredicted(f"MLPerf's dataset for {row.model!r} has no published lengths")
    inputs, outputs = DATASETS[name]
    outputs = row.output_len if row.output_len and row.output_len > 1 else outputs
    found, engine = replicas_of(row, inputs + outputs), engine_of(row)
    if row.load == "singlestream":
        steps = steady.generation(1, inputs, outputs)
        return Scenario("latency", engine, found.deployment, steps, None, 1, inputs, outputs)
    batch = float(min(_fitting(found, engine, inputs + outputs), LARGEST_BATCH))
    limit = row.limits_s
    if limit is not None and row.load != "offline":
        batch = min(batch, LARGEST_BATCH * limit[1])  # a limit of 200 ms leaves 800 rows, one of 40 ms 160
    steps = steady.saturated(batch, inputs, outputs)
    group = "mlperf_offline" if row.load == "offline" else "mlperf_server"
    return Scenario(group, engine, found.deployment, steps, batch * found.replicas, batch, inputs, outputs)


# ---- closed loop -------------------------------------------------------------------------------------------

TOKEN_METRICS = ("tpot", "tpot_p50", "tpot_p99", "itl", "itl_p50", "itl_p99")
FIRST_METRICS = ("ttft", "ttft_p50", "ttft_p99", "prefill_time")
MIXES = {"sglang": False}
"""Most engines put prompts and single tokens into one step; this one lets prompts go first."""


def _closed_loop(row: Row) -> Scenario:
    found, engine = deployed_of(row), engine_of(row)
    clients, (inputs, outputs) = _clients(row), _lengths(row)
    fitting = _fitting(found, engine, inputs + outputs / 2)
    served = min(clients, float(fitting))
    return _loop(row, found, engine, (clients, served, inputs, outputs))


def _loop(row: Row, found: Deployed, engine: str, load: tuple[float, float, float, float]) -> Scenario:
    clients, served, inputs, outputs = load
    token = steady.closed_loop_token(served, inputs, outputs, mixes=MIXES.get(engine, True))
    waiting, requests = (clients - served) / served, 0.0
    if row.metric in TOKEN_METRICS:
        group, steps, amount = "tpot", token, None
    elif row.metric in FIRST_METRICS:
        group, amount, requests = "ttft", None, 1.0
        steps = steady.closed_loop_first(served, inputs, outputs, waiting, token)
    elif row.metric.startswith("output_throughput"):
        group, amount = "serving_throughput", _per_unit(row, served * outputs * found.replicas)
        steps = (*steady.first_token(1, inputs), *((weight * (outputs - 1), work) for weight, work in token))
    else:
        raise NotPredicted(f"metric {row.metric!r} of a closed loop is not one that is predicted")
    return Scenario(
        _named(group, row), engine, found.deployment, tuple(steps), amount, served, inputs, outputs, requests, waiting
    )


def _named(group: str, row: Row) -> str:
    return f"{group}_flagged" if row.flagged else group


def _disaggregated(row: Row) -> Scenario:
    """Prompts and tokens on workers of their own: neither waits for the other, each has its share of the load."""
    prefill, decode, known = disaggregated_of(row)
    engine = engine_of(row)
    clients, (inputs, outputs) = _clients(row), _lengths(row)
    suffix = "_disaggregated" if known else "_disaggregated_unknown_workers"
    if row.metric == "tpot":
        each = max(clients / decode.replicas, 1.0)
        steps = steady.per_token(each, inputs, outputs)
        return Scenario("tpot" + suffix, engine, decode.deployment, steps, None, each, inputs, outputs)
    if row.metric != "ttft":
        raise NotPredicted(f"metric {row.metric!r} of a disaggregated service is not one that is predicted")
    each = max(clients / prefill.replicas, 1.0)
    steps = ((1.0 + steady.OTHERS * (each - 1.0), Work.prefill(inputs)),)
    return Scenario("ttft" + suffix, engine, prefill.deployment, steps, None, each, inputs, outputs, 1.0)


# ---- one batch ---------------------------------------------------------------------------------------------


def _static(row: Row) -> Scenario:
    found, engine = deployed_of(row), engine_of(row)
    batch = _clients(row)
    inputs = row.input_len if row.input_len is not None else SHORT_PROMPT
    outputs = row.output_len if row.output_len else SHORT_OUTPUT
    metric, amount = row.metric, None
    if engine not in ("exllamav2",) and (row.input_len is None or row.output_len is None) and metric != "prefill_speed":
        raise NotPredicted("the row does not say how long inputs and outputs are")
    if metric in FIRST_METRICS:
        group, steps = "prefill", steady.first_token(batch, inputs)
    elif metric == "prefill_speed":
        group, steps, amount = "prefill", steady.first_token(batch, inputs), batch * inputs
    elif metric in TOKEN_METRICS:
        group, steps = _token_group(batch), steady.per_token(batch, inputs, outputs)
    elif metric == "decode_speed":
        group, steps, amount = _token_group(batch), steady.per_token(batch, inputs, outputs), batch
    elif metric.startswith("output_throughput"):
        if row.output_len is None or row.output_len < 2:
            raise NotPredicted("the row's output length is not one that was generated")
        group, steps = "static_throughput", steady.generation(batch, inputs, outputs)
        amount = _per_unit(row, batch * outputs * found.replicas)
    else:
        raise NotPredicted(f"metric {metric!r} in {row.unit!r} is not one that is predicted")
    return Scenario(group, engine, found.deployment, steps, amount, batch, inputs, outputs)


def _token_group(batch: float) -> str:
    return "decode_batch1" if batch <= 1 else "decode_batch"
