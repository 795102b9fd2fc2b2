"""SE-06: nothing in the package turns data into code, and nothing reads a format that can."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tokenmill"

FORBIDDEN_MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "yaml", "jsonpickle", "code"}
)
FORBIDDEN_NAMES = frozenset({"eval", "exec", "compile", "__import__", "breakpoint"})
FORBIDDEN_ATTRIBUTES = frozenset(
    {"recv_pyobj", "send_pyobj", "ForkingPickler", "find_class", "allow_pickle", "trust_remote_code", "shell"}
)
FORBIDDEN_CALLS = frozenset(
    {
        ("torch", "load"),
        ("torch", "save"),
        ("torch.hub", "load"),
        ("torch.package", "PackageImporter"),
        ("os", "system"),
        ("os", "popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("runpy", "run_path"),
        ("runpy", "run_module"),
        ("subprocess", "getoutput"),
        ("subprocess", "getstatusoutput"),
    }
)
PICKLING_CHANNELS = frozenset({"multiprocessing", "concurrent.futures.process"})
BETWEEN_OWN_CHILDREN = PACKAGE / "bench" / "probe" / "exchange.py"
"""``tokenmill probe`` measures how fast its own two children exchange memory; nothing else writes to their pipe."""
PEERS = PACKAGE / "bench" / "peers" / "runners"
"""These drive other engines, in processes of their own, when ``bench peers`` is asked for."""


def findings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = names if isinstance(node, ast.Import) else [node.module or ""]
            for module in modules:
                if module.split(".")[0] in FORBIDDEN_MODULES or module in PICKLING_CHANNELS:
                    yield line, f"imports {module}"
            if isinstance(node, ast.ImportFrom):
                for name in names:
                    if (node.module, name) in FORBIDDEN_CALLS:
                        yield line, f"imports {node.module}.{name}"
        elif isinstance(node, ast.Call):
            called = node.func
            if isinstance(called, ast.Name) and called.id in FORBIDDEN_NAMES:
                yield line, f"calls {called.id}"
            if isinstance(called, ast.Attribute) and (ast.unparse(called.value), called.attr) in FORBIDDEN_CALLS:
                yield line, f"calls {ast.unparse(called)}"
            for keyword in node.keywords:
                off = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
                if keyword.arg in FORBIDDEN_ATTRIBUTES and not off:
                    yield line, f"passes {keyword.arg}"
        elif isinstance(node, ast.Attribute) and node.attr in FORBIDDEN_ATTRIBUTES:
            yield line, f"uses {node.attr}"


def test_se06_nothing_in_the_package_runs_data() -> None:
    """SE-06."""
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if PEERS not in path.parents
        for line, what in findings(ast.parse(path.read_text(encoding="utf-8")))
        if not (path == BETWEEN_OWN_CHILDREN and what == "imports multiprocessing")
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "from multiprocessing import Pipe",
        "import multiprocessing",
        "eval('1')",
        "exec(text)",
        "compile(a, b, 'exec')",
        "torch.load(path)",
        "from torch import load",
        "os.system('ls')",
        "subprocess.run('ls', shell=True)",
        "numpy.load(p, allow_pickle=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "socket.recv_pyobj()",
        "import yaml",
        "__import__(name)",
    ],
)
def test_the_gate_sees_what_it_should(source: str) -> None:
    assert list(findings(ast.parse(source)))


@pytest.mark.parametrize("source", ["re.compile(a)", "model.eval()", "x.load()", "run(a, shell=False)", "code = 1"])
def test_the_gate_lets_the_rest_pass(source: str) -> None:
    assert not list(findings(ast.parse(source)))


def test_se22_no_guard_is_an_assertion() -> None:
    """SE-22: ``python -O`` removes assertions, so none may stand where the outside world speaks."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for folder in ("server", "models/weights")
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assert) and not _only_for_the_type_checker(node)
    ]
    assert not found, "\n".join(found)


def _only_for_the_type_checker(node: ast.Assert) -> bool:
    """``assert x is not None`` and ``assert isinstance(x, T)`` say what is known already."""
    test = node.test
    if isinstance(test, ast.BoolOp):
        return all(_only_for_the_type_checker(ast.Assert(value)) for value in test.values)
    if isinstance(test, ast.Call):
        return isinstance(test.func, ast.Name) and test.func.id == "isinstance"
    return isinstance(test, ast.Compare) and isinstance(test.ops[0], ast.IsNot)
