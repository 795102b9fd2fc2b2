"""Configuration in small frozen pieces, each owned by the part that reads it.

``EngineConfig.from_options`` turns flat option names (command line, ``LLM(...)``) into the pieces; an
unknown name is refused with the nearest known one.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from tokenmill.core.errors import ConfigError

PolicyName = Literal["fcfs", "sjf", "priority", "deadline", "fair"]
BatchingName = Literal["continuous", "dynamic", "static"]
PreemptionName = Literal["recompute", "refuse"]
KernelsName = Literal["auto", "fast", "reference"]
DeviceName = Literal["auto", "cpu", "cuda"]
WeightsName = Literal["auto", "bf16", "int8", "int4", "fp8"]
KvName = Literal["auto", "bf16", "int8", "fp8"]

GPU_DEFAULTS = {"max_seqs": 256, "max_step_tokens": 8192, "depth": 2}
"""What is left open is this on a GPU: a step there reads the weights for hundreds of sequences in the time it takes for
one, a prompt of thousands of tokens is what fills the chip, and it computes while the host plans."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Which weights to serve, and in which precision."""

    model: str = "story"
    """A folder, a hub name (``org/name``), or a built-in model: ``story``, ``story-draft``."""
    device: DeviceName = "auto"
    """What computes: ``cpu``, or a GPU (``cuda``, which is also what PyTorch calls an AMD one); auto: a GPU if there is
    one that can serve the model."""
    kernels: KernelsName = "auto"
    """``fast``: made for the device; ``reference``: plain PyTorch on the CPU; auto: fast where it can be had."""
    weights: WeightsName = "auto"
    """How the fast kernels hold weights; quantised on loading. auto: int8 on a CPU, bf16 on a GPU. fp8: only there."""
    lm_head: WeightsName = "auto"
    """The same for the output matrix; auto: bf16 on a GPU and beside bf16 weights, else int8."""
    group_size: int | None = None
    """Inputs that share a scale in quantised weights; None: 128, 64 or 32, the first that divides a matrix's width."""
    weight_only: bool = False
    """Multiply quantised weights with activations in bf16: closer to the checkpoint, and slower."""
    keep_packed: bool = True
    """Keep packed weights in a file beside the checkpoint, for the next start."""
    random_weights: bool = False
    """Draw the weights instead of reading them: the speed and memory of a model of which only the configuration (and
    some tokenizer) is here; what it says is noise."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of the reference kernels; given, it chooses them. auto: float32."""
    served_name: str | None = None
    """The id that clients use; None: the model's own name."""
    max_context: int | None = None
    """Longest prompt + answer in tokens; None: what the model was made for, as far as the KV pool holds it."""
    num_threads: int | None = None
    """Threads of one operation; None: one per core."""

    def __post_init__(self) -> None:
        group = self.group_size
        _check(group is None or group in range(32, 257, 32), "group_size", group, "a multiple of 32 up to 256")


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """The KV cache."""

    block_size: int = 16
    """Token positions per block."""
    num_blocks: int | None = None
    """Blocks in the pool; None: from ``kv_memory_bytes``."""
    kv_memory_bytes: int | None = None
    """Memory for KV blocks; None: from what the machine has free after weights (see the memory ledger)."""
    prefix_caching: bool = True
    """Keep computed blocks by content and reuse them for equal prefixes."""
    kv: KvName = "auto"
    """How the fast kernels hold keys and values; auto: bf16. In 8 bits: int8 on a CPU, fp8 on a GPU."""

    def __post_init__(self) -> None:
        _check(1 <= self.block_size <= 1024, "block_size", self.block_size, "between 1 and 1024")
        _check(self.num_blocks is None or self.num_blocks >= 1, "num_blocks", self.num_blocks, "at least 1")


@dataclass(frozen=True, slots=True)
class SchedulerConfig:
    """Who runs next, and how much at once."""

    max_seqs: int = 64
    """Most sequences in a step. On a GPU 256, if not given."""
    max_step_tokens: int = 512
    """Most tokens computed in a step: prompts longer than what is left are computed in chunks. On a GPU 8192, if not
    given."""
    policy: PolicyName = "fcfs"
    batching: BatchingName = "continuous"
    batch_wait_s: float = 0.05
    """Dynamic batching: start a batch that is not full after its oldest request waited this long."""
    preemption: PreemptionName = "recompute"
    itl_slo_s: float | None = None
    """If given, prompt chunks are cut so that a step is expected to stay under this many seconds."""
    tenant_weights: dict[str, float] = field(default_factory=dict)
    """Fair share: weight by tenant; 1 where not named."""

    def __post_init__(self) -> None:
        _check(self.max_seqs >= 1, "max_seqs", self.max_seqs, "at least 1")
        _check(self.max_step_tokens >= 1, "max_step_tokens", self.max_step_tokens, "at least 1")
        _check(self.itl_slo_s is None or self.itl_slo_s > 0, "itl_slo_s", self.itl_slo_s, "above 0")
        _check(all(w > 0 for w in self.tenant_weights.values()), "tenant_weights", self.tenant_weights, "all above 0")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything the engine is built from."""

    source: ModelSource = field(default_factory=ModelSource)
    cache: CacheConfig = field(default_factory=CacheConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    depth: int = 1
    """Steps in flight: 1 plans each step after the last one's result; 2 plans one ahead. On a GPU 2, if not given."""
    journal: str | None = None
    """Write every plan and result to this file (``tokenmill replay`` reads it)."""
    ceilings: str = "measure"
    """What a server's MFU and MBU are shares of. ``measure``: of what this machine is seen to do at the start;
    ``none``: they are not told; else a device's name, or the file that ``tokenmill probe`` wrote."""
    left_open: frozenset[str] = field(default=frozenset(), compare=False)
    """Of the options whose default depends on the device, those that nobody gave; ``from_options`` knows."""

    def __post_init__(self) -> None:
        _check(1 <= self.depth <= 8, "depth", self.depth, "between 1 and 8")

    @classmethod
    def from_options(cls, **options: Any) -> EngineConfig:
        """Build from flat option names: ``EngineConfig.from_options(model="…", max_seqs=32)``.

        Raises:
            ConfigError: an unknown name (the near one is suggested) or a value out of range.
        """
        homes = {f.name: piece for piece in _PIECES for f in fields(piece)}
        homes |= dict.fromkeys(("depth", "journal", "ceilings"), cls)
        pieces: dict[type, dict[str, Any]] = {}
        for name, value in options.items():
            if name not in homes:
                near = difflib.get_close_matches(name, homes, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"unknown engine option {name!r}{hint}")
            pieces.setdefault(homes[name], {})[name] = value
        return cls(
            source=ModelSource(**pieces.get(ModelSource, {})),
            cache=CacheConfig(**pieces.get(CacheConfig, {})),
            scheduler=SchedulerConfig(**pieces.get(SchedulerConfig, {})),
            left_open=frozenset(GPU_DEFAULTS.keys() - options.keys()),
            **pieces.get(cls, {}),
        )

    def for_device(self, device: str) -> EngineConfig:
        """With what was left open chosen for ``device``, ``cpu`` or ``cuda``."""
        if device == "cpu" or not self.left_open:
            return self
        chosen = {name: GPU_DEFAULTS[name] for name in self.left_open}
        scheduler = replace(
            self.scheduler,
            max_seqs=chosen.get("max_seqs", self.scheduler.max_seqs),
            max_step_tokens=chosen.get("max_step_tokens", self.scheduler.max_step_tokens),
        )
        return replace(self, scheduler=scheduler, depth=chosen.get("depth", self.depth))


_PIECES: tuple[type, ...] = (ModelSource, CacheConfig, SchedulerConfig)


def _check(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise ConfigError(f"{name} must be {wanted}, not {value}")
