"""Tokenmill: an LLM inference engine that knows how fast it should be, runs close to that, and can say why not.

The public names are loaded on first use, so that ``import tokenmill`` is fast and pulls in no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenmill.core.engine_config import EngineConfig
    from tokenmill.core.params import SamplingParams
    from tokenmill.llm import LLM

__version__ = "0.1.0"

__all__ = ["LLM", "EngineConfig", "SamplingParams", "__version__"]

_HOMES = {
    "LLM": "tokenmill.llm",
    "EngineConfig": "tokenmill.core.engine_config",
    "SamplingParams": "tokenmill.core.params",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenmill' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
