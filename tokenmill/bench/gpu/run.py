"""The stages, one after the other, each within its time; a result file per stage as soon as it is over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from tokenmill.bench.gpu.place import slug
from tokenmill.bench.gpu.score import ended_well, read_results, scorecard
from tokenmill.bench.gpu.stages import STAGES
from tokenmill.bench.gpu.worker import DONE, FAILED, GO_ON, OUT_OF_TIME, Row, append, read_rows
from tokenmill.bench.machine import ROOT, make_result, without_folders, write_result
from tokenmill.core.errors import ConfigError

Say = Callable[[str], None]
GRACE_S = 5.0
"""So long a unit may go on after its stage's time."""
LOOK_EVERY_S = 0.2
ENDS = (DONE, GO_ON, OUT_OF_TIME)
"""Of a worker that did not die."""
ENDED = -1
"""The exit code told of a worker that was ended here."""
WORDS = 2000
"""Of what a process last said."""


def run(names: Sequence[str], *, minutes: float, output: Path, toy: bool, say: Say) -> dict[str, Any]:
    """Run the stages ``names``; each leaves ``gpu-STAGE-DEVICE.json`` in the folder ``output``, and the score-card
    ``gpu-DEVICE.json`` is made anew of all that lie there. Time that a stage leaves is the next ones'.

    Returns the score-card.

    Raises:
        ConfigError: no such stage, or no GPU.
    """
    for name in names:
        if name not in STAGES:
            raise ConfigError(f"--stages: there is no {name!r}; there are {', '.join(STAGES)}")
    output.mkdir(parents=True, exist_ok=True)
    began, total = time.time(), sum(STAGES[name].minutes for name in names)
    device, used = _known_device(output), 0.0
    for name in names:
        used += STAGES[name].minutes
        figures = _run_stage(name, began + 60 * minutes * used / total, output, toy=toy, say=say)
        device = slug(figures["device"]["name"])
        _keep(output, f"gpu-{name}-{device}", f"gpu-{name}", figures)
        write_scorecard(output, device)
    return write_scorecard(output, device)


def _known_device(output: Path) -> str | None:
    """The device of the latest result in the folder."""
    found = max(output.glob("gpu-*-*.json"), key=lambda path: path.stat().st_mtime, default=None)
    return None if found is None else found.stem.split("-", 2)[2]


def write_scorecard(output: Path, device: str | None) -> dict[str, Any]:
    """``gpu-DEVICE.json``, of all results for the device that lie in the folder."""
    results = {} if device is None else read_results(output, device)
    scores = scorecard(results, device or "")
    figures = {
        "device": device,
        "ended_well": ended_well(results),
        "scores": [score.as_dict() for score in scores],
        "stages": {
            name: {
                "date": figures["date"],
                "seconds": figures["seconds"],
                "failed": [unit["name"] for unit in figures["units"] if "error" in unit],
                "not_run": figures["not_run"],
            }
            for name, figures in results.items()
        },
    }
    return _keep(output, None if device is None else f"gpu-{device}", "gpu", figures)


def _keep(output: Path, name: str | None, kind: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The result, written if it has a name; where on this machine it lies is not in it."""
    result: dict[str, Any] = without_folders(make_result(kind, figures))
    if name is not None:
        write_result(output / f"{name}.json", result)
    return result


def _run_stage(name: str, deadline: float, output: Path, *, toy: bool, say: Say) -> dict[str, Any]:
    """What its result file holds."""
    began = time.time()
    say(f"{name}: {max(deadline - began, 0):.0f} s at most")
    rows = output / f"gpu-{name}.jsonl"  # what is left of a run that was cut off
    rows.unlink(missing_ok=True)
    command = [sys.executable, "-m", "tokenmill.bench.gpu.worker", name, str(rows), "--output", str(output)]
    command += ["--deadline", str(deadline), *(["--toy"] if toy else [])]
    shown, code = 0, GO_ON
    while code not in (DONE, OUT_OF_TIME) and time.time() < deadline:
        before = len(read_rows(rows))
        with TemporaryFile("w+") as words:
            code, shown = _follow(command, rows, words, deadline, shown, toy=toy, say=say)
            if code == FAILED and not before:
                raise ConfigError(_last(words))
            _mark_lost(rows, code, words)
            if code not in ENDS and len(read_rows(rows)) == before:
                append(rows, {"name": "start", "error": _last(words), "seconds": 0.0})
                code = DONE  # it would die again
        shown = _show(name, rows, shown, say)
    figures = _figures(read_rows(rows), time.time() - began)
    rows.unlink()
    return figures


def _follow(
    command: Sequence[str], rows: Path, words: IO[str], deadline: float, shown: int, *, toy: bool, say: Say
) -> tuple[int, int]:
    """Start a worker and wait for its end; (exit code, rows shown so far)."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if toy:
        environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(command, stdout=words, stderr=words, env=environment, start_new_session=True)
    try:
        while process.poll() is None and time.time() < deadline + GRACE_S:
            time.sleep(LOOK_EVERY_S)
            shown = _show(command[3], rows, shown, say)
        code = process.poll()
        return (ENDED if code is None else code), shown
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # its own children too
            process.wait()


def _mark_lost(rows: Path, code: int, words: IO[str]) -> None:
    """The unit that was under way when its process ended has failed."""
    found = read_rows(rows)
    ended = {row["name"] for row in found if "name" in row}
    for row in found:
        if "begin" in row and row["begin"] not in ended:
            how = "was ended when the stage's time was over" if code == ENDED else f"died (exit code {code})"
            text = f"its process {how}; it last said:\n{_last(words)}"
            append(rows, {"name": row["begin"], "error": text, "seconds": 0.0})


def _last(words: IO[str]) -> str:
    words.seek(0)
    return words.read()[-WORDS:].strip() or "nothing"


def _show(stage: str, rows: Path, shown: int, say: Say) -> int:
    """Tell of units that have ended since; how many rows were looked at."""
    found = read_rows(rows)
    for row in found[shown:]:
        if "error" in row:
            say(f"{stage}: {row['name']}: FAILED\n{row['error'].strip()}")
        elif "name" in row:
            say(f"{stage}: {row['name']}: {row['brief']} ({row['seconds']:.1f} s)")
    return len(found)


def _figures(rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    device: Mapping[str, Any] = next((row["device"] for row in rows if "device" in row), {"name": "unknown"})
    ceilings = [row["ceilings"] for row in rows if "ceilings" in row]
    begun = {row["begin"] for row in rows if "begin" in row}
    wanted: list[str] = next((row["units"] for row in rows if "units" in row), [])
    return {
        "device": dict(device),
        "seconds": seconds,
        "ceilings": ceilings[-1] if ceilings else None,
        "units": [row for row in rows if "name" in row],
        "not_run": [unit for unit in wanted if unit not in begun],
    }
