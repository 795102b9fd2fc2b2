"""The orchestrator's side: runner processes that take turns, and what else the machine did meanwhile.

Several engines stay loaded as long as memory lasts, and only one runs: the others are stopped by a signal, so that no
thread pool of theirs spins. When the next one does not fit, the one that ran last gives way: engines come in the same
order again and again, so it is the one that will not be needed for longest.

A runner leads a process group in our session. Should we die, the kernel finds the group orphaned and stopped, and ends
it: no engine stays behind.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tokenmill.bench.peers.environments import last_error
from tokenmill.core.errors import TokenmillError

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_BUSY = (0, 1, 2, 5, 6, 7)
"""Of the machine's counters in /proc/stat: user, nice, system, irq, softirq, steal."""
_RESERVE_BYTES = 1 << 30


class RunnerFailed(TokenmillError):
    """A runner answered with an error, died, or took too long; says why."""


class CannotLoad(RunnerFailed):
    """It never got ready, and will not the next time."""


@dataclass(frozen=True, slots=True)
class Contender:
    """An engine at one precision."""

    engine: str
    precision: str
    """Class of the weights: ``bf16``, ``int8``, ``int4``."""
    label: str
    """What the engine calls it."""
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    """What the engine made of the checkpoint."""
    log: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    """Passed on to the engine when it is loaded."""

    @property
    def name(self) -> str:
        return f"{self.engine} {self.precision}"


class Runner:
    """One process; stopped except while it is asked something."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        contender.log.parent.mkdir(parents=True, exist_ok=True)
        with contender.log.open("wb") as log:
            self._process = subprocess.Popen(
                contender.command,
                env=dict(contender.environment),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                process_group=0,
            )

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send one request; returns the answer and, as ``other_cpu``, the share of the machine that others used.

        Raises:
            RunnerFailed: see there. The process has ended, unless it answered with an error.
        """
        assert self._process.stdin and self._process.stdout
        late = threading.Timer(timeout_s, self._signal, (signal.SIGKILL,))
        self._signal(signal.SIGCONT)
        before = _CpuTimes.now(self._process.pid)
        late.start()
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        finally:
            late.cancel()
        if not line.endswith("\n"):
            self.close()
            ran_out = time.perf_counter() - before.time_s >= timeout_s
            why = f"took more than {timeout_s:.0f} s" if ran_out else last_error(self.contender.log)
            raise RunnerFailed(f"the process ended: {why}")
        other_cpu = _CpuTimes.now(self._process.pid).share_of_others(before)
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RunnerFailed(answer["error"])
        return answer | {"other_cpu": other_cpu}

    def close(self) -> None:
        """End the process and all that it started."""
        self._signal(signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class Runners:
    """The engines that are loaded now."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.versions: dict[str, dict[str, str]] = {}
        """Engine → package → version, of all that were loaded."""
        self._loaded: dict[str, tuple[Runner, Mapping[str, Any]]] = {}
        """By name, with how it was loaded; the one that ran last at the end."""
        self._peaks: dict[str, float] = {}
        """By name, the most memory that it took, in bytes."""

    def prepare(self, contender: Contender, model: Path) -> None:
        """Have the engine make what it needs of the checkpoint, once; raises RunnerFailed."""
        if contender.folder.exists():
            return
        part = contender.folder.with_name(f"{contender.folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        runner = Runner(contender)
        fields = {"model": str(model), "precision": contender.precision, "folder": str(part)}
        try:
            runner.ask({"prepare": fields}, self.timeout_s)
        finally:
            runner.close()
        part.rename(contender.folder)

    def run(
        self, contender: Contender, setup: Mapping[str, Any], work: Mapping[str, Any], need_bytes: float
    ) -> dict[str, Any]:
        """Give ``work`` to an engine loaded by ``setup``; ``need_bytes``: guess of its memory before it was ever seen.

        Raises:
            CannotLoad: it never got ready.
            RunnerFailed: it did not do the work; it is loaded anew next time.
        """
        name = contender.name
        runner, loaded_by = self._loaded.pop(name, (None, None))
        try:
            if runner is not None and loaded_by != setup:
                runner.close()
                runner = None
            if runner is None:
                self._make_room(self._peaks.get(name, need_bytes))
                runner = Runner(contender)
                self._load(runner, setup)
            answer = runner.ask({"run": work}, self.timeout_s)
        except BaseException:
            if runner is not None:
                runner.close()
            raise
        self._peaks[name] = answer["peak_bytes"]
        self._loaded[name] = runner, setup
        return answer

    def _load(self, runner: Runner, setup: Mapping[str, Any]) -> None:
        try:
            answer = runner.ask({"load": setup}, self.timeout_s)
        except RunnerFailed as error:
            raise CannotLoad(error.message) from error
        self.versions.setdefault(runner.contender.engine, {}).update(answer["versions"])

    def close(self) -> None:
        while self._loaded:
            self._loaded.popitem()[1][0].close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_room(self, need_bytes: float) -> None:
        while self._loaded and available_bytes() < need_bytes + _RESERVE_BYTES:
            self._loaded.popitem()[1][0].close()


@dataclass(frozen=True, slots=True)
class _CpuTimes:
    """Seconds of processor time since the start of the machine, and when they were read."""

    machine_s: float
    ours_s: float
    """Of this process and of the group of a runner."""
    time_s: float

    @classmethod
    def now(cls, group: int) -> _CpuTimes:
        fields = Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]
        machine = sum(int(fields[index]) for index in _BUSY if index < len(fields))
        ours = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                # After the name in parentheses: state, parent, group, …; times of its own, times of its ended children.
                rest = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                if int(rest[2]) == group or int(stat.parent.name) == os.getpid():
                    ours += sum(int(rest[index]) for index in (11, 12, 13, 14))
        return cls(machine * _TICK_S, ours * _TICK_S, time.perf_counter())

    def share_of_others(self, before: _CpuTimes) -> float:
        """Processor time that others used since ``before``, of all that there was."""
        others_s = (self.machine_s - before.machine_s) - (self.ours_s - before.ours_s)
        return max(0.0, others_s / ((self.time_s - before.time_s) * (os.cpu_count() or 1)))


def available_bytes() -> int:
    """Memory that the machine can still give."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
