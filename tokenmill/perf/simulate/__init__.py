"""Serving without a device: the real scheduler, cache and engine loop under a virtual clock.

::

    trace ── Prompts ── Cluster ──┬─ Pool ── Router, Autoscaler          engine/routing
                                  └─ Replica ── Engine ── Scheduler, KVCache    engine/
                                                  └── SimulatedExecutor ── StepCost    perf/roofline

Nothing that decides is written twice: what a request waits for here is what it would wait for in a server whose
steps take as long as the cost says. Time, arrivals and failures come in as values, so two runs are the same.
"""

from tokenmill.perf.simulate.cluster import Cluster, ClusterConfig, Failure, Outcome
from tokenmill.perf.simulate.executor import SimulatedExecutor
from tokenmill.perf.simulate.pool import PoolConfig
from tokenmill.perf.simulate.records import Served
from tokenmill.perf.simulate.replica import EngineSetup
from tokenmill.perf.simulate.transfer import TransferCost
from tokenmill.perf.simulate.workload import Trace, TraceRequest, make_trace, select

__all__ = [
    "Cluster",
    "ClusterConfig",
    "EngineSetup",
    "Failure",
    "Outcome",
    "PoolConfig",
    "Served",
    "SimulatedExecutor",
    "Trace",
    "TraceRequest",
    "TransferCost",
    "make_trace",
    "select",
]
