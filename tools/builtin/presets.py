"""The configurations of the two built-in models, as data.

The teller of tales is meant to be read; the draft only has to guess the teller's next words cheaply, so that
speculative decoding has something to verify.  Sizes follow from the compute at hand (two CPU cores for under two
hours, eight million tokens): a larger network would see too few tokens to use its capacity.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from model import ModelConfig


@dataclass(frozen=True)
class Preset:
    """A network with its training recipe.

    Learning rates are the peak ones.  ``decay`` is the last share of the training time, over which they fall
    linearly to zero; ``long_from`` is the share after which every ``long_every``-th step reads ``long_length``.
    """

    model: ModelConfig
    mix: dict[str, float] = field(default_factory=lambda: {"books": 0.35, "stories": 0.35, "chat": 0.30})
    tokens_per_step: int = 2048
    length: int = 512
    long_length: int = 2048
    long_every: int = 10
    long_from: float = 0.5
    muon_lr: float = 5e-3
    adamw_lr: float = 3e-3
    weight_decay: float = 0.05
    warm_up: float = 0.02
    decay: float = 0.35


PRESETS = {
    "story": Preset(ModelConfig(hidden=256, layers=4, heads=4, kv_heads=2, head_dim=64, ffn=704)),
    "draft": Preset(ModelConfig(hidden=128, layers=3, heads=2, kv_heads=1, head_dim=64, ffn=384)),
}
