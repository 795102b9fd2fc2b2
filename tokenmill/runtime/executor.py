"""``LocalExecutor``: the ``Executor`` of one worker in this process.

A step begins when it is submitted. A model on a GPU computes it while the caller goes on, and while the next step is
planned; on a CPU there is nobody else to compute it, and it is done when its result is asked for, or when the next
step is submitted, which builds on it.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.core.step import StepPlan, StepResult
from tokenmill.runtime.worker import Begun, Worker


@dataclass(frozen=True, slots=True)
class Running:
    """A step that has begun."""

    worker: Worker
    step: Begun

    def result(self) -> StepResult:
        return self.worker.finish(self.step)


class LocalExecutor:
    """Runs plans on ``worker`` in the caller's thread (``engine/contracts.py`` has the contract)."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def start(self) -> None:
        self.worker.warm_up()

    def submit(self, plan: StepPlan) -> Running:
        return Running(self.worker, self.worker.begin(plan))

    def close(self) -> None:
        """Nothing to release: weights and pool go with the worker."""
