"""The stage ``step``: one decode step of a whole model, as it runs when serving: scheduler, worker, kernels, sampling.

Sequences of one length decode together under the real scheduler, greedily, two steps in flight. Of each step are taken

* its time, from one step's tokens to the next one's;
* the device's, by events before and after what is launched for it;
* the host's: its time less what it waited for the device;
* each kernel's, by PyTorch's profiler over some further steps.

    share of the bandwidth = (weights + keys and values seen) / (time * copy bandwidth)
    idle share             = (time − the device's time) / time

Modes: ``graphs`` (captured, as served), ``eager`` (each kernel launched by the host), ``deterministic`` (every request
asks for tokens that no company can change).
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tokenmill import launch
from tokenmill.bench.gpu.engines import configured
from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.shapes import LLAMA_8B
from tokenmill.bench.gpu.timing import event
from tokenmill.bench.gpu.unit import Context, Outcome, Unit
from tokenmill.core.clock import MonotonicClock
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import TokenmillError
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import Request
from tokenmill.core.step import StepPlan
from tokenmill.engine.engine import Engine
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.scheduler import Scheduler
from tokenmill.perf.memory import kv_position_bytes

CONTEXT, TOY_CONTEXT = 512, 5
STEPS, TOY_STEPS = 60, 2
BATCHES = (1, 8, 64, 256)
SPARE = 12
"""Positions beside context and steps: tokens that warm up, steps under way."""
WARM_TOKENS = 4
"""Of every sequence, before steps count: by then the step's shape has come back and is captured."""
PROFILED_STEPS = 4
PROFILED_BATCHES = (1, 64)
MOST_KERNELS = 12
FIRST_TOKEN_ID = 5


def units(place: Place) -> list[Unit]:
    if place.toy:
        wanted = [("bf16", "graphs", 1), ("bf16", "eager", 2), ("bf16", "deterministic", 2)]
    else:
        wanted = [("bf16", "graphs", batch) for batch in BATCHES]
        wanted += [("bf16", "eager", 1), ("bf16", "eager", 64)]
        wanted += [("bf16", "deterministic", batch) for batch in (1, 64, 256)]
        wanted += [(weights, "graphs", batch) for weights in ("int4", "fp8") for batch in (1, 8, 64)]
    return [
        Unit(f"{weights}, {mode}, batch {batch}", partial(_run, weights, mode, batch))
        for weights, mode, batch in wanted
    ]


@dataclass(slots=True)
class Loaded:
    """A model with its pool, and who steps it."""

    config: EngineConfig
    checkpoint: launch.Checkpoint
    executor: Any
    measured: launch.Measured


def _run(weights: str, mode: str, batch: int, context: Context) -> Outcome:
    toy = context.place.toy
    tokens, steps = (TOY_CONTEXT, TOY_STEPS) if toy else (CONTEXT, STEPS)
    loaded = _load(context, weights, tokens + steps + PROFILED_STEPS + SPARE)
    model = loaded.executor.worker.model
    graphs = model.graphs
    try:
        model.graphs = None if mode == "eager" else graphs
        profiled = mode == "graphs" and batch in PROFILED_BATCHES  # starting the profiler takes seconds
        options = {"deterministic": mode == "deterministic", "profiled": profiled}
        timed = _decode(context, loaded, batch, tokens, steps, **options)
    finally:
        model.graphs = graphs
    wall, busy = statistics.median(timed.walls), statistics.median(timed.busy)
    checkpoint = loaded.checkpoint
    seen = batch * (tokens + steps / 2) * kv_position_bytes(checkpoint.config, checkpoint.ledger.precision.kv)
    share = (loaded.measured.weights_bytes + seen) / wall / context.ceilings.copy_bytes_per_s
    figures = {
        "model": LLAMA_8B,
        "weights": weights,
        "mode": mode,
        "batch": batch,
        "context": tokens,
        "milliseconds": wall * 1e3,
        "tokens_per_s": batch / wall,
        "bandwidth_share": share,
        "device_milliseconds": busy * 1e3,
        "idle_share": max(0.0, 1 - busy / wall),
        "host_microseconds": timed.host_s * 1e6,
        "kernel_microseconds": {name: seconds * 1e6 for name, seconds in timed.kernels.most_common(MOST_KERNELS)},
    }
    brief = f"{wall * 1e3:.2f} ms, {share:.0%} of the bandwidth, idle {figures['idle_share']:.1%}"
    return Outcome(figures, f"{brief}, host {timed.host_s * 1e6:.0f} µs")


def _load(context: Context, weights: str, num_tokens: int) -> Loaded:
    """The model, which stays until another form is wanted."""
    if context.kept.get("weights") != weights:
        context.kept.pop("model", None)
        gc.collect()
        if context.place.is_gpu:
            torch.cuda.empty_cache()
        num_seqs = 2 if context.place.toy else max(BATCHES)
        with configured(context, LLAMA_8B, num_seqs=num_seqs, num_tokens=num_tokens, weights=weights) as config:
            checkpoint = launch.inspect(config)
            executor, measured = launch.load_executor(config, checkpoint, launch.Silent())
        context.kept |= {"weights": weights, "model": Loaded(config, checkpoint, executor, measured)}
    found: Loaded = context.kept["model"]
    return found


# ---- decoding --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Timed:
    """What was seen of a number of steps."""

    walls: list[float]
    busy: list[float]
    """The device's part of each."""
    host_s: float
    """Of one step, without waiting."""
    kernels: Counter[str]
    """Seconds of each kernel in one step, where the profiler can tell."""


@dataclass(slots=True)
class _Waited:
    """A step's tokens; how long they are waited for is added up."""

    tokens: Any
    watched: _Watched

    def wait(self) -> Sequence[int]:
        began = time.perf_counter()
        drawn: Sequence[int] = self.tokens.wait()
        self.watched.waited_s += time.perf_counter() - began
        return drawn


class _Watched:
    """An ``Executor`` that leaves the given one open; it measures what each step takes of the device and of waiting.

    A step's part of the device begins where its graph is launched: by then the step before it has been computed. A
    step without a graph begins where the worker begins with it.
    """

    def __init__(self, executor: Any, place: Place) -> None:
        self._executor, self._place = executor, place
        model = executor.worker.model
        self._stream, self._graphs = model.stream, model.graphs
        self.waited_s = 0.0
        self.spans: list[tuple[Any, Any]] = []
        if self._graphs is not None:
            self._graphs.run = partial(self._timed, self._graphs.run)

    def start(self) -> None:
        pass

    def submit(self, plan: StepPlan) -> Any:
        submit = self._executor.submit
        pending = submit(plan) if self._graphs is not None else self._timed(submit, plan)
        if pending.step.tokens is not None:  # the step is under way
            pending.step.tokens = _Waited(pending.step.tokens, self)
        return pending

    def close(self) -> None:
        if self._graphs is not None:
            del self._graphs.run

    def _timed(self, call: Callable[..., Any], *args: Any) -> Any:
        begin = self._mark()
        found = call(*args)
        self.spans.append((begin, self._mark()))
        return found

    def _mark(self) -> Any:
        if not self._place.is_gpu:
            return time.perf_counter()
        mark = event()
        mark.record(self._stream)
        return mark

    def busy(self) -> list[float]:
        """Seconds of each step on the device."""
        self._place.synchronise()
        if not self._place.is_gpu:
            return [end - begin for begin, end in self.spans]
        return [begin.elapsed_time(end) / 1e3 for begin, end in self.spans]


def _decode(
    context: Context, loaded: Loaded, batch: int, tokens: int, steps: int, *, deterministic: bool, profiled: bool
) -> Timed:
    watched = _Watched(loaded.executor, context.place)
    config = loaded.config
    cache = KVCache(loaded.checkpoint.ledger.num_blocks, config.cache.block_size, prefix_caching=False)
    scheduler = Scheduler(cache, replace(config.scheduler, max_seqs=batch))
    engine = Engine(scheduler, watched, MonotonicClock(), depth=config.depth)
    chance, vocab = random.Random(batch), loaded.checkpoint.config.vocab_size
    params = SamplingParams(temperature=0.0, ignore_eos=True, deterministic=deterministic)
    for number in range(batch):
        prompt = tuple(chance.randrange(FIRST_TOKEN_ID, vocab) for _ in range(tokens))
        engine.add(Request(str(number), prompt, params, steps + PROFILED_STEPS + SPARE - 2))
    while any(seq.num_generated < WARM_TOKENS for seq in scheduler.running) or scheduler.num_waiting:
        engine.step()
    if len(scheduler.running) < batch:
        raise TokenmillError(f"{batch - len(scheduler.running)} of {batch} sequences failed")
    watched.spans.clear()
    watched.waited_s = 0.0
    walls = _timed_steps(engine, steps)
    waited_s, busy = watched.waited_s, watched.busy()
    kernels = _profiled(engine, context.place) if profiled else Counter()
    for number in range(batch):
        engine.abort(str(number))
    while engine.has_work:
        engine.step()
    watched.close()
    loaded.executor.submit(StepPlan(-2, (), (), (), dropped=tuple(loaded.executor.worker.known_seq_ids))).result()
    return Timed(walls, busy, max(0.0, (sum(walls) - waited_s) / steps), kernels)


def _timed_steps(engine: Engine, steps: int) -> list[float]:
    """Seconds from one step's tokens to the next one's."""
    walls = []
    began = time.perf_counter()
    for _ in range(steps):
        engine.step()
        now = time.perf_counter()
        walls.append(now - began)
        began = now
    return walls


def _profiled(engine: Engine, place: Place) -> Counter[str]:
    """Seconds of each kernel in one step, by PyTorch's profiler; empty where it cannot look into the device."""
    found: Counter[str] = Counter()
    steps = 1 if place.toy else PROFILED_STEPS
    activity = ProfilerActivity.CUDA if place.is_gpu else ProfilerActivity.CPU
    try:
        with profile(activities=[activity]) as profiler:
            for _ in range(steps):
                engine.step()
            place.synchronise()
        for average in profiler.key_averages():
            found[average.key] += average.self_device_time_total / 1e6 / steps
    except (RuntimeError, AttributeError):  # no right to, no library for it
        return Counter()
    return +found
