"""What a new Python process really loads, and how long it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import tokenmill

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "transformers", "tokenizers", "starlette", "uvicorn", "pydantic", "prometheus_client")
SERVER_ONLY = ("starlette", "uvicorn", "pydantic", "prometheus_client", "httpx", "fastapi", "openai", "transformers")

LIST_MODULES = "import sys, json; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
TIME_IMPORT = "import time; t = time.perf_counter(); import tokenmill; print(time.perf_counter() - t)"
BLOCKED_IMPORTS = """
import importlib, pkgutil, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocker())
for part in PARTS:
    module = importlib.import_module(f"tokenmill.{part}")
    for info in pkgutil.walk_packages(getattr(module, "__path__", []), f"tokenmill.{part}."):
        if not info.name.endswith("__main__"):
            importlib.import_module(info.name)
"""


def run_python(code: str) -> str:
    """Run ``code`` in a fresh interpreter in the project's root; return its standard output."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def loaded_by(statement: str) -> set[str]:
    return set(json.loads(run_python(f"{statement}\n{LIST_MODULES}")))


@pytest.mark.parametrize(
    "statement",
    [
        "import tokenmill",
        "from tokenmill import EngineConfig, SamplingParams",
        "import tokenmill.core.step, tokenmill.core.events, tokenmill.engine.contracts",
        "import tokenmill.engine.engine, tokenmill.engine.scheduler, tokenmill.engine.kvcache",
    ],
)
def test_deciding_loads_nothing_heavy(statement: str) -> None:
    assert not loaded_by(statement) & set(HEAVY)


def test_the_service_loads_no_torch_and_no_server() -> None:
    loaded = loaded_by("import tokenmill.engine.service, tokenmill.engine.text")
    assert not loaded & {"torch", "numpy", "starlette", "uvicorn", "pydantic", "transformers"}


def test_importing_the_package_takes_less_than_a_tenth_of_a_second() -> None:
    # The quickest of five: a busy machine can only make it look slower than it is.
    seconds = min(float(run_python(TIME_IMPORT)) for _ in range(5))
    assert seconds < 0.1


@pytest.mark.slow
def test_everything_but_the_server_runs_without_the_servers_dependencies() -> None:
    parts = ["core", "engine", "perf", "kernels", "models", "runtime", "launch", "llm", "cli"]
    present = [part for part in parts if importable(part)]
    run_python(f"BLOCKED = {SERVER_ONLY!r}\nPARTS = {present!r}\n{BLOCKED_IMPORTS}")


def importable(part: str) -> bool:
    return (ROOT / "tokenmill" / f"{part}.py").exists() or (ROOT / "tokenmill" / part / "__init__.py").exists()


def test_public_names_resolve() -> None:
    assert set(dir(tokenmill)) == set(tokenmill.__all__)
    for name in tokenmill.__all__:
        assert getattr(tokenmill, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="LLMM"):
        tokenmill.LLMM  # noqa: B018
