"""The comparison: same work, engines taking turns, medians, ratios.

The machine drifts (neighbours, clock, page cache), so engines alternate within each repetition of a task and only what
was measured in one run is divided. A sample during which other processes used more than ``DISTURBED`` of the machine is
left out of the median while quieter ones exist; a row with none is marked. Before each repetition the memory
bandwidth is measured: on a shared machine it changes within minutes, and near the wall it bounds every engine and so
every ratio.

Weights are compared within classes: bf16, int8 (llama.cpp's Q8_0, W8A8, …), int4. From a batch of eight on the fastest
quantised format of one engine may well be another's slowest, so there each side's best of int8 and int4 counts
(``quantised``).
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.bench.machine import without_folders
from tokenmill.bench.peers.environments import OURS, PACKAGE, Environments, Peer
from tokenmill.bench.peers.process import CannotLoad, Contender, RunnerFailed, Runners
from tokenmill.bench.peers.protocol import Setup
from tokenmill.bench.peers.shapes import kv_bytes_per_token, weight_bytes
from tokenmill.bench.peers.work import Task, make_prompts, rate
from tokenmill.core.errors import TokenmillError

DISTURBED = 0.06
LONG_CONTEXT = 8192
BLOCK_TOKENS = 128
"""No engine's KV blocks are larger."""
PRECISIONS = ("bf16", "int8", "int4")
CLASSES = {"bf16": ("bf16",), "int8": ("int8",), "int4": ("int4",), "quantised": ("int8", "int4")}
TOGETHER = (("bf16",), ("int8", "int4"))
"""Precisions whose engines alternate with each other: those that a ratio compares."""
TIMEOUT_S = 3600.0

Row = dict[str, Any]
Say = Callable[[str], None]


@dataclass(slots=True)
class _Samples:
    """What came of one engine's repetitions of one task."""

    rates: list[float] = field(default_factory=list)
    other_cpu: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    bandwidth: list[float] = field(default_factory=list)
    """GB/s, measured before each repetition."""
    peak_bytes: int | None = None
    reason: str | None = None

    def add(self, task: Task, answer: Mapping[str, Any]) -> None:
        self.rates.append(rate(task, answer["events"]))
        self.other_cpu.append(answer["other_cpu"])
        self.first_token_s.append(answer["events"][0][0])
        self.total_s.append(answer["events"][-1][0])
        self.peak_bytes = answer["peak_bytes"]

    def row(self, task: Task, contender: Contender) -> Row:
        quiet = [index for index, share in enumerate(self.other_cpu) if share <= DISTURBED]
        used = quiet or range(len(self.rates))
        return {
            "task": task.name,
            "engine": contender.engine,
            "precision": contender.precision,
            "label": contender.label,
            "tokens_per_s": _median(self.rates, used),
            "first_token_s": _median(self.first_token_s, used),
            "total_s": _median(self.total_s, used),
            "samples": [round(value, 3) for value in self.rates],
            "other_cpu": [round(value, 3) for value in self.other_cpu],
            "disturbed": bool(self.rates) and not quiet,
            "bandwidth_gigabytes_per_s": [round(value, 1) for value in self.bandwidth],
            "peak_bytes": self.peak_bytes,
            "reason": without_folders(self.reason),
        }


def _median(values: Sequence[float], used: Iterable[int]) -> float | None:
    chosen = [values[index] for index in used]
    return round(statistics.median(chosen), 4) if chosen else None


def contenders(
    environments: Environments, peers: Sequence[Peer], model: str, threads: int, options: Mapping[str, Any]
) -> Iterator[Contender]:
    """Ours and the peers at every precision they have; ``options``: of our engine, beside the weights' precision."""
    folder = environments.folder
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    environment |= {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    ours = environment | {"PYTHONPATH": str(PACKAGE.parent)}
    theirs = environment | {"PYTHONPATH": str(environments.link()), "VLLM_NO_USAGE_STATS": "1"}

    def contender(
        engine: str,
        module: str,
        precision: str,
        label: str,
        python: str,
        environment: dict[str, str],
        options: Mapping[str, Any],
    ) -> Contender:
        return Contender(
            engine=engine,
            precision=precision,
            label=label,
            command=(python, "-P", "-m", f"tokenmill.bench.peers.runners.{module}"),
            environment=environment,
            folder=folder / engine / "models" / f"{model}-{precision}",
            log=folder / "logs" / f"{engine}-{model}-{precision}.log",
            options=options,
        )

    for precision in PRECISIONS:
        label = ", ".join([precision, *(f"{name} {value}" for name, value in options.items())])
        yield contender(OURS, "ours", precision, label, sys.executable, ours, options)
        for peer in peers:
            if precision in peer.precisions:
                python = str(environments.python(peer))
                yield contender(peer.name, peer.module, precision, peer.precisions[precision], python, theirs, {})


@dataclass(slots=True)
class Comparison:
    """One run of ``bench peers``."""

    model: str
    checkpoint: Path
    config: dict[str, Any]
    """The checkpoint's ``config.json``."""
    tasks: Sequence[Task]
    contenders: Sequence[Contender]
    repeats: int
    threads: int
    failed: dict[str, str] = field(default_factory=dict)
    """Contender or engine → why it cannot take part."""
    say: Say = lambda text: None
    keep: Callable[[dict[str, Any]], None] = lambda figures: None
    """Called with the figures after every task: a run takes long."""
    bandwidth: Callable[[], float] | None = None
    """Bytes per second that memory gives now; None where nothing can measure it."""
    earlier: Sequence[Row] = ()
    """Of another run: they stay unless the same task and precisions were measured now."""
    rows: list[Row] = field(default_factory=list)
    runners: Runners = field(default_factory=lambda: Runners(TIMEOUT_S))

    def run(self) -> dict[str, Any]:
        """Do all the work; returns what goes to the result file."""
        with self.runners:
            for precisions in TOGETHER:
                together = [contender for contender in self.contenders if contender.precision in precisions]
                for contender in together:
                    self._prepare(contender)
                for task in self.tasks if together else ():
                    self.rows += self._rows(task, together)
                    self.keep(self.figures())
                self.runners.close()
        return self.figures()

    def figures(self) -> dict[str, Any]:
        now = {_together(row) for row in self.rows}
        rows = [row for row in self.earlier if _together(row) not in now] + self.rows
        return {
            "model": self.model,
            "threads": self.threads,
            "versions": self.runners.versions,
            "ratios": {self.model: ratios(rows)},
            "rows": rows,
        }

    def _prepare(self, contender: Contender) -> None:
        if self._why_not(contender):
            return
        try:
            if not contender.folder.exists():
                self.say(f"{contender.name}: making its files")
            self.runners.prepare(contender, self.checkpoint)
        except RunnerFailed as error:
            self._fail(contender, f"cannot use the checkpoint: {error.message}")

    def _rows(self, task: Task, together: Sequence[Contender]) -> list[Row]:
        samples = {contender.name: _Samples() for contender in together}
        for repeat in range(min(self.repeats, task.max_repeats or self.repeats)):
            prompts = make_prompts(task.prompts, self.config["vocab_size"], f"{task.name} {repeat}")
            now = self.bandwidth() / 1e9 if self.bandwidth else None
            for contender in together:
                found = samples[contender.name]
                found.bandwidth += [now] if now else []
                found.reason = found.reason or self._why_not(contender)
                if found.reason is None:
                    self._sample(task, contender, prompts, found)
        return [samples[contender.name].row(task, contender) for contender in together]

    def _sample(self, task: Task, contender: Contender, prompts: list[list[int]], found: _Samples) -> None:
        setup = self._setup(task, contender)
        share = {"bf16": 1.0, "int8": 0.6, "int4": 0.4}[contender.precision]
        guess = 2 * share * weight_bytes(self.config) + setup["kv_bytes"] + (2 << 30)
        try:
            answer = self.runners.run(contender, setup, {"prompts": prompts, "outputs": task.outputs}, guess)
            found.add(task, answer)
            self.say(f"{task.name}: {contender.name} {found.rates[-1]:.1f} tok/s")
        except CannotLoad as error:
            found.reason = self._fail(contender, f"cannot load: {error.message}")
        except TokenmillError as error:
            found.reason = error.message
            self.say(f"{task.name}: {contender.name}: {error.message}")

    def _setup(self, task: Task, contender: Contender) -> dict[str, Any]:
        """Room for every task of this length: an engine is not loaded anew for each."""
        alike = [one for one in self.tasks if (one.context > LONG_CONTEXT) == (task.context > LONG_CONTEXT)]
        num_tokens = max(one.num_tokens for one in alike)
        num_sequences = max(len(one.prompts) for one in alike)
        spare = BLOCK_TOKENS * num_sequences
        return asdict(
            Setup(
                model=str(self.checkpoint),
                precision=contender.precision,
                folder=str(contender.folder),
                threads=self.threads,
                context=max(one.context for one in alike),
                num_tokens=num_tokens,
                kv_bytes=kv_bytes_per_token(self.config) * (num_tokens + spare),
                num_sequences=num_sequences,
                options=dict(contender.options),
            )
        )

    def _why_not(self, contender: Contender) -> str | None:
        return self.failed.get(contender.engine) or self.failed.get(contender.name)

    def _fail(self, contender: Contender, reason: str) -> str:
        self.failed[contender.name] = reason
        self.say(f"{contender.name}: {reason} (its log: {contender.log})")
        return reason


def _together(row: Row) -> tuple[str, bool]:
    """What a ratio never crosses: rows with the same of this were measured in one run."""
    return row["task"], row["precision"] in TOGETHER[0]


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """``decode_b1_int8`` …: our best rate over the best peer's; only where both were measured."""
    return {
        name: round(ours["tokens_per_s"] / best["tokens_per_s"], 3)
        for name, (ours, best) in pairs(rows).items()
        if ours is not None and best is not None
    }


def pairs(rows: Sequence[Row]) -> dict[str, tuple[Row | None, Row | None]]:
    """Name of a ratio → (our best row, the peers' best row); None where there is none."""
    found = {}
    for task in dict.fromkeys(row["task"] for row in rows):
        for name in ("bf16", "int8", "int4") if task == "decode_b1" else ("bf16", "quantised"):
            measured = [
                row
                for row in rows
                if row["task"] == task and row["precision"] in CLASSES[name] and row["tokens_per_s"] is not None
            ]
            ours = _best(row for row in measured if row["engine"] == OURS)
            best = _best(row for row in measured if row["engine"] != OURS)
            if ours or best:
                found[f"{task}_{name}"] = (ours, best)
    return found


def _best(rows: Iterable[Row]) -> Row | None:
    return max(rows, key=lambda row: float(row["tokens_per_s"]), default=None)
