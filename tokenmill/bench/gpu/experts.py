"""A layer of experts: every token by its own few of them, weights read once for each expert that any token chose."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tokenmill.bench.gpu.case import Case, blank, random, unit
from tokenmill.bench.gpu.matrices import ARITHMETIC, STD, make_weight, weight_bytes
from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.shapes import QWEN_EXPERTS
from tokenmill.bench.gpu.unit import Context, Unit
from tokenmill.kernels.triton.experts import ExpertBuffers, experts
from tokenmill.kernels.triton.linear import Weight

TOKENS = {"bf16": (1, 8, 64, 256, 4096), "fp8": (1, 64, 4096), "int4": (1, 64)}
TOY_TOKENS = {"bf16": (3,), "fp8": (3,), "int4": (1,)}


def units(place: Place) -> list[Unit]:
    sizes = TOY_TOKENS if place.toy else TOKENS
    return [
        unit(f"experts {form}", f"{tokens} tokens", partial(_case, form, tokens))
        for form, counts in sizes.items()
        for tokens in counts
    ]


def _case(form: str, tokens: int, context: Context) -> Case:
    config = context.shape(QWEN_EXPERTS)
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    count, active = config["num_experts"], config["num_experts_per_tok"]
    gate_up, down = context.keep(("experts", form), partial(_weights, context, form, count, hidden, inner))
    x, out = random(context, tokens, hidden), blank(context, tokens, hidden)
    device = context.place.device
    chosen = [_ids(tokens, count, active, device) for _ in range(2 if tokens > 16 or context.place.toy else 16)]
    ids = chosen[0]
    shares = torch.softmax(torch.randn(tokens, active, device=device), 1)
    buffers = ExpertBuffers.allocate(tokens, active, count, hidden, inner, x.dtype, device, fp8=form == "fp8")
    touched = sum(len(set(each.flatten().tolist())) for each in chosen) / len(chosen)
    num_bytes = (weight_bytes(gate_up) + weight_bytes(down)) * touched / count + x.nbytes + out.nbytes
    return Case(
        [partial(experts, x, each, shares, gate_up, down, out, buffers=buffers) for each in chosen],
        num_bytes,
        6.0 * tokens * active * hidden * inner,
        ARITHMETIC[form],
        partial(_last_token, x, ids, shares, gate_up, down, out, count),
        tolerance=8e-2 if form == "fp8" else 2e-2,
    )


def _ids(tokens: int, count: int, active: int, device: torch.device) -> Tensor:
    """Every token's experts, all equally likely."""
    return torch.rand(tokens, count, device=device).topk(active, 1).indices.to(torch.int32)


def _weights(context: Context, form: str, count: int, hidden: int, inner: int) -> tuple[Weight, Weight]:
    """Of all experts; one set alone holds more than a cache."""
    gate_up = make_weight(form, random(context, count * 2 * inner, hidden, std=STD))
    down = make_weight(form, random(context, count * hidden, inner, std=STD))
    if isinstance(gate_up, Tensor) and isinstance(down, Tensor):
        return gate_up.view(count, 2 * inner, hidden), down.view(count, hidden, inner)
    return gate_up, down


def _last_token(
    x: Tensor, ids: Tensor, shares: Tensor, gate_up: Weight, down: Weight, out: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The last token's outcome, and the same expert by expert."""
    first, second = (_plain(weight, count) for weight in (gate_up, down))
    wanted = torch.zeros_like(out[-1], dtype=torch.float32)
    for expert, share in zip(ids[-1].tolist(), shares[-1].tolist(), strict=True):
        gate, up = (first[expert].float() @ x[-1].float()).chunk(2)
        wanted += share * (second[expert].float() @ (torch.nn.functional.silu(gate) * up))
    return out[-1].float(), wanted


def _plain(weight: Weight, count: int) -> Tensor:
    """``[E, N, K]``."""
    if isinstance(weight, Tensor):
        return weight
    whole = weight.dequantize(torch.bfloat16)
    return whole.view(count, -1, whole.shape[1])
