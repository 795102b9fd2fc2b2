"""The stage ``tests``: the kernels' own tests, on the device. Figures of kernels that fail them mean nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.unit import Context, Failed, Outcome, Unit
from tokenmill.bench.machine import ROOT
from tokenmill.core.errors import TokenmillError

TESTS = ROOT / "tests" / "triton"
PROCESSES = 6
"""Where pytest-xdist is there: compiling kernels takes a processor each, running them hardly any of the device."""
TOLD = 20
"""Of the failed tests."""
LONGEST_S = 3600.0
LEFT_S = 8.0
"""Of the stage's time, for what pytest has to tell."""

_OUTCOME = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b")


def units(place: Place) -> list[Unit]:
    return [Unit("tests/triton", _run)]


def command(context: Context) -> list[str]:
    """pytest without the project's settings, some of which need its newest version."""
    words = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={ROOT}", "--import-mode=importlib"]
    words += ["-p", "no:cacheprovider", "-v", "--tb=short", "-rfE"]
    if context.place.toy:
        return [*words, str(TESTS / "test_pointwise.py"), "-k", "silu"]
    if importlib.util.find_spec("xdist") is not None:
        words += ["-n", str(PROCESSES)]
    compiled = TESTS / "test_compiles.py"  # compiles for a chip that is not there: no matter here
    return [*words, str(TESTS), f"--ignore={compiled}"]


def _run(context: Context) -> Outcome:
    if not TESTS.is_dir():
        raise TokenmillError("the tests are not here: run this from the source tree")
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as file:
            process = subprocess.Popen(command(context), cwd=ROOT, stdout=file, stderr=file)
        left = min(context.deadline - time.time() - LEFT_S, LONGEST_S)
        in_time = True
        try:
            code = process.wait(max(left, 1.0))
        except subprocess.TimeoutExpired:
            process.terminate()
            in_time, code = False, process.wait()
        text = log.read_text(encoding="utf-8", errors="replace")
    # pytest says each outcome once as it comes, and those that failed again in its summary
    running, _, summary = text.partition("short test summary info")
    counts = Counter(match[1].lower() for line in running.splitlines() if (match := _is_outcome(line)))
    failed = [line for line in summary.splitlines() if line.startswith(("FAILED", "ERROR"))]
    seconds = time.perf_counter() - began
    figures = {"counts": dict(counts), "failed": failed, "in_time": in_time, "seconds": seconds, "exit_code": code}
    brief = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    if code == 0 and counts["passed"]:
        return Outcome(figures, brief)
    why = "" if in_time else "; ended when the stage's time was over"
    told = "\n".join(failed[:TOLD]) or text[-2000:]
    raise Failed(f"{brief or 'nothing ran'}{why}\n{told}", figures)


def _is_outcome(line: str) -> re.Match[str] | None:
    return _OUTCOME.search(line) if "::" in line else None
