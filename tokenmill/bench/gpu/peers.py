"""The stage ``peers``: transformers beside ours, as it is and by ``torch.compile``; same shape, same run, in turns.

Transformers decodes static batches with a cache of its own: a dynamic one eagerly, a static one compiled, as its
documentation advises. Weights are random in all of them. Only steps in which every sequence makes a token count;
prompts are as long as each other, so that nothing is padded.
"""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, Protocol

import torch

from tokenmill import launch
from tokenmill.bench.gpu.engines import configured
from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.shapes import LLAMA_8B
from tokenmill.bench.gpu.unit import Context, Outcome, Unit
from tokenmill.bench.peers.work import Event, make_prompts, rate
from tokenmill.bench.peers.work import Task as Work
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import Request

TURNS = 3
OURS, EAGER, COMPILED = "tokenmill", "transformers", "transformers, compiled"

Prompts = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Task:
    """Equal prompts at once."""

    batch: int
    prompt: int
    output: int

    @property
    def name(self) -> str:
        return f"8B bf16, decode batch {self.batch}, {self.prompt} in, {self.output} out"

    @property
    def work(self) -> Work:
        """Only steps in which every sequence made a token count."""
        return Work(self.name, "decode", (self.prompt,) * self.batch, (self.output,) * self.batch)


TASKS = (Task(1, 512, 64), Task(64, 512, 64))
TOY_TASKS = (Task(2, 4, 4),)


def units(place: Place) -> list[Unit]:
    """Compiling takes longest and may fail: it comes last."""
    tasks = TOY_TASKS if place.toy else TASKS
    return [
        Unit(f"{' and '.join(others)}: {task.name}", partial(_run, task, others))
        for others in ((EAGER,), (COMPILED,))
        for task in tasks
    ]


class Contender(Protocol):
    """Somebody who decodes."""

    def decode(self, prompts: Prompts, output: int) -> list[Event]:
        """When tokens came, and how many: ``bench/peers/work.py``."""
        ...


def _run(task: Task, others: Sequence[str], context: Context) -> Outcome:
    contenders: dict[str, Contender] = {OURS: _ours(context)}
    reasons = {}
    for name in others:
        try:
            contenders[name] = _theirs(context, name)
        except Exception:  # noqa: BLE001 (why it cannot take part is told; ours is measured all the same)
            reasons[name] = traceback.format_exc(limit=-3)
    vocab = context.shape(LLAMA_8B)["vocab_size"]
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-1, 1 if context.place.toy else TURNS):  # the first is to warm up
        prompts = make_prompts([task.prompt] * task.batch, vocab, f"{task.name} {turn}")
        for name, contender in contenders.items():
            if name in reasons:
                continue
            try:
                found_rate = rate(task.work, contender.decode(prompts, task.output))
            except Exception:  # noqa: BLE001 (the same)
                reasons[name] = traceback.format_exc(limit=-3)
                continue
            if turn >= 0:
                found[name].append(found_rate)
    rates = {name: statistics.median(values) for name, values in found.items() if values and name not in reasons}
    if OURS not in rates:
        raise RuntimeError(reasons[OURS])
    ratios = {name: rates[OURS] / rate for name, rate in rates.items() if name != OURS}
    figures = {
        "task": task.name,
        "tokens_per_s": rates,
        "turns": found,
        "ratios": ratios,
        "reasons": reasons,
        "versions": {"torch": torch.__version__, "transformers": getattr(_library(), "__version__", None)},
    }
    told = ", ".join(f"{ratio:.2f} × {name}" for name, ratio in ratios.items())
    why = "".join(f"; {name}: {reason.strip().splitlines()[-1]}" for name, reason in reasons.items())
    return Outcome(figures, f"{rates[OURS]:,.0f} tokens/s, {told or 'alone'}{why}")


# ---- ours ------------------------------------------------------------------------------------------------


def _ours(context: Context) -> Contender:
    tasks = TOY_TASKS if context.place.toy else TASKS
    stack: ExitStack = context.keep("stack", ExitStack)
    tokens = max(task.prompt + task.output for task in tasks)
    most = max(task.batch for task in tasks)
    config = configured(context, LLAMA_8B, num_seqs=most, num_tokens=tokens, weights="bf16")
    return context.keep(OURS, lambda: _Ours(launch.build(stack.enter_context(config)), context))  # type: ignore[no-any-return]


class _Ours:
    """The engine's own loop."""

    def __init__(self, launched: launch.Launched, context: Context) -> None:
        self._engine = launched.engine
        self._count = 0

    def decode(self, prompts: Prompts, output: int) -> list[Event]:
        params = SamplingParams(temperature=0.0, ignore_eos=True)
        for prompt in prompts:
            self._count += 1
            self._engine.add(Request(f"request-{self._count}", tuple(prompt), params, output))
        events: list[Event] = []
        while self._engine.has_work:
            made = sum(len(token_ids) for _, _, token_ids, _, _ in self._engine.step().tokens)
            events.append((time.perf_counter(), made))
        return events


# ---- transformers ----------------------------------------------------------------------------------------


def _library() -> Any:
    try:
        return import_module("transformers")
    except ImportError:
        return None


def _theirs(context: Context, name: str) -> Contender:
    return context.keep(name, partial(_Theirs, context, compiled=name == COMPILED))  # type: ignore[no-any-return]


class _Theirs:
    """``generate`` of one static batch."""

    def __init__(self, context: Context, *, compiled: bool) -> None:
        self._place, self._compiled = context.place, compiled
        self._model = context.keep("their model", partial(_model, context))

    def decode(self, prompts: Prompts, output: int) -> list[Event]:
        moments: list[float] = []
        ids = torch.tensor(prompts, device=self._place.device)
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                min_new_tokens=output,
                max_new_tokens=output,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                stopping_criteria=[partial(self._note, moments)],
                **({"cache_implementation": "static"} if self._compiled else {"disable_compile": True}),
            )
        return [(moment, len(prompts)) for moment in moments]

    def _note(self, moments: list[float], ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Called once a step, as a stopping criterion that never stops."""
        self._place.synchronise()
        moments.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


def _model(context: Context) -> Any:
    library = import_module("transformers")
    shape = {name: value for name, value in context.shape(LLAMA_8B).items() if name != "torch_dtype"}
    config = library.LlamaConfig(**shape)
    make: Callable[..., Any] = library.AutoModelForCausalLM.from_config
    with torch.device(context.place.device):
        return make(config, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
