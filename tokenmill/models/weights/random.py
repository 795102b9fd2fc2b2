"""Random numbers instead of a checkpoint's weights: speed and memory depend on shapes, not on what the weights say.

Each tensor is drawn on the device that it goes to and taken as a checkpoint's would be, quantised too, so nothing but
``config.json`` has to be there, and a model of 8 billion parameters is on a GPU within seconds. Norms are ones; all
else is normal with the deviation that families initialise with, so hidden states stay finite through any depth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tokenmill.models.layers.destination import Destinations

STD = 0.02


def fill(
    destinations: Destinations,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None] | None = None,
    seed: int = 0,
) -> None:
    """Give every destination its tensor, the same for the same ``seed``, ``dtype`` and kind of device.

    ``progress``: called with (bytes done, bytes in total) after each tensor.
    """
    chance = torch.Generator(device).manual_seed(seed)
    total, done = sum(math.prod(found.shape) for found in destinations.values()) * dtype.itemsize, 0
    for name, found in destinations.items():
        if "norm" in name:
            tensor = torch.ones(found.shape, dtype=dtype, device=device)
        else:
            tensor = torch.empty(found.shape, dtype=dtype, device=device).normal_(0.0, STD, generator=chance)
        found.take(tensor)
        done += tensor.nbytes
        if progress is not None:
            progress(done, total)
