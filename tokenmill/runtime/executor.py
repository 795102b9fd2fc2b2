"""``LocalExecutor``: the ``Executor`` of one worker in this process.

A step runs when it is submitted, so its result is there at once. With depth > 1 the plans still run in order,
and the worker knows each step's tokens before the next plan needs them.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.core.step import StepPlan, StepResult
from tokenmill.runtime.worker import Worker


@dataclass(frozen=True, slots=True)
class Done:
    """A step that has run."""

    outcome: StepResult

    def result(self) -> StepResult:
        return self.outcome


class LocalExecutor:
    """Runs plans on ``worker`` in the caller's thread (``engine/contracts.py`` has the contract)."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def start(self) -> None:
        self.worker.warm_up()

    def submit(self, plan: StepPlan) -> Done:
        return Done(self.worker.run(plan))

    def close(self) -> None:
        """Nothing to release: weights and pool go with the worker."""
