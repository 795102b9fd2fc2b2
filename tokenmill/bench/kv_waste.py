"""How much of the KV memory held by sequences holds nothing: the price of blocks (vLLM's paper: under 4 %).

The real scheduler runs a trace of prompt and answer lengths under a virtual clock. At each step the slots of
the blocks that sequences hold are compared with the tokens in them: what is missing is the unfilled end of
each last block, and room taken for prompts whose chunks are still to come. The mean is over slot-seconds.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenmill.bench.scheduler import NullExecutor
from tokenmill.core.clock import VirtualClock
from tokenmill.core.engine_config import SchedulerConfig
from tokenmill.core.errors import ConfigError
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import Request
from tokenmill.engine.engine import Engine
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.scheduler import Scheduler

MAX_TOKENS = 4096
"""Longer prompts and answers of a trace are cut to this."""


def read_lengths(path: Path) -> Iterator[tuple[int, int]]:
    """(prompt, answer) lengths from a CSV with the columns ContextTokens and GeneratedTokens."""
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                prompt, answer = int(row["ContextTokens"]), int(row["GeneratedTokens"])
                yield min(max(prompt, 1), MAX_TOKENS), min(max(answer, 1), MAX_TOKENS)
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{path} is no trace with columns ContextTokens and GeneratedTokens: {error}") from error


def run(
    lengths: list[tuple[int, int]],
    *,
    block_size: int = 16,
    num_blocks: int = 8192,
    max_seqs: int = 128,
    max_step_tokens: int = 2048,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> dict[str, Any]:
    """Serve ``lengths`` one after the other, batch and pool kept full; returns the mean share of unused slots."""
    clock = VirtualClock()
    scheduler = Scheduler(
        KVCache(num_blocks, block_size), SchedulerConfig(max_seqs=max_seqs, max_step_tokens=max_step_tokens)
    )
    engine = Engine(scheduler, NullExecutor(clock), clock)
    held = used = 0
    next_request = finished = 0
    while finished < len(lengths):
        while next_request < len(lengths) and scheduler.num_waiting < max_seqs:
            engine.add(_request(next_request, *lengths[next_request], clock.now()))
            next_request += 1
        finished += len(engine.step().finished)
        for seq in scheduler.running:
            held += seq.num_slots
            used += seq.num_planned
        if scheduler.num_steps % 200 == 0:
            progress(finished, len(lengths))
    return {
        "benchmark": "kv-waste",
        "requests": len(lengths),
        "mean_prompt": sum(p for p, _ in lengths) / len(lengths),
        "mean_answer": sum(a for _, a in lengths) / len(lengths),
        "block_size": block_size,
        "steps": scheduler.num_steps,
        "preemptions": scheduler.num_preemptions,
        "waste": 1.0 - used / held,
    }


def _request(number: int, prompt_len: int, answer_len: int, now: float) -> Request:
    prompt = (number, *range(prompt_len - 1))  # the first token differs: nothing is shared
    return Request(f"r{number}", prompt, SamplingParams(), answer_len, frozenset(), number, now)
