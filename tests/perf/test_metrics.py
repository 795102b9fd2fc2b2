"""Metrics against NumPy and the worked numbers of the field (``../shared/golden_numbers.md``, "Metrics and cost")."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from tokenmill.core.errors import ConfigError
from tokenmill.perf.metrics import (
    SLO,
    Timeline,
    bandwidth_used,
    bandwidth_utilization,
    cost_per_million,
    goodput,
    parse_limit,
    percentile,
    prefix_tokens_saved,
    static_batch_waste,
    summarize,
)


def timeline(ttft_s: float = 0.1, e2e_s: float = 1.0, itl_s: tuple[float, ...] = (0.3, 0.3, 0.3)) -> Timeline:
    return Timeline(ttft_s, e2e_s, itl_s, len(itl_s) + 1)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 101])
def test_percentiles_equal_numpy(count: int) -> None:
    rng = random.Random(count)
    values = [rng.expovariate(1.0) for _ in range(count)]
    for q in (0, 1, 50, 90, 95, 99, 99.9, 100):
        assert percentile(values, q) == pytest.approx(np.percentile(values, q), rel=1e-12)


def test_percentile_of_nothing_is_not_a_number() -> None:
    assert math.isnan(percentile([], 50))
    assert summarize([]) == {}


def test_mean_and_median_differ_by_one_slow_request() -> None:
    summary = summarize([100, 102, 100, 100, 99, 104, 110, 90, 3000, 95])
    assert summary["mean"] == 390
    assert summary["p50"] == 100


def test_goodput_counts_only_requests_within_the_slo() -> None:
    good, slow_start, stutter = timeline(), timeline(ttft_s=2.0), timeline(itl_s=(0.1, 0.8, 0.1))
    minute = [good] * 30 + [slow_start] * 40 + [stutter] * 30
    assert goodput(minute, SLO(ttft_s=0.5, itl_s=0.5), duration_s=60) * 60 == pytest.approx(30)
    assert goodput(minute, SLO(), duration_s=60) * 60 == pytest.approx(100)


def test_an_slo_holds_at_its_limit_and_for_one_token_answers() -> None:
    assert SLO(ttft_s=0.1, tpot_s=0.3, e2e_s=1.0).met_by(timeline())
    assert SLO(tpot_s=0.001, itl_s=0.001).met_by(timeline(itl_s=()))
    assert not SLO(e2e_s=0.9).met_by(timeline())


def test_time_per_output_token_leaves_the_first_out() -> None:
    assert timeline(ttft_s=0.1, e2e_s=1.0).tpot_s == pytest.approx(0.3)
    assert timeline(itl_s=()).tpot_s == 0.0
    assert timeline().normalized_s == pytest.approx(0.25)


def test_bandwidth_utilisation() -> None:
    # Not 700 GB/s, as one reads: 7e9 × 2 × 100.
    assert bandwidth_used(7e9, 2, 100) == pytest.approx(1400e9)
    assert bandwidth_utilization(7e9, 2, 100, 2.0e12) == pytest.approx(0.70)


@pytest.mark.parametrize(
    ("price_per_hour", "tokens_per_s", "wanted"),
    [(2, 100, 5.556), (2.5, 800, 0.868), (20, 3000, 1.852), (32, 8000, 1.111)],
)
def test_cost_per_million_tokens(price_per_hour: float, tokens_per_s: float, wanted: float) -> None:
    assert cost_per_million(price_per_hour, tokens_per_s) == pytest.approx(wanted, abs=5e-4)


def test_cost_of_a_thousand_requests() -> None:
    assert cost_per_million(2, 100) * 1000 * 200 / 1e6 == pytest.approx(1.11, abs=5e-3)
    assert cost_per_million(2, 100 / 60) * 1000 / 1e6 == pytest.approx(0.333, abs=5e-4)


def test_static_batch_waste() -> None:
    assert static_batch_waste([20] * 7 + [500]) == (3360, 4000)


def test_prefix_cache_saves_almost_every_shared_token() -> None:
    assert prefix_tokens_saved(1000, 1_000_000) == pytest.approx(1e9, rel=1e-5)


def test_a_limit_is_a_time_above_zero_in_seconds_or_with_its_unit() -> None:
    assert [parse_limit("ttft", text) for text in ("0.5", "200ms", " 2 s", "1min")] == [0.5, 0.2, 2.0, 60.0]
    for text in ("", "nan", "-1", "0", "inf", "5 years"):
        with pytest.raises(ConfigError, match=r"--slo: itl must be a time above 0"):
            parse_limit("itl", text)
