"""``Destination``: where a checkpoint tensor goes.

Every layer answers ``destinations(prefix)`` with the checkpoint names it wants and, for each, a destination:
the shape it must have and how to take it. So the loader is a loop, and merging, sharding and packing stay
with the layer that owns the weight.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Destination:
    """One tensor that a layer expects from the checkpoint."""

    shape: tuple[int, ...]
    take: Callable[[Tensor], Any]
    """Store the tensor (of ``shape``, any floating dtype, possibly a view of a file: must copy)."""


def into(view: Tensor) -> Destination:
    """The tensor is copied to ``view``, with the cast that needs."""
    return Destination(shape=tuple(view.shape), take=view.copy_)


Destinations = dict[str, Destination]
"""By checkpoint name."""
