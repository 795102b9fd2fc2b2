"""Throughput of the engine without a network: so many prompts at once, until all are answered.

Each set of options is a process of its own (``python -m tokenmill.bench.offline``), so that its peak of memory is its
own, and it loads once and stays. The sets take turns, prompt for prompt the same work, and what is divided was
measured in the same turn: a shared machine is twice as quick at one minute as at the next. A process that is not its
turn sleeps; all of them must fit into memory together.

Beside each turn the machine's ceilings are measured. Every step reads all weights once, and every token the keys and
values before it::

    share of the bandwidth = (steps * weights + keys and values seen) / (seconds * bandwidth)

From the same ceilings the cost model says what the turn should have brought (``bench/foresee.py``), and each turn's
account of its steps is kept, from which ``tokenmill calibrate`` learns.

Times count from when the engine gets a prompt (``LLM`` hands on four per place in the batch), so the wait in its queue
is in the time to first token.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

from tokenmill import __version__
from tokenmill.bench.foresee import compare, foresee
from tokenmill.bench.load import scale_to_context
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import ConfigError, TokenmillError
from tokenmill.engine.telemetry import Telemetry
from tokenmill.perf.diagnose import Limits, describe
from tokenmill.perf.hardware import Hardware
from tokenmill.perf.memory import Group, kv_position_bytes
from tokenmill.perf.metrics import SLO, Timeline
from tokenmill.perf.result import Counts, Delivered, Seen, Window, make_run

WARMUP_PROMPTS, WARMUP_TOKENS = 2, 4
FIRST_TOKEN_ID = 5  # below it are special tokens
MEMORY_GROUPS: tuple[Group, ...] = ("weights", "kv", "workspace", "process")


def run(
    model: str,
    option_sets: Sequence[Mapping[str, Any]],
    lengths: Sequence[tuple[int, int]],
    *,
    repeat: int = 3,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Answer prompts of these ``lengths`` (prompt, output) ``repeat`` times with each set of options, in turns.

    Raises:
        ConfigError: a set of options with which the model does not start, or answers no prompt.
    """
    for options in option_sets:
        EngineConfig.from_options(model=model, **options)  # refuses before anything is started
    with ExitStack() as stack:
        progress(f"loading {model}")
        workers = [stack.enter_context(_worker(model, options)) for options in option_sets]
        for worker in workers:
            worker.ready = worker.answer()
        limit = min(worker.ready["max_context"] for worker in workers)
        scaled, num_scaled = scale_to_context(lengths, limit)
        ceilings = _ceilings_probe(max(worker.ready["threads"] for worker in workers))
        for turn in range(repeat):
            for worker in workers:
                progress(f"turn {turn + 1} of {repeat}{_label(worker.options)}")
                before = ceilings()
                found = worker.ask({"lengths": scaled, "seed": f"{seed}:{turn}"})
                if not found["requests"]:
                    raise ConfigError(f"no prompt could be answered: {next(iter(found['errors']))}")
                found["ceilings"] = _best(before, ceilings())
                worker.turns.append(found)
    first = workers[0]
    points = [worker.point() | {"ratio": _ratio(worker.rates(), first.rates())} for worker in workers]
    return {
        "engine": {"name": "tokenmill", "version": __version__},
        "model": first.ready["model"],
        "load": {"requests": len(lengths), "repeat": repeat, "seed": seed, "scaled_to_context": num_scaled},
        **(points[0] if len(points) == 1 else {"points": points}),
    }


def _ratio(rates: Sequence[float], first: Sequence[float]) -> float:
    """How many times as quick as the first set of options, turn by turn."""
    return statistics.median(rate / other for rate, other in zip(rates, first, strict=True))


def _label(options: Mapping[str, Any]) -> str:
    return "".join(f", {name}={value}" for name, value in options.items())


def _ceilings_probe(num_threads: int) -> Callable[[], Hardware | None]:
    """Measures what so many threads do; None where there are no compiled kernels to measure with."""
    from tokenmill.kernels.cpu.build import NoCompiler
    from tokenmill.kernels.cpu.library import load
    from tokenmill.launch import measure_machine

    try:
        return partial(measure_machine, load().new_pool(num_threads))
    except NoCompiler:
        return lambda: None


def _best(before: Hardware | None, after: Hardware | None) -> Hardware | None:
    """Others may have slowed the machine down at one moment: what it can do is what it did at its best."""
    if before is None or after is None:
        return None
    return replace(
        before,
        memory_bytes_per_s=max(before.memory_bytes_per_s, after.memory_bytes_per_s),
        peaks={name: max(peak, after.peaks[name]) for name, peak in before.peaks.items()},
    )


# ---- one set of options -----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Worker:
    """A process with the model loaded: it answers each line with a line."""

    model: str
    options: Mapping[str, Any]
    process: subprocess.Popen[str]
    errors: IO[str]
    ready: dict[str, Any]
    turns: list[dict[str, Any]]

    def ask(self, task: Mapping[str, Any]) -> dict[str, Any]:
        self.tell(task)
        return self.answer()

    def tell(self, task: Mapping[str, Any]) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it died: there will be no answer, which says why
            self.process.stdin.write(json.dumps(task) + "\n")
            self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            self.process.wait()
            self.errors.seek(0)
            words = self.errors.read().strip().splitlines()
            raise ConfigError(words[-1] if words else "the engine's process died without a word")
        found: dict[str, Any] = json.loads(line)
        return found

    def rates(self) -> list[float]:
        return [_output_tokens(turn) / turn["seconds"] for turn in self.turns]

    def point(self) -> dict[str, Any]:
        """The turn whose rate is the median, with what all turns together say."""
        rates = self.rates()
        turn = self.turns[rates.index(statistics.median_low(rates))]
        return {
            "options": dict(self.options),
            "precision": self.ready["precision"],
            "threads": self.ready["threads"],
            **figures_of(turn),
            "errors": turn["errors"],
            "steps": turn["steps"],
            "preemptions": turn["preemptions"],
            "repeats": {"output_tokens_per_s": rates},
            "memory": self._memory(),
            "bandwidth": self._bandwidth(turn),
            "foreseen": self._foreseen(),
            "about": self.ready["about"],
            "turns": [
                {
                    "seconds": each["seconds"],
                    "ceilings": None if each["ceilings"] is None else asdict(each["ceilings"]),
                    "account": each["account"],
                }
                for each in self.turns
            ],
        }

    def _foreseen(self) -> dict[str, Any] | None:
        """What the cost model says of every turn, under that turn's ceilings: the median of measured over foreseen."""
        from tokenmill.llm import QUEUE_PER_SEQUENCE

        config = EngineConfig.from_options(model=self.model, **self.options)
        ratios: list[dict[str, float]] = []
        for turn in self.turns:
            if turn["ceilings"] is None:
                return None
            lengths = [(r["input_tokens"], r["output_tokens"]) for r in turn["requests"]]
            foreseen = foresee(self.ready["about"], config, lengths, turn["ceilings"])
            at_once = len(lengths) <= QUEUE_PER_SEQUENCE * config.scheduler.max_seqs
            ratios.append(compare(figures_of(turn), foreseen, at_once=at_once))
        names = [name for name in ratios[0] if all(name in each for each in ratios)]
        return {
            "measured_to_foreseen": {name: statistics.median(each[name] for each in ratios) for name in names},
            "turns": ratios,
        }

    def _memory(self) -> dict[str, Any]:
        """The highest peak of all turns, beside what the ledger foresaw for as much of the pool as was touched."""
        peak = max(turn["peak_bytes"] for turn in self.turns)
        touched = max(turn["kv_blocks_touched"] for turn in self.turns)
        foreseen = self.ready["foreseen_bytes"] | {"kv": touched * self.ready["block_bytes"]}
        predicted = self.ready["resident_before_bytes"] + sum(foreseen[group] for group in MEMORY_GROUPS)
        return {
            "peak_bytes": peak,
            "predicted_bytes": predicted,
            "measured_to_predicted": peak / predicted,
            "before_loading_bytes": self.ready["resident_before_bytes"],
            "foreseen_bytes": foreseen,
        }

    def _bandwidth(self, turn: Mapping[str, Any]) -> dict[str, float] | None:
        ceilings: Hardware | None = turn["ceilings"]
        if not self.ready["fast"] or ceilings is None:
            return None
        seen = sum(
            r["output_tokens"] * (r["input_tokens"] + r["output_tokens"] / 2) * self.ready["position_bytes"]
            for r in turn["requests"]
        )
        per_s = (turn["steps"] * self.ready["weights_bytes"] + seen) / turn["seconds"]
        measured = ceilings.memory_bytes_per_s
        return {"used_bytes_per_s": per_s, "measured_bytes_per_s": measured, "share": per_s / measured}


def figures_of(turn: Mapping[str, Any]) -> dict[str, Any]:
    """A turn in the form that all results share."""
    requests = turn["requests"]
    timelines = [Timeline(r["ttft_s"], r["e2e_s"], (), r["output_tokens"]) for r in requests]
    counts = Counts(completed=len(requests), failed=turn["failed"])
    delivered = Delivered(
        len(requests),
        sum(r["input_tokens"] for r in requests),
        _output_tokens(turn),
        sum(r["cached_tokens"] for r in requests),
    )
    found = make_run(Seen(timelines), counts, delivered, Window("measured", 0.0, turn["seconds"]), SLO())
    found["throughput"]["total_tokens_per_s"] = (delivered.input_tokens + delivered.output_tokens) / turn["seconds"]
    return found


def _output_tokens(turn: Mapping[str, Any]) -> int:
    return sum(r["output_tokens"] for r in turn["requests"])


@contextmanager
def _worker(model: str, options: Mapping[str, Any]) -> Iterator[_Worker]:
    with TemporaryFile("w+") as errors:
        command = [sys.executable, "-m", "tokenmill.bench.offline"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=errors, text=True)
        worker = _Worker(model, options, process, errors, {}, [])
        try:
            worker.tell({"model": model, "options": dict(options)})
            yield worker
        finally:
            process.communicate()  # the end of its input is the end of the process


# ---- in the process ---------------------------------------------------------------------------------------


def _serve_parent(lines: Iterator[str], answers: IO[str]) -> None:
    """The first line says what to load, each other one what to answer."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in launch.py, before torch is there
    import torch

    from tokenmill.launch.machine import resident_bytes
    from tokenmill.llm import LLM

    def answer(found: Mapping[str, Any]) -> None:
        answers.write(json.dumps(found) + "\n")
        answers.flush()

    task = json.loads(next(lines))
    before = resident_bytes()  # torch's pages are in it
    with LLM(task["model"], **task["options"]) as llm:
        checkpoint, measured = llm.launched.checkpoint, llm.launched.measured
        ledger = checkpoint.ledger
        spare = sum(item.num_bytes for item in ledger.items if item.name == "left to the machine")
        limits = Limits(num_blocks=ledger.num_blocks, block_size=ledger.block_size)
        foreseen = {group: ledger.group_bytes(group) for group in MEMORY_GROUPS}
        llm.launched.engine.telemetry = Telemetry()
        answer_turn(llm, [(WARMUP_TOKENS, WARMUP_TOKENS)] * WARMUP_PROMPTS, "warm-up")
        answer(
            {
                "model": checkpoint.name,
                "precision": str(ledger.precision),
                "fast": ledger.precision.kernels == "fast",
                "threads": torch.get_num_threads(),
                "max_context": ledger.max_context,
                "weights_bytes": measured.weights_bytes,
                "position_bytes": kv_position_bytes(checkpoint.config, ledger.precision.kv),
                "block_bytes": foreseen["kv"] / ledger.num_blocks,
                "foreseen_bytes": foreseen | {"process": foreseen["process"] - spare},
                "resident_before_bytes": before,
                "about": describe(checkpoint.config, checkpoint.name, ledger.precision, None, limits),
            }
        )
        for line in lines:
            turn = json.loads(line)
            answer(answer_turn(llm, turn["lengths"], turn["seed"]))


def answer_turn(llm: Any, lengths: Sequence[tuple[int, int]], seed: str) -> dict[str, Any]:
    """Answer random prompts of these lengths (prompt, output); ``llm``: an ``LLM`` whose engine has telemetry."""
    from tokenmill.core.params import SamplingParams

    chance, vocab = random.Random(seed), llm.launched.limits.vocab_size
    prompts = [[chance.randrange(FIRST_TOKEN_ID, vocab) for _ in range(prompt)] for prompt, _ in lengths]
    params = [SamplingParams(max_tokens=output, temperature=0.0, ignore_eos=True) for _, output in lengths]
    scheduler = llm.launched.engine.scheduler
    pool, steps, preemptions = scheduler.cache.pool, scheduler.num_steps, scheduler.num_preemptions
    requests, errors, touched = [], [], 0
    telemetry, clock = llm.launched.engine.telemetry, llm.launched.engine.clock
    account = telemetry.account(clock.now())
    began = time.perf_counter()
    for _, completion in llm.iter_completions(prompts, params):
        # Blocks never used lie at the bottom of the free ones: what is not free has been touched.
        touched = max(touched, pool.num_blocks - pool.num_free)
        if isinstance(completion, TokenmillError):
            errors.append(completion.message)
            continue
        requests.append(
            {
                "ttft_s": completion.first_token_s,
                "e2e_s": completion.account.total_s,
                "input_tokens": completion.usage.prompt_tokens,
                "output_tokens": completion.usage.completion_tokens,
                "cached_tokens": completion.usage.cached_tokens,
            }
        )
    return {
        "seconds": time.perf_counter() - began,
        "requests": requests,
        "failed": len(errors),
        "errors": {message: errors.count(message) for message in errors},
        "steps": scheduler.num_steps - steps,
        "preemptions": scheduler.num_preemptions - preemptions,
        "kv_blocks_touched": touched,
        "account": telemetry.account(clock.now()).minus(account).as_dict(),
        "peak_bytes": _peak_bytes(),
    }


def _peak_bytes() -> int:
    """Of this program alone: ``getrusage`` would count what the parent had when it started this one."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    try:
        _serve_parent(iter(sys.stdin.readline, ""), sys.stdout)
    except TokenmillError as error:
        sys.exit(error.message)
