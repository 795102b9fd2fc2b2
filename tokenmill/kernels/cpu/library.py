"""``Library``: the kernels of one instruction set, loaded, with their pool of threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tokenmill.kernels.cpu.build import build
from tokenmill.kernels.cpu.isa import Isa, choose_isa
from tokenmill.kernels.cpu.records import RECORDS


class Library:
    """Kernels by name. ctypes lets go of the interpreter's lock while a call runs."""

    def __init__(self, path: Path, isa: Isa) -> None:
        self.isa = isa
        self._dll = ctypes.CDLL(str(path))
        self._dll.tm_pool_new.restype = ctypes.c_void_p
        self._dll.tm_pool_new.argtypes = [ctypes.c_int32]
        self._dll.tm_pool_delete.argtypes = [ctypes.c_void_p]
        self.run = self._dll.tm_run
        self.run.restype = None
        self.run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]

    def kernel(self, name: str) -> int:
        """Address of ``tm_<name>``."""
        address = ctypes.cast(getattr(self._dll, f"tm_{name}"), ctypes.c_void_p).value
        assert address is not None
        return address

    def record_sizes(self) -> list[int]:
        """What the kernels think that the records' sizes are."""
        sizes = (ctypes.c_int32 * len(RECORDS))()
        count = self._dll.tm_record_sizes(sizes, len(RECORDS))
        return list(sizes[:count])

    def new_pool(self, num_threads: int) -> Pool:
        return Pool(self, num_threads)

    def _make_pool(self, num_threads: int) -> int:
        return int(self._dll.tm_pool_new(num_threads))

    def _delete_pool(self, handle: int) -> None:
        self._dll.tm_pool_delete(handle)


class Pool:
    """Threads that run programs; they sleep between runs, and end with this object."""

    def __init__(self, library: Library, num_threads: int) -> None:
        self.library = library
        self.num_threads = num_threads
        self.handle = library._make_pool(num_threads)

    def __del__(self) -> None:
        handle, self.handle = getattr(self, "handle", 0), 0
        if handle:
            self.library._delete_pool(handle)


def load(isa_name: str | None = None, on_build: Callable[[], None] | None = None) -> Library:
    """The library for the best instruction set, or the one named; compiled first if need be.

    Raises:
        NoCompiler: it is not built and cannot be.
        ConfigError: the processor lacks the instruction set named.
    """
    isa = choose_isa(isa_name)
    return _load(build(isa, on_build), isa)


@cache
def _load(path: Path, isa: Isa) -> Library:
    return Library(path, isa)
