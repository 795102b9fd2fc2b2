"""Mixture of experts: a router gives each token a few of many gated MLPs, and their outputs are added by weight.

    p        = softmax(router x)                       over all E experts, in float32
    ids      = the k likeliest, the likeliest first     the lowest id among equals
    weights  = p[ids], or p[ids] / Σ p[ids]             where the model was trained so
    y        = Σ_r weights[r] down[ids[r]](silu(gate[ids[r]] x) * up[ids[r]] x)     r ascending

(Shazeer et al., arXiv 1701.06538; Mixtral, arXiv 2401.04088). Each expert's tokens are gathered and go through
``linear``, whose tiles hold a fixed number of rows, so an expert's output for a token has the same bits whoever else
was sent there. The k outputs of a token are put side by side and then added in the order of rank, one addition at a
time: neither which experts others wake nor the order in which experts run can be seen in the sum.
"""

from __future__ import annotations

from torch import Tensor

from tokenmill.kernels.reference.elementwise import exp, silu_mul
from tokenmill.kernels.reference.linear import linear


def route(logits: Tensor, num_active: int, *, normalize: bool) -> tuple[Tensor, Tensor]:
    """Choose experts by the router's ``logits [T, E]``.

    Returns ``ids [T, num_active]`` int32 and ``weights [T, num_active]`` float32, the likeliest expert first;
    ``normalize``: the weights of a token add up to 1.
    """
    wide = logits.contiguous().float()
    shares = exp(wide - wide.amax(dim=-1, keepdim=True))
    ordered, ids = shares.sort(dim=-1, descending=True, stable=True)
    chosen = ordered[:, :num_active]
    total = _in_order(chosen) if normalize else shares.sum(dim=-1)
    return ids[:, :num_active].int(), chosen / total.unsqueeze(1)


def experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Send ``x [T, H]`` through the experts ``ids [T, k]`` and add what they give by ``weights [T, k]``.

    ``gate_up``: ``[E, 2 * I, H]``, the gate's rows first; ``down``: ``[E, H, I]``. Returns ``[T, H]`` in x's dtype.
    """
    num_tokens, num_active = ids.shape
    outputs = x.new_empty(num_tokens * num_active, x.shape[1])
    flat = ids.reshape(-1)
    for expert in sorted(set(flat.tolist())):
        pairs = (flat == expert).nonzero().squeeze(1)
        rows = x.index_select(0, pairs // num_active)
        outputs.index_copy_(0, pairs, linear(silu_mul(linear(rows, gate_up[expert])), down[expert]))
    weighted = outputs.view(num_tokens, num_active, x.shape[1]).float() * weights.unsqueeze(2)
    return _in_order(weighted).to(x.dtype)


def _in_order(parts: Tensor) -> Tensor:
    """Sum over the second dimension, one part after the other."""
    total = parts[:, 0].clone()
    for rank in range(1, parts.shape[1]):
        total += parts[:, rank]
    return total
