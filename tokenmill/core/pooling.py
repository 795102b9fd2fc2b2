"""``Pooling``: how one vector is made of a prompt, instead of tokens that continue it.

A decoder's hidden states after its last norm say of each position what the tokens up to there mean. ``last`` takes
the last position's, which alone has seen the whole prompt (models trained as Qwen3-Embedding are); ``mean`` takes the
mean over all positions, each as it was when only the tokens before it were known. The vector is cut to the first
``dimensions`` numbers, where that is asked for (models trained so that a beginning is a good embedding too:
Matryoshka representation learning, Kusupati et al., 2022), and scaled to length 1 unless ``normalize`` is false.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenmill.core.errors import InvalidRequest
from tokenmill.core.params import SamplingParams

PoolingKind = Literal["last", "mean"]


@dataclass(frozen=True, slots=True)
class Pooling:
    """Checked on creation (``InvalidRequest`` names the field)."""

    kind: PoolingKind | None = None
    """None: as the checkpoint says; the engine settles it before the request begins."""
    dimensions: int | None = None
    """Keep so many numbers, the first; None: all."""
    normalize: bool = True
    """Scale what is kept to Euclidean length 1 (a vector of zeros stays one)."""

    def __post_init__(self) -> None:
        if self.kind not in (None, "last", "mean"):
            raise InvalidRequest(f"pooling must be 'last' or 'mean', not {str(self.kind)[:40]!r}", param="pooling")
        if self.dimensions is not None and self.dimensions < 1:
            raise InvalidRequest(f"dimensions must be at least 1, not {self.dimensions}", param="dimensions")


NO_TOKENS = SamplingParams(max_tokens=0, temperature=0.0)
"""The sampling parameters of a request that wants an embedding."""
