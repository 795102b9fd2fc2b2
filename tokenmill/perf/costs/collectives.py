"""Collective operations: what each device sends, and in how many dependent steps.

For n ranks and a message of B bytes (Thakur et al. 2005; NCCL's and one-shot kernels use the same counts):

================ =========================== ============================
operation        bytes sent by each device   dependent steps
================ =========================== ============================
ring all-reduce  2 · B · (n − 1)/n           2 (n − 1)
tree all-reduce  2 · B                       2 · log2 n
one-shot         B · (n − 1)                 1
reduce-scatter,  B · (n − 1)/n               n − 1
all-gather
all-to-all       B · (n − 1)/n               1 (all links at once)
send             B                           1
================ =========================== ============================

B is the whole message: what is reduced, or what all ranks hold together after the gather, or what one rank sends out
in an all-to-all. The number of all-reduces of a step does not grow with n; their latency does, with the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Collective = Literal["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "send"]
Algorithm = Literal["ring", "tree", "one_shot"]


@dataclass(frozen=True, slots=True)
class Message:
    """One call of a collective."""

    collective: Collective
    ranks: int
    num_bytes: float


def sent_bytes(message: Message, algorithm: Algorithm = "ring") -> float:
    """By each device, in one direction."""
    n, size = message.ranks, message.num_bytes
    if n <= 1:
        return 0.0
    if message.collective == "send":
        return size
    if message.collective == "all_reduce":
        return {"ring": 2 * size * (n - 1) / n, "tree": 2 * size, "one_shot": size * (n - 1)}[algorithm]
    return size * (n - 1) / n


def num_steps(message: Message, algorithm: Algorithm = "ring") -> int:
    """Messages that wait for one another."""
    n = message.ranks
    if n <= 1:
        return 0
    if message.collective in ("send", "all_to_all"):
        return 1
    if message.collective == "all_reduce":
        return {"ring": 2 * (n - 1), "tree": 2 * math.ceil(math.log2(n)), "one_shot": 1}[algorithm]
    return n - 1


def seconds(message: Message, bytes_per_s: float, step_s: float, algorithm: Algorithm = "ring") -> float:
    """Of one call: bandwidth term and latency term."""
    return sent_bytes(message, algorithm) / bytes_per_s + num_steps(message, algorithm) * step_s


def pipeline_idle_share(num_stages: int, num_micro_batches: int) -> float:
    """Share of a pipeline's time that stages wait: (p − 1)/(m + p − 1) (GPipe, arXiv 1811.06965)."""
    return (num_stages - 1) / (num_micro_batches + num_stages - 1)
