"""The engine over ``DeviceModel``: the same promises as on a CPU, on a GPU or in Triton's interpreter.

A tiny model in float32: greedy answers are those of the reference kernels. Deterministic requests are the same to the
last bit alone, in company, in chunks, from cached prefixes, after preemptions, one step ahead; the pool is poisoned.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenmill.core.clock import VirtualClock
from tokenmill.core.engine_config import SchedulerConfig
from tokenmill.core.events import Failed
from tokenmill.core.params import SamplingParams
from tokenmill.core.precision import Precision
from tokenmill.core.request import Request
from tokenmill.engine.engine import Engine
from tokenmill.engine.faults import Fault, armed
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.scheduler import Scheduler
from tokenmill.kernels.kv import KVTensors
from tokenmill.models.decoder import Decoder
from tokenmill.models.load import load_model
from tokenmill.runtime.eager import EagerModel
from tokenmill.runtime.executor import LocalExecutor
from tokenmill.runtime.step_model import StepModel
from tokenmill.runtime.worker import Worker
from tokenmill.testing import checkpoints

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")

VOCAB = 97
CONTEXT = 64
BLOCK = 16
NEW = 3
"""Tokens generated: the interpreter takes a fifth of a second a step."""
FLOAT = Precision("fast", "float32", "float32", "float32", device="cuda")


def made(folder: Path, **config: Any) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "LOGIT_STD", 2.4)  # undecided enough for seeds to matter
        return checkpoints.make_checkpoint(
            folder, "qwen3", vocab_size=VOCAB, max_context=CONTEXT, hidden_size=32, intermediate_size=32,
            tokenizer=False, **config,
        )  # fmt: skip


def loaded(folder: Path, device: torch.device) -> Decoder:
    from tokenmill.models.quantization.device import DeviceScheme

    return load_model(folder, scheme=DeviceScheme(FLOAT, device))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory, device: torch.device) -> Decoder:
    return loaded(made(tmp_path_factory.mktemp("device"), num_layers=1, num_heads=2, num_kv_heads=2), device)


def device_model(decoder: Decoder, *, num_blocks: int = 24, max_seqs: int = 8, max_step_tokens: int = 64) -> StepModel:
    from tokenmill.kernels.triton.kv import DeviceKV
    from tokenmill.runtime.gpu.model import DeviceModel

    kv = DeviceKV.allocate(decoder.config, num_blocks, BLOCK, form="float32", device=decoder.device)
    return DeviceModel(decoder, kv, max_seqs=max_seqs, max_step_tokens=max_step_tokens)


class House:
    """Engine, scheduler, worker over a poisoned pool; ``disturb`` is called before each step."""

    def __init__(self, model: StepModel, *, depth: int = 1, chunk: int = 64, prefix_caching: bool = True) -> None:
        self.worker = Worker(model, poison=True)
        executor = LocalExecutor(self.worker)
        executor.start()
        self.clock = VirtualClock()
        self.cache = KVCache(model.num_blocks, BLOCK, prefix_caching=prefix_caching)
        self.scheduler = Scheduler(self.cache, SchedulerConfig(max_seqs=8, max_step_tokens=chunk))
        self.engine = Engine(self.scheduler, executor, self.clock, depth=depth)
        self.answers: dict[tuple[str, int], list[int]] = {}
        self.failures: dict[str, Failed] = {}

    def run(
        self, requests: Sequence[Request], disturb: Callable[[int], None] = lambda step: None
    ) -> dict[tuple[str, int], list[int]]:
        for request in requests:
            self.engine.add(request)
        step = 0
        while self.engine.has_work:
            disturb(step)
            self.clock.advance(0.001)
            events = self.engine.step()
            self.scheduler.check()
            for request_id, index, token_ids, _, _ in events.tokens:
                self.answers.setdefault((request_id, index), []).extend(token_ids)
            self.failures |= {d.request_id: d for d in events.decisions if isinstance(d, Failed)}
            step += 1
            assert step < 500, "the engine makes no progress"
        self.cache.pool.check([])
        return self.answers


def prompt(length: int, seed: int) -> tuple[int, ...]:
    chance = random.Random(seed)
    return tuple(chance.randrange(VOCAB) for _ in range(length))


def request(number: int, length: int, max_new_tokens: int = NEW, **wishes: Any) -> Request:
    params = SamplingParams(**{"deterministic": True, "temperature": 0.0, **wishes})
    return Request(f"r{number}", prompt(length, number), params, max_new_tokens, seed=1000 + number)


WISHES: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 20, "presence_penalty": 0.6, "repetition_penalty": 1.2},
    {"temperature": 1.0, "logprobs": 1},  # the host draws
)


@pytest.fixture(scope="module")
def alone(decoder: Decoder) -> Callable[[Request], list[int]]:
    """Each request by itself, in one chunk, remembered."""
    house = House(device_model(decoder), prefix_caching=False)
    known: dict[str, list[int]] = {}

    def answer(one: Request) -> list[int]:
        if one.id not in known:
            known[one.id] = house.run([one])[one.id, 0]
        return known[one.id]

    return answer


def test_greedy_answers_are_those_of_the_reference(tmp_path: Path, device: torch.device) -> None:
    """Two layers with grouped queries; the second sees a window of 12 positions."""
    folder = made(tmp_path, use_sliding_window=True, sliding_window=12, max_window_layers=1)
    requests = [request(i, length, deterministic=False) for i, length in enumerate((1, 21))]
    decoder = load_model(folder)
    reference = EagerModel(decoder, KVTensors.allocate(decoder.config, 24, BLOCK))
    wanted = House(reference).run(requests)
    assert House(device_model(loaded(folder, device)), depth=2, chunk=16).run(requests) == wanted
    assert all(len(answer) == NEW for answer in wanted.values())


@pytest.mark.parametrize(("depth", "chunk"), [(1, 64), (2, 7)])
def test_company_chunks_and_depth_change_nothing(
    decoder: Decoder, alone: Callable[[Request], list[int]], depth: int, chunk: int
) -> None:
    requests = [request(10 + i, 3 + 3 * i, **wishes) for i, wishes in enumerate(WISHES)]
    answers = House(device_model(decoder), depth=depth, chunk=chunk).run(requests)
    assert answers == {(one.id, 0): alone(one) for one in requests}


def test_all_on_the_device_one_step_ahead(decoder: Decoder, alone: Callable[[Request], list[int]]) -> None:
    """No row wants the host: steps are launched on tokens that are not known yet."""
    requests = [request(10 + i, 3 + 3 * i, **wishes) for i, wishes in enumerate(WISHES[:3])]
    house = House(model := device_model(decoder), depth=2)
    launched = []
    forward = model.forward
    model.forward = lambda rows, outputs: launched.append(len(rows)) or forward(rows, outputs)  # type: ignore
    assert house.run(requests) == {(one.id, 0): alone(one) for one in requests}
    assert not launched, "a step was computed the long way"


def test_prefix_hits_change_nothing(decoder: Decoder, alone: Callable[[Request], list[int]]) -> None:
    base = request(30, 18)
    house = House(device_model(decoder), depth=2)
    for name, tail in (("a", ()), ("b", (1, 2, 3)), ("c", ())):
        one = replace(base, id=f"{name}30", prompt_token_ids=base.prompt_token_ids + tail)
        assert house.run([one])[one.id, 0] == alone(replace(one, id=f"alone{len(tail)}"))
    assert house.cache.num_hit_tokens == 2 * BLOCK


@pytest.mark.parametrize("depth", [1, 2])
def test_preemption_changes_nothing(decoder: Decoder, alone: Callable[[Request], list[int]], depth: int) -> None:
    requests = [request(10 + i, 3 + 3 * i, **WISHES[i]) for i in range(3)]
    house = House(device_model(decoder), depth=depth, chunk=32)
    chance = random.Random(depth)

    def disturb(step: int) -> None:
        running = house.scheduler.running
        if running and step and house.scheduler.num_preemptions < 3:
            house.scheduler.preempt(chance.choice(running), house.clock.now())

    assert house.run(requests, disturb) == {(one.id, 0): alone(one) for one in requests}
    assert house.scheduler.num_preemptions > 1


@pytest.mark.parametrize("depth", [1, 2])
def test_choices_share_their_prompt(decoder: Decoder, alone: Callable[[Request], list[int]], depth: int) -> None:
    """Blocks are copied; choice i is what a request of its own with seed + i would be."""
    one = request(50, 7, n=2, temperature=1.0)
    answers = House(device_model(decoder), depth=depth).run([one])
    params = SamplingParams(deterministic=True)
    for index in range(2):
        single = replace(one, id=f"single{index}", params=params, seed=one.sequence_seed(index))
        assert answers[one.id, index] == alone(single)


@pytest.mark.parametrize("depth", [1, 2])
def test_an_abort_and_a_stop_disturb_nobody(
    decoder: Decoder, alone: Callable[[Request], list[int]], depth: int
) -> None:
    requests = [request(10 + i, 3 + 3 * i, **WISHES[i]) for i in range(2)]
    stopping = request(60, 4)
    second = alone(stopping)[1]
    stopping = replace(stopping, id="stops", max_new_tokens=8, stop_token_ids=frozenset({second}))
    house = House(device_model(decoder), depth=depth)

    def disturb(step: int) -> None:
        if step == 2:
            house.engine.abort("r99")

    answers = house.run([*requests, request(99, 9, 20), stopping], disturb)
    assert set(house.failures) == {"r99"}
    assert len(answers["stops", 0]) <= 2 and answers["stops", 0][-1] == second
    assert {key: value for key, value in answers.items() if key[0] not in ("r99", "stops")} == {
        (one.id, 0): alone(one) for one in requests
    }


@pytest.mark.parametrize("depth", [1, 2])
def test_a_row_that_is_not_finite_fails_alone(
    decoder: Decoder, alone: Callable[[Request], list[int]], depth: int
) -> None:
    """Token 0's embedding is NaN, as is every sequence that holds it."""
    requests = [request(10 + i, 3 + 3 * i, **WISHES[i]) for i in range(3)]
    wanted = {(one.id, 0): alone(one) for one in requests}
    assert all(0 not in (*one.prompt_token_ids, *wanted[one.id, 0]) for one in requests)
    weight = decoder.embedding.parameters()[0]
    before = weight[0].clone()
    try:
        weight[0] = math.nan
        bad = replace(requests[0], id="bad", prompt_token_ids=(5, 0, 7))
        house = House(device_model(decoder), depth=depth)
        answers = house.run([requests[0], bad, *requests[1:]])
    finally:
        weight[0] = before
    assert answers == wanted
    assert set(house.failures) == {"bad"} and "not finite" in house.failures["bad"].error.message


@pytest.mark.parametrize("depth", [1, 2])
def test_a_step_that_raises_costs_the_one_request(
    decoder: Decoder, alone: Callable[[Request], list[int]], depth: int
) -> None:
    requests = [request(10 + i, 3 + 3 * i, **WISHES[i]) for i in range(3)]
    poison = replace(requests[0], id="poison", prompt_token_ids=(5, VOCAB - 1, 7))
    house = House(device_model(decoder), depth=depth)
    with armed(Fault("worker.step", token=VOCAB - 1)):
        answers = house.run([*requests[:2], poison, requests[2]])
    assert set(house.failures) == {"poison"}
    assert answers == {(one.id, 0): alone(one) for one in requests}
