"""How many tokens a step may compute: this alone decides how prompts are cut into chunks.

Sequences that generate need one token each and always come first, so a step is never longer for them than
the budget allows (stall-free chunked prefill: Sarathi-Serve, Agrawal et al., OSDI 2024).

With a goal for the time between tokens, the budget follows from what steps have been seen to cost: step time
is fitted as ``a + b · tokens`` over recent steps, and inverted.
"""

from __future__ import annotations

from typing import Protocol

from tokenmill.core.engine_config import SchedulerConfig


class Budget(Protocol):
    def tokens(self, num_generating: int) -> int:
        """Most tokens of the next step, when ``num_generating`` sequences would feel its length."""
        ...

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        ...


class FixedBudget:
    """The same number of tokens in every step."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens

    def tokens(self, num_generating: int) -> int:
        return self._max_tokens

    def observe(self, num_tokens: int, seconds: float) -> None:
        """A fixed budget learns nothing."""


class LineFit:
    """Step time as ``a + b · tokens``, by least squares over recent steps: about the last 50 count."""

    DECAY = 0.98
    """Weight of the past per step."""

    def __init__(self) -> None:
        self.weight = self._x = self._y = self._xx = self._xy = 0.0

    def observe(self, num_tokens: int, seconds: float) -> None:
        keep = self.DECAY
        self.weight = keep * self.weight + 1.0
        self._x = keep * self._x + num_tokens
        self._y = keep * self._y + seconds
        self._xx = keep * self._xx + num_tokens * num_tokens
        self._xy = keep * self._xy + num_tokens * seconds

    def line(self) -> tuple[float, float]:
        """(a, b) in seconds; a line through the origin while steps are all alike, and 0 before the first."""
        spread = self.weight * self._xx - self._x * self._x
        if spread <= 1e-9 * self._xx * self.weight:
            return 0.0, self._y / self._x if self._x else 0.0
        per_token_s = (self.weight * self._xy - self._x * self._y) / spread
        return (self._y - per_token_s * self._x) / self.weight, per_token_s


class SloBudget:
    """As many tokens as a step can hold and still end within the goal; all of them when nobody is generating."""

    MIN_CHUNK = 16
    """Prompts advance by at least this many tokens a step, else a tight goal would starve them."""

    def __init__(self, max_tokens: int, goal_s: float) -> None:
        self._max_tokens = max_tokens
        self._goal_s = goal_s
        self._fit = LineFit()

    def observe(self, num_tokens: int, seconds: float) -> None:
        self._fit.observe(num_tokens, seconds)

    def tokens(self, num_generating: int) -> int:
        if num_generating == 0 or self._fit.weight == 0.0:
            return self._max_tokens
        base_s, per_token_s = self._fit.line()
        if per_token_s <= 0.0:
            return self._max_tokens
        wanted = int((self._goal_s - base_s) / per_token_s)
        return min(self._max_tokens, max(wanted, num_generating + self.MIN_CHUNK))


def make_budget(config: SchedulerConfig) -> Budget:
    """The budget that ``config`` asks for."""
    if config.itl_slo_s is None:
        return FixedBudget(config.max_step_tokens)
    return SloBudget(config.max_step_tokens, config.itl_slo_s)
