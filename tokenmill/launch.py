"""Putting the parts together: configuration → checkpoint → ledger → text → weights → KV → executor → engine.

The only place that knows all of them. What can be refused is refused early, the cheap checks first: memory is
planned from ``config.json`` alone, the tokenizer is held against the embedding before any weight is read.
After loading, what weights and KV really take is compared with what the ledger foresaw, and kept.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenmill import __version__
from tokenmill.core.clock import MonotonicClock
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import ConfigError
from tokenmill.core.model_config import ModelConfig
from tokenmill.engine.async_service import EngineService
from tokenmill.engine.contracts import Executor
from tokenmill.engine.engine import Engine
from tokenmill.engine.journal import JournalWriter
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.resolve import ModelLimits
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.text import TextCodec
from tokenmill.perf.memory import Ledger, plan_memory

if TYPE_CHECKING:
    from tokenmill.models.decoder import Decoder


class Progress(Protocol):
    """Told how a long task goes on; the command line draws bars from it."""

    def stage(self, text: str) -> None:
        """A new stage begins: ``loading weights``."""
        ...

    def update(self, done: int, total: int) -> None:
        """How far the stage is, in bytes."""
        ...


class Silent:
    """A ``Progress`` that tells nobody."""

    def stage(self, text: str) -> None:
        pass

    def update(self, done: int, total: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of a model before a weight is read."""

    path: Path
    name: str
    """The id that clients use."""
    config: ModelConfig
    codec: TextCodec
    ledger: Ledger


@dataclass(frozen=True, slots=True)
class Measured:
    """What was really taken, in bytes, to stand beside the ledger."""

    weights_bytes: int
    kv_bytes: int
    resident_bytes: int
    """By how much the process grew. The KV pool grows further: its pages come when they are first written."""


@dataclass(frozen=True, slots=True)
class Launched:
    """An engine that is ready to step, and all that was made on the way."""

    config: EngineConfig
    checkpoint: Checkpoint
    engine: Engine
    limits: ModelLimits
    measured: Measured

    @property
    def fingerprint(self) -> str:
        """A name for all that decides tokens: the same seed gives the same answer where it is the same."""
        parts = (__version__, self.checkpoint.name, repr(self.checkpoint.config), self.checkpoint.ledger.dtype)
        return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    def service(self) -> EngineService:
        """The asynchronous face; whoever takes it closes it (and with it the engine)."""
        return EngineService(self.engine, self.checkpoint.codec, self.limits, model_name=self.checkpoint.name)


def inspect(config: EngineConfig, progress: Progress | None = None) -> Checkpoint:
    """Find the checkpoint and plan its memory; reads no weights.

    Raises:
        SetupError: no such model, a damaged checkpoint, an impossible option; ``DoesNotFit`` names what would fit.
        NotSupported: an architecture or format that is not built.
    """
    from tokenmill.models.hub import resolve

    progress = progress or Silent()
    progress.stage("finding the model")
    path = resolve(config.source.model, progress=progress.update)
    return _read(config, path, progress)


def build(config: EngineConfig, progress: Progress | None = None) -> Launched:
    """Everything, ready to step. Raises what ``inspect`` raises."""
    progress = progress or Silent()
    checkpoint = inspect(config, progress)
    ledger = checkpoint.ledger
    journal = _open_journal(config, ledger)
    executor, measured = load_executor(config, checkpoint, progress)
    cache = KVCache(ledger.num_blocks, ledger.block_size, prefix_caching=config.cache.prefix_caching)
    engine = Engine(Scheduler(cache, config.scheduler), executor, MonotonicClock(), depth=config.depth, journal=journal)
    limits = ModelLimits(
        max_context=ledger.max_context,
        vocab_size=checkpoint.config.vocab_size,
        eos_token_ids=checkpoint.codec.eos_token_ids | frozenset(checkpoint.config.eos_token_ids),
    )
    return Launched(config, checkpoint, engine, limits, measured)


def load_executor(config: EngineConfig, checkpoint: Checkpoint, progress: Progress) -> tuple[Executor, Measured]:
    """Read the weights, allocate the KV pool, start the executor."""
    progress.stage("importing torch")
    # Threads that spin while they wait make two cores slower than one as soon as anything else runs (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from tokenmill.kernels.kv import KVTensors
    from tokenmill.models.load import load_model
    from tokenmill.runtime.executor import LocalExecutor
    from tokenmill.runtime.worker import Worker

    torch.set_num_threads(config.source.num_threads or available_cores())
    ledger = checkpoint.ledger
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[ledger.dtype]
    before_bytes = resident_bytes()
    progress.stage("loading weights")
    model = load_model(checkpoint.path, dtype=dtype, max_context=ledger.max_context, progress=progress.update)
    progress.stage("allocating the KV pool")
    kv = KVTensors.allocate(checkpoint.config, ledger.num_blocks, ledger.block_size, dtype=dtype)
    progress.stage("warming up")
    executor = LocalExecutor(Worker(model, kv))
    executor.start()
    return executor, Measured(_weight_bytes(model), kv.num_bytes, resident_bytes() - before_bytes)


def _open_journal(config: EngineConfig, ledger: Ledger) -> JournalWriter | None:
    if config.journal is None:
        return None
    try:
        return JournalWriter(Path(config.journal), journal_header(config, ledger))
    except OSError as error:
        raise ConfigError(f"cannot write the journal {config.journal}: {error.strerror}") from error


def journal_header(config: EngineConfig, ledger: Ledger) -> dict[str, Any]:
    """What a replay must know to build the same executor."""
    return {
        "tokenmill": __version__,
        "model": config.source.model,
        "dtype": ledger.dtype,
        "block_size": ledger.block_size,
        "num_blocks": ledger.num_blocks,
        "max_context": ledger.max_context,
    }


def _read(config: EngineConfig, path: Path, progress: Progress) -> Checkpoint:
    from tokenmill.models.config_file import read_config

    model = read_config(path)
    ledger = plan_memory(model, config.source, config.cache, config.scheduler, available_memory_bytes())
    progress.stage("reading the tokenizer")
    codec = TextCodec.load(path)
    codec.check_against(model.vocab_size)
    return Checkpoint(path, config.source.served_name or _name_of(config.source.model, path), model, codec, ledger)


def _name_of(model: str, path: Path) -> str:
    """A folder is served under its last name, anything else under the name it was asked for."""
    return path.resolve().name if Path(model).is_dir() else model


def _weight_bytes(model: Decoder) -> int:
    """Bytes of what the checkpoint put into the model, by the shapes that its layers have."""
    from tokenmill.models.registry import TENSOR_NAMES

    destinations = model.destinations(TENSOR_NAMES[model.config.architecture])
    return sum(math.prod(destination.shape) for destination in destinations.values()) * model.dtype.itemsize


# ---- what this machine has -------------------------------------------------------------------------------


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def resident_bytes() -> int:
    """Memory of this process that lies in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def available_memory_bytes() -> int:
    """What this process may still take: of the machine, and of every control group (version 2) around it."""
    meminfo = Path("/proc/meminfo").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in meminfo if line.startswith("MemAvailable:"))
    return min([kilobytes * 1024, *_cgroup_rooms()])


def _cgroup_rooms(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> list[int]:
    """Limit − use of each enclosing group; the page cache that the kernel would give back is not use."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return []
    inside = next((line[3:].strip("/") for line in lines if line.startswith("0::")), None)
    if inside is None:
        return []
    group, rooms = root / inside, []
    while group.is_relative_to(root):
        limit = _number(group / "memory.max")
        used = _number(group / "memory.current")
        if limit is not None and used is not None:
            rooms.append(max(0, limit - used + _inactive_file_bytes(group)))
        group = group.parent
    return rooms


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _inactive_file_bytes(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
