"""From the command to the first token, stage by stage: what somebody waits who starts a model.

Each measurement is a new process (``python -m tokenmill.bench.start``), as a user would start one, and its clock begins
before that process does: the interpreter and every import count. The first run of a checkpoint quantises its weights
and keeps them (``models/weights/packed_cache.py``); the later ones, whose median is reported, find them.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from tokenmill.core.errors import TokenmillError

PROMPT = "Once upon a time"


class Stages:
    """A ``launch.Progress`` that takes the time of each stage."""

    def __init__(self, began_s: float) -> None:
        self.seconds: dict[str, float] = {}
        self._name, self._since_s = "interpreter and imports", began_s

    def stage(self, text: str) -> None:
        now = time.monotonic()
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since_s
        self._name, self._since_s = text, now

    def update(self, done: int, total: int) -> None:
        pass

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)


def run(
    model: str,
    options: Mapping[str, Any],
    *,
    repeat: int = 5,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Start ``model`` once to fill the caches, then ``repeat`` times.

    Raises:
        RuntimeError: the process failed; its last words.
    """
    runs = []
    for number in range(repeat + 1):
        progress(number, repeat + 1)
        runs.append(_start(model, options))
    stages = {name: statistics.median(r["stages"].get(name, 0.0) for r in runs[1:]) for name in runs[-1]["stages"]}
    totals = [r["total_s"] for r in runs[1:]]
    return {
        "model": model,
        "options": dict(options),
        "first_run_s": runs[0]["total_s"],
        "total_s": statistics.median(totals),
        "best_s": min(totals),
        "stages": stages,
        "peak_bytes": statistics.median(r["peak_bytes"] for r in runs[1:]),
        "weights_bytes": runs[-1]["weights_bytes"],
        "foreseen_bytes": runs[-1]["foreseen_bytes"],
    }


def _start(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    task = json.dumps({"model": model, "options": dict(options), "began_s": time.monotonic()})
    command = [sys.executable, "-m", "tokenmill.bench.start", task]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "it died without a word")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """In the new process. CLOCK_MONOTONIC is the same clock for every process of a machine."""
    stages = Stages(task["began_s"])
    stages.stage("imports of the engine")
    from tokenmill.core.params import SamplingParams
    from tokenmill.llm import LLM

    with LLM(task["model"], progress=stages, **task["options"]) as llm:
        stages.stage("first token")
        llm.generate(PROMPT, SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))
        stages.stage("end")
        ledger = llm.launched.checkpoint.ledger
        return {
            "stages": stages.seconds,
            "total_s": sum(stages.seconds.values()),
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "weights_bytes": llm.launched.measured.weights_bytes,
            "foreseen_bytes": {group: ledger.group_bytes(group) for group in ("weights", "kv", "workspace", "process")},
        }


if __name__ == "__main__":
    try:
        print(json.dumps(_measure(json.loads(sys.argv[1]))))
    except TokenmillError as error:
        sys.exit(str(error))
