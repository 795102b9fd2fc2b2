"""The arrows between packages, and what each may know.

Read from the source text, so that an import inside a function counts like one at the top of a file. What a
fresh interpreter really loads is in ``test_fresh_interpreter.py``.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tokenmill"

# A part → the parts it may import, "part.module" where only that module is allowed (besides itself).
ARROWS: dict[str, set[str]] = {
    "builtin": set(),
    "core": set(),
    "engine": {"core"},
    "perf": {"core", "engine"},
    "kernels": {"core"},
    "models": {"core", "kernels", "builtin"},
    "runtime": {"core", "engine.contracts", "engine.faults", "kernels", "models"},
    "compress": {"core", "models", "runtime"},
    "server": {"core", "engine"},
    "cluster": {"core", "engine", "runtime", "server"},
    "launch": {"core", "engine", "perf", "kernels", "models", "runtime", "compress", "server", "builtin"},
    "llm": {"core", "engine", "perf", "kernels", "models", "runtime", "compress", "server", "builtin", "launch"},
    "bench": {"core", "engine", "perf", "kernels", "compress", "launch", "llm", "testing"},
    "testing": {"core", "engine"},
}
FREE = {"cli", "__init__", "__main__"}

# A part → what it may import from outside the standard library.
OUTSIDE: dict[str, set[str]] = {
    "__init__": set(),
    "builtin": set(),
    "core": set(),
    "testing": set(),
    "engine": {"tokenizers", "jinja2", "msgspec", "llguidance"},
    "perf": set(),
    "kernels": {"torch", "numpy", "triton"},
    "models": {"torch", "numpy", "safetensors", "huggingface_hub"},
    "runtime": {"torch", "numpy"},
    "compress": {"torch"},
    "server": {
        "python_multipart",
        "starlette",
        "uvicorn",
        "h11",
        "pydantic",
        "typing_extensions",
        "prometheus_client",
        "opentelemetry",
    },
    "launch": {"torch", "tokenizers", "safetensors", "huggingface_hub", "uvicorn", "rich"},
    "llm": {"rich"},
    "bench": {"torch", "numpy", "httpx", "rich", "matplotlib"},
    "cli": {"typer", "click", "rich", "uvicorn"},
}

# Pure parts are handed the time and the seed. A file → the one reason that it reads the wall clock all the same.
PURE = ("core", "engine", "perf")
CLOCK_READERS = {
    "core/clock.py": "the clock itself",
    "engine/front.py": "the moment of creation that clients see is a date",
    "engine/text/template.py": "chat templates may print today's date, as they do in Hugging Face",
}
CLOCK_CALLS = {
    "time.time", "time.time_ns", "time.monotonic", "time.monotonic_ns", "time.perf_counter", "time.perf_counter_ns",
    "time.sleep", "datetime.now", "datetime.utcnow", "datetime.datetime.now", "date.today",
}  # fmt: skip


def sources() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "__pycache__" not in p.parts)


def part_of(module: str) -> str:
    """``tokenmill.engine.kvcache.pool`` → ``engine``; the package itself → ``__init__``."""
    _, _, rest = module.partition(".")
    return rest.split(".")[0] or "__init__"


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full dotted name) of everything imported, wherever in the file it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def is_allowed(name: str, part: str) -> bool:
    if part in FREE or part_of(name) == part or name == "tokenmill.__version__":
        return True
    inside = name.partition(".")[2]
    return any(inside == allowed or inside.startswith(f"{allowed}.") for allowed in ARROWS[part])


def test_every_part_is_on_the_map() -> None:
    parts = {part_of(module_of(path)) for path in sources()}
    assert parts <= set(ARROWS) | FREE, "a new part: say in ARROWS what it may import"


def test_packages_import_only_from_packages_above() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {part_of(module_of(path))} must not import {name}"
        for path in sources()
        for line, name in imports_of(path)
        if name.split(".")[0] == "tokenmill" and not is_allowed(name, part_of(module_of(path)))
    ]
    assert not wrong, "\n".join(wrong)


def test_third_party_imports_stay_where_they_belong() -> None:
    wrong = []
    for path in sources():
        part = part_of(module_of(path))
        allowed = OUTSIDE.get(part, set()) | {"tokenmill", *sys.stdlib_module_names}
        wrong += [
            f"{path.relative_to(ROOT)}:{line}: {part} must not import {name}"
            for line, name in imports_of(path)
            if name.split(".")[0] not in allowed
        ]
    assert not wrong, "\n".join(wrong)


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize("part", PURE)
def test_pure_parts_read_no_wall_clock_and_draw_no_lots(part: str) -> None:
    wrong = []
    for path in (p for p in sources() if part_of(module_of(p)) == part):
        if path.relative_to(PACKAGE).as_posix() in CLOCK_READERS:
            continue
        names = {name for _, name in imports_of(path)}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = dotted(node) if isinstance(node, ast.Attribute) else ""
            lots = name.startswith("random.") and name != "random.Random"
            if name in CLOCK_CALLS or lots:
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
        wrong += [f"{path.relative_to(ROOT)}: from time import …" for name in names if name in CLOCK_CALLS]
    assert not wrong, "\n".join(wrong)


def test_clock_readers_are_still_there() -> None:
    """An exception whose file is gone or clean is an exception to delete."""
    for relative in CLOCK_READERS:
        text = (PACKAGE / relative).read_text(encoding="utf-8")
        assert any(call in text for call in CLOCK_CALLS), f"{relative} no longer reads the clock"
