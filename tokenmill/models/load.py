"""From a checkpoint folder to a ``Decoder`` with its weights.

The order keeps a bad folder cheap: the configuration is read and bounded, the headers of the weight files
are checked against it, and only then is anything allocated; the data then stream from the mapped files
straight into the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch

from tokenmill.core.errors import CheckpointError, ConfigError, NotSupported
from tokenmill.core.model_config import ModelConfig, token_ids
from tokenmill.models.decoder import Decoder
from tokenmill.models.layers.destination import Destinations
from tokenmill.models.registry import TENSOR_NAMES
from tokenmill.models.weights.checkpoint import Checkpoint
from tokenmill.models.weights.json_file import read_json

MAX_CONFIG_BYTES = 2**20


def read_config(path: Path) -> ModelConfig:
    """Read ``config.json`` of a checkpoint folder, and the ends that ``generation_config.json`` adds.

    Raises ``CheckpointError`` or ``NotSupported`` (see ``ModelConfig.from_hf``).
    """
    config = ModelConfig.from_hf(read_json(path / "config.json", MAX_CONFIG_BYTES))
    if not (path / "generation_config.json").exists():
        return config
    generation = token_ids(read_json(path / "generation_config.json", MAX_CONFIG_BYTES), "eos_token_id")
    return replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *generation))))


def load_model(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    max_context: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Decoder:
    """Load a checkpoint folder (``config.json`` and safetensors, in one file or with an index).

    ``max_context``: longest sequence that will be served, in tokens (sizes the rotary table); None: the model's.
    ``progress``: called with (bytes read, bytes in total) after each tensor.

    Raises ``CheckpointError`` naming the file and the tensor or field; ``NotSupported`` for another architecture
    or quantised weights.
    """
    config = read_config(path)
    if config.quantization is not None:
        raise NotSupported(f"{path.name}: weights quantised with {config.quantization!r} are not supported")
    if max_context is not None and not 1 <= max_context <= config.max_context:
        raise ConfigError(f"max_context must be between 1 and the model's {config.max_context}, not {max_context}")
    names = TENSOR_NAMES[config.architecture]
    with Checkpoint(path) as checkpoint:
        outline = Decoder(config, device="meta", max_context=1).destinations(names)
        _check_matches(checkpoint, outline, names.ignored_suffixes, tied=names.lm_head if config.tie_embeddings else None)
        decoder = Decoder(config, dtype=dtype, device=device, max_context=max_context)
        checkpoint.read_into(decoder.destinations(names), progress)
    return decoder
