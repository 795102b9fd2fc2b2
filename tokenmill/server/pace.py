"""How fast the engine has been of late, and how long a queue will therefore take.

A step's time is a line in its tokens, ``a + b · tokens`` (fitted over recent steps), and what the loop adds to it is a
factor (wall time over step time, while there was work). A queue of ``P`` prompt tokens and ``O`` tokens to generate
needs at least ``O / rows`` steps, with as many rows as steps have had while others waited, and at least
``(P + O) / budget``. So it takes ``factor · (steps · a + (P + O) · b)``.

What that leaves out (a machine that is wanted by others too, an event loop that is late) shows in how long requests
really waited beside what the line alone had foreseen of them: the ratio's moving average corrects the next ones. (A
ratio to what was foreseen *with* the correction would be taken into it again by each of the hundreds that were let in
before the first of them began: admission would swing between all and nobody.)

How much will be generated nobody knows: as much as requests have generated on average, and never more than they may.
"""

from __future__ import annotations

from tokenmill.core.events import FinishedRecord, StepEvents
from tokenmill.engine.scheduler.budget import LineFit

KEEP = 0.95
"""Weight of the past per step or request in the moving averages."""
FIRST_GUESS = 256.0
"""Tokens of an answer, before any has been seen."""
SHORT_S = 0.05
"""Waits foreseen to be shorter say nothing about the longer ones."""
LEAST_LATE, MOST_LATE = 0.5, 4.0
MIN_STEPS = 8
"""Before so many steps nothing is foreseen."""


class Pace:
    """Follows an engine's steps.

    Args:
        max_step_tokens: most tokens of a step.
        max_seqs: most sequences of a step.
    """

    def __init__(self, max_seqs: int, max_step_tokens: int) -> None:
        self._max_step_tokens = max_step_tokens
        self._fit = LineFit()
        self.rows = float(max_seqs)
        """Sequences of a step that holds as many as it can: the batch may be bounded by KV blocks."""
        self._wall_s = self._step_s = 0.0
        self._num_steps = 0
        self._last_s: float | None = None
        self._answer_tokens: float | None = None
        self._fresh = 1.0
        self.mean_prompt = self.mean_answer = 0.0
        """Tokens of a request's prompts, and of its answers as expected."""
        self.late = 1.0
        """The correction, which is in ``seconds`` and ``prefill_s``."""

    def step(self, events: StepEvents, now: float, *, crowded: bool) -> None:
        """A step has ended. ``crowded``: it held as many sequences as can be."""
        self._fit.observe(events.num_tokens, events.seconds)
        self._num_steps += 1
        if self._last_s is not None:
            self._wall_s = KEEP * self._wall_s + now - self._last_s
            self._step_s = KEEP * self._step_s + events.seconds
        self._last_s = now
        if crowded:
            self.rows += (1 - KEEP) * (events.num_sequences - self.rows)

    def idle(self) -> None:
        """The engine has nothing to do: the time until its next step is nobody's."""
        self._last_s = None

    def entered(self, prompt_tokens: int, tokens: float) -> None:
        """A request was let in that has so many tokens in its prompts, and ``tokens`` with its answers."""
        self.mean_prompt += (1 - KEEP) * (prompt_tokens - self.mean_prompt)
        self.mean_answer += (1 - KEEP) * (tokens - prompt_tokens - self.mean_answer)

    def ended(self, record: FinishedRecord, num_choices: int) -> None:
        """A request has ended well."""
        tokens = record.generated_tokens / num_choices
        before = tokens if self._answer_tokens is None else self._answer_tokens
        self._answer_tokens = before + (1 - KEEP) * (tokens - before)
        if record.prompt_tokens:
            self._fresh += (1 - KEEP) * (1.0 - record.cached_tokens / record.prompt_tokens - self._fresh)

    def waited(self, actual_s: float, foreseen_s: float) -> None:
        """A request has begun, of which ``foreseen_s`` had been foreseen without the correction."""
        if foreseen_s > SHORT_S:
            late = self.late**KEEP * (max(actual_s, SHORT_S) / foreseen_s) ** (1 - KEEP)
            self.late = min(max(late, LEAST_LATE), MOST_LATE)

    def expected_tokens(self, max_new_tokens: int) -> float:
        """What a choice that may have so many will generate."""
        return min(float(max_new_tokens), FIRST_GUESS if self._answer_tokens is None else self._answer_tokens)

    def prefill_s(self, prompt_tokens: float, running: int) -> float:
        """How long prompts with so much to compute take in steps that they share with ``running`` sequences."""
        room = max(1.0, self._max_step_tokens - running)
        return self._of_steps(self._fresh * prompt_tokens / room, self._fresh * prompt_tokens * (1 + running / room))

    def seconds(self, prompt_tokens: float, answer_tokens: float) -> float:
        """How long a queue takes that has so much to compute; 0 while nothing is known."""
        tokens = self._fresh * prompt_tokens + answer_tokens
        num_steps = max(answer_tokens / max(1.0, self.rows), tokens / self._max_step_tokens)
        return self._of_steps(num_steps, tokens)

    def _of_steps(self, num_steps: float, tokens: float) -> float:
        if self._num_steps < MIN_STEPS or self._step_s <= 0.0:
            return 0.0
        step_s, token_s = self._fit.line()
        factor = self.late * self._wall_s / self._step_s
        return factor * (num_steps * max(0.0, step_s) + tokens * max(0.0, token_s))
