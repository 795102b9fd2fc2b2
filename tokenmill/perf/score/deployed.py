"""What ran: a row's engine, number formats, device and layout, as the cost model has them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from tokenmill.core.errors import TokenmillError
from tokenmill.perf import steady
from tokenmill.perf.costs import Formats, Layout, formats_named
from tokenmill.perf.hardware import Hardware, find
from tokenmill.perf.models import find_model
from tokenmill.perf.score.rows import Pool, Row
from tokenmill.perf.shape import ModelShape
from tokenmill.perf.terms import Deployment


class NotPredicted(Exception):
    """Why a row is not predicted."""


@dataclass(frozen=True, slots=True)
class Deployed:
    deployment: Deployment
    replicas: float = 1.0


# ---- what ran ----------------------------------------------------------------------------------------------

ENGINES = {
    "tensorrt-llm": "trtllm",
    "trtllm": "trtllm",
    "nvidia nim (tensorrt-llm)": "trtllm",
    "vllm": "vllm",
    "vllm-tpu": "vllm",
    "vllm (splitwise fork, 2023)": "vllm-2023",
    "sglang": "sglang",
    "transformers neuronx": "neuronx",
    "llama.cpp": "llama.cpp",
    "lmdeploy-turbomind": "lmdeploy",
    "gpt-fast": "gpt-fast",
    "exllamav2": "exllamav2",
    "jetstream experimental jax": "jetstream",
    "jetstream": "jetstream",
}

RULES: Mapping[str, steady.MemoryRule] = {
    "vllm": steady.MemoryRule(0.9, True),
    "sglang": steady.MemoryRule(0.88, True, 2e9),
    "trtllm": steady.MemoryRule(0.9, False),
    "jetstream": steady.MemoryRule(0.9, True, 1e9),
}
USUAL_RULE = steady.MemoryRule(0.9, True, 2e9)
TIGHT = steady.MemoryRule(0.98, True, 1e9)
"""Where an engine's usual share leaves no room, and the row shows that it ran all the same."""

_BITS = re.compile(r"exl2-([\d.]+)bpw")


def engine_of(row: Row) -> str:
    """One word for the engine."""
    name = row.engine.strip().lower()
    if name in ENGINES:
        return ENGINES[name]
    for part in (name, row.version.strip().lower()):
        for word in ("vllm", "tensorrt", "sglang", "llama.cpp"):
            if word in part:
                return {"tensorrt": "trtllm"}.get(word, word)
    return "mlperf" if row.source.startswith("MLPerf") else name.split(" ")[0] or "unknown"


@cache
def formats_of(precision: str, engine: str, model: str, hardware: str) -> Formats:
    """The formats that a table's word for precision means; 4-bit weights without units for them are widened first."""
    text = precision.strip().lower()
    if "on cpu" in text:
        raise NotPredicted("experts run on the host's processors: two kinds of devices in one step are not modelled")
    text, _, cache_format = text.partition("/kv-")
    found = _BITS.search(text)
    if found:
        bits = replace(formats_named("int4"), lm_head=formats_named("int8wo").weights)
        return replace(bits, weights=replace(bits.weights, name=text, bits=float(found[1])))
    name = {"": "bf16", "fp16/bf16": "bf16", "fp16": "bf16", "f16": "bf16", "fp4": "nvfp4", "int8": "int8"}.get(
        text, text
    )
    if text.startswith(("gptq-4bit", "int4wo")):
        name = "int4"
    shape = find_model(model)
    if shape.name.startswith("gpt-oss"):
        experts = formats_named("mxfp4").weights
        if "fp4" not in hardware_of(hardware).peaks:
            experts = replace(experts, arithmetic="bf16")
        return replace(formats_named("bf16", cache_format or "bf16"), experts=experts)
    formats = formats_named(name, cache_format or None)
    if name in ("nvfp4", "int4") and shape.has_experts:
        wide = formats_named("fp8" if shape.name.startswith("Qwen") else "bf16")
        return replace(formats, weights=wide.weights, experts=formats.weights)
    if engine in ("vllm", "sglang") and not cache_format:
        return replace(formats, kv=formats_named("bf16").kv)
    if engine == "llama.cpp":
        return replace(formats, lm_head=formats.weights)
    return formats


@cache
def hardware_of(name: str) -> Hardware:
    parts = [part.strip() for part in re.split(r" \+ ", name)]
    if len(parts) > 1:
        raise NotPredicted("several kinds of devices share the work")
    try:
        return find(name)
    except TokenmillError as error:
        raise NotPredicted(str(error)) from error


@cache
def core_of(name: str) -> Hardware:
    """One of the two cores of a chip, where the table counts cores."""
    hardware = hardware_of(name)
    link = hardware.link
    return replace(
        hardware,
        memory_bytes=hardware.memory_bytes / 2,
        memory_bytes_per_s=hardware.memory_bytes_per_s / 2,
        peaks={name: peak / 2 for name, peak in hardware.peaks.items()},
        link=replace(link, bytes_per_s=link.bytes_per_s / 2, domain=2 * link.domain) if link else None,
        devices_per_node=2 * hardware.devices_per_node,
        observed=dict(hardware.observed),
    )


# ---- layouts -----------------------------------------------------------------------------------------------

_DEP = re.compile(r"\bDEP(\d+)\b")


def rule_of(engine: str) -> steady.MemoryRule:
    return RULES.get(engine, USUAL_RULE)


def deployed_of(row: Row) -> Deployed:
    """One instance on all the row's devices."""
    shape, hardware, layout, replicas = find_model(row.model), hardware_of(row.hardware), _layout(row), 1.0
    formats = formats_of(row.precision, engine_of(row), row.model, row.hardware)
    devices = row.devices or layout.num_devices
    if layout.num_devices == 2 * devices:
        hardware = core_of(row.hardware)
    elif layout.num_devices < devices and devices % layout.num_devices == 0 and "attn_dp" not in row.note:
        replicas = devices / layout.num_devices
    return Deployed(Deployment(shape, formats, _legal(layout, shape), hardware), replicas)


def _layout(row: Row) -> Layout:
    tp, pp = row.tp or row.devices or 1, row.pp or 1
    found = _DEP.search(row.note)
    if found:
        return Layout(dp=int(found[1]), ep=int(found[1]))
    if "attention_dp" in row.note and tp > 1:
        return Layout(dp=tp, ep=tp)
    if row.expert_parallel is None:
        return Layout(tp=tp, pp=pp)
    moe_tp, moe_ep = (max(number, 1) for number in row.expert_parallel)
    dp = row.attention_dp
    twice = moe_tp == moe_ep > 1 and moe_tp * moe_ep == tp * dp
    if twice or tp == dp == math.isqrt(moe_ep) > 1:
        # "tp 4, ep 4" of one and the same four devices, which the columns multiply: the same figures also stand under
        # four devices elsewhere in the table.
        own = moe_ep if twice else tp
        return Layout(dp=own, ep=own) if dp > 1 else Layout(tp=own, ep=own)
    ep = moe_ep if (tp * dp) % moe_ep == 0 else 1
    return Layout(tp=tp, dp=dp, ep=ep, pp=pp)


def _legal(layout: Layout, shape: ModelShape) -> Layout:
    """A dense model has no experts to spread."""
    return layout if shape.has_experts else replace(layout, ep=1)


def replicas_of(row: Row, tokens: float) -> Deployed:
    """As many of the smallest tensor-parallel groups as the devices hold that fit the weights and a batch of 32."""
    shape, hardware = find_model(row.model), hardware_of(row.hardware)
    formats, devices = formats_of(row.precision, engine_of(row), row.model, row.hardware), row.devices or 1
    found = _DEP.search(row.note)
    tp = 1
    while tp <= devices:
        layout = Layout(tp=tp)
        deployment = Deployment(shape, formats, layout, hardware)
        if found is None and steady.capacity(deployment, rule_of(engine_of(row)), tokens) >= 32:
            return Deployed(deployment, devices / tp)
        tp *= 2
    raise NotPredicted(f"the weights do not fit {devices} devices of this kind")


def disaggregated_of(row: Row) -> tuple[Deployed, Deployed, bool]:
    """Prefill and decode pools, and whether the row says how many workers they have; if not, one of each."""
    pools = row.pools
    assert pools is not None
    known = pools[0].workers > 0 and pools[1].workers > 0
    first, second = (_pool(row, pool) for pool in pools)
    return first, second, known


def _pool(row: Row, pool: Pool) -> Deployed:
    shape, hardware = find_model(row.model), hardware_of(row.hardware)
    formats = formats_of(row.precision, engine_of(row), row.model, row.hardware)
    tp, dp, ep = max(pool.tp, 1), max(pool.dp, 1), max(pool.ep, 1)
    ep = ep if (tp * dp) % ep == 0 else math.gcd(tp * dp, ep)
    layout = _legal(Layout(tp=tp, dp=dp, ep=ep), shape)
    return Deployed(Deployment(shape, formats, layout, hardware), float(max(pool.workers, 1)))
