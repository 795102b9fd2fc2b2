"""The GPU that this process may use, found without touching it: no context is made, and PyTorch is not imported.

NVIDIA's management library (NVML, part of the driver) tells names and free memory; for AMD the kernel's own files do.
Only the first visible GPU counts: an engine uses one.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tokenmill.core.errors import ConfigError
from tokenmill.launch.machine import available_memory_bytes

AMD_CARDS = Path("/sys/class/drm")
INTERPRETER = "Triton's interpreter"
"""With ``TRITON_INTERPRET=1``: all that is done for a GPU, on tensors in main memory, thousands of times as slow."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """What there is before anything of ours is on it."""

    name: str
    total_bytes: int
    free_bytes: int


def find_gpu(wanted: str) -> Gpu | None:
    """The GPU to use; None: the CPU computes.

    Args:
        wanted: ``ModelSource.device``.

    Raises:
        ConfigError: ``cuda`` is wanted, and there is none.
    """
    if wanted == "cpu":
        return None
    if wanted == "cuda" and os.environ.get("TRITON_INTERPRET") == "1":
        free_bytes = available_memory_bytes()
        return Gpu(INTERPRETER, free_bytes, free_bytes)
    found = _nvidia() or _amd()
    if found is None and wanted == "cuda":
        found = _by_torch()
    if found is None and wanted == "cuda":
        raise ConfigError(
            "device cuda: no GPU is to be seen here (nvidia-smi or rocm-smi shows those there are); ask for device cpu"
        )
    return found


def software_obstacle() -> str | None:
    """Why no GPU can be used with what is installed; None if one can. Nothing is imported."""
    if find_spec("triton") is None:
        return "Triton is not installed: pip install 'tokenmill[gpu]'"
    try:
        build = version("torch")
    except PackageNotFoundError:
        return None  # PyTorch is there in another way, and will tell
    return f"PyTorch {build} is built for the CPU alone" if build.endswith("+cpu") else None


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def _nvidia() -> Gpu | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    first = "0" if visible is None else visible.split(",")[0].strip()
    with _nvml() as nvml:
        if nvml is None:
            return None
        handle, memory, name = ctypes.c_void_p(), _Memory(), ctypes.create_string_buffer(96)
        if first.isdigit():
            failed = nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(int(first)), ctypes.byref(handle))
        else:  # empty or -1 means none; else a GPU's unique name, or that of a part of it
            failed = nvml.nvmlDeviceGetHandleByUUID(first.encode(), ctypes.byref(handle))
        if failed or nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
            return None
        nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(len(name)))
        return Gpu(name.value.decode(errors="replace"), memory.total, memory.free)


def _by_torch() -> Gpu | None:
    """Where the driver's library is not to be found: PyTorch brings its own way to the device, and makes a context."""
    import torch

    if not torch.cuda.is_available():
        return None
    free_bytes, total_bytes = torch.cuda.mem_get_info()
    return Gpu(torch.cuda.get_device_name(), total_bytes, free_bytes)


@contextmanager
def _nvml() -> Iterator[ctypes.CDLL | None]:
    """The library, ready; None where there is no such driver."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        yield None
        return
    if library.nvmlInit_v2():
        yield None
        return
    try:
        yield library
    finally:
        library.nvmlShutdown()


def _amd(cards: Path = AMD_CARDS) -> Gpu | None:
    visible = os.environ.get("HIP_VISIBLE_DEVICES", "0").split(",")[0].strip()
    sized = sorted(cards.glob("card[0-9]*/device/mem_info_vram_total"))
    if not visible.isdigit() or int(visible) >= len(sized):
        return None
    total_file = sized[int(visible)]
    total, used = (int(path.read_text()) for path in (total_file, total_file.with_name("mem_info_vram_used")))
    product = total_file.with_name("product_name")
    name = product.read_text().strip() if product.exists() else ""
    return Gpu(name or "AMD GPU", total, total - used)
