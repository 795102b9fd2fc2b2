"""From hidden states to an embedding (``core/pooling.py`` says what is wanted).

A mean is summed up position by position in float64, whatever pieces the prompt is computed in, so that its bits
depend neither on chunks nor on who shares the step; so is the square of the length, exactly rounded (Shewchuk's
sums, ``math.fsum``). What leaves is float32.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tokenmill.core.pooling import Pooling

HIDDEN_ROWS = 256
"""Hidden states held at once."""

NOT_FINITE = (
    "the model's hidden states are not finite up to position {position}; the checkpoint or its precision is at fault"
)


class Pooled:
    """The vector of one prompt in the making."""

    def __init__(self, pooling: Pooling, num_tokens: int) -> None:
        self.pooling = pooling
        self.num_tokens = num_tokens
        self._total: NDArray[np.float64] | None = None

    def wanted(self, start: int, end: int) -> range:
        """Of positions ``start … end - 1`` those whose hidden states count."""
        return range(start, end) if self.pooling.kind == "mean" else range(max(start, self.num_tokens - 1), end)

    def add(self, hidden: NDArray[np.float32]) -> None:
        """Take in the hidden states of the next positions that count: ``[count, hidden_size]``."""
        if self._total is None:
            self._total = np.zeros(hidden.shape[1])
        for vector in hidden:
            self._total += vector

    def values(self) -> bytes | None:
        """The embedding as little-endian float32; None if it is not finite."""
        assert self._total is not None, "no position was computed"
        vector = self._total / self.num_tokens if self.pooling.kind == "mean" else self._total
        vector = vector[: self.pooling.dimensions]
        if not np.isfinite(vector).all():
            return None
        if self.pooling.normalize:
            length = math.sqrt(math.fsum((vector * vector).tolist()))
            vector = vector / length if length > 0 else vector
        return vector.astype("<f4").tobytes()
