"""How long a kernel takes on the device, apart from how long the host takes to launch it.

*On the device*: the calls are captured in a CUDA graph, each on other memory than the last, together more than the
last cache holds; the graph is replayed between two events, and a call's time is the median over the replays. So neither
the host's launches nor a cache that serving would not find warm are in it. What cannot be captured is launched call by
call between the same events, and said (``captured``).

*To launch*: the host's time per call where nobody waits for the device.

Several things that are to be compared take turns, replay by replay, so that a chip that changes its clock changes it
for all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from tokenmill.bench.gpu.place import Place

Call = Callable[[], object]

ENOUGH_S = 0.15
"""Device time that one thing is given."""
MIN_REPEAT, MAX_REPEAT = 5, 50
MAX_COPIES = 64
CACHES = 3
"""How many times the last cache the memory of all calls together is."""
LAUNCH_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call."""

    seconds: float
    spread: float
    """(90th − 10th percentile) / median over the replays."""
    launch_s: float
    captured: bool
    why_not: str = ""
    """Why it was not captured."""


def copies_for(place: Place, num_bytes: float) -> int:
    """On how many different pieces of memory a call that touches ``num_bytes`` must run to find no cache warm."""
    if place.toy:
        return 2
    return max(1, min(MAX_COPIES, -(-CACHES * place.cache_bytes // max(int(num_bytes), 1))))


def measure(place: Place, calls: Sequence[Call]) -> Timing:
    """One of ``calls``, which do the same on different memory."""
    return compare(place, {"": calls})[""]


def compare(place: Place, things: Mapping[str, Sequence[Call]]) -> dict[str, Timing]:
    """Several things, in turns."""
    runs = {name: _Run(place, calls) for name, calls in things.items()}
    first = max(run.once() for run in runs.values())
    repeat = 1 if place.toy else max(MIN_REPEAT, min(MAX_REPEAT, int(ENOUGH_S / max(first, 1e-9))))
    found: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeat):
        for name, run in runs.items():
            found[name].append(run.once())
    return {name: runs[name].timing(seconds) for name, seconds in found.items()}


class _Run:
    """Calls that were made once each, so that everything is compiled, and captured if they can be."""

    def __init__(self, place: Place, calls: Sequence[Call]) -> None:
        self._place, self._calls = place, calls
        for call in calls:
            call()
        place.synchronise()
        self._launch_s = min(self._launch() for _ in range(1 if place.toy else LAUNCH_ROUNDS))
        self._graph: torch.cuda.CUDAGraph | None = None
        self._why_not = "not on a GPU"
        if place.is_gpu:
            try:
                self._graph = capture(calls)
            except Exception as error:  # noqa: BLE001 (whatever hinders the capture: it is said, and timed without)
                self._why_not = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
                place.synchronise()
        self.once()

    def _launch(self) -> float:
        began = time.perf_counter()
        for call in self._calls:
            call()
        seconds = time.perf_counter() - began
        self._place.synchronise()
        return seconds / len(self._calls)

    def once(self) -> float:
        """Seconds of all calls."""
        return elapsed(self._place, self._all)

    def _all(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        for call in self._calls:
            call()

    def timing(self, seconds: Sequence[float]) -> Timing:
        middle = statistics.median(seconds)
        tenths = statistics.quantiles(seconds, n=10) if len(seconds) > 1 else [middle, middle]
        return Timing(
            middle / len(self._calls),
            (tenths[-1] - tenths[0]) / middle,
            self._launch_s,
            self._graph is not None,
            "" if self._graph is not None else self._why_not,
        )


def capture(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    """The calls, one after the other, as one graph. They ran before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return graph


def event() -> torch.cuda.Event:
    """One that knows its moment."""
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def elapsed(place: Place, call: Call) -> float:
    """Seconds from when the device begins with what ``call`` launches to when it has done it."""
    if not place.is_gpu:
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    begin, end = event(), event()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
