"""The mixture of experts at the shape of Qwen3-30B-A3B, for a few tokens and for many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from tests.triton.dry_linear import _weight
from tokenmill.kernels.triton.experts import ExpertBuffers, Weight, experts, route

EXPERTS, ACTIVE, HIDDEN, INNER = 128, 8, 2048, 768


def launches() -> Iterator[tuple[str, Callable[[], None]]]:
    for form in ("bf16", "int4", "int8", "fp8"):
        gate_up, down = _stack(form, 2 * INNER, HIDDEN), _stack(form, HIDDEN, INNER)
        for tokens in (16, 8192) if form == "bf16" else (16, 1024):
            ids, weights = torch.empty(tokens, ACTIVE, dtype=torch.int32), torch.empty(tokens, ACTIVE)
            x, out = (torch.empty(tokens, HIDDEN, dtype=torch.bfloat16) for _ in range(2))
            buffers = ExpertBuffers.allocate(
                tokens, ACTIVE, EXPERTS, HIDDEN, INNER, torch.bfloat16, "cpu", fp8=form == "fp8"
            )
            yield f"{form}, {tokens} tokens", partial(experts, x, ids, weights, gate_up, down, out, buffers=buffers)
    logits = torch.empty(64, EXPERTS, dtype=torch.bfloat16)
    ids, weights = torch.empty(64, ACTIVE, dtype=torch.int32), torch.empty(64, ACTIVE)
    yield "router", partial(route, logits, ids, weights, normalize=True)


def _stack(form: str, width: int, in_size: int) -> Weight:
    weight = _weight(form, EXPERTS * width, in_size)
    return weight.view(EXPERTS, width, in_size) if isinstance(weight, Tensor) else weight
