"""How the families of models write calls of functions and reasoning: one format a file, chosen by the chat template."""

from __future__ import annotations

import re
from functools import lru_cache

from tokenmill.server.dialects.base import Dialect, Function
from tokenmill.server.dialects.deepseek import DEEPSEEK_V3, DEEPSEEK_V31
from tokenmill.server.dialects.function_tag import FUNCTION_TAG
from tokenmill.server.dialects.generic import GENERIC
from tokenmill.server.dialects.harmony import HARMONY
from tokenmill.server.dialects.kimi import Kimi
from tokenmill.server.dialects.llama_json import LlamaJson
from tokenmill.server.dialects.marked_json import COMMAND, COMMAND_R, GRANITE, HERMES, NEMOTRON, PHI4
from tokenmill.server.dialects.mistral import MISTRAL, MISTRAL_ARGS
from tokenmill.server.dialects.pythonic import LFM2, LLAMA_PYTHONIC
from tokenmill.server.dialects.reasoning import REASONINGS, Reasoning
from tokenmill.server.dialects.tagged import GLM45, MINIMAX, QWEN3_CODER, SEED

__all__ = [
    "DIALECTS",
    "REASONING_DIALECT_NAMES",
    "TOOL_DIALECT_NAMES",
    "Dialect",
    "Function",
    "Reasoning",
    "dialect_of",
    "reasoning_of",
]

AUTO = "auto"
NONE = "none"

_IN_ORDER: tuple[Dialect, ...] = (
    HARMONY,
    Kimi(),
    DEEPSEEK_V3,
    DEEPSEEK_V31,
    GLM45,
    QWEN3_CODER,
    SEED,
    MINIMAX,
    PHI4,
    GRANITE,
    MISTRAL_ARGS,
    MISTRAL,
    LFM2,
    COMMAND,
    NEMOTRON,
    COMMAND_R,
    FUNCTION_TAG,
    LLAMA_PYTHONIC,
    HERMES,
    LlamaJson(),
)
"""The first whose signs stand in the template is taken: those that share signs with others come before them."""

DIALECTS: dict[str, Dialect] = {dialect.name: dialect for dialect in (*_IN_ORDER, GENERIC)}
REASONING_BY_NAME: dict[str, Reasoning] = {reasoning.name: reasoning for reasoning in REASONINGS}

TOOL_DIALECT_NAMES = (AUTO, *DIALECTS)
REASONING_DIALECT_NAMES = (AUTO, NONE, *REASONING_BY_NAME)

_USES_TOOLS = re.compile(r"\btools\b")


@lru_cache(maxsize=16)
def dialect_of(template: str, name: str = AUTO) -> Dialect | None:
    """How the model behind a chat template writes calls.

    Args:
        template: its source.
        name: of a dialect, or "auto".

    Returns:
        ``GENERIC`` where the template has no place for tools; None where it has one and its format is not known.
    """
    if name != AUTO:
        return DIALECTS[name]
    if not _USES_TOOLS.search(template):
        return GENERIC
    return next((dialect for dialect in _IN_ORDER if _holds(template, dialect)), None)


@lru_cache(maxsize=16)
def reasoning_of(template: str, name: str = AUTO) -> Reasoning | None:
    """How the model behind a chat template marks reasoning; None if it does not."""
    if name == NONE:
        return None
    if name != AUTO:
        return REASONING_BY_NAME[name]
    return next((kind for kind in REASONINGS if any(sign in template for sign in kind.signs)), None)


def _holds(template: str, dialect: Dialect) -> bool:
    return any(all(text in template for text in sign) for sign in dialect.signs)
