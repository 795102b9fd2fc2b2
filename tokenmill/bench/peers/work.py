"""What the engines are asked to do, and what is read from when their tokens came.

Every task is a list of requests that are there at once: prompts of random token ids and a number of tokens to make,
greedily, ends of text ignored. An engine answers with events: (seconds since the requests were given, tokens that came
then). The same few lines then read every engine's rate:

* ``decode``: only steps in which every sequence made a token, from the first such step to the last;
* ``prefill``: the prompt's length over the time to its first token;
* ``total``: all tokens made over the time to the last.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tokenmill.core.errors import TokenmillError

Event = Sequence[float]
"""(seconds since the start, tokens made then)"""


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work."""

    name: str
    measure: Literal["decode", "prefill", "total"]
    prompts: tuple[int, ...]
    """Tokens of each prompt."""
    outputs: tuple[int, ...]
    """Tokens to make for each."""
    max_repeats: int | None = None
    """Long work is repeated at most so often."""

    @property
    def context(self) -> int:
        """Tokens of the longest sequence at its end."""
        return max(prompt + output for prompt, output in zip(self.prompts, self.outputs, strict=True))

    @property
    def num_tokens(self) -> int:
        """Tokens of all sequences at their ends."""
        return sum(self.prompts) + sum(self.outputs)


def drawn_lengths(count: int, total: int, low: int, high: int, rng: random.Random) -> tuple[int, ...]:
    """``count`` lengths between ``low`` and ``high`` that sum to ``total``."""
    lengths = [rng.randint(low, high) for _ in range(count)]
    while missing := total - sum(lengths):
        index, step = rng.randrange(count), 1 if missing > 0 else -1
        if low <= lengths[index] + step <= high:
            lengths[index] += step
    return tuple(lengths)


def _decode(batch: int) -> Task:
    return Task(f"decode_b{batch}", "decode", (96,) * batch, (64,) * batch)


def _serve() -> Task:
    rng = random.Random(0)
    return Task("serve", "total", drawn_lengths(32, 8505, 16, 512, rng), drawn_lengths(32, 2327, 16, 128, rng))


TASKS = {
    task.name: task
    for task in (
        _decode(1),
        _decode(8),
        _decode(32),
        Task("prefill_512", "prefill", (512,), (1,)),
        Task("prefill_2048", "prefill", (2048,), (1,)),
        _serve(),
        Task("short", "total", (32,) * 256, (32,) * 256, max_repeats=1),
        Task("long_8k", "decode", (8192,), (32,), max_repeats=1),
        Task("long_32k", "decode", (32768,), (16,), max_repeats=1),
    )
}


def make_prompts(lengths: Sequence[int], vocab_size: int, seed: str) -> list[list[int]]:
    """Random token ids; another seed shares nothing, so that no prefix cache helps."""
    rng = random.Random(seed)
    return [[rng.randrange(vocab_size) for _ in range(length)] for length in lengths]


def rate(task: Task, events: Sequence[Event]) -> float:
    """Tokens per second, as ``task.measure`` says.

    Raises:
        TokenmillError: the engine made another number of tokens than was asked for, or never a step with all sequences.
    """
    made, wanted = sum(int(count) for _, count in events), sum(task.outputs)
    if made != wanted:
        raise TokenmillError(f"made {made} tokens where {wanted} were asked for")
    if task.measure == "prefill":
        return sum(task.prompts) / events[0][0]
    if task.measure == "total":
        return wanted / events[-1][0]
    full = [seconds for seconds, count in events if count == len(task.outputs)]
    if len(full) < 2:
        raise TokenmillError("never made a token of every sequence in two steps")
    return len(task.outputs) * (len(full) - 1) / (full[-1] - full[0])
