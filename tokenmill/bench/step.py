"""One step of a model, taken apart: each kernel's time, the host's, and the share of the machine's bandwidth.

The whole step runs as it does when serving (scheduler, worker, kernels), without text and network. Sequences of one
length decode together under the real scheduler, greedily; a step's time is its wall time, its kernels' times are taken
by thread 0 at their barriers (``kernels/cpu/src/program.cpp``), and the host's is what is left: planning, arrays for
the kernels, taking in results.

    model bandwidth utilisation = (weights + keys and values seen) / (time * bandwidth)

with the bandwidth measured in the same run. At one sequence it says how far from the wall decoding is.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tokenmill import launch
from tokenmill.bench.kernels import measure_ceilings
from tokenmill.core.clock import MonotonicClock
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import ConfigError
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import Request
from tokenmill.core.step import StepPlan
from tokenmill.engine.contracts import Executor
from tokenmill.engine.engine import Engine
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.scheduler import Scheduler
from tokenmill.perf.memory import kv_position_bytes


def run(
    model: str,
    options: dict[str, Any],
    *,
    batches: Sequence[int] = (1, 8, 32),
    context: int = 128,
    num_steps: int = 40,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Decode ``num_steps`` steps at each batch size, after a prompt of ``context`` tokens.

    Raises:
        ConfigError: the fast kernels cannot be had for this model and these options.
    """
    length = context + num_steps + 8
    num_blocks = max(batches) * (length // 16 + 2)
    config = EngineConfig.from_options(
        model=model,
        kernels="fast",
        num_blocks=num_blocks,
        max_seqs=max(batches),
        max_step_tokens=max(512, max(batches)),
        **options,
    )
    progress("loading")
    checkpoint = launch.inspect(config)
    if length > checkpoint.ledger.max_context:
        raise ConfigError(
            f"--context {context} and {num_steps} steps are beyond the model's {checkpoint.config.max_context}"
        )
    executor, measured = launch.load_executor(config, checkpoint, launch.Silent())
    compiled = executor.worker.model  # type: ignore[attr-defined]  # a LocalExecutor over a CompiledModel
    progress("ceilings")
    ceilings = measure_ceilings(compiled.pool.library, compiled.pool, 5)
    position_bytes = kv_position_bytes(checkpoint.config, checkpoint.ledger.precision.kv)
    rows = []
    for batch in batches:
        progress(f"batch {batch}")
        walls, kernels = _decode(executor, compiled, checkpoint.ledger.num_blocks, config, batch, context, num_steps)
        num_bytes = measured.weights_bytes + batch * (context + num_steps / 2) * position_bytes
        rows.append(_figures(batch, walls, kernels, num_bytes, ceilings.bytes_per_s))
    executor.close()
    return {
        "model": checkpoint.name,
        "precision": str(checkpoint.ledger.precision),
        "threads": compiled.pool.num_threads,
        "context": context,
        "weights_bytes": measured.weights_bytes,
        "bandwidth_gigabytes_per_s": ceilings.bytes_per_s / 1e9,
        "batches": rows,
    }


def _figures(
    batch: int, walls: Sequence[float], kernels: Counter[str], num_bytes: float, bytes_per_s: float
) -> dict[str, Any]:
    wall, in_kernels = statistics.median(walls), sum(kernels.values())
    return {
        "batch": batch,
        "milliseconds": wall * 1e3,
        "tokens_per_s": batch / wall,
        "gigabytes_per_s": num_bytes / wall / 1e9,
        "bandwidth_share": num_bytes / wall / bytes_per_s,
        "host_microseconds": (statistics.mean(walls) - in_kernels) * 1e6,
        "host_share": 1 - in_kernels / statistics.mean(walls),
        "kernel_share": {name: seconds / in_kernels for name, seconds in kernels.most_common()},
    }


class _Shared:
    """An ``Executor`` that leaves the given one open, so that several engines can follow one another on it."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def start(self) -> None:
        pass

    def submit(self, plan: StepPlan) -> Any:
        return self._executor.submit(plan)

    def close(self) -> None:
        pass


def _decode(
    executor: Executor,
    compiled: Any,
    num_blocks: int,
    config: EngineConfig,
    batch: int,
    context: int,
    num_steps: int,
) -> tuple[list[float], Counter[str]]:
    """Wall seconds of each step, and mean seconds of each kernel in one."""
    scheduler = Scheduler(KVCache(num_blocks, config.cache.block_size, prefix_caching=False), config.scheduler)
    engine = Engine(scheduler, _Shared(executor), MonotonicClock())
    chance = random.Random(batch)
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    for number in range(batch):
        prompt = tuple(chance.randrange(5, compiled.config.vocab_size) for _ in range(context))
        engine.add(Request(str(number), prompt, params, num_steps + 6))
    while any(seq.num_generated < 2 for seq in scheduler.running) or scheduler.num_waiting:
        engine.step()
    walls, programs = [], (compiled.program, compiled.choice)
    for program in programs:
        program.seconds = np.zeros(len(program.names))
    for _ in range(num_steps):
        began = time.perf_counter()
        engine.step()
        walls.append(time.perf_counter() - began)
    kernels: Counter[str] = Counter()
    for program in programs:
        for name, seconds in zip(program.names, program.seconds, strict=True):
            kernels[name] += seconds / num_steps
        program.seconds = None
    while engine.has_work:
        engine.step()
    executor.submit(StepPlan(-2, (), (), (), dropped=tuple(executor.worker.known_seq_ids)))  # type: ignore[attr-defined]
    return walls, kernels
