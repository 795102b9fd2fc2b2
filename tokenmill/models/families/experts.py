"""Mixtures of experts: Llama's names, but for those of the experts.

Qwen3-MoE is Qwen3 with experts in some or all layers; Mixtral is Mistral with experts in all. ``transformers`` 5, asked
not to save in the original form, calls both alike and stacks the experts of a layer.
"""

from __future__ import annotations

from dataclasses import replace

from tokenmill.models.decoder import TensorNames
from tokenmill.models.families import llama
from tokenmill.models.layers.experts import ExpertNames

QWEN3_MOE = llama.NAMES
MIXTRAL = replace(llama.NAMES, mlp="block_sparse_moe.", experts=ExpertNames(gate="w1", up="w3", down="w2"))


def stacked(names: TensorNames) -> TensorNames:
    """What a checkpoint with stacked experts calls them."""
    return replace(names, mlp=llama.NAMES.mlp, experts=ExpertNames(stacked=True))
