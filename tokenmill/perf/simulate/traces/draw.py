"""What is drawn where a file gives distributions instead of requests, or lengths without times."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Draw:
    """How to make requests of a description; files of timed requests need none of it."""

    requests: int | None = None
    """How many at most."""
    rate: float | None = None
    """Requests a second, on average."""
    arrivals: str = "poisson"
    """A process of ``simulate/arrivals.py``."""
    window_s: tuple[float, float] | None = None
    """Of a description that changes with time: from when until when."""
    seed: int = 0

    def rng(self, purpose: str) -> random.Random:
        """A source of chance of its own for each purpose, so that one does not disturb another."""
        return random.Random(f"{self.seed}:{purpose}")
