"""The stage ``kernels``: each kernel's time against what the device can do, and against the vendor's library.

A kernel takes no less time than its bytes or its operations do at the ceilings measured in the same run
(``ceilings.py``): ``share`` is that time over the measured one. Bytes are those that have to be moved at least once.
Every kernel's outcome is compared with plain PyTorch in float32 before it is timed: a quick wrong kernel is no figure.
"""

from __future__ import annotations

from tokenmill.bench.gpu import attention, experts, matrices, pointwise, sampling
from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.unit import Unit


def units(place: Place) -> list[Unit]:
    """What the aims are about first, so that it is there if the time ends."""
    return [
        *attention.decode_units(place),
        *attention.prefill_units(place),
        *matrices.units(place),
        *experts.units(place),
        *pointwise.units(place),
        *sampling.units(place),
    ]
