"""From a checkpoint folder to a ``Decoder`` with its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from tokenmill.core.model_config import ModelConfig
from tokenmill.models.decoder import Decoder


def read_config(path: Path) -> ModelConfig:
    """Read ``config.json`` of a checkpoint folder; the ends of ``generation_config.json`` are added to its own."""
    raise NotImplementedError


def load_model(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_context: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Decoder:
    """Load a checkpoint folder (safetensors).

    ``max_context``: longest sequence that will be served, in tokens (sizes the rotary table); None: the model's.
    ``progress``: called with (bytes read, bytes in total).
    """
    raise NotImplementedError
