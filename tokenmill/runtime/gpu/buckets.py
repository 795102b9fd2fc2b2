"""How many rows a decode step is padded to.

A captured graph has one shape. A graph for every number of rows would be hundreds of captures; one graph for all would
make every step as long as the largest. Between the two stands the price of padding: with ``cost(n)`` seconds for a step
of n rows (whose padding reads no cache), n rows in a bucket of b take ``cost(b)``. The buckets are the fewest of the
candidates such that no step takes more than ``1 + waste`` times its own cost, where candidates that near exist.

Candidates are 1, 2, 4, 8 and the multiples of 16: matrix instructions work on 16 rows, so what lies between costs what
the next multiple costs. One row alone is always a bucket, since that is how most machines are used.

On a GPU a decode step reads the weights once however many rows there are, until the rows' arithmetic takes longer
(``RIDGE`` rows); what each row adds is the traffic of its activations and of sampling, about a thousandth of the
weights'. With that, 2 % of waste leave no candidate out from 16 on, and of the smaller ones only 1 is worth a graph.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import chain

WASTE = 0.02
RIDGE = 200
"""Rows whose arithmetic takes as long as reading the weights: of bf16 on an H200, 989 TFLOP/s over 4.8 TB/s."""
PER_ROW = 0.001
"""What a row adds to the step beside its arithmetic, as a share of reading the weights: of an 8B model, 10 MB of
activations (32 layers of 300 kB) and three passes over the logits against 15 GB."""


def typical_cost(num_rows: int) -> float:
    """Of a decode step without its cache's part; the time of reading the weights is 1."""
    return max(1.0, num_rows / RIDGE) + PER_ROW * num_rows


def row_buckets(max_rows: int, cost: Callable[[int], float] = typical_cost, waste: float = WASTE) -> tuple[int, ...]:
    """Sizes that decode steps of 1 … ``max_rows`` rows are padded to, ascending; the last holds ``max_rows``."""
    candidates = [n for n in chain((1, 2, 4, 8), range(16, max_rows + 16, 16)) if n < max_rows] + [round_up(max_rows)]
    buckets = [1]
    while buckets[-1] < candidates[-1]:
        least = buckets[-1] + 1
        behind = candidates[bisect_left(candidates, least) :]
        near = [n for n in behind if cost(n) <= (1 + waste) * cost(least)]
        buckets.append(near[-1] if near else behind[0])
    return tuple(buckets)


def round_up(num_rows: int) -> int:
    """To a candidate."""
    return 1 << (num_rows - 1).bit_length() if num_rows <= 8 else -(-num_rows // 16) * 16


def bucket_of(num_rows: int, buckets: Sequence[int]) -> int:
    """The smallest bucket that holds ``num_rows``, which must not be more than the largest."""
    return buckets[bisect_left(buckets, num_rows)]
