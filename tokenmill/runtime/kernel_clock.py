"""Each kernel's time while an engine serves, taken by thread 0 at its barriers: two readings of a clock per call."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tokenmill.kernels.cpu.program import Program
from tokenmill.runtime.compiled import CompiledModel


def time_kernels(model: CompiledModel) -> Callable[[], dict[str, float]]:
    """Begin to take the time of every call of the model's programs; returns what reads the seconds so far by kernel."""
    clocks = []
    for program in vars(model).values():
        if isinstance(program, Program):
            program.seconds = np.zeros(len(program.names))
            clocks.append((program.names, program.seconds))

    def read() -> dict[str, float]:
        found: dict[str, float] = {}
        for names, seconds in clocks:
            for name, value in zip(names, seconds.tolist(), strict=True):
                found[name] = found.get(name, 0.0) + value
        return found

    return read
