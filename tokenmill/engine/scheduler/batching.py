"""When waiting sequences may join the batch.

Continuous batching lets them in at every step (Orca, Yu et al., OSDI 2022). Static and dynamic batching are
what came before, here for comparison: a batch, once started, runs to its end before the next one starts.
"""

from __future__ import annotations

from typing import Protocol

from tokenmill.core.engine_config import SchedulerConfig


class Batching(Protocol):
    def admits(self, num_running: int, num_waiting: int, oldest_wait_s: float) -> bool:
        """May sequences join in the step being planned?"""
        ...

    def wake_after_s(self, oldest_wait_s: float) -> float | None:
        """With nothing running and not admitting: after how long to ask again; None: not before somebody arrives."""
        ...


class ContinuousBatching:
    """Anyone may join at any step."""

    def admits(self, num_running: int, num_waiting: int, oldest_wait_s: float) -> bool:
        return True

    def wake_after_s(self, oldest_wait_s: float) -> float | None:
        return None


class StaticBatching:
    """Whoever is there when the last batch has ended forms the next."""

    def admits(self, num_running: int, num_waiting: int, oldest_wait_s: float) -> bool:
        return num_running == 0

    def wake_after_s(self, oldest_wait_s: float) -> float | None:
        return None


class DynamicBatching:
    """Like static, but waits for the batch to fill, for a while."""

    def __init__(self, batch_size: int, max_wait_s: float) -> None:
        self._batch_size = batch_size
        self._max_wait_s = max_wait_s

    def admits(self, num_running: int, num_waiting: int, oldest_wait_s: float) -> bool:
        return num_running == 0 and (num_waiting >= self._batch_size or oldest_wait_s >= self._max_wait_s)

    def wake_after_s(self, oldest_wait_s: float) -> float | None:
        return max(0.0, self._max_wait_s - oldest_wait_s)


def make_batching(config: SchedulerConfig) -> Batching:
    """The batching that ``config`` names."""
    if config.batching == "continuous":
        return ContinuousBatching()
    if config.batching == "static":
        return StaticBatching()
    return DynamicBatching(config.max_seqs, config.batch_wait_s)
