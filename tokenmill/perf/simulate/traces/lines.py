"""Reading files of lines: what is wrong is told with file, line and field."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Line:
    """One record of a file, its fields by name."""

    path: Path
    number: int
    fields: Mapping[str, Any]

    def error(self, field: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.path.name}, line {self.number}, {field}: {problem}")

    def value(self, field: str) -> Any:
        found = self.fields.get(field)
        if found is None:
            raise self.error(field, "is missing")
        return found

    def count(self, field: str) -> int:
        """A whole number of at least 0."""
        number = self.number_of(field)
        if number != int(number) or number < 0:
            raise self.error(field, f"must be a whole number of at least 0, not {self.fields[field]!r}")
        return int(number)

    def number_of(self, field: str) -> float:
        """A finite number, as such or as text."""
        value = self.value(field)
        try:
            number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise self.error(field, f"must be a number, not {value!r}")
        return number


def text_of(path: Path) -> str:
    """The file's text; ``ConfigError`` where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(f"{path}: {reason}") from error


def csv_lines(path: Path, *needed: str) -> Iterator[Line]:
    """The records of a CSV with a heading that names at least ``needed``."""
    lines = text_of(path).splitlines()
    names = next(csv.reader(lines), [])
    missing = [name for name in needed if name not in names]
    if missing:
        raise ConfigError(f"{path.name}, line 1: the heading lacks {', '.join(missing)}")
    rows = csv.reader(lines)
    next(rows)
    for row in rows:
        if row:
            if len(row) != len(names):
                raise ConfigError(f"{path.name}, line {rows.line_num}: {len(row)} fields, the heading has {len(names)}")
            yield Line(path, rows.line_num, dict(zip(names, row, strict=True)))


def json_lines(path: Path) -> Iterator[Line]:
    """The objects of a file that holds one a line."""
    for number, text in enumerate(text_of(path).splitlines(), 1):
        if not text.strip():
            continue
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{path.name}, line {number}: is not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise ConfigError(f"{path.name}, line {number}: must be a JSON object, not {text[:40]!r}")
        yield Line(path, number, fields)
