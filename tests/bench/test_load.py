"""The load, fixed beforehand: arrivals, lengths, words."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from tokenmill.bench.load import (
    arrival_times,
    csv_lengths,
    parse_range,
    plan_load,
    scale_to_context,
    synthetic_text,
    uniform_lengths,
)
from tokenmill.core.errors import ConfigError


def test_arrivals_are_poisson_at_the_rate() -> None:
    times = arrival_times(20_000, 50.0, random.Random(1))
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == 0.0
    # An exponential distribution's deviation is its mean.
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.03)
    assert statistics.stdev(gaps) == pytest.approx(1 / 50, rel=0.03)


def test_without_a_rate_everything_arrives_at_once() -> None:
    assert arrival_times(3, None, random.Random(1)) == [0.0, 0.0, 0.0]


def test_the_seed_decides_everything() -> None:
    def load(seed: int) -> object:
        rng = random.Random(seed)
        return plan_load(uniform_lengths(50, (1, 100), (1, 100), rng), 10.0, rng)

    assert load(3) == load(3) != load(4)


@pytest.mark.parametrize(("text", "wanted"), [("64", (64, 64)), ("16-512", (16, 512))])
def test_ranges(text: str, wanted: tuple[int, int]) -> None:
    assert parse_range(text) == wanted


@pytest.mark.parametrize("text", ["", "x", "0", "9-3", "-4", "1-2-3"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="16-512"):
        parse_range(text)


def test_lengths_from_a_real_trace(shared: Path) -> None:
    path = shared / "data" / "traces" / "lengths" / "sharegpt.csv"
    lengths = csv_lengths(path, 500, random.Random(0))
    assert len(lengths) == 500 and all(prompt >= 1 and output >= 1 for prompt, output in lengths)
    assert (285, 42) not in lengths or (42, 285) in lengths  # the columns are not swapped


def test_lengths_of_another_naming_and_fewer_rows_than_wanted(tmp_path: Path) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text("num_prefill_tokens,num_decode_tokens,other\n100,5,x\n0,7,x\n")
    assert csv_lengths(path, 3, random.Random(0)) == [(100, 5)] * 3


@pytest.mark.parametrize(
    "content", ["a,b\n1,2\n", "ContextTokens,GeneratedTokens\n1,two\n", "ContextTokens,GeneratedTokens\n"]
)
def test_a_file_without_lengths_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "lengths.csv"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"lengths\.csv"):
        csv_lengths(path, 1, random.Random(0))


def test_long_requests_are_scaled_in_proportion() -> None:
    scaled, count = scale_to_context([(10, 10), (300, 100), (1, 10_000)], 200)
    assert (scaled, count) == ([(10, 10), (150, 50), (1, 199)], 2)


def test_prompts_do_not_share_beginnings() -> None:
    texts = {synthetic_text(20, random.Random(seed))[:40] for seed in range(100)}
    assert len(texts) == 100
    assert len(synthetic_text(20, random.Random(0)).split()) == 20
