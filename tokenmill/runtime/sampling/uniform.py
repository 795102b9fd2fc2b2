"""Random numbers by counter: the number for a token depends on (seed, position) and nothing else.

``uniform(seed, position)`` is the ``position``-th output of SplitMix64 (Steele, Lea, Flood 2014) started at
``mix(seed)``, its top 52 bits over 2**52::

    mix(x):  x ^= x >> 30;  x *= 0xBF58476D1CE4E5B9;  x ^= x >> 27;  x *= 0x94D049BB133111EB;  x ^= x >> 31
    u     =  (mix(mix(seed + G) + (position + 1) * G) >> 12) / 2**52,     G = 0x9E3779B97F4A7C15,  mod 2**64

``mix(seed + G)`` sets neighbouring seeds (choices of one request) far apart. 52 bits, so that ``u * total``
rounds to less than ``total`` for every float64 ``total``: a draw never falls off the end.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MASK = 2**64 - 1


def uniform(seeds: Sequence[int], positions: Sequence[int]) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1), one for each pair.

    Args:
        seeds: any integers; taken modulo 2**64.
        positions: index of the token to be drawn in its sequence (prompt included), >= 0.
    """
    seed = np.array([s & _MASK for s in seeds], dtype=np.uint64)
    position = np.array(positions, dtype=np.uint64)
    bits = _mix(_mix(seed + _GAMMA) + (position + np.uint64(1)) * _GAMMA)
    return (bits >> np.uint64(12)).astype(np.float64) / 2.0**52


def _mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
