"""``SimulatedExecutor``: an ``Executor`` whose steps cost what a model of cost says, and compute nothing.

Tokens are fakes that no stop token equals, so every request runs to its limit; each sequence draws one token, its
own (the request's ``seed``), over and over: what matters of content is only which prompts share a prefix.
A step begins when it is handed over or when the one before it is done, whichever is later, so that with a depth
of 2 the planning of a step is hidden behind the one that runs, as it is on a real machine.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.core.clock import VirtualClock
from tokenmill.core.step import StepPlan, StepResult
from tokenmill.engine.contracts import StepCost


@dataclass(slots=True)
class _Pending:
    clock: VirtualClock
    end_s: float
    done: StepResult

    def result(self) -> StepResult:
        self.clock.advance_to(self.end_s)
        return self.done


class SimulatedExecutor:
    """Carries plans out in the virtual time of ``clock``.

    Attributes:
        busy_s: seconds of steps so far.
        bound_s: of these, seconds by what limited the step (``PredictedCost.bound``).
    """

    def __init__(self, cost: StepCost, clock: VirtualClock) -> None:
        self.cost = cost
        self.busy_s = 0.0
        self.bound_s: dict[str, float] = {}
        self._clock = clock
        self._free_s = clock.now()
        self._draws: dict[int, tuple[int, ...]] = {}  # seq_id → the token it draws
        self._behind: dict[int, int] = {}  # seq_id → tokens it came with, until all are computed

    def start(self) -> None:
        """Nothing to prepare."""

    def submit(self, plan: StepPlan) -> _Pending:
        for seq_id in plan.dropped:
            self._draws.pop(seq_id, None)
            self._behind.pop(seq_id, None)
        for new in plan.new:
            self._draws[new.seq_id] = (new.seed,)
            self._behind[new.seq_id] = len(new.token_ids)
        cost = self.cost.predict(plan)
        self.charge(cost.seconds, cost.bound)
        self._free_s = max(self._clock.now(), self._free_s) + cost.seconds
        return _Pending(self._clock, self._free_s, self._answer(plan, cost.seconds))

    def close(self) -> None:
        """Nothing to release."""

    def charge(self, seconds: float, bound: str) -> None:
        """Count ``seconds`` of work; also for steps that were skipped."""
        self.busy_s += seconds
        self.bound_s[bound] = self.bound_s.get(bound, 0.0) + seconds

    def _answer(self, plan: StepPlan, seconds: float) -> StepResult:
        """A row samples once it has reached the last token that its sequence came with."""
        seq_ids, draws, behind = plan.seq_ids, self._draws, self._behind
        if behind:
            sampled = []
            for seq_id, start, count in zip(seq_ids, plan.starts, plan.counts, strict=True):
                if seq_id not in behind:
                    sampled.append(seq_id)
                elif start + count >= behind[seq_id]:
                    sampled.append(seq_id)
                    del behind[seq_id]
            if len(sampled) < len(seq_ids):
                seq_ids = tuple(sampled)
        return StepResult(plan.step_id, seq_ids, tuple([draws[seq_id] for seq_id in seq_ids]), seconds=seconds)
