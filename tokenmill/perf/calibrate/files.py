"""Calibration files: JSON that a person can read, and that other commands take with ``--calibration``.

::

    {"kind": "tokenmill calibration", "note": "…",
     "effects": {"linear.memory": {"engine:vllm": 0.05}}, "spread": {"": 0.2}}
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill.core.errors import ConfigError
from tokenmill.perf.terms import NAMES

if TYPE_CHECKING:
    from tokenmill.perf.calibrate.effects import Effects

KIND = "tokenmill calibration"
LARGEST = 7.0
"""A factor of a thousand is a mistake, not a calibration."""


def load_effects(path: Path) -> Effects:
    """Raises ``ConfigError``, naming the field, if the file is not what ``save_effects`` writes."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error
    return read_effects(text, str(path))


def save_effects(effects: Effects, path: Path) -> None:
    """Whole or not at all."""
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps(as_json(effects), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    temporary.replace(path)


def as_json(effects: Effects) -> dict[str, Any]:
    terms = {
        term: {key: round(value, 4) for key, value in table.items() if round(value, 4)}
        for term, table in effects.effects.items()
    }
    spread = {key: round(value, 4) for key, value in effects.spread.items()}
    return {"kind": KIND, "note": effects.note, "effects": terms, "spread": spread}


def read_effects(text: str, where: str) -> Effects:
    from tokenmill.perf.calibrate.effects import Effects

    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: line {error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise ConfigError(f"{where}: not a calibration: 'kind' must be {KIND!r}")
    effects = data.get("effects")
    if not isinstance(effects, dict):
        raise ConfigError(f"{where}: effects must be a table")
    for term, table in effects.items():
        if term not in NAMES:
            raise ConfigError(f"{where}: effects.{term}: unknown term; there are {', '.join(NAMES)}")
        _check_numbers(table, f"{where}: effects.{term}", -LARGEST, LARGEST)
    spread = data.get("spread", {})
    _check_numbers(spread, f"{where}: spread", 0.0, LARGEST)
    return Effects(effects, spread, str(data.get("note", "")))


def _check_numbers(table: object, where: str, low: float, high: float) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} must be a table")
    for key, value in table.items():
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not good or not low <= value <= high:
            raise ConfigError(f"{where}[{key!r}] must be a number between {low} and {high}, not {value!r}")
