"""What a model takes of a GPU's memory: matrices in the forms that the kernels read, what lies between the kernels of a
step (``runtime/gpu``: every buffer is allocated once, for the largest step), and what libraries take beside.

Lines of the ledger as (group, name, bytes, formula); ``perf/memory.py`` adds the KV pool and sizes it. Weights and
buffers are exact, tensor by tensor; a test compares. The last lines are estimates, and say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from tokenmill.core.engine_config import SchedulerConfig
from tokenmill.core.model_config import ExpertsSpec, ModelConfig
from tokenmill.core.precision import Precision

Line = tuple[Literal["weights", "workspace", "process"], str, int, str]

SLAB = 256
"""Inputs that lie together in a matrix of integers; widths are padded to it."""
SCALE_BYTES, FP8_SCALE_BYTES = 2, 4
"""Of a group of inputs; of an output."""
FLOAT, WORD = 4, 8
PLAIN = {"float32": 4, "bfloat16": 2, "bf16": 2}
INTEGER_BITS = {"int8": 8, "int4": 4}


def matrix_bytes(out_size: int, in_size: int, form: str, group: int) -> int:
    """A matrix of ``out_size`` outputs, in ``group`` s of inputs where it is of integers."""
    if form in PLAIN:
        return out_size * in_size * PLAIN[form]
    if form == "fp8":
        return out_size * (in_size + FP8_SCALE_BYTES)
    padded = -(-in_size // SLAB) * SLAB
    return out_size * (padded * INTEGER_BITS[form] // 8 + padded // group * SCALE_BYTES)


def weight_lines(config: ModelConfig, precision: Precision) -> Iterator[Line]:
    """Matrices as ``precision`` says; token table, router, norms and biases plain."""
    form, hidden, plain = precision.weights, config.hidden_size, _plain_bytes(precision)

    def several(count: int, what: str, *matrices: tuple[int, int]) -> tuple[int, str]:
        num_bytes = sum(matrix_bytes(out, width, form, _group(precision, form, width)) for out, width in matrices)
        shapes = " + ".join(f"{out} × {width}" for out, width in matrices)
        return count * num_bytes, f"{what} × ({shapes}) {form}"

    layers = f"{config.num_layers} layers"
    qkv, out = (config.q_size + 2 * config.kv_size, hidden), (hidden, config.q_size)
    yield "weights", "attention", *several(config.num_layers, layers, qkv, out)
    if dense := config.num_dense_layers:
        inner = config.intermediate_size
        yield "weights", "mlp", *several(dense, f"{dense} layers", (2 * inner, hidden), (hidden, inner))
    if (experts := config.experts) is not None:
        count, inner = len(experts.layers) * experts.num_experts, experts.intermediate_size
        what = f"{len(experts.layers)} layers × {experts.num_experts} experts"
        yield "weights", "experts", *several(count, what, (2 * inner, hidden), (hidden, inner))
        yield "weights", "router", count * hidden * plain, f"{what} × {hidden} × {plain} B"
    table = config.vocab_size * hidden
    if not config.tie_embeddings:
        yield "weights", "embedding", table * plain, f"{table:,} × {plain} B"
    head = matrix_bytes(config.vocab_size, hidden, precision.lm_head, _group(precision, precision.lm_head, hidden))
    tied = ", the token table as well" if config.tie_embeddings else ""
    yield "weights", "lm_head", head, f"{config.vocab_size} × {hidden} {precision.lm_head}{tied}"
    small = _small_parameters(config)
    yield "weights", "norms and biases", small * plain, f"{small:,} × {plain} B"


def _group(precision: Precision, form: str, width: int) -> int:
    return precision.group_of(form, width) if form in INTEGER_BITS else 0


def _small_parameters(config: ModelConfig) -> int:
    hidden, inner = config.hidden_size, config.intermediate_size
    layer = 2 * hidden + 2 * config.head_dim * config.qk_norm
    layer += (config.q_size + 2 * config.kv_size) * config.qkv_bias + hidden * config.out_bias
    return config.num_layers * layer + config.num_dense_layers * (2 * inner + hidden) * config.mlp_bias + hidden


def _plain_bytes(precision: Precision) -> int:
    """Of what is not quantised: bf16, but float32 beside float32 weights."""
    return PLAIN["float32" if precision.weights == "float32" else "bf16"]


# ---- between the kernels ---------------------------------------------------------------------------------

PROMPT_LOGITS_ROWS = 64
MIN_STEP_TOKENS = 16
MAX_COPIES, MAX_CHANGES = 4096, 8192
CHUNK, PIVOTS, ROUNDS, CANDIDATES = 4096, 16, 2, 1024
"""Of ``kernels/triton/sample.py``."""
MULTIPROCESSORS = 132
"""Of an H100 or H200; on smaller chips attention's partial results take less."""
PARTS_PER_MULTIPROCESSOR = {64: 64, 128: 48, 256: 32}
"""Partial results by size of a head: 16 for each program of the decode kernel (``kernels/triton/attention.py``)."""
MIN_PARTS = 1024
ITEM = 8
"""Words of an item of attention's work lists."""
LINE_BYTES = 11 * WORD
"""A row's parameters of sampling."""
PRODUCT_BYTES = 4 * (396 * (256 * 64 + 1) + (1 << 14) + 1) + (64 << 20)
"""Sums of chunks, and a part of a matrix written out or rows in FP8 (``kernels/triton/tiles.py``)."""
EXPERT_BLOCKS, EXPERT_ROWS = 256, 128
"""Blocks that pairs of token and expert are counted in, and rows of a tile, at most."""
LIBRARY_BYTES = 2 * 33_600_000
"""cuBLAS's workspace on Hopper, for the streams of loading and of steps; smaller elsewhere (PyTorch's default)."""
DRIVER_BYTES = 500_000_000
"""Code of kernels, loaded when first used, and captured graphs: not the allocator's."""


def workspace_lines(
    config: ModelConfig, precision: Precision, scheduler: SchedulerConfig, context: int, block_size: int
) -> Iterator[Line]:
    """Every buffer of ``runtime/gpu``, for ``context`` tokens of a sequence at most."""
    most = _rounded(scheduler.max_seqs)
    tokens = -(-max(scheduler.max_step_tokens, MIN_STEP_TOKENS, most) // 16) * 16
    outputs = max(most, PROMPT_LOGITS_ROWS)
    rotary = 2 * context * config.head_dim * FLOAT
    yield "workspace", "rotary tables", rotary, f"2 × {context} positions × {config.head_dim} × {FLOAT} B"
    per_token, per_output = _token_bytes(config, precision), _output_bytes(config, precision)
    yield "workspace", "step buffers", tokens * per_token, f"{tokens} tokens × {per_token} B"
    yield "workspace", "logits", outputs * per_output, f"{outputs} rows × {per_output} B"
    counts = scheduler.max_seqs * config.vocab_size * FLOAT
    sampling = outputs * _sampling_bytes(config) + scheduler.max_seqs * FLOAT
    formula = (
        f"{outputs} rows × {_sampling_bytes(config)} B + {scheduler.max_seqs} × ({config.vocab_size} + 1) × {FLOAT} B"
    )
    yield "workspace", "sampling", sampling + counts, formula
    blocks = -(-context // block_size)
    yield _attention(config, scheduler, tokens)
    yield "workspace", "products", PRODUCT_BYTES, "sums of 396 programs, 64 MiB of weights or rows in other forms"
    if config.experts is not None:
        yield _experts(config, config.experts, precision, tokens)
    changes = min(MAX_CHANGES, scheduler.max_seqs * blocks)
    inputs = sum(-(-words // 4) * 4 for words in (2 * tokens, tokens, tokens, outputs, changes, changes)) * FLOAT
    tables = scheduler.max_seqs * blocks * FLOAT
    formula = f"{scheduler.max_seqs} × {blocks} blocks × {FLOAT} B + {inputs + 2 * MAX_COPIES * FLOAT} B"
    yield "workspace", "block tables and inputs", tables + inputs + 2 * MAX_COPIES * FLOAT + outputs * FLOAT, formula
    yield "workspace", "library of products (estimate)", LIBRARY_BYTES, "cuBLAS's workspace, two streams"
    yield "process", "kernels and graphs (estimate)", DRIVER_BYTES, "loaded code, captured graphs"


def _rounded(rows: int) -> int:
    """The largest bucket (``runtime/gpu/buckets.py``)."""
    return 1 << (rows - 1).bit_length() if rows <= 8 else -(-rows // 16) * 16


def _token_bytes(config: ModelConfig, precision: Precision) -> int:
    """The residual stream in float32; what is added to it, the norm's outcome, queries, keys and values, rotated
    queries, attention's outcome, and the MLP's inside."""
    inner = 3 * config.intermediate_size if config.num_dense_layers else 0
    values = 2 * config.hidden_size + (config.q_size + 2 * config.kv_size) + 2 * config.q_size + inner
    return config.hidden_size * FLOAT + values * _plain_bytes(precision)


def _output_bytes(config: ModelConfig, precision: Precision) -> int:
    """Hidden states before and after the last norm, and logits."""
    return (config.hidden_size + config.vocab_size) * FLOAT + 2 * config.hidden_size * _plain_bytes(precision)


def _sampling_bytes(config: ModelConfig) -> int:
    """Of a row: peaks and bests of chunks, totals at pivots, candidates, cut; its parameters."""
    chunks = -(-config.vocab_size // CHUNK)
    return WORD * (2 * chunks + ROUNDS * chunks * 2 * PIVOTS + CANDIDATES + 2) + LINE_BYTES


def _attention(config: ModelConfig, scheduler: SchedulerConfig, tokens: int) -> Line:
    """Partial results and work lists, once for each window."""
    windows = len(set(config.windows))
    size = min(size for size in PARTS_PER_MULTIPROCESSOR if size >= min(config.head_dim, 256))
    parts = max(MIN_PARTS, MULTIPROCESSORS * PARTS_PER_MULTIPROCESSOR[size] // config.num_kv_heads)
    lists = ITEM * (1 + tokens + scheduler.max_seqs + 2 * parts) * FLOAT
    num_bytes = windows * (parts * config.num_heads * (config.head_dim + 2) * FLOAT + lists)
    formula = f"{windows} × ({parts} parts × {config.num_heads} heads × {config.head_dim + 2} × {FLOAT} B + {lists} B)"
    return "workspace", "attention's parts and lists", num_bytes, formula


def _experts(config: ModelConfig, experts: ExpertsSpec, precision: Precision, tokens: int) -> Line:
    """From the router to the experts' sum: a row for each pair of a token and one of its experts."""
    plain, pairs = _plain_bytes(precision), tokens * experts.num_active
    inner, hidden, count = experts.intermediate_size, config.hidden_size, experts.num_experts
    per_token = count * plain + 2 * experts.num_active * FLOAT
    per_pair = (inner + hidden) * plain + 2 * FLOAT
    if precision.weights == "fp8":
        per_pair += max(inner, hidden) + FP8_SCALE_BYTES
    lists = (EXPERT_BLOCKS + 3 + EXPERT_ROWS) * count * FLOAT
    formula = f"{tokens} tokens × {per_token} B + {pairs} pairs × {per_pair} B + {lists} B"
    return "workspace", "experts' rows", tokens * per_token + pairs * per_pair + lists, formula
