"""The stages by name, in their order, with their share of the time."""

from __future__ import annotations

from tokenmill.bench.gpu import offline, peers, probing, step, suite
from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.unit import Stage, Unit


def _kernels(place: Place) -> list[Unit]:
    from tokenmill.bench.gpu import kernels  # Triton decides at its import whether its functions are interpreted

    return kernels.units(place)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("tests", 2.0, suite.units),
        Stage("kernels", 2.0, _kernels),
        Stage("step", 1.5, step.units),
        Stage("offline", 2.0, offline.units, apart=True),
        Stage("peers", 2.0, peers.units),
        Stage("probe", 0.5, probing.units),
    )
}
