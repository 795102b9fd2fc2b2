"""The stage ``offline``: so many prompts at once, until all are answered, as ``bench offline`` does it.

Each model in a process of its own: a short turn to warm up, the one that counts, and one of the engine alone, of whose
tokens nobody makes text. Beside the rates stand

* what the cost model says of the same prompts under the same scheduler, at the ceilings measured in this process;
* the allocator's peak, beside what the ledger foresaw of weights, keys and values and workspace.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tokenmill.bench.foresee import compare, foresee
from tokenmill.bench.gpu.engines import configured
from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.shapes import LLAMA_8B, QWEN_EXPERTS, QWEN_SMALL
from tokenmill.bench.gpu.unit import Context, Failed, Outcome, Unit
from tokenmill.bench.offline import answer_turn, figures_of
from tokenmill.bench.peers.work import make_prompts
from tokenmill.bench.probe.cuda import describe as describe_device
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import Request
from tokenmill.engine.telemetry import Telemetry
from tokenmill.launch import Launched, build
from tokenmill.llm import LLM, QUEUE_PER_SEQUENCE
from tokenmill.perf.diagnose import Limits, describe
from tokenmill.perf.memory import Group

MEMORY: tuple[Group, ...] = ("weights", "kv", "workspace")
"""Of the ledger's groups: what the allocator gives."""


@dataclass(frozen=True, slots=True)
class Load:
    """So many prompts of one length."""

    num_prompts: int
    prompt: int
    output: int

    @property
    def name(self) -> str:
        return f"{self.num_prompts} × {self.prompt} + {self.output}"


WARM_TOKENS = 8
USUAL = Load(256, 1024, 256)
TOY = Load(2, 5, 3)

RUNS: tuple[tuple[str, dict[str, Any]], ...] = (
    (LLAMA_8B, {"weights": "bf16"}),
    (LLAMA_8B, {"weights": "fp8", "kv": "fp8"}),
    (QWEN_EXPERTS, {"weights": "bf16"}),
    (QWEN_SMALL, {"weights": "bf16"}),
    (LLAMA_8B, {"weights": "int4"}),
)


def units(place: Place) -> list[Unit]:
    load = TOY if place.toy else USUAL
    return [
        Unit(_name(model, options), partial(_run, model, options, load))
        for model, options in (RUNS[1:3] if place.toy else RUNS)
    ]


def _name(model: str, options: dict[str, Any]) -> str:
    return f"{model} {options['weights']}"


def _run(model: str, options: dict[str, Any], load: Load, context: Context) -> Outcome:
    lengths = [(load.prompt, load.output)] * load.num_prompts
    ceilings = context.ceilings
    if context.place.is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = _allocated(context)
    tokens = load.prompt + load.output
    with (
        configured(context, model, num_seqs=load.num_prompts, num_tokens=tokens, **options) as config,
        LLM.over(build(config)) as llm,
    ):
        checkpoint = llm.launched.checkpoint
        ledger = checkpoint.ledger
        llm.launched.engine.telemetry = Telemetry()
        answer_turn(llm, [(load.prompt, min(load.output, WARM_TOKENS))] * load.num_prompts, "warm-up")
        turn = answer_turn(llm, lengths, "counts")
        alone = _engine_alone(llm.launched, load)
        peak = _peak(context)
    if turn["failed"]:
        raise Failed(f"{turn['failed']} requests failed: {next(iter(turn['errors']))}", {"errors": turn["errors"]})
    figures = figures_of(turn)
    rate = figures["throughput"]["output_tokens_per_s"]
    ratios = _against_foreseen(config, checkpoint, lengths, figures, context)
    expected = sum(ledger.group_bytes(group) for group in MEMORY)
    measured = peak["reserved_bytes"] - before
    memory = {
        "foreseen_bytes": {group: ledger.group_bytes(group) for group in MEMORY},
        "before_loading_bytes": before,
        **peak,
        "measured_to_foreseen": measured / expected,
    }
    return Outcome(
        {
            "name": _name(model, options),
            "model": model,
            "precision": options["weights"],
            "options": options,
            "load": load.name,
            "output_tokens_per_s": rate,
            "seconds": turn["seconds"],
            "engine_alone_tokens_per_s": alone,
            "failed": turn["failed"],
            "errors": turn["errors"],
            "steps": turn["steps"],
            "preemptions": turn["preemptions"],
            "throughput": figures["throughput"],
            "latency": figures["latency"],
            "memory": memory,
            "measured_to_foreseen": ratios,
            "account": turn["account"],
            "ceilings": ceilings.as_dict(),
        },
        f"{rate:,.0f} output tokens/s ({alone:,.0f} without text), "
        f"{ratios.get('output_tokens_per_s', 0):.2f} of foreseen, "
        f"memory {memory['measured_to_foreseen']:.3f} of foreseen",
    )


def _engine_alone(launched: Launched, load: Load) -> float:
    """Output tokens a second of the same load where nothing is made of them."""
    engine, vocab = launched.engine, launched.limits.vocab_size
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    prompts = make_prompts([load.prompt] * load.num_prompts, vocab, "alone")
    for number, prompt in enumerate(prompts):
        now = engine.clock.now()
        engine.add(Request(f"alone-{number}", tuple(prompt), params, load.output, arrival_s=now))
    began = time.perf_counter()
    while engine.has_work:
        engine.step()
    return load.num_prompts * load.output / (time.perf_counter() - began)


def _against_foreseen(
    config: EngineConfig, checkpoint: Any, lengths: list[tuple[int, int]], figures: dict[str, Any], context: Context
) -> dict[str, float]:
    """Measured over what the cost model says."""
    place, ledger = context.place, checkpoint.ledger
    limits = Limits(num_blocks=ledger.num_blocks, block_size=ledger.block_size)
    about = describe(checkpoint.config, checkpoint.name, ledger.precision, None, limits)
    device = describe_device() if place.is_gpu else TOY_DEVICE
    machine = context.ceilings.hardware(device)
    foreseen = foresee(about, config, lengths, machine)
    at_once = len(lengths) <= QUEUE_PER_SEQUENCE * config.scheduler.max_seqs
    return compare(figures, foreseen, at_once=at_once)


TOY_DEVICE = {"name": "toy", "kind": "gpu", "vendor": "none", "family": "toy", "memory_bytes": 1e9}


def _allocated(context: Context) -> int:
    return torch.cuda.memory_reserved() if context.place.is_gpu else 0


def _peak(context: Context) -> dict[str, int]:
    """The most that the allocator took of the device, and of that the most it gave out."""
    if not context.place.is_gpu:
        return {"reserved_bytes": 0, "allocated_bytes": 0}
    stats = torch.cuda.memory_stats()
    return {
        "reserved_bytes": stats["reserved_bytes.all.peak"],
        "allocated_bytes": stats["allocated_bytes.all.peak"],
    }
