"""The shape of any decoder: what the cost model must know of it, and nothing else.

``core.model_config`` describes the models that the engine runs, down to how their positions rotate. A planner is asked
about far more of them, and needs far less: which matrices there are, how attention reads its past, how experts are
chosen. ``ModelShape`` is that, read from any ``config.json``.
"""

from tokenmill.perf.shape.config import shape_from_config
from tokenmill.perf.shape.layers import (
    Experts,
    FeedForward,
    GroupedAttention,
    LatentAttention,
    Matrix,
    RecurrentMixer,
)
from tokenmill.perf.shape.model import Layers, ModelShape, shape_of

__all__ = [
    "Experts",
    "FeedForward",
    "GroupedAttention",
    "LatentAttention",
    "Layers",
    "Matrix",
    "ModelShape",
    "RecurrentMixer",
    "shape_from_config",
    "shape_of",
]
