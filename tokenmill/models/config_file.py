"""The configuration of a checkpoint folder. Needs no torch, so that a model can be inspected in a moment."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from tokenmill.core.model_config import ModelConfig, token_ids
from tokenmill.models.weights.json_file import read_json

log = logging.getLogger(__name__)

MAX_CONFIG_BYTES = 2**20


def read_config(path: Path) -> ModelConfig:
    """Read ``config.json`` of a checkpoint folder, and the ends that ``generation_config.json`` adds.

    Raises ``CheckpointError`` or ``NotSupported`` (see ``ModelConfig.from_hf``).
    """
    fields = read_json(path / "config.json", MAX_CONFIG_BYTES)
    config = ModelConfig.from_hf(fields)
    if "auto_map" in fields:
        log.warning(
            "%s: config.json names Python code of the checkpoint's own (auto_map): it is never run; the model is read "
            "as %s",
            path.name,
            config.architecture,
        )
    if not (path / "generation_config.json").exists():
        return config
    generation = token_ids(read_json(path / "generation_config.json", MAX_CONFIG_BYTES), "eos_token_id")
    return replace(config, eos_token_ids=tuple(dict.fromkeys((*config.eos_token_ids, *generation))))
