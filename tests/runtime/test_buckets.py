"""Buckets of rows: every count fits, nothing is wasted beyond the bound, and there are few."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tokenmill.runtime.gpu.buckets import WASTE, bucket_of, round_up, row_buckets, typical_cost

COSTS: dict[str, Callable[[int], float]] = {
    "typical": typical_cost,
    "flat": lambda rows: 1.0,
    "steep": lambda rows: float(rows),
    "small model": lambda rows: max(1.0, rows / 50) + 0.004 * rows,
}


@pytest.mark.parametrize("max_rows", [1, 2, 5, 8, 16, 17, 64, 250, 256, 1000])
@pytest.mark.parametrize("cost", COSTS.values(), ids=COSTS)
def test_every_count_has_its_bucket(max_rows: int, cost: Callable[[int], float]) -> None:
    buckets = row_buckets(max_rows, cost)
    assert list(buckets) == sorted(set(buckets)) and buckets[0] == 1 and buckets[-1] == round_up(max_rows)
    for rows in range(1, max_rows + 1):
        bucket = bucket_of(rows, buckets)
        assert bucket >= rows
        nearest = round_up(rows)
        assert bucket == nearest or cost(bucket) <= (1 + WASTE) * cost(rows), "padding costs more than it may"


def test_there_are_few_where_rows_are_cheap_and_many_where_they_are_dear() -> None:
    assert row_buckets(256, COSTS["flat"]) == (1, 256)
    assert row_buckets(64, COSTS["steep"]) == (1, 2, 4, 8, 16, 32, 48, 64)
    assert row_buckets(256) == (1, *range(16, 257, 16))
    assert row_buckets(256, typical_cost, waste=0.1) == (1, 96, 192, *range(208, 257, 16))


def test_candidates() -> None:
    assert [round_up(rows) for rows in (1, 2, 3, 5, 8, 9, 16, 17, 250)] == [1, 2, 4, 8, 8, 16, 16, 32, 256]
