"""``Program``: a step as a list of kernel calls on fixed buffers, laid out once, run by one call per step.

What changes between steps is in the ``Step`` record alone (counts, tokens, positions, block tables), so one program
serves every shape: there are no buckets and nothing is padded. Every kernel is told how many rows there are and
shares them among the threads of the pool.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from tokenmill.kernels.cpu.library import Library, Pool
from tokenmill.kernels.cpu.records import Args, Call, LinearArgs, Step

CALL_BYTES = ctypes.sizeof(Call)


class Program:
    """Kernel calls in order. Whoever adds one keeps the buffers alive that its arguments point to."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self.names: list[str] = []
        self.seconds: NDArray[np.float64] | None = None
        """One per call: if it is there, each call's time is added to it."""
        self._args: list[Args] = []
        self._calls: ctypes.Array[Call] | None = None

    def add(self, kernel: str, args: Args) -> None:
        """Append a call of ``tm_<kernel>``."""
        self.names.append(kernel)
        self._args.append(args)
        self._calls = None

    def __len__(self) -> int:
        return len(self.names)

    def run(self, pool: Pool, step: Step, begin: int = 0, end: int | None = None) -> None:
        """Carry out the step: its calls ``begin`` to ``end``, all if not said."""
        calls = self._calls
        if calls is None:
            calls = self._calls = self.records()
        timing = None if self.seconds is None else self.seconds[begin:].ctypes.data
        first = ctypes.addressof(calls) + begin * CALL_BYTES
        count = (len(calls) if end is None else end) - begin
        self.library.run(pool.handle, first, count, ctypes.addressof(step), timing)

    def records(self) -> ctypes.Array[Call]:
        """The calls as the library takes them; each knows the next product of a matrix."""
        calls, ahead = (Call * len(self.names))(), None
        for index in reversed(range(len(calls))):
            args = self._args[index]
            calls[index] = Call(self.library.kernel(self.names[index]), ctypes.addressof(args), ahead)
            if isinstance(args, LinearArgs):
                ahead = ctypes.addressof(args)
        return calls


def make_step(
    token_ids: NDArray[np.int32],
    positions: NDArray[np.int32],
    slots: NDArray[np.int32],
    row_begin: NDArray[np.int32],
    tables: NDArray[np.int32],
    outputs: NDArray[np.int32],
) -> Step:
    """A ``Step`` over arrays that the caller keeps alive; shapes as in ``src/kernels.h``, all C-contiguous."""
    arrays = (token_ids, positions, slots, row_begin, tables, outputs)
    assert all(array.dtype == np.int32 and array.flags.c_contiguous for array in arrays)
    addresses = (array.ctypes.data for array in arrays)
    return Step(len(token_ids), len(row_begin) - 1, len(outputs), tables.shape[1] if tables.size else 0, *addresses)
