"""Instruction sets: what kernels can be built for, and which of them this processor has.

Every library holds the same kernels; they differ in what ``src/simd.h`` makes of a vector operation. The best
one that the processor can run is taken, or the one that ``TOKENMILL_ISA`` names (for tests and comparisons).
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tokenmill.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Isa:
    """One way to build the kernels."""

    name: str
    needs: frozenset[str]
    """Features by their names in /proc/cpuinfo."""
    flags: tuple[str, ...]
    """For GCC or Clang."""


_AVX2 = ("avx2", "fma", "f16c", "bmi2")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl")


def _x86(name: str, *features: str) -> Isa:
    """Compilers and /proc/cpuinfo name features alike but for an underscore."""
    flags = tuple(f"-m{feature.replace('_', '')}" for feature in features)
    return Isa(name, frozenset(features), flags)


ISAS = (
    _x86("avx512_bf16", *_AVX512, "avx512_vnni", "avx512_bf16"),
    _x86("avx512_vnni", *_AVX512, "avx512_vnni"),
    _x86("avx512", *_AVX512),
    _x86("avx2", *_AVX2),
    Isa("plain", frozenset(), ()),
)
"""Best first; ``plain`` runs anywhere."""


@cache
def processor_features() -> frozenset[str]:
    """The features that this processor (and its operating system) offers; empty where they cannot be told."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return frozenset()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line for line in lines if line.startswith("flags")), "")
    return frozenset(flags.partition(":")[2].split())


def available_isas() -> tuple[Isa, ...]:
    """What this processor can run, best first."""
    return tuple(isa for isa in ISAS if isa.needs <= processor_features())


def choose_isa(name: str | None = None) -> Isa:
    """The best, or the one named (here or by ``TOKENMILL_ISA``).

    Raises:
        ConfigError: there is no such one, or this processor lacks it.
    """
    wanted = name or os.environ.get("TOKENMILL_ISA") or None
    if wanted is None:
        return available_isas()[0]
    for isa in ISAS:
        if isa.name == wanted:
            missing = sorted(isa.needs - processor_features())
            if missing:
                raise ConfigError(f"TOKENMILL_ISA={wanted}: this processor lacks {', '.join(missing)}")
            return isa
    raise ConfigError(f"TOKENMILL_ISA must be one of {', '.join(isa.name for isa in ISAS)}, not {wanted!r}")


def processor_family() -> str:
    """What calibrations are learnt for: ``amx``, ``avx512`` or ``avx2``, else the machine's name for its kind."""
    features = processor_features()
    return next(
        (name for name in ("amx", "avx512", "avx2") if any(feature.startswith(name) for feature in features)),
        platform.machine(),
    )
