"""What a load consists of, fixed before the first request is sent: when, how long, and which words.

Open loop: arrival times do not depend on answers. A slow server gets its requests all the same, and every
latency counts from the moment at which the request was *meant* to be sent, so that a server (or a client) that
falls behind cannot hide it (coordinated omission). Everything comes from a seed.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    give_up_after: int | None = None
    """Hang up after so many pieces of the answer."""
    prefix_ids: tuple[int, ...] = ()
    """Names of the prompt's pieces of ``piece_tokens`` tokens from its start: equal name, equal text."""
    piece_tokens: int = 0
    may_end_early: bool = False
    """The answer is complete when the model ends it; else the server is told to go on to ``output_tokens``."""


def arrival_times(count: int, rate: float | None, rng: random.Random, process: str = "poisson") -> list[float]:
    """Moments of ``count`` requests, the first at 0; ``rate`` None: all at once.

    Args:
        process: as in ``perf/simulate/arrivals.py``, so that a simulation of the same load draws the same.

    Raises:
        ConfigError: there is no such process.
    """
    from tokenmill.perf.simulate import arrivals

    times = arrivals.arrival_times("all" if rate is None else process, count, rate, rng)
    return [time_s - times[0] for time_s in times]


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


def plan_load(
    lengths: Sequence[tuple[int, int]], rate: float | None, rng: random.Random, process: str = "poisson"
) -> list[PlannedRequest]:
    """Give each pair of lengths its moment."""
    times = arrival_times(len(lengths), rate, rng, process)
    return [PlannedRequest(time_s, *pair) for time_s, pair in zip(times, lengths, strict=True)]


def trace_load(path: Path, count: int, speed: float, seed: int) -> list[PlannedRequest]:
    """The first ``count`` requests of a recorded trace (``perf/simulate/traces``), so many times as fast.

    Raises:
        ConfigError: the file cannot be read, its format is not known, or a line of it is wrong: says where.
    """
    from tokenmill.perf.simulate.traces import Draw, read_trace
    from tokenmill.perf.simulate.workload import select

    trace = select(read_trace(path, Draw(requests=count, seed=seed)), first=count, speed=speed)
    return [
        PlannedRequest(r.arrival_s, r.prompt_tokens, r.output_tokens, None, r.prefix_ids, r.piece_tokens)
        for r in trace.requests
    ]


def give_up(load: Sequence[PlannedRequest], share: float, rng: random.Random) -> list[PlannedRequest]:
    """Let the client give up ``share`` of the answers, each after a random part of it."""
    chosen = set(rng.sample(range(len(load)), round(share * len(load))))
    return [
        replace(request, give_up_after=rng.randint(1, max(1, request.output_tokens - 1)))
        if index in chosen
        else request
        for index, request in enumerate(load)
    ]


def prompt_text(request: PlannedRequest, tokens_per_word: float, seed: str, index: int) -> str:
    """Words for about ``request.prompt_tokens`` tokens; pieces of one name are the same text in every prompt."""
    num_words = max(1, int(request.prompt_tokens / tokens_per_word))
    own = synthetic_text(num_words, random.Random(f"{seed}:{index}"))
    if not request.prefix_ids:
        return own
    per_piece = max(1, int(request.piece_tokens / tokens_per_word))
    pieces = (synthetic_text(per_piece, random.Random(f"{seed}:piece {name}")) for name in request.prefix_ids)
    return " ".join(" ".join([*pieces, own]).split()[:num_words])


def synthetic_text(num_words: int, rng: random.Random) -> str:
    """Plain words in random order: no two prompts share more than a word or two at their start."""
    return " ".join(rng.choices(WORDS, k=num_words))
