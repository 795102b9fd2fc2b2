"""Reading a JSON object from a file that may come from anybody: bounded in size, no key twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenmill.core.errors import CheckpointError


def read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    """The object in ``path``; raises ``CheckpointError`` naming the file."""
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except OSError as error:
        raise CheckpointError(f"{path.parent.name}/{path.name}: cannot be read ({error.strerror})") from error
    if len(content) > max_bytes:
        raise CheckpointError(f"{path.name}: larger than the limit of {max_bytes} bytes")
    return parse_object(content, path.name)


def parse_object(content: bytes, source: str) -> dict[str, Any]:
    """Parse one JSON object; ``source`` names it in errors. Raises ``CheckpointError``."""

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CheckpointError(f"{source}: {twice[:80]!r} stands there twice")
        return found

    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=without_duplicates)
    except RecursionError as error:
        raise CheckpointError(f"{source}: JSON nested too deeply") from error
    except ValueError as error:
        raise CheckpointError(f"{source}: not valid JSON ({str(error)[:120]})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{source}: must hold a JSON object, not {type(value).__name__}")
    return value
