"""The memory ledger: every byte the engine will hold, foreseen from the configuration before anything is loaded.

Weights and KV blocks are exact: the loader and the cache must arrive at these numbers (``launch`` compares).
The workspace is the largest step's: an upper bound from the shapes of the reference kernels, tensor by tensor.
What the interpreter and the allocator take beside is estimated, and marked so; what is resident already (the imports,
the tokenizer) is not in the ledger, but in what is available.

Whatever the user left open is resolved here: the number of KV blocks (what weights and workspace leave, no more
than ``max_seqs`` full contexts can use, no more than ``DEFAULT_KV_BYTES`` unless one full context needs it), and
the context (the model's, as far as the pool holds it). If it does not fit, the refusal names the one option to
change: each candidate is tried on the ledger, not guessed.

On a GPU the memory is the GPU's own (``perf/device_memory.py`` has its lines): nobody else needs any of it, so the pool
takes all that is left, as far as sequences can use it.

Decimal units: 1 GB is 1e9 bytes. What any model on any device holds and computes is counted in ``perf/costs``; here is
what this engine's own loaders, caches and kernels take.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from tokenmill.core.engine_config import CacheConfig, ModelSource, SchedulerConfig
from tokenmill.core.errors import ConfigError, DoesNotFit
from tokenmill.core.model_config import ModelConfig
from tokenmill.core.precision import BITS, Precision, resolve_precision
from tokenmill.perf.device_memory import weight_lines, workspace_lines
from tokenmill.perf.shape import shape_of

Group = Literal["weights", "kv", "workspace", "process"]

FLOAT_BYTES, INDEX_BYTES = 4, 8
PANEL, HALF_BYTES = 64, 2
"""Packed matrices hold whole panels of outputs, and quantised ones a half-precision scale per output and group."""

KEY_TILE, QUERY_ROWS, MAX_PAIRS = 64, 12, 512
"""How the reference attention cuts its work (``kernels/reference/attention.py``; a test compares)."""
PROMPT_LOGITS_ROWS = 64
"""Prompt positions whose logits the worker holds at once."""
SAMPLED_AT_ONCE = 2**20
"""Logits that the sampler works on at once, in whole rows (``runtime/sampling/logprobs.py``; a test compares)."""
SAMPLING_BYTES = 44
"""Per logit being worked on: scaled, its probability, sums in float64, order, sorted copies, its log-probability."""

DEFAULT_KV_BYTES = 4_000_000_000
"""The KV pool takes no more than this unless it is told to, or one full context needs it."""
MIN_CONTEXT = 512
"""A context that was left open is not cut below this (or the model's own, if shorter), unless the pool was given."""
PROCESS_BYTES = 60_000_000
"""What interpreter and libraries still take after their import: threads, arenas, code paths first used. Measured: 30 to
45 MB from loading to a mixed batch, the server's modules included."""
SPARE_SHARE = 0.05
"""Of the available memory, left to the rest of the machine: page cache, other programs' growth."""
DEVICE_SPARE_SHARE, DEVICE_SPARE_BYTES = 0.01, 256_000_000
"""Of a GPU's memory, at least: what the allocator loses by handing out whole pages of 2 MiB."""
CONTEXT_BYTES = 500_000_000
"""What the driver takes for a process before it has done anything."""


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the ledger."""

    group: Group
    name: str
    num_bytes: int
    formula: str
    """Where the number comes from, in words that a calculator follows."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What the engine will take, what there is, and what was resolved on the way."""

    items: tuple[Item, ...]
    available_bytes: int
    precision: Precision
    block_size: int
    num_blocks: int
    max_context: int

    @property
    def total_bytes(self) -> int:
        return sum(item.num_bytes for item in self.items)

    @property
    def spare_bytes(self) -> int:
        """What stays free; below 0 it does not fit."""
        return self.available_bytes - self.total_bytes

    def group_bytes(self, group: Group) -> int:
        return sum(item.num_bytes for item in self.items if item.group == group)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "precision": {
                "device": self.precision.device,
                "kernels": self.precision.kernels,
                "weights": self.precision.weights,
                "lm_head": self.precision.lm_head,
                "kv": self.precision.kv,
                "group_size": self.precision.group_size,
                "weight_only": self.precision.weight_only,
            },
            "block_size": self.block_size,
            "num_blocks": self.num_blocks,
            "max_context": self.max_context,
            "available_bytes": self.available_bytes,
            "total_bytes": self.total_bytes,
            "items": [
                {"group": item.group, "name": item.name, "bytes": item.num_bytes, "formula": item.formula}
                for item in self.items
            ],
        }


def plan_memory(
    config: ModelConfig,
    source: ModelSource,
    cache: CacheConfig,
    scheduler: SchedulerConfig,
    available_bytes: int,
    *,
    missing: str | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
) -> Ledger:
    """Foresee every byte and resolve what was left open.

    Args:
        missing: why this machine cannot have the fast kernels (``core/precision.py``); None if it can.
        available_bytes: what this process may still take, measured before loading; of the GPU's memory on a GPU.
        device: what computes.

    Raises:
        ConfigError: an option contradicts the model (a context beyond its positions).
        DoesNotFit: the numbers, and the one option whose change makes it fit.
    """
    if source.max_context is not None and source.max_context > config.max_context:
        raise ConfigError(
            f"max_context {source.max_context} is beyond the {config.max_context} positions "
            f"that the model was made for: --max-context {config.max_context}"
        )
    demand = _Demand(config, source, cache, scheduler, available_bytes, missing, device)
    ledger = demand.ledger()
    shortage = demand.shortage(ledger)
    if shortage is None:
        return ledger
    raise DoesNotFit(f"{shortage}; {_remedy(demand)}")


# ---- formulas --------------------------------------------------------------------------------------------


def kv_position_bytes(config: ModelConfig, form: str) -> int:
    """Bytes of one position's keys and values in all layers; in 8 bits each head has a scale for either."""
    scales = 2 * config.num_layers * config.num_kv_heads * FLOAT_BYTES if form in ("int8", "fp8") else 0
    return shape_of(config).kv_elements_per_token * BITS[form] // 8 + scales


def packed_bytes(out_size: int, in_size: int, form: str, group: int, *, num_pieces: int = 1) -> int:
    """Bytes of a packed matrix: whole panels of outputs, and a scale per output and group if it is quantised.

    ``num_pieces`` 2: gate and up, whose outputs share panels half and half, each padded to whole halves.
    """
    share = PANEL // num_pieces
    outputs = -(-out_size // num_pieces // share) * PANEL
    return outputs * in_size * BITS[form] // 8 + (outputs * (in_size // group) * HALF_BYTES if group else 0)


def hidden_bytes(config: ModelConfig, num_tokens: int, element_bytes: int) -> int:
    """The hidden states of ``num_tokens`` tokens: what a pipeline stage hands to the next."""
    return num_tokens * config.hidden_size * element_bytes


def format_bytes(num_bytes: float) -> str:
    """``1342177280`` → ``1.34 GB`` (decimal units)."""
    size = abs(num_bytes)
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{num_bytes / scale:.{2 if size < 100 * scale else 0}f} {unit}"
    return f"{num_bytes:.0f} B"


# ---- a demand and its ledger -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Demand:
    """What was asked for, on which machine. Immutable, so that a remedy is a demand with one thing changed."""

    config: ModelConfig
    source: ModelSource
    cache: CacheConfig
    scheduler: SchedulerConfig
    available_bytes: int
    missing: str | None
    device: Literal["cpu", "cuda"] = "cpu"

    @property
    def precision(self) -> Precision:
        return resolve_precision(self.config, self.source, self.cache, self.missing, self.device)

    @property
    def position_bytes(self) -> int:
        """Keys and values of one position in all layers."""
        return kv_position_bytes(self.config, self.precision.kv)

    @property
    def block_bytes(self) -> int:
        return self.cache.block_size * self.position_bytes

    @property
    def blocks_are_given(self) -> bool:
        return self.cache.num_blocks is not None or self.cache.kv_memory_bytes is not None

    @property
    def needed_context(self) -> int:
        """The context that must fit."""
        least = 1 if self.blocks_are_given else MIN_CONTEXT
        return self.source.max_context or min(self.config.max_context, least)

    def blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.cache.block_size)

    def ledger(self) -> Ledger:
        """With the context that was asked for, or the longest one that the pool holds."""
        if self.source.max_context is not None:
            return self.ledger_for(self.source.max_context)
        return self.ledger_for(max(self.longest_context(), self.needed_context))

    def longest_context(self) -> int:
        """The longest context that the pool holds, up to the model's; 0 if none."""
        return bisect_left(range(1, self.config.max_context + 1), True, key=self._is_too_long)

    def ledger_for(self, context: int) -> Ledger:
        precision = self.precision
        workspace: tuple[Item, ...]
        if self.device == "cuda":
            weights = tuple(Item(*line) for line in weight_lines(self.config, precision))
            lines = workspace_lines(self.config, precision, self.scheduler, context, self.cache.block_size)
            workspace = tuple(Item(*line) for line in lines)
        elif precision.kernels == "fast":
            weights = tuple(_packed_weights(self.config, precision))
            workspace = tuple(_buffers(self.config, precision, self.scheduler, context))
        else:
            weights = tuple(_weights(self.config, precision.weights))
            workspace = tuple(_workspace(self.config, precision.weights, self.scheduler, context))
        rest = (*workspace, *self._process())
        taken = sum(item.num_bytes for item in (*weights, *rest))
        num_blocks, why = self._num_blocks(context, self.available_bytes - taken)
        kv = Item("kv", "KV blocks", num_blocks * self.block_bytes, why)
        return Ledger(
            items=(*weights, kv, *rest),
            available_bytes=self.available_bytes,
            precision=precision,
            block_size=self.cache.block_size,
            num_blocks=num_blocks,
            max_context=context,
        )

    def shortage(self, ledger: Ledger) -> str | None:
        """Why ``ledger`` will not do; None if it will."""
        needed = self.blocks_for(ledger.max_context)
        if ledger.num_blocks < needed and self.blocks_are_given:
            return (
                f"a context of {ledger.max_context} tokens needs {needed} KV blocks of {self.cache.block_size} "
                f"tokens, the pool is set to {ledger.num_blocks}"
            )
        missing = max(0, needed - ledger.num_blocks) * self.block_bytes
        total = ledger.total_bytes + missing
        if total <= self.available_bytes:
            return None
        parts = ", ".join(
            f"{name} {format_bytes(num_bytes)}"
            for name, num_bytes in (
                ("weights", ledger.group_bytes("weights")),
                ("KV cache", ledger.group_bytes("kv") + missing),
                ("workspace", ledger.group_bytes("workspace")),
                ("process", ledger.group_bytes("process")),
            )
        )
        return f"needs {format_bytes(total)} of memory ({parts}), {format_bytes(self.available_bytes)} is available"

    def least_bytes(self) -> int:
        """Memory that would be enough for the context that must fit."""
        spareless = replace(self, available_bytes=0).ledger_for(self.needed_context)
        kv = max(self.blocks_for(self.needed_context), spareless.num_blocks) * self.block_bytes
        share = SPARE_SHARE if self.device == "cpu" else DEVICE_SPARE_SHARE
        return math.ceil((spareless.total_bytes - spareless.group_bytes("kv") + kv) / (1 - share))

    def _is_too_long(self, context: int) -> bool:
        return self.ledger_for(context).num_blocks < self.blocks_for(context)

    def _num_blocks(self, context: int, left_bytes: int) -> tuple[int, str]:
        """(blocks in the pool, formula); ``left_bytes``: what everything else leaves."""
        size = f"{self.cache.block_size} tokens × {self.position_bytes} B"
        if self.cache.num_blocks is not None:
            return self.cache.num_blocks, f"{self.cache.num_blocks} blocks (given) × {size}"
        if self.cache.kv_memory_bytes is not None:
            count = self.cache.kv_memory_bytes // self.block_bytes
            return count, f"{count} blocks (from kv_memory_bytes) × {size}"
        one = self.blocks_for(context)
        limits = {
            f"{self.scheduler.max_seqs} full contexts": self.scheduler.max_seqs * one,
            "what is left": max(left_bytes, 0) // self.block_bytes,
        }
        if self.device == "cpu":
            limits["the default limit"] = max(DEFAULT_KV_BYTES // self.block_bytes, one)
        why, count = min(limits.items(), key=lambda limit: limit[1])
        return count, f"{count} blocks ({why}) × {size}"

    def _process(self) -> Iterator[Item]:
        """Estimates: what is neither weights nor tensors of a step."""
        if self.device == "cuda":
            yield Item("process", "context (estimate)", CONTEXT_BYTES, "the driver's own, before anything is done")
            spare = max(int(self.available_bytes * DEVICE_SPARE_SHARE), DEVICE_SPARE_BYTES)
            share = f"{DEVICE_SPARE_SHARE:.0%} of what is available"
            yield Item("process", "pages not filled (estimate)", spare, share)
            return
        yield Item("process", "interpreter and libraries (estimate)", PROCESS_BYTES, "threads, arenas, code")
        spare = int(self.available_bytes * SPARE_SHARE)
        yield Item("process", "left to the machine", spare, f"{SPARE_SHARE:.0%} of what is available")


def _weights(config: ModelConfig, dtype: str) -> Iterator[Item]:
    size = BITS[dtype] // 8
    for name, count in config.parameter_counts().items():
        if name == "lm_head" and config.tie_embeddings:
            yield Item("weights", name, 0, "tied: the embedding serves as the output matrix")
        else:
            yield Item("weights", name, count * size, f"{count:,} × {size} B")


def _packed_weights(config: ModelConfig, precision: Precision) -> Iterator[Item]:
    """The fast kernels' weights: packed matrices; norms and biases in floats."""
    hidden = config.hidden_size

    def gated(inner: int) -> tuple[_Packed, ...]:
        return (2 * inner, hidden, 2), (hidden, inner, 1)

    attention: tuple[_Packed, ...] = (config.q_size + 2 * config.kv_size, hidden, 1), (hidden, config.q_size, 1)
    yield _packed_item(precision, "attention", config.num_layers, 1, attention)
    if config.num_dense_layers:
        yield _packed_item(precision, "mlp", config.num_dense_layers, 1, gated(config.intermediate_size))
    if (experts := config.experts) is not None:
        layers, count = len(experts.layers), experts.num_experts
        yield _packed_item(precision, "experts", layers, count, gated(experts.intermediate_size))
        router = layers * packed_bytes(count, hidden, "bf16", 0)
        yield Item("weights", "router", router, f"{layers} layers × {count} × {hidden} bf16")
    counts = config.parameter_counts()
    form = precision.lm_head
    if not config.tie_embeddings:
        yield Item("weights", "embedding", counts["embedding"] * 2, f"{counts['embedding']:,} × 2 B")
    head = packed_bytes(config.vocab_size, hidden, form, precision.group_of(form, hidden))
    tied = ", the token table as well" if config.tie_embeddings else ""
    yield Item("weights", "lm_head", head, f"{config.vocab_size} × {hidden} {form}{tied}")
    small = _small_parameters(config)
    yield Item("weights", "norms and biases", small * FLOAT_BYTES, f"{small:,} × {FLOAT_BYTES} B")


_Packed = tuple[int, int, int]
"""Outputs and inputs of a matrix, and in how many pieces its outputs are padded."""


def _packed_item(precision: Precision, name: str, layers: int, experts: int, matrices: tuple[_Packed, ...]) -> Item:
    form = precision.weights
    num_bytes = sum(
        packed_bytes(out, width, form, precision.group_of(form, width), num_pieces=pieces)
        for out, width, pieces in matrices
    )
    shapes = " + ".join(f"{out} × {width}" for out, width, _ in matrices)
    each = f"{layers} layers × {experts} experts" if experts > 1 else f"{layers} layers"
    return Item("weights", name, layers * experts * num_bytes, f"{each} × ({shapes}) {form}")


def _small_parameters(config: ModelConfig) -> int:
    """Norm weights, and biases padded to the panels of their matrix."""
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 2 * hidden + (2 * config.head_dim if config.qk_norm else 0)
    layer += _padded(config.q_size + 2 * config.kv_size) if config.qkv_bias else 0
    layer += _padded(hidden) if config.out_bias else 0
    mlp = 2 * _padded(inner, PANEL // 2) + _padded(hidden) if config.mlp_bias else 0
    return config.num_layers * layer + config.num_dense_layers * mlp + hidden


def _padded(size: int, multiple: int = PANEL) -> int:
    return -(-size // multiple) * multiple


def _buffers(config: ModelConfig, precision: Precision, scheduler: SchedulerConfig, context: int) -> Iterator[Item]:
    """What lies between the fast kernels (``runtime/compiled.py``, ``StepBuffers``), and what sampling takes."""
    tokens = scheduler.max_step_tokens
    rows = max(min(scheduler.max_seqs, tokens), PROMPT_LOGITS_ROWS)
    yield Item(
        "workspace",
        "rotary table",
        context * config.head_dim * FLOAT_BYTES,
        f"{context} positions × {config.head_dim} × {FLOAT_BYTES} B",
    )
    per_token = step_buffer_bytes(config)
    yield Item("workspace", "step buffers", tokens * per_token, f"{tokens} tokens × {per_token} B")
    yield _logits(config, rows, "logits and sampling")


def step_buffer_bytes(config: ModelConfig) -> int:
    """Per token of the largest step: the residual stream and qkv in floats, what flows between products in bf16, and
    their quantised form (bytes, and a scale and a sum per 32). With experts, the router's logits too, and for each of a
    token's experts a row: what goes in and through in either form, what comes out in floats, and where to."""
    hidden, q_size = config.hidden_size, config.q_size
    inner = config.intermediate_size if config.num_dense_layers else 0
    floats = hidden + q_size + 2 * config.kv_size
    halves = hidden + 2 * q_size + inner
    per_token = FLOAT_BYTES * floats + HALF_BYTES * halves + _quantized_bytes(max(hidden, q_size, inner))
    if (experts := config.experts) is None:
        return per_token
    size = experts.intermediate_size
    per_row = (3 + hidden) * FLOAT_BYTES + HALF_BYTES * (hidden + size) + _quantized_bytes(max(hidden, size))
    return per_token + FLOAT_BYTES * experts.num_experts + experts.num_active * per_row


def _quantized_bytes(width: int) -> int:
    """A row in 8 bits, with a scale and a sum per group."""
    return width + 2 * FLOAT_BYTES * (-(-width // 32))


def _workspace(config: ModelConfig, dtype: str, scheduler: SchedulerConfig, context: int) -> Iterator[Item]:
    """What the largest step needs beside weights and cache: all its tokens stand at the end of a full context.

    Measured by the growth of resident memory in such a step (64 sequences, 512 tokens, width 768): 80 to 105 % of
    this; what the allocator keeps beside counts as the process's.
    """
    size, tokens = BITS[dtype] // 8, scheduler.max_step_tokens
    rows = min(scheduler.max_seqs, tokens)
    yield Item(
        "workspace",
        "rotary table",
        context * config.head_dim * FLOAT_BYTES,
        f"{context} positions × {config.head_dim} × {FLOAT_BYTES} B",
    )
    yield Item(
        "workspace",
        "hidden states",
        3 * hidden_bytes(config, tokens, size),
        f"3 × {tokens} tokens × {config.hidden_size} × {size} B",
    )
    yield _attention_plan(config, rows, tokens, context)
    moments = (
        _attention(config, size, tokens, context),
        _mlp(config, size, tokens),
        _logits(config, max(rows, min(PROMPT_LOGITS_ROWS, tokens))),
    )
    yield max(moments, key=lambda item: item.num_bytes)


def _attention(config: ModelConfig, size: int, tokens: int, context: int) -> Item:
    """One layer's queries, keys and values, rotated and scaled in floats; and the tiles of one group of pairs:
    gathered keys and values, queries, scores, their exponentials, outputs."""
    per_token = (2 * config.q_size + 2 * config.kv_size) * size + 4 * config.q_size * FLOAT_BYTES
    tile_tokens = max(1, QUERY_ROWS // config.num_groups)
    rows = tile_tokens * config.num_groups
    positions = max(_seen(window, context, tile_tokens) for window in config.windows)
    pairs = max(MAX_PAIRS, config.num_kv_heads * positions // KEY_TILE)
    per_pair = (2 * rows * config.head_dim + 3 * KEY_TILE * config.head_dim + 4 * rows * KEY_TILE) * FLOAT_BYTES
    return Item(
        "workspace",
        "widest moment: attention",
        tokens * per_token + pairs * per_pair,
        f"{tokens} tokens × {per_token} B + {pairs} pairs × {per_pair} B",
    )


def _mlp(config: ModelConfig, size: int, tokens: int) -> Item:
    """Gate and up, and the activation's steps in floats. With experts: what all of a token's give, weighted in floats
    too, beside the one expert that is at work, which may be every token's."""
    inner = config.intermediate_size if config.num_dense_layers else 0
    per_token, name = 2 * inner * size + 7 * inner * FLOAT_BYTES, "MLP"
    if (experts := config.experts) is not None:
        inner, hidden = experts.intermediate_size, config.hidden_size
        outputs = experts.num_active * hidden * (size + 2 * FLOAT_BYTES)
        routed = outputs + 2 * hidden * size + 2 * inner * size + 7 * inner * FLOAT_BYTES
        per_token, name = max(per_token, routed), "experts" if routed > per_token else "MLP"
    return Item("workspace", f"widest moment: {name}", tokens * per_token, f"{tokens} tokens × {per_token} B")


def _logits(config: ModelConfig, rows: int, name: str = "widest moment: logits and sampling") -> Item:
    at_once = min(rows, max(1, SAMPLED_AT_ONCE // config.vocab_size))
    num_bytes = (rows * FLOAT_BYTES + at_once * SAMPLING_BYTES) * config.vocab_size
    formula = f"({rows} rows × {FLOAT_BYTES} B + {at_once} rows × {SAMPLING_BYTES} B) × {config.vocab_size}"
    return Item("workspace", name, num_bytes, formula)


def _attention_plan(config: ModelConfig, rows: int, tokens: int, context: int) -> Item:
    """Index and mask of every pair of query tile and key tile, once per distinct sliding window."""
    tile_tokens = max(1, QUERY_ROWS // config.num_groups)
    tiles = rows + -(-(tokens - rows) // tile_tokens)
    positions = sum(_seen(window, context, tile_tokens) for window in set(config.windows))
    per_position = config.num_kv_heads * INDEX_BYTES + tile_tokens
    return Item(
        "workspace",
        "attention plan",
        tiles * positions * per_position,
        f"{tiles} query tiles × {positions} positions × {per_position} B",
    )


def _seen(window: int | None, context: int, tile_tokens: int) -> int:
    """Most positions that a query tile reads, in whole key tiles."""
    reach = context if window is None else min(context, window + tile_tokens + KEY_TILE)
    return -(-reach // KEY_TILE) * KEY_TILE


# ---- the one change that fits ----------------------------------------------------------------------------


def _remedy(demand: _Demand) -> str:
    for words, changed in _candidates(demand):
        if changed.shortage(changed.ledger()) is None:
            return f"it fits with {words}"
    return f"no single option makes it fit: a smaller model, or {format_bytes(demand.least_bytes())} of free memory"


def _candidates(demand: _Demand) -> Iterator[tuple[str, _Demand]]:
    """Demands with one option changed, the mildest change first."""
    source, cache, scheduler = demand.source, demand.cache, demand.scheduler
    if demand.blocks_are_given:
        automatic = replace(demand, cache=replace(cache, num_blocks=None, kv_memory_bytes=None)).ledger().num_blocks
        needed = demand.blocks_for(demand.needed_context)
        num_blocks = needed if demand.ledger().num_blocks < needed else automatic
        if num_blocks >= 1:
            changed = replace(demand, cache=replace(cache, num_blocks=num_blocks, kv_memory_bytes=None))
            yield f"--num-blocks {num_blocks}", changed
    context = replace(demand, source=replace(source, max_context=None)).longest_context()
    if 1 <= context < demand.needed_context:
        yield f"--max-context {context}", replace(demand, source=replace(source, max_context=context))
    for tokens in (2048, 256, 128, 64, 32):
        if tokens < scheduler.max_step_tokens:
            yield f"--max-step-tokens {tokens}", replace(demand, scheduler=replace(scheduler, max_step_tokens=tokens))
    if demand.precision.weights == "float32":
        yield "--dtype bfloat16", replace(demand, source=replace(source, dtype="bfloat16"))
    if demand.precision.kernels == "fast":
        if demand.precision.kv == "bf16":
            kv: Literal["int8", "fp8"] = "int8" if demand.device == "cpu" else "fp8"
            yield f"--kv {kv}", replace(demand, cache=replace(cache, kv=kv))
        for weights in ("int8", "int4"):
            if BITS[weights] < BITS[demand.precision.weights]:
                yield f"--weights {weights}", replace(demand, source=replace(source, weights=weights))
