"""``Place``: where a measurement runs. A CUDA (or ROCm) device; or, as a rehearsal, the CPU at toy sizes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch

from tokenmill.core.errors import ConfigError
from tokenmill.kernels.triton.interpreted import interpret


@dataclass(frozen=True, slots=True)
class Place:
    """A device, and whether sizes are those of real models."""

    device: torch.device
    toy: bool

    @classmethod
    def find(cls, *, toy: bool) -> Place:
        """Raises ``ConfigError`` where there is no GPU and no rehearsal is wanted."""
        if toy:
            interpret()
            return cls(torch.device("cpu"), toy=True)
        if not torch.cuda.is_available():
            raise ConfigError("PyTorch sees no GPU here: --toy rehearses every stage at toy sizes on the CPU")
        return cls(torch.device("cuda", torch.cuda.current_device()), toy=False)

    @property
    def is_gpu(self) -> bool:
        return self.device.type == "cuda"

    @property
    def name(self) -> str:
        """As the driver has it."""
        return torch.cuda.get_device_name(self.device) if self.is_gpu else "toy"

    @property
    def cache_bytes(self) -> int:
        """What the last cache holds: fewer bytes than that may be read without coming from memory."""
        if not self.is_gpu:
            return 4096
        return int(torch.cuda.get_device_properties(self.device).L2_cache_size)

    def synchronise(self) -> None:
        """Wait until the device has done all it was given."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def describe(self) -> dict[str, Any]:
        """For the record."""
        found: dict[str, Any] = {"name": self.name, "toy": self.toy, "torch": torch.__version__}
        if self.is_gpu:
            properties = torch.cuda.get_device_properties(self.device)
            found |= {
                "memory_bytes": properties.total_memory,
                "multiprocessors": properties.multi_processor_count,
                "cache_bytes": properties.L2_cache_size,
                "capability": f"{properties.major}.{properties.minor}",
                "cuda": torch.version.cuda,
            }
        return found


def slug(name: str) -> str:
    """``NVIDIA H200`` → ``h200``: what result files are called after."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "-".join(word for word in words if word not in ("nvidia", "amd", "instinct")) or "gpu"
