"""Decisions about many engines: which replica takes a request, which pair of them, how many there should be.

Pure, like the scheduler: requests and loads in, numbers out; who carries the decisions out (a cluster, the
simulator) tells what became of them. Nothing here knows a network, a device or a clock.
"""

from tokenmill.engine.routing.pairing import Pairing
from tokenmill.engine.routing.policies import (
    ROUTERS,
    LeastLoaded,
    PrefixAware,
    RoundRobin,
    Router,
    Session,
    make_router,
)
from tokenmill.engine.routing.scaling import Autoscaler, PoolLoad, ScalingConfig

__all__ = [
    "ROUTERS",
    "Autoscaler",
    "LeastLoaded",
    "Pairing",
    "PoolLoad",
    "PrefixAware",
    "RoundRobin",
    "Router",
    "ScalingConfig",
    "Session",
    "make_router",
]
