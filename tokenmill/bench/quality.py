"""What each precision of the fast kernels costs against the float32 reference (``compress/evaluate.py`` has how)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenmill import launch
from tokenmill.core.engine_config import EngineConfig

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "bf16": {"weights": "bf16"},
    "bf16, KV int8": {"weights": "bf16", "kv": "int8"},
    "int8": {"weights": "int8"},
    "int8, groups of 32": {"weights": "int8", "group_size": 32},
    "int8, KV int8": {"weights": "int8", "kv": "int8"},
    "int8, output bf16": {"weights": "int8", "lm_head": "bf16"},
    "int8, weight-only": {"weights": "int8", "weight_only": True},
    "int4": {"weights": "int4"},
    "int4, weight-only": {"weights": "int4", "weight_only": True},
    "int4, groups of 32": {"weights": "int4", "group_size": 32},
}


def run(
    model: str,
    text: str,
    *,
    window: int = 256,
    num_windows: int = 40,
    settings: Mapping[str, Mapping[str, Any]] = SETTINGS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Compare ``settings`` (options of the engine) with the reference on the first windows of ``text``.

    Raises:
        ConfigError: an option contradicts the model or the machine.
        ValueError: the text is shorter than one window.
    """
    from tokenmill.compress.evaluate import compare

    reference, checkpoint = _load(model, window, {"kernels": "reference"})
    ids = checkpoint.codec.encode(text, add_special_tokens=False)
    windows = [ids[i : i + window] for i in range(0, len(ids) - window + 1, window)][:num_windows]
    if not windows:
        raise ValueError(f"the text has {len(ids)} tokens, a window {window}")
    models = {name: _load(model, window, options)[0] for name, options in settings.items()}
    figures = compare(reference, models, windows, progress)
    return {"model": model, "window": window, "positions": len(windows) * (window - 1), "settings": figures}


def _load(model: str, window: int, options: Mapping[str, Any]) -> tuple[Any, launch.Checkpoint]:
    """A model with room for one window."""
    blocks = -(-window // 16)
    config = EngineConfig.from_options(
        model=model, max_context=window, num_blocks=blocks, max_step_tokens=window, max_seqs=1, **options
    )
    checkpoint = launch.inspect(config)
    return launch.load_model(config, checkpoint, launch.Silent())[0], checkpoint
