"""Putting the parts together: configuration → checkpoint → ledger → text → weights → KV → executor → engine.

The only place that knows all of them. What can be refused is refused early, the cheap checks first: memory is
planned from ``config.json`` alone, the tokenizer is held against the embedding before any weight is read.
After loading, what weights and KV really take is compared with what the ledger foresaw, and kept.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenmill import __version__
from tokenmill.core.clock import MonotonicClock
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import ConfigError
from tokenmill.core.model_config import ModelConfig
from tokenmill.core.precision import Precision, device_obstacle
from tokenmill.engine.async_service import EngineService
from tokenmill.engine.contracts import Executor
from tokenmill.engine.engine import Engine
from tokenmill.engine.grammar.compiler import GrammarCompiler
from tokenmill.engine.journal import JournalWriter
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.resolve import ModelLimits
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.telemetry import Telemetry
from tokenmill.engine.text import TextCodec
from tokenmill.engine.watchdog import STUCK_AFTER_S
from tokenmill.launch.gpu import Gpu, find_gpu, software_obstacle
from tokenmill.launch.machine import available_cores as available_cores
from tokenmill.launch.machine import available_memory_bytes, resident_bytes
from tokenmill.launch.models import load_model as load_model
from tokenmill.perf.hardware import Figure, Hardware, find
from tokenmill.perf.memory import Ledger, plan_memory

if TYPE_CHECKING:
    from tokenmill.engine.remote.options import RemoteSettings
    from tokenmill.engine.remote.service import RemoteService
    from tokenmill.engine.remote.wire import Loading
    from tokenmill.kernels.cpu.library import Pool
    from tokenmill.runtime.step_model import StepModel


class Progress(Protocol):
    """Told how a long task goes on; the command line draws bars from it."""

    def stage(self, text: str) -> None:
        """A new stage begins: ``loading weights``."""
        ...

    def update(self, done: int, total: int) -> None:
        """How far the stage is, in bytes."""
        ...

    def note(self, text: str) -> None:
        """Something that the user should know, and that is no error."""
        ...


class Silent:
    """A ``Progress`` that tells nobody; what must be known is a warning."""

    def stage(self, text: str) -> None:
        pass

    def update(self, done: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        warnings.warn(text, stacklevel=2)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is known of a model before a weight is read."""

    path: Path
    name: str
    """The id that clients use."""
    config: ModelConfig
    codec: TextCodec
    ledger: Ledger
    grammars: GrammarCompiler = field(init=False)
    """For its vocabulary; shared by whoever checks requests and the worker that draws their tokens."""

    def __post_init__(self) -> None:
        compiler = GrammarCompiler(self.codec, self.config.vocab_size, self.eos_token_ids)
        object.__setattr__(self, "grammars", compiler)

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return self.codec.eos_token_ids | frozenset(self.config.eos_token_ids)


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
        parts = (
            __version__,
            self.checkpoint.name,
            repr(self.checkpoint.config),
            repr(self.checkpoint.ledger.precision),
        )
        return "fp_" + hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]

    def service(self, *, stuck_after_s: float = STUCK_AFTER_S) -> EngineService:
        """The asynchronous face, observed; whoever takes it closes it (and with it the engine)."""
        self.engine.telemetry = observe(self.config, self.checkpoint, self.engine)
        checkpoint = self.checkpoint
        return EngineService(
            self.engine,
            checkpoint.codec,
            self.limits,
            model_name=checkpoint.name,
            grammars=checkpoint.grammars,
            stuck_after_s=stuck_after_s,
        )


async def isolate(
    config: EngineConfig, settings: RemoteSettings, progress: Progress | None = None
) -> tuple[RemoteService, Checkpoint]:
    """The engine in a process of its own, ready; on the event loop that will use it. Raises what ``build`` raises.

    Only the tokenizer is loaded here. Memory is planned here too, and the engine's process held to that plan.
    """
    from tokenmill.engine.remote.service import RemoteService

    told = progress or Silent()
    checkpoint = inspect(config, told)
    ledger = checkpoint.ledger
    device = ledger.precision.device
    pinned = replace(
        config.for_device(device),
        source=replace(config.source, device=device, max_context=ledger.max_context, served_name=checkpoint.name),
        cache=replace(config.cache, num_blocks=ledger.num_blocks, kv_memory_bytes=None),
    )

    def tell(loading: Loading) -> None:
        if loading.stage:
            told.stage(loading.stage)
        elif loading.note:
            told.note(loading.note)
        else:
            told.update(loading.done, loading.total)

    # Not from the working folder, unless this process was: what lies there is none of the engine's business.
    safe = () if {"", os.getcwd()} & set(sys.path) else ("-P",)
    argv = (sys.executable, *safe, "-m", "tokenmill.cli.engine_process")
    service = await RemoteService.launch(
        argv, pinned, checkpoint.codec, MonotonicClock(), model_name=checkpoint.name, options=settings, tell=tell
    )
    return service, checkpoint


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
    return _read(config, path, progress, compile=False)


def model_config(model: str) -> ModelConfig:
    """The configuration of a checkpoint: a folder, a built-in model, or one of the hub. Raises ``SetupError``."""
    from tokenmill.models.config_file import read_config
    from tokenmill.models.hub import resolve

    return read_config(resolve(model))


def build(config: EngineConfig, progress: Progress | None = None) -> Launched:
    """Everything, ready to step. Raises what ``inspect`` raises."""
    from tokenmill.models.hub import resolve
    from tokenmill.models.pooling import read_pooling

    progress = progress or Silent()
    progress.stage("finding the model")
    path = resolve(config.source.model, progress=progress.update)
    checkpoint = _read(config, path, progress, compile=True)
    ledger = checkpoint.ledger
    config = config.for_device(ledger.precision.device)
    if ledger.precision.note:
        progress.note(ledger.precision.note)
    pooling = read_pooling(checkpoint.path)
    journal = _open_journal(config, ledger)
    executor, measured = load_executor(config, checkpoint, progress)
    cache = KVCache(ledger.num_blocks, ledger.block_size, prefix_caching=config.cache.prefix_caching)
    engine = Engine(Scheduler(cache, config.scheduler), executor, MonotonicClock(), depth=config.depth, journal=journal)
    limits = ModelLimits(
        max_context=ledger.max_context,
        vocab_size=checkpoint.config.vocab_size,
        eos_token_ids=checkpoint.eos_token_ids,
        hidden_size=checkpoint.config.hidden_size,
        pooling=pooling,
        generates=checkpoint.config.generates,
        is_invariant=ledger.precision.device == "cpu",
    )
    return Launched(config, checkpoint, engine, limits, measured)


def load_executor(config: EngineConfig, checkpoint: Checkpoint, progress: Progress) -> tuple[Executor, Measured]:
    """Read the weights, allocate the KV pool, start the executor."""
    before_bytes = resident_bytes()
    model, weights_bytes, kv_bytes = load_model(config, checkpoint, progress)
    progress.stage("warming up")
    from tokenmill.runtime.executor import LocalExecutor
    from tokenmill.runtime.worker import Worker

    executor = LocalExecutor(Worker(model, grammars=checkpoint.grammars))
    executor.start()
    return executor, Measured(weights_bytes, kv_bytes, resident_bytes() - before_bytes)


def observe(config: EngineConfig, checkpoint: Checkpoint, engine: Engine) -> Telemetry:
    """What watches a serving engine: predicts its steps, and holds them against the machine's ceilings.

    Raises:
        ConfigError: ``config.ceilings`` names no device and no file, or one without a figure that this model needs.
    """
    from tokenmill.perf.calibrate import Calibration
    from tokenmill.perf.diagnose import Limits, LiveCost, deployment_of, describe, make_judge
    from tokenmill.runtime.compiled import CompiledModel
    from tokenmill.runtime.kernel_clock import time_kernels

    model = engine.executor.worker.model  # type: ignore[attr-defined]  # a LocalExecutor
    ledger, scheduler = checkpoint.ledger, config.scheduler
    limits = Limits(
        max_seqs=scheduler.max_seqs,
        max_step_tokens=scheduler.max_step_tokens,
        num_blocks=ledger.num_blocks,
        block_size=ledger.block_size,
        batching=scheduler.batching,
    )
    kernels = time_kernels(model) if isinstance(model, CompiledModel) else None
    hardware = machine_of(config.ceilings, model)
    about = describe(checkpoint.config, checkpoint.name, ledger.precision, hardware, limits)
    if hardware is None:
        return Telemetry(kernels=kernels, about=about)
    deployment = deployment_of(checkpoint.config, checkpoint.name, ledger.precision, hardware)
    prior = Calibration()  # the ceilings were measured; how near the kernels come to them, the steps will show
    return Telemetry(LiveCost(deployment, prior), make_judge(deployment, prior, limits), kernels, about)


def machine_of(ceilings: str, model: StepModel) -> Hardware | None:
    """The device that ``ceilings`` means; None: not known, not wanted, or not measurable with the reference kernels."""
    from tokenmill.runtime.compiled import CompiledModel

    if ceilings not in ("measure", "none"):
        return find(ceilings)
    if ceilings == "none":
        return None
    if isinstance(model, CompiledModel):
        return measure_machine(model.pool)
    device = model.decoder.device  # type: ignore[attr-defined]  # every one that is made here has a decoder
    if device.type != "cuda":
        return None
    from tokenmill.launch.device_ceilings import measure_gpu

    return measure_gpu(device)


def measure_machine(pool: Pool) -> Hardware:
    """What this machine does with the threads of ``pool``, in about a quarter of a second."""
    from tokenmill.kernels.cpu.ceilings import QUICK_BYTES, measure
    from tokenmill.kernels.cpu.isa import processor_family

    found = measure(pool.library, pool, num_bytes=min(QUICK_BYTES, available_memory_bytes() // 4))
    return Hardware(
        name="this machine",
        kind="cpu",
        vendor="",
        family=processor_family(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        memory_bytes_per_s=found.bytes_per_s,
        peaks={"bf16": found.bf16_per_s, "int8": found.int8_per_s},
        observed={"kernel_floor_s": Figure(found.call_s, "an empty kernel in a program", "measured")},
        source=f"measured with {pool.num_threads} threads",
        confidence="measured",
    )


def _missing_kernels(config: EngineConfig, progress: Progress, *, compile: bool) -> str | None:
    """Why the fast kernels cannot be had here; None if they can. With ``compile`` they are built to make sure."""
    if config.source.kernels == "reference" or config.source.dtype != "auto":
        return None  # nobody wants them
    from tokenmill.kernels.cpu.build import NoCompiler, find_compiler
    from tokenmill.kernels.cpu.library import load

    try:
        if compile:
            load(on_build=lambda: progress.stage("building the kernels for this processor (once)"))
        else:
            find_compiler()
    except NoCompiler as error:
        return str(error)
    return None


def _open_journal(config: EngineConfig, ledger: Ledger) -> JournalWriter | None:
    if config.journal is None:
        return None
    try:
        return JournalWriter(Path(config.journal), journal_header(config, ledger))
    except OSError as error:
        raise ConfigError(f"cannot write the journal {config.journal}: {error.strerror}") from error


def _precision_options(precision: Precision) -> dict[str, Any]:
    """The options that resolve to ``precision`` on any machine that has it."""
    if precision.kernels == "reference":
        return {"device": "cpu", "kernels": "reference", "dtype": precision.weights}
    return {
        "device": precision.device,
        "kernels": "fast",
        "weights": precision.weights,
        "lm_head": precision.lm_head,
        "kv": precision.kv,
        "group_size": precision.group_size,
        "weight_only": precision.weight_only,
    }


def journal_header(config: EngineConfig, ledger: Ledger) -> dict[str, Any]:
    """What a replay must know to build the same executor."""
    return {
        "tokenmill": __version__,
        "model": config.source.model,
        **_precision_options(ledger.precision),
        "block_size": ledger.block_size,
        "num_blocks": ledger.num_blocks,
        "max_context": ledger.max_context,
        "max_seqs": config.scheduler.max_seqs,
        "max_step_tokens": config.scheduler.max_step_tokens,
    }


def _read(config: EngineConfig, path: Path, progress: Progress, *, compile: bool) -> Checkpoint:
    from tokenmill.models.config_file import read_config

    model = read_config(path)
    progress.stage("reading the tokenizer")
    codec = TextCodec.load(path)
    codec.check_against(model.vocab_size)
    if config.ceilings not in ("measure", "none"):
        find(config.ceilings)  # a name that means nothing is told before anything is loaded
    gpu = _gpu_for(config, model, progress)
    if gpu is not None:
        scheduler = config.for_device("cuda").scheduler
        ledger = plan_memory(model, config.source, config.cache, scheduler, gpu.free_bytes, device="cuda")
    else:
        missing = _missing_kernels(config, progress, compile=compile)
        available = available_memory_bytes()  # measured with the tokenizer in memory: it needs no estimate
        ledger = plan_memory(model, config.source, config.cache, config.scheduler, available, missing=missing)
    return Checkpoint(path, config.source.served_name or _name_of(config.source.model, path), model, codec, ledger)


def _gpu_for(config: EngineConfig, model: ModelConfig, progress: Progress) -> Gpu | None:
    """The GPU that shall compute; None: the CPU does, as was asked for, or because no GPU can."""
    source = config.source
    if source.device == "auto" and (source.kernels == "reference" or source.dtype != "auto"):
        return None
    gpu = find_gpu(source.device)
    if gpu is None or source.device == "cuda":
        return gpu
    obstacle = software_obstacle() or device_obstacle(model, source, config.cache)
    if obstacle is None:
        return gpu
    progress.note(f"the CPU computes, not the {gpu.name}: {obstacle}")
    return None


def _name_of(model: str, path: Path) -> str:
    """A folder is served under its last name, anything else under the name it was asked for."""
    return path.resolve().name if Path(model).is_dir() else model
