"""Files and functions that a reader can hold in the head. Larger ones are named here with the reason, or split."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MAX_FILE_LINES = 600
MAX_FUNCTION_LINES = 60

LONG_FILES: dict[str, str] = {}
LONG_FUNCTIONS: dict[str, str] = {}
"""``tokenmill/part/file.py:function`` → why it is better in one piece."""


def sources() -> list[Path]:
    return sorted((ROOT / "tokenmill").rglob("*.py"))


def long_files() -> dict[str, int]:
    lines = {path.relative_to(ROOT).as_posix(): path.read_text().count("\n") for path in sources()}
    return {name: count for name, count in lines.items() if count > MAX_FILE_LINES}


def long_functions() -> dict[str, int]:
    found = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                count = node.end_lineno - node.lineno + 1
                if count > MAX_FUNCTION_LINES:
                    found[f"{path.relative_to(ROOT).as_posix()}:{node.name}"] = count
    return found


def test_files_stay_short() -> None:
    found = long_files()
    assert set(found) == set(LONG_FILES), f"over {MAX_FILE_LINES} lines: {found}"


def test_functions_stay_short() -> None:
    found = long_functions()
    assert set(found) == set(LONG_FUNCTIONS), f"over {MAX_FUNCTION_LINES} lines: {found}"
