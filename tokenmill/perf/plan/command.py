"""How to start a plan: with this engine where it can run it, else with another engine's own words for the same thing.

This engine runs dense decoders on one CPU device today. For everything else the command is that of the engine that the
prediction is for: vLLM; SGLang for attention in data-parallel groups and for separate pools; llama.cpp on devices
that share their memory with the host. Options of other engines change; they are meant to be read, and checked against
its help.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from tokenmill.perf.plan.predict import Instance
from tokenmill.perf.plan.search import Plan
from tokenmill.perf.plan.slo import Limits
from tokenmill.perf.plan.workload import Workload
from tokenmill.perf.shape import FeedForward, GroupedAttention, ModelShape

_OWN_WEIGHTS = {"bf16": "bf16", "int8wo": "int8", "int8": "int8", "int4": "int4"}
_QUANTIZATION = {"fp8": "fp8", "int8": "compressed-tensors", "int8wo": "compressed-tensors", "int4": "awq",
                 "nvfp4": "modelopt_fp4", "mxfp4": "mxfp4"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Command:
    engine: str
    """``tokenmill``, or whose command it is."""
    text: str
    note: str
    """How many times it is started, and what else it takes."""


@dataclass(frozen=True, slots=True)
class _Start:
    """One instance to be started."""

    instance: Instance
    max_seqs: int
    replicas: int

    @property
    def times(self) -> str:
        return f"{self.replicas} instances behind a load balancer" if self.replicas > 1 else "one instance"


def command_of(plan: Plan, model: str, workload: Workload, limits: Limits) -> Command:
    """What starts the plan's instances."""
    starts = [_Start(pool.instance, plan.max_seqs(pool, workload.rate), pool.replicas) for pool in plan.pools]
    context = math.ceil(workload.longest / 64) * 64
    if len(plan.pools) > 1:
        return _two_pools(starts, model)
    pool, candidate = starts[0], plan.candidate
    if candidate.hardware.kind == "cpu" and runs_here(candidate.deployment.shape) and not candidate.drafts:
        return _own(pool, model, context, limits)
    if candidate.engine == "llama.cpp":
        return _llama_cpp(pool, model, context)
    return _sglang(pool, model) if candidate.layout.dp > 1 else _vllm(pool, model, context)


def runs_here(shape: ModelShape) -> bool:
    """This engine's families: dense, with grouped attention over plain caches."""
    return all(
        isinstance(run.mixer, GroupedAttention)
        and isinstance(run.feed, FeedForward)
        and not (run.mixer.gated or run.mixer.sinks)
        for run in shape.layers
    )


def _own(pool: _Start, model: str, context: int, limits: Limits) -> Command:
    instance = pool.instance
    words = ["tokenmill", "serve", model, "--max-context", context, "--max-seqs", pool.max_seqs]
    words += ["--max-step-tokens", instance.step_tokens]
    weights = _OWN_WEIGHTS.get(instance.candidate.precision)
    words += ["--weights", weights] if weights else []
    gaps = [limit.seconds for limit in limits if limit.metric == "itl"]
    words += ["--itl-slo-s", f"{min(gaps):g}"] if gaps else []
    return Command("tokenmill", _join(words), pool.times)


def _vllm(pool: _Start, model: str, context: int) -> Command:
    instance, layout = pool.instance, pool.instance.layout
    words: list[object] = ["vllm", "serve", model, "--max-model-len", context, "--max-num-seqs", pool.max_seqs]
    words += ["--max-num-batched-tokens", instance.step_tokens]
    words += ["--tensor-parallel-size", layout.tp] if layout.tp > 1 else []
    words += ["--pipeline-parallel-size", layout.pp] if layout.pp > 1 else []
    words += ["--enable-expert-parallel"] if layout.ep > 1 else []
    words += _precision(instance, "--quantization", "--kv-cache-dtype")
    note = f"{pool.times}; vLLM's command: this engine does not run on such devices yet"
    if instance.candidate.drafts:
        words += ["--speculative-config", f'{{"method": "eagle", "model": "DRAFT", '
                  f'"num_speculative_tokens": {instance.candidate.drafts}}}']  # fmt: skip
        note += "; DRAFT is a draft head made for the model"
    return Command("vllm", _join(words), note)


def _precision(instance: Instance, weights: str, cache: str) -> list[object]:
    candidate = instance.candidate
    stored = candidate.deployment.shape.quantization is not None
    quantization = _QUANTIZATION.get(candidate.precision)
    words: list[object] = [weights, quantization] if quantization and not stored else []
    kv = candidate.deployment.formats.kv.name
    return [*words, cache, "fp8_e4m3" if cache.endswith("dtype") and kv == "fp8" else kv] if kv == "fp8" else words


def _sglang_words(pool: _Start, model: str) -> list[object]:
    instance, layout = pool.instance, pool.instance.layout
    ranks = layout.tp * layout.dp
    words: list[object] = ["python", "-m", "sglang.launch_server", "--model-path", model, "--tp", ranks]
    words += ["--dp", layout.dp, "--enable-dp-attention"] if layout.dp > 1 else []
    words += ["--pp-size", layout.pp] if layout.pp > 1 else []
    words += ["--ep-size", layout.ep] if layout.ep > 1 else []
    words += ["--chunked-prefill-size", instance.step_tokens, "--max-running-requests", pool.max_seqs]
    return [*words, *_precision(instance, "--quantization", "--kv-cache-dtype")]


def _sglang(pool: _Start, model: str) -> Command:
    note = f"{pool.times}; SGLang's command: this engine does not run on such devices yet"
    return Command("sglang", _join(_sglang_words(pool, model)), note)


def _two_pools(starts: list[_Start], model: str) -> Command:
    lines = [
        f"{_join([*_sglang_words(pool, model), '--disaggregation-mode', mode])}   # × {pool.replicas}"
        for pool, mode in zip(starts, ("prefill", "decode"), strict=True)
    ]
    return Command("sglang", "\n".join(lines), "SGLang's commands, and its router before them")


def _llama_cpp(pool: _Start, model: str, context: int) -> Command:
    instance = pool.instance
    places = pool.max_seqs
    words = ["llama-server", "-m", f"{model}.gguf", "--parallel", places, "--ctx-size", places * context]
    words += ["--batch-size", instance.step_tokens]
    return Command("llama.cpp", _join(words), f"{pool.times}; llama.cpp's command, with a file in that precision")


def _join(words: list[object]) -> str:
    return shlex.join(str(word) for word in words)
