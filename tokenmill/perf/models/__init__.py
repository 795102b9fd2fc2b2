"""Models by name: the architecture facts of published models, so that nothing need be at hand to reason about one.

``catalogue.json`` holds, for each name, the fields of its ``config.json`` that decide shapes, other names it goes by,
and where the facts come from; ``tools/calibration/make_models.py`` writes it. Names are compared loosely, the way
people and tables write them: without the organisation, case and punctuation, and without words that do not change the
shape (``Instruct``, ``Chat``, ``-hf``, MLPerf's ``-99``). "LLaMA v3.1 70B" and "meta-llama/Llama-3.1-70B-Instruct"
are one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from tokenmill.core.errors import ConfigError
from tokenmill.perf.shape import ModelShape, shape_from_config

_SAME_SHAPE = re.compile(r"(?<![a-z])(instruct|chat|hf|it|base)(?![a-z])")
_CLASS = re.compile(r"-99(\.9)?$")


@cache
def model_names() -> tuple[str, ...]:
    """Every name of the catalogue, aliases left out."""
    return tuple(_catalogue())


def find_model(name: str) -> ModelShape:
    """The shape of a model by any of its names; ``ConfigError`` if it is not known."""
    return _find(normalise(name), name)


def knows_model(name: str) -> bool:
    return normalise(name) in _names()


def normalise(name: str) -> str:
    """What names are compared by.

    >>> normalise("meta-llama/Llama-3.1-70B-Instruct"), normalise("LLaMA v3.1 70B"), normalise("gptj-99.9")
    ('llama3170b', 'llama3170b', 'gptj')
    """
    text = _CLASS.sub("", name.lower().rsplit("/", 1)[-1].strip())
    text = re.sub(r"\(.*?\)", "", text)
    text = re.sub(r"(?<=llama)[ -]?v(?=\d)", "", text)
    return re.sub(r"[^a-z0-9]", "", _SAME_SHAPE.sub("", text))


@cache
def _find(key: str, name: str) -> ModelShape:
    if key not in _names():
        raise ConfigError(f"model {name!r} is not in the catalogue: give its config.json, or one of its known names")
    own = _names()[key]
    return shape_from_config(_catalogue()[own]["config"], own)


@cache
def _names() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name, entry in _catalogue().items():
        for alias in (name, *entry["aliases"]):
            found.setdefault(normalise(alias), name)
    return found


@cache
def _catalogue() -> dict[str, Any]:
    text = resources.files(__package__).joinpath("catalogue.json").read_text(encoding="utf-8")
    entries: dict[str, Any] = json.loads(text)
    return entries
