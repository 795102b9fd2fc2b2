"""What a load consists of, fixed before the first request is sent: when, how long, and which words.

Open loop: arrival times do not depend on answers. A slow server gets its requests all the same, and every
latency counts from the moment at which the request was *meant* to be sent, so that a server (or a client) that
falls behind cannot hide it (coordinated omission). Everything comes from a seed.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenmill.core.errors import ConfigError

LENGTH_COLUMNS = (("ContextTokens", "GeneratedTokens"), ("num_prefill_tokens", "num_decode_tokens"))
_TEXT = (
    "the a little old big red good kind small dog cat bird girl boy tree house river boat ball box door garden morning "
    "night rain sun moon ran saw found gave took said went came looked asked helped opened was is and then but so very "
    "to in on under with for his her their one day again home friend mother"
)
WORDS = tuple(_TEXT.split())


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request of a load."""

    send_s: float
    """When to send it, counted from the start of the run."""
    prompt_tokens: int
    """Wanted; the server's own count is what gets reported."""
    output_tokens: int


def arrival_times(count: int, rate: float | None, rng: random.Random) -> list[float]:
    """Poisson arrivals at ``rate`` requests a second, the first at 0; None: all at once."""
    if rate is None:
        return [0.0] * count
    times, now_s = [], 0.0
    for _ in range(count):
        times.append(now_s)
        now_s += rng.expovariate(rate)
    return times


def parse_range(text: str) -> tuple[int, int]:
    """``"64"`` → (64, 64); ``"16-512"`` → (16, 512).

    Raises:
        ConfigError: anything else.
    """
    low, dash, high = text.partition("-")
    try:
        bounds = (int(low), int(high if dash else low))
    except ValueError:
        bounds = (0, 0)
    if not 1 <= bounds[0] <= bounds[1]:
        raise ConfigError(f"{text!r} is not a number of tokens or a range such as 16-512")
    return bounds


def uniform_lengths(
    count: int, prompt: tuple[int, int], output: tuple[int, int], rng: random.Random
) -> list[tuple[int, int]]:
    """(prompt, output) tokens, each drawn uniformly from its range."""
    return [(rng.randint(*prompt), rng.randint(*output)) for _ in range(count)]


def csv_lengths(path: Path, count: int, rng: random.Random) -> list[tuple[int, int]]:
    """``count`` rows drawn from a file of lengths (columns as in ``LENGTH_COLUMNS``), without putting back if possible.

    Raises:
        ConfigError: the file cannot be read or has other columns.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            names = next((pair for pair in LENGTH_COLUMNS if set(pair) <= set(reader.fieldnames or ())), None)
            if names is None:
                raise ConfigError(f"{path}: needs the columns {' and '.join(LENGTH_COLUMNS[0])}")
            rows = [(int(float(row[names[0]])), int(float(row[names[1]]))) for row in reader]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from error
    rows = [(prompt, output) for prompt, output in rows if prompt >= 1 and output >= 1]
    if not rows:
        raise ConfigError(f"{path}: holds no row with at least one prompt token and one output token")
    return rng.sample(rows, count) if count <= len(rows) else rng.choices(rows, k=count)


def scale_to_context(lengths: Sequence[tuple[int, int]], max_context: int) -> tuple[list[tuple[int, int]], int]:
    """Shrink what is longer than ``max_context``, prompt and output in proportion; (lengths, how many were shrunk)."""
    scaled = []
    for prompt, output in lengths:
        factor = min(1.0, max_context / (prompt + output))
        scaled.append((max(1, int(prompt * factor)), max(1, int(output * factor))))
    return scaled, sum(a != b for a, b in zip(scaled, lengths, strict=True))


def plan_load(lengths: Sequence[tuple[int, int]], rate: float | None, rng: random.Random) -> list[PlannedRequest]:
    """Give each pair of lengths its moment."""
    times = arrival_times(len(lengths), rate, rng)
    return [PlannedRequest(time_s, *pair) for time_s, pair in zip(times, lengths, strict=True)]


def synthetic_text(num_words: int, rng: random.Random) -> str:
    """Plain words in random order: no two prompts share more than a word or two at their start."""
    return " ".join(rng.choices(WORDS, k=num_words))
