"""The runner's side: an engine in a process of its own that is told what to do in JSON lines.

::

    → {"prepare": {"model": folder, "precision": "int4", "folder": folder}}          ← {"seconds": 40.2}
    → {"load": {"model": …, "precision": …, "folder": …, "threads": 2, "context": 160, "num_tokens": 5120,
                "kv_bytes": 829440000, "num_sequences": 32}}                         ← {"versions": {…}, …}
    → {"run": {"prompts": [[…token ids…], …], "outputs": [64, …]}}                   ← {"events": [[0.31, 8], …], …}

A failure is answered with ``{"error": "one line"}``. Libraries print what they like: their standard output is turned to
standard error, which the other side keeps in a file. Standard library only: this runs in every peer's environment.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Protocol

Prompts = Sequence[Sequence[int]]
_WARM_UP = ([[7] * 64, [8] * 48], [4, 4])


@dataclass(frozen=True, slots=True)
class Setup:
    """How an engine is to be loaded."""

    model: str
    """Folder of the bfloat16 checkpoint."""
    precision: str
    """Class of the weights: ``bf16``, ``int8``, ``int4``."""
    folder: str
    """What ``prepare`` made of it."""
    threads: int
    context: int
    """Tokens of the longest sequence."""
    num_tokens: int
    """KV slots to hold."""
    kv_bytes: int
    """What they take at two bytes a value, and some spare: a sequence's last block is filled in part."""
    num_sequences: int
    """Most sequences at once."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further options of this engine, as it calls them."""


class Events:
    """When tokens came, in seconds since this was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self.events: list[tuple[float, int]] = []

    def add(self, count: int) -> None:
        """``count`` tokens are here now."""
        if count:
            self.events.append((time.perf_counter() - self._start, count))


class Engine(Protocol):
    """What a runner must offer."""

    @property
    def packages(self) -> Sequence[str]:
        """Whose versions are worth knowing."""
        ...

    def prepare(self, model: Path, precision: str, folder: Path) -> None:
        """Write to the empty ``folder`` what ``load`` will need, if it needs more than the checkpoint."""
        ...

    def load(self, setup: Setup) -> None:
        """Be ready to ``generate``."""
        ...

    def generate(self, prompts: Prompts, outputs: Sequence[int]) -> Events:
        """Make ``outputs[i]`` tokens after ``prompts[i]``, all at once, greedily, no end but by count."""
        ...


def serve(engine: Engine) -> None:
    """Answer requests from standard input until it ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            answer = _answer(engine, json.loads(line))
        except Exception as error:  # noqa: BLE001  (whatever a peer raises is this row's reason)
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
        print(json.dumps(answer), file=answers, flush=True)
    answers.close()
    os._exit(0)  # a peer's threads and exit handlers must not keep the process


def _answer(engine: Engine, message: dict[str, Any]) -> dict[str, Any]:
    begin = time.perf_counter()
    ((kind, fields),) = message.items()
    answer: dict[str, Any] = {}
    if kind == "prepare":
        engine.prepare(Path(fields["model"]), fields["precision"], Path(fields["folder"]))
    elif kind == "load":
        engine.load(Setup(**fields))
        answer["load_s"] = time.perf_counter() - begin
        engine.generate(*_WARM_UP)
        answer["versions"] = {name: found for name in engine.packages if (found := _version(name))}
    elif kind == "run":
        answer["events"] = engine.generate(fields["prompts"], fields["outputs"]).events
    else:
        raise ValueError(f"unknown request {kind!r}")
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return answer | {"seconds": time.perf_counter() - begin, "peak_bytes": peak_bytes}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
