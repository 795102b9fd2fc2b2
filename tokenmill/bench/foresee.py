"""What a turn of ``bench offline`` should have brought, by the cost model: the same prompts through the same scheduler.

Its ceilings are what the machine was seen to do before and after that turn, and its factors those that ship, never
the turn's own: so the comparison can fail. (``tokenmill simulate --calibration`` takes what was learnt.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tokenmill.core.engine_config import EngineConfig
from tokenmill.engine.telemetry import StepAccount
from tokenmill.perf.calibrate import calibration_for
from tokenmill.perf.diagnose import case_from_json
from tokenmill.perf.hardware import Hardware
from tokenmill.perf.metrics import SLO
from tokenmill.perf.result import Counts, Delivered, Seen, Window, make_run
from tokenmill.perf.simulate import Cluster, ClusterConfig, PoolConfig, TraceRequest
from tokenmill.perf.simulate.deployment import Simulated

ENGINE = "tokenmill"
COMPARED = ("tpot_s",)
WITH_QUEUE = ("ttft_s", "e2e_s")
"""These count from when the engine gets a prompt: the same for both only where it gets all of them at once."""


def foresee(
    about: Mapping[str, Any], config: EngineConfig, lengths: Sequence[tuple[int, int]], machine: Hardware
) -> dict[str, Any]:
    """Throughput and latencies of ``lengths`` (prompt, output), all asked at once.

    Args:
        about: what runs, as ``perf.diagnose.describe`` tells it.
        machine: what it can do.
    """
    case = case_from_json(about, StepAccount(), machine)
    assert case.deployment is not None
    assert case.limits.num_blocks is not None
    shape, formats = case.deployment.shape, case.deployment.formats
    calibration = calibration_for(machine, ENGINE, shape=shape, formats=formats)
    cache = replace(config.cache, num_blocks=case.limits.num_blocks)
    setup = Simulated(case.deployment, calibration).engine(
        cache, config.scheduler, depth=config.depth, memory_share=1.0, reserved=0.0
    )
    requests = [TraceRequest(0.0, prompt, output) for prompt, output in lengths]
    outcome = Cluster(ClusterConfig(PoolConfig(setup))).run(requests)
    served = [each for each in outcome.served if each.done]
    delivered = Delivered(
        len(served),
        sum(each.prompt_tokens for each in served),
        sum(each.output_tokens for each in served),
        sum(each.cached_tokens for each in served),
    )
    seen = Seen([each.timeline() for each in served])
    counts = Counts(completed=len(served), failed=len(outcome.served) - len(served))
    found = make_run(seen, counts, delivered, Window("foreseen", 0.0, outcome.end_s), SLO())
    return {"throughput": found["throughput"], "latency": found["latency"]}


def compare(measured: Mapping[str, Any], foreseen: Mapping[str, Any], *, at_once: bool) -> dict[str, float]:
    """Measured over foreseen: output tokens a second, and the means of the latencies that both have.

    Args:
        at_once: the engine got all prompts at once, as the simulation did.
    """
    name = "output_tokens_per_s"
    ratios = {name: measured["throughput"][name] / foreseen["throughput"][name]}
    for name in COMPARED + (WITH_QUEUE if at_once else ()):
        pair = [each["latency"].get(name, {}).get("mean") for each in (measured, foreseen)]
        if all(pair):
            ratios[name] = pair[0] / pair[1]
    return ratios
