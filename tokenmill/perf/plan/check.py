"""A plan under the real scheduler: what the closed forms leave out, simulated.

A few of the plan's instances get their share of the load: one is not enough to see what the router brings, all would
only take longer. A pipeline of p stages has p steps under way at once, each with its own part of the sequences; that
is simulated as p engines which each take as long for a step as the whole pass does. Steps take what the calibration
expects, not what it fears: the percentiles belong beside the predicted middle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from tokenmill.core.engine_config import CacheConfig, SchedulerConfig
from tokenmill.perf.metrics import summarize
from tokenmill.perf.plan.candidates import MEMORY_SHARE
from tokenmill.perf.plan.predict import Instance, seen
from tokenmill.perf.plan.search import Plan
from tokenmill.perf.plan.workload import Workload
from tokenmill.perf.simulate import (
    Cluster,
    ClusterConfig,
    EngineSetup,
    Outcome,
    PoolConfig,
    Trace,
    TraceRequest,
    make_trace,
    select,
)
from tokenmill.perf.simulate.deployment import TRANSFER_LATENCY_S, Simulated
from tokenmill.perf.simulate.traces import Draw, synthetic

MAX_SIMULATED = 4
"""Instances of a pool."""
RESIDENCES = 6
"""How many times a request's own time the load lasts; the first of them is warm-up."""
FEWEST, MOST = 200, 1500
"""Requests."""
SEED = 1


def simulate(plan: Plan, workload: Workload) -> dict[str, dict[str, float]] | str:
    """Percentiles of each metric in seconds, by the name ``ttft_s``; or why there are none."""
    if plan.candidate.drafts:
        return "speculation is not simulated"
    share = min(1.0, MAX_SIMULATED / max(pool.replicas for pool in plan.pools))
    share = max(math.ceil(pool.replicas * share) / pool.replicas for pool in plan.pools)
    load = plan.under(workload.rate)
    assert load is not None
    residence = seen(load, "e2e", "mean")
    count = int(min(max(workload.rate * share * residence * RESIDENCES, FEWEST), MOST))
    trace = requests_of(workload, count, share)
    setups = [_setup(pool.instance, plan.max_seqs(pool, workload.rate)) for pool in plan.pools]
    counts = [max(round(pool.replicas * share), 1) * pool.instance.layout.pp for pool in plan.pools]
    if len(plan.pools) == 1:
        config = ClusterConfig(PoolConfig(setups[0], counts[0]))
    else:
        prefill = _simulated(plan.pools[0].instance)
        link = prefill.transfer(None, TRANSFER_LATENCY_S, overlap=False)
        config = ClusterConfig(PoolConfig(setups[0], counts[0]), PoolConfig(setups[1], counts[1]), link)
    outcome = Cluster(config).run(trace.requests)
    return _percentiles(outcome, min(residence, trace.span_s / 2))


def requests_of(workload: Workload, count: int, share: float) -> Trace:
    """``count`` requests at a share of the workload's rate: its trace's own, or equal ones with chance arrivals."""
    rate = workload.rate * share
    if workload.trace is not None:
        own = workload.trace.rate_per_s
        return select(workload.trace, first=count, speed=rate / own if own else 1.0)
    arrivals = "poisson" if workload.burst == 1 else f"gamma:cv={max(math.sqrt(workload.burst), 0.01):g}"
    lengths = (round(workload.inputs.mean),) * 2, (round(workload.outputs.mean),) * 2
    drawn = synthetic(*lengths, Draw(count, rate, arrivals, seed=SEED))
    assert drawn.rate_per_s is not None
    trace = select(drawn, speed=rate / drawn.rate_per_s)  # what was drawn is a little more or less
    if not workload.cached:
        return trace
    shared = round(workload.inputs.mean * workload.cached)
    return make_trace(trace.name, trace.format, _with_prefix(trace, shared))


def _with_prefix(trace: Trace, shared: int) -> Iterator[TraceRequest]:
    for request in trace.requests:
        yield replace(request, prefix_ids=(0,), piece_tokens=shared)


def _simulated(instance: Instance) -> Simulated:
    return Simulated(instance.candidate.deployment, instance.candidate.calibration)


def _setup(instance: Instance, max_seqs: int) -> EngineSetup:
    """The engine of one instance; of a pipeline, of one of the steps that are under way at once."""
    layout = instance.layout
    whole = instance.step_tokens * layout.dp
    scheduler = SchedulerConfig(max_seqs=max(max_seqs // layout.pp, 1), max_step_tokens=whole)
    setup = _simulated(instance).engine(CacheConfig(), scheduler, depth=1, memory_share=MEMORY_SHARE)
    assert setup.cache.num_blocks is not None
    return replace(setup, cache=replace(setup.cache, num_blocks=max(setup.cache.num_blocks // layout.pp, 1)))


def _percentiles(outcome: Outcome, warm_up_s: float) -> dict[str, dict[str, float]] | str:
    timelines = [one.timeline() for one in outcome.served if one.done and one.arrival_s >= warm_up_s]
    if not timelines:
        return "no request was done: " + next(
            (one.error for one in outcome.served if one.error), "the load is too short"
        )
    return {
        "ttft_s": summarize(timeline.ttft_s for timeline in timelines),
        "itl_s": outcome.gaps.histogram.summary(),
        "tpot_s": summarize(timeline.tpot_s for timeline in timelines if timeline.output_tokens > 1),
        "e2e_s": summarize(timeline.e2e_s for timeline in timelines),
    }
