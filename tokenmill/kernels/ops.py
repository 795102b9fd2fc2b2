"""The table of operations: one public function per operation, each computed by a named implementation.

``implementation`` is ``auto`` (the first of ``PREFERENCE`` that has the operation) or a name; a name that
does not have the operation raises ``NotSupported``. To add one, write the functions and enter them here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tokenmill.core.errors import NotSupported
from tokenmill.kernels.kv import KVTensors
from tokenmill.kernels.reference import attention as _attention
from tokenmill.kernels.reference import elementwise as _elementwise
from tokenmill.kernels.reference import experts as _experts
from tokenmill.kernels.reference import kv as _kv
from tokenmill.kernels.reference import linear as _linear
from tokenmill.kernels.reference import rms_norm as _rms_norm
from tokenmill.kernels.reference import rope as _rope
from tokenmill.kernels.reference.attention import AttentionPlan

_TABLE: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "reference": {
        "linear": _linear.linear,
        "rms_norm": _rms_norm.rms_norm,
        "rope": _rope.rope,
        "silu_mul": _elementwise.silu_mul,
        "embedding": F.embedding,
        "route": _experts.route,
        "experts": _experts.experts,
        "plan_attention": _attention.plan_attention,
        "attention": _attention.attention,
        "write_kv": _kv.write_kv,
        "copy_blocks": _kv.copy_blocks,
    },
}

PREFERENCE = ("reference",)


def implementations(op: str) -> tuple[str, ...]:
    """Names of the implementations that have ``op``, best first."""
    return tuple(name for name in PREFERENCE if op in _TABLE[name])


def _pick(op: str, implementation: str) -> Callable[..., Any]:
    if implementation == "auto":
        return _TABLE[implementations(op)[0]][op]
    if op not in _TABLE.get(implementation, {}):
        raise NotSupported(f"no {implementation!r} implementation of {op}; there is: {', '.join(implementations(op))}")
    return _TABLE[implementation][op]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, implementation: str = "auto") -> Tensor:
    """``x [T, K]`` times ``weight [N, K]`` transposed, plus ``bias [N]``: ``[T, N]``."""
    out: Tensor = _pick("linear", implementation)(x, weight, bias)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, implementation: str = "auto") -> Tensor:
    """``x / sqrt(mean(x²) + eps) * weight`` over the last dimension."""
    out: Tensor = _pick("rms_norm", implementation)(x, weight, eps)
    return out


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, implementation: str = "auto") -> Tensor:
    """Rotate ``x [T, heads, d]`` by each token's angles, given as ``cos`` and ``sin [T, d/2]``."""
    out: Tensor = _pick("rope", implementation)(x, cos, sin)
    return out


def silu_mul(gate_up: Tensor, *, implementation: str = "auto") -> Tensor:
    """``silu(gate) * up`` for ``[T, 2 * n]`` whose halves are gate and up: ``[T, n]``."""
    out: Tensor = _pick("silu_mul", implementation)(gate_up)
    return out


def embedding(token_ids: Tensor, table: Tensor, *, implementation: str = "auto") -> Tensor:
    """Rows of ``table [vocab_size, d]``: ``[T]`` to ``[T, d]``."""
    out: Tensor = _pick("embedding", implementation)(token_ids, table)
    return out


def route(logits: Tensor, num_active: int, *, normalize: bool, implementation: str = "auto") -> tuple[Tensor, Tensor]:
    """The ``num_active`` likeliest experts by ``logits [T, E]``: ids int32 and weights float32, ``[T, num_active]``."""
    ids, weights = _pick("route", implementation)(logits, num_active, normalize=normalize)
    return ids, weights


def experts(
    x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, *, implementation: str = "auto"
) -> Tensor:
    """The gated MLPs ``ids [T, k]`` of ``gate_up [E, 2 * n, d]``, ``down [E, d, n]``, added by ``weights [T, k]``."""
    out: Tensor = _pick("experts", implementation)(x, ids, weights, gate_up, down)
    return out


def plan_attention(
    starts: Sequence[int],
    counts: Sequence[int],
    block_tables: Tensor,
    *,
    block_size: int,
    window: int | None,
    num_heads: int,
    num_kv_heads: int,
    implementation: str = "auto",
) -> AttentionPlan:
    """Plan one step's attention, for every layer with this sliding window; see ``reference/attention.py``."""
    plan: AttentionPlan = _pick("plan_attention", implementation)(
        starts,
        counts,
        block_tables,
        block_size=block_size,
        window=window,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
    )
    return plan


def attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, plan: AttentionPlan, scale: float, *, implementation: str = "auto"
) -> Tensor:
    """Attention of ``q [T, num_heads, head_dim]`` over the paged caches: ``[T, num_heads, head_dim]``."""
    out: Tensor = _pick("attention", implementation)(q, k_cache, v_cache, plan, scale)
    return out


def write_kv(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor, *, implementation: str = "auto"
) -> None:
    """Put ``k`` and ``v [T, num_kv_heads, head_dim]`` into the caches' ``slots [T]``."""
    _pick("write_kv", implementation)(k, v, k_cache, v_cache, slots)


def copy_blocks(kv: KVTensors, pairs: Sequence[tuple[int, int]], *, implementation: str = "auto") -> None:
    """Copy blocks ``(source, destination)`` in every layer; all are read before any is written."""
    _pick("copy_blocks", implementation)(kv, pairs)
