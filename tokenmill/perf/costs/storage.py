"""What stays in memory: weights per device, and keys and values per position."""

from __future__ import annotations

import math

from tokenmill.perf.costs.formats import Formats
from tokenmill.perf.costs.layout import Layout
from tokenmill.perf.shape import Experts, Layers, ModelShape
from tokenmill.perf.shape.layers import Feed

STATE_BYTES = 4
"""Recurrent states are kept in float32."""
CONTEXT_BYTES, CHANNEL_BYTES = 0.9e9, 0.4e9
"""Of each device, beside weights, cache and buffers: driver context and captured graphs; with several devices the
buffers of collectives too. vLLM 0.19 with an 8B model on one RTX 4090 left 1.24 GB of its share to these and to
buffers."""
SAMPLED_ROWS = 256
"""Rows of logits held at once."""


def layer_weight_bytes(shape: ModelShape, run: Layers, formats: Formats, layout: Layout) -> float:
    """Bytes of one layer on one device."""
    hidden, small = shape.hidden_size, formats.activations.num_bytes
    total = run.norms * hidden * small
    total += sum(part.small_parameters for part in (run.mixer, run.feed) if part is not None) * small
    for matrix in run.matrices(hidden):
        one = formats.activations if matrix.op == "router" else formats.weights
        total += matrix.size * one.num_bytes / matrix.ranks(layout.tp) + matrix.outputs * matrix.biased * small
    if run.experts:
        each = sum(matrix.size for matrix in run.experts.expert_matrices(hidden)) * formats.of_experts.num_bytes
        total += each * run.experts.num_experts / (layout.ep * layout.expert_tp)
    return total


def weight_bytes(shape: ModelShape, formats: Formats, layout: Layout | None = None) -> float:
    """Bytes of weights on the fullest device: the widest stage, with embedding or output matrix."""
    layout = layout or Layout()
    body = sum(run.count * layer_weight_bytes(shape, run, formats, layout) for run in shape.layers)
    stage = body if layout.pp == 1 else body * math.ceil(shape.num_layers / layout.pp) / shape.num_layers
    table = shape.vocab_size * shape.hidden_size / layout.tp
    embedding, head = table * formats.embedding.num_bytes, table * formats.lm_head.num_bytes
    if layout.pp > 1:
        return stage + max(embedding, head)
    return stage + (head if shape.tie_embeddings else embedding + head)


def kv_bytes_per_token(shape: ModelShape, formats: Formats, layout: Layout | None = None) -> float:
    """Bytes of one position's keys and values on one device, over its layers, as if no window bounded them.

    KV heads beyond which tensor parallelism cannot split are held in copies; latent vectors are held whole by every
    rank.
    """
    layout = layout or Layout()
    total = 0.0
    for run in shape.layers:
        if run.mixer and run.mixer.kv_elements:
            kv_heads = getattr(run.mixer, "num_kv_heads", 1)
            total += run.count * run.mixer.kv_elements / min(layout.tp, kv_heads)
    stage = total if layout.pp == 1 else total * math.ceil(shape.num_layers / layout.pp) / shape.num_layers
    return stage * formats.kv.num_bytes / layout.cp


def kv_bytes_of(shape: ModelShape, formats: Formats, context: float, layout: Layout | None = None) -> float:
    """Bytes that a sequence of ``context`` tokens holds on one device: windows bound what a layer keeps."""
    whole = shape.kv_elements_per_token
    if whole == 0:
        return state_bytes(shape, layout)
    share = shape.kv_elements(int(context)) / (whole * max(int(context), 1))
    return kv_bytes_per_token(shape, formats, layout) * context * share + state_bytes(shape, layout)


def state_bytes(shape: ModelShape, layout: Layout | None = None) -> float:
    """Bytes of recurrent state of one sequence on one device."""
    layout = layout or Layout()
    return shape.state_elements * STATE_BYTES / (layout.tp * layout.pp)


def reserved_bytes(shape: ModelShape, formats: Formats, layout: Layout, step_tokens: int) -> float:
    """Of one device, what is neither weights nor cache: context, graphs, channels, and the buffers of a step.

    Args:
        step_tokens: most tokens of a step.
    """
    widest = max((_width(run.feed) for run in shape.layers), default=0)
    per_token = (4 * shape.hidden_size + 2 * widest / layout.tp) * formats.activations.num_bytes
    channels = CHANNEL_BYTES if layout.num_devices > 1 else 0.0
    return CONTEXT_BYTES + channels + step_tokens * per_token + 4 * SAMPLED_ROWS * shape.vocab_size / layout.tp


def _width(feed: Feed | None) -> int:
    if isinstance(feed, Experts):
        return feed.top_k * feed.intermediate_size + feed.shared_size
    return feed.intermediate_size if feed else 0


def largest_batch_of(
    shape: ModelShape,
    formats: Formats,
    layout: Layout,
    context: float,
    device_bytes: float,
    reserved_bytes: float = 0.0,
) -> int:
    """Sequences of ``context`` tokens whose KV fits beside the weights, over all data-parallel groups; 0 if none.

    Args:
        device_bytes: of one device.
        reserved_bytes: of one device, for everything that is neither weights nor KV.
    """
    room = device_bytes - reserved_bytes - weight_bytes(shape, formats, layout)
    each = kv_bytes_of(shape, formats, context, layout)
    return max(0, math.floor(room / each)) * layout.dp if each else 0
