"""From a checkpoint folder to a ``Decoder`` with its weights.

The order keeps a bad folder cheap: the configuration is read and bounded, the headers of the weight files
are checked against it, and only then is anything allocated; the data then stream from the mapped files
straight into the parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from tokenmill.core.errors import ConfigError, NotSupported
from tokenmill.models.config_file import read_config
from tokenmill.models.decoder import Decoder, TensorNames
from tokenmill.models.families.experts import stacked
from tokenmill.models.quantization.base import Scheme
from tokenmill.models.quantization.packed import PackedScheme
from tokenmill.models.registry import TENSOR_NAMES
from tokenmill.models.weights import packed_cache, random
from tokenmill.models.weights.checkpoint import Checkpoint
from tokenmill.models.weights.manifest import check_sums

__all__ = ["load_model", "read_config"]

PREFIX = "model."
"""Of everything but the output matrix."""
STACKED = ".experts.gate_up_proj"
"""Ends a name of experts that lie stacked."""


def load_model(
    path: Path,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    scheme: Scheme | None = None,
    max_context: int | None = None,
    keep_packed: bool = True,
    random_weights: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Decoder:
    """Load a checkpoint folder (``config.json`` and safetensors, in one file or with an index).

    ``scheme``: how the matrices are kept; None: plainly, in ``dtype`` on ``device``.
    ``max_context``: longest sequence that will be served, in tokens (sizes the rotary table); None: the model's.
    ``keep_packed``: keep packed weights beside the checkpoint, and use those that are there.
    ``random_weights``: draw them instead of reading any; the folder needs ``config.json`` alone.
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
    if random_weights:
        decoder = Decoder(config, dtype=dtype, device=device, scheme=scheme, max_context=max_context)
        random.fill(decoder.destinations(names), decoder.dtype, torch.device(decoder.device), progress)
        return decoder
    checkpoint = Checkpoint(path)
    names = _names_in(checkpoint, names)
    outline = Decoder(config, device="meta", max_context=1).destinations(names)
    ignored = (*names.ignored_suffixes, *([f"{names.lm_head}.weight"] if config.tie_embeddings else []))
    checkpoint.check_matches(outline, ignored)
    decoder = Decoder(config, dtype=dtype, device=device, scheme=scheme, max_context=max_context)
    _fill(decoder, path, checkpoint, names, progress, keep_packed=keep_packed)
    return decoder


def _names_in(checkpoint: Checkpoint, names: TensorNames) -> TensorNames:
    """``names``, or their other forms: experts stacked, or without the common prefix, which a model has not that was
    saved for embeddings, without its output matrix."""
    present = [name for file in checkpoint.files for name in file.entries]
    if any(name.endswith(STACKED) for name in present):
        names = stacked(names)
    if any(name.startswith(PREFIX) for name in present):
        return names
    parts = ("embedding", "layer", "final_norm")
    return replace(names, **{part: getattr(names, part).removeprefix(PREFIX) for part in parts})


def _fill(
    decoder: Decoder,
    path: Path,
    checkpoint: Checkpoint,
    names: TensorNames,
    progress: Callable[[int, int], None] | None,
    *,
    keep_packed: bool,
) -> None:
    """Read the weights: packed ones from where they were kept, if they are worth keeping."""
    scheme = decoder.scheme
    parameters = decoder.parameters()
    if not (keep_packed and isinstance(scheme, PackedScheme) and checkpoint.num_bytes >= packed_cache.MIN_BYTES):
        check_sums(path)
        checkpoint.read_into(decoder.destinations(names), decoder.dtype, progress)
        return
    kept = packed_cache.PackedCache.of(path, checkpoint, scheme.precision)
    if not kept.restore(parameters):
        check_sums(path)
        checkpoint.read_into(decoder.destinations(names), decoder.dtype, progress)
        kept.save(parameters)
