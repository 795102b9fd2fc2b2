"""What the engine's loop asks of others. Whoever brings another device, machine or clock writes one of these.

- ``Executor`` carries out step plans, in order. Real, parallel and simulated ones are interchangeable.
- ``StepCost`` foresees how long a plan will take.
- ``Proposer`` guesses tokens ahead; the scheduler sees its guesses as tokens to compute.
- ``KVTransfer`` moves named blocks between pools.
- ``Grammars`` makes a ``Matcher`` for an answer: which tokens may come next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tokenmill.core.grammar import Grammar
from tokenmill.core.step import StepPlan, StepResult


class Pending(Protocol):
    """A step that was submitted."""

    def result(self) -> StepResult:
        """Wait for the step and return what it brought; raises what the executor raised."""
        ...


class Executor(Protocol):
    """Carries out plans strictly in the order of submission; holds weights, KV blocks and sequence states."""

    def start(self) -> None:
        """Get ready: load, allocate, warm up. Called once, before the first plan."""
        ...

    def submit(self, plan: StepPlan) -> Pending:
        """Begin a step. Must not change ``plan``; may return before the step is done."""
        ...

    def close(self) -> None:
        """Release everything; called once, also after a failure."""
        ...


@dataclass(frozen=True, slots=True)
class PredictedCost:
    seconds: float
    bound: str
    """What limits the step: ``memory``, ``compute``, ``overhead``, … ."""


class StepCost(Protocol):
    """Foresees a step's time; ``perf`` implements it, the scheduler's budget may use it."""

    def predict(self, plan: StepPlan) -> PredictedCost: ...


class Proposer(Protocol):
    """Guesses the tokens that follow; verification is exact, so a bad guess costs time only."""

    def propose(self, token_ids: Sequence[int], max_drafts: int) -> tuple[int, ...]: ...


class KVTransfer(Protocol):
    """Moves KV blocks between pools: tiers, workers, machines."""

    def transfer(self, source_ids: Sequence[int], destination_ids: Sequence[int]) -> None: ...


class Matcher(Protocol):
    """One answer's way through its grammar. Used by one thread at a time; every method may be slow (milliseconds)."""

    complete: bool
    """As of the last ``allowed``: nothing but the end may come."""

    def advance(self, token_ids: Sequence[int]) -> None:
        """Take in tokens that were generated, in order. Raises ``RequestError`` where the grammar forbids one."""
        ...

    def allowed(self) -> bytes:
        """One bit per token that may come next, the first token's lowest; whole 32-bit words.

        Raises ``RequestError`` where the answer cannot go on: no token fits, or the grammar is too complex here.
        """
        ...


class Grammars(Protocol):
    """Compiled grammars for the vocabulary of one model; shared by whoever checks requests and whoever draws tokens."""

    def matcher(self, grammar: Grammar) -> Matcher:
        """A matcher for a new answer. Raises ``RequestError`` or ``Unavailable`` if the grammar does not compile."""
        ...
