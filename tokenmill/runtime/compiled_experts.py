"""A layer of experts as calls of CPU kernels, and the memory between them.

For T tokens, k experts each::

    x ─ rms_norm ─ linear router ─ route ─ experts gate-up, SwiGLU ─ experts down ─ combine (adds to x)

``route`` chooses, and lays a copy of each token's input beside those of the other tokens of the same expert: T * k rows
from there to ``combine``. The router reads bf16 always; where the experts read 8-bit integers, the norm is run twice.
"""

from __future__ import annotations

from collections.abc import Callable

from tokenmill.core.model_config import ExpertsSpec, ModelConfig
from tokenmill.core.precision import GROUPS
from tokenmill.kernels.cpu.program import Program
from tokenmill.kernels.cpu.records import (
    CombineArgs,
    Epilogue,
    ExpertsArgs,
    LinearArgs,
    QuantizeArgs,
    Quantized,
    RouteArgs,
    Routing,
    Rows,
)
from tokenmill.models.layers.experts import Experts
from tokenmill.models.quantization.packed_experts import PackedExperts, PackedStack


class ExpertBuffers:
    """The T * k rows on their way; ``take`` hands out memory."""

    def __init__(self, config: ModelConfig, experts: ExpertsSpec, max_tokens: int, take: Callable[[int], int]) -> None:
        self.per_token = experts.num_active
        rows, width = max_tokens * self.per_token, max(config.hidden_size, experts.intermediate_size)
        self.logits = take(max_tokens * experts.num_experts * 4)
        most = min(rows, experts.num_experts)
        self.routing = Routing(
            *(take(rows * 4) for _ in ("ids", "weights", "places")), take(4), take(most * 4), take(most * 4 + 4),
            self.per_token,
        )  # fmt: skip
        self.x = take(rows * config.hidden_size * 2)
        self.inner = take(rows * experts.intermediate_size * 2)
        groups = rows * -(-width // GROUPS[-1]) * 4
        self.quantized = Quantized(take(rows * width), take(groups), take(groups))
        self.out = take(rows * config.hidden_size * 4)


def write_experts(
    program: Program, layer: Experts, buffers: ExpertBuffers, x: int, quantized: Quantized, residual: int
) -> None:
    """From the norm's output, ``x`` in bf16 and ``quantized`` if the experts read that, to ``residual``.

    The router's logits lie in ``buffers`` already.
    """
    method, routing = packed_experts(layer), buffers.routing
    gate_up, down = method.gate_up, method.down
    program.add(
        "route",
        RouteArgs(
            buffers.logits,
            routing,
            x,
            quantized,
            buffers.x,
            buffers.quantized,
            layer.spec.num_experts,
            gate_up.in_size,
            gate_up.input_group,
            layer.spec.normalize_topk,
        ),
    )

    def product(stack: PackedStack, x: int, out: int, epilogue: Epilogue) -> None:
        args = LinearArgs(stack.record(), None, x, buffers.quantized, out, epilogue, Rows.TOKENS)
        program.add(method.kernel, ExpertsArgs(args, routing))

    product(gate_up, buffers.x, buffers.inner, Epilogue.SWIGLU)
    if down.input_group:
        group = down.input_group
        program.add("quantize", QuantizeArgs(buffers.inner, buffers.quantized, down.in_size, group, buffers.per_token))
    product(down, buffers.inner, buffers.out, Epilogue.STORE)
    program.add("combine", CombineArgs(buffers.out, routing, residual, down.out_size))


def packed_experts(layer: Experts) -> PackedExperts:
    assert isinstance(layer.method, PackedExperts)
    return layer.method
