"""The same answer, whatever the weather: a real (tiny) model through the whole engine, bit for bit.

Each request is first run alone. Then it runs in company, cut into chunks, from cached prefixes, preempted,
among requests that are aborted, one step ahead, with blocks of other sizes: tokens and log-probabilities
must be equal to the last bit. The KV pool is poisoned: whatever is read before it is written is NaN.
All of it holds for the reference kernels and for the fast ones in every precision.

Cases CC-01, CC-02, CC-03, CC-04, CC-14, CC-16.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tokenmill.core.clock import VirtualClock
from tokenmill.core.engine_config import SchedulerConfig
from tokenmill.core.events import Failed, FinishedRecord
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.core.precision import Precision
from tokenmill.core.request import Request
from tokenmill.core.step import TokenLogprobs
from tokenmill.engine.engine import Engine
from tokenmill.engine.grammar.compiler import GrammarCompiler
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.text import TextCodec
from tokenmill.kernels.cpu.kv import PagedKV
from tokenmill.kernels.cpu.library import load
from tokenmill.kernels.cpu.records import WeightFormat
from tokenmill.kernels.kv import KVTensors
from tokenmill.models.decoder import Decoder
from tokenmill.models.load import load_model
from tokenmill.models.quantization.packed import PackedScheme
from tokenmill.runtime.compiled import CompiledModel
from tokenmill.runtime.eager import EagerModel
from tokenmill.runtime.executor import LocalExecutor
from tokenmill.runtime.step_model import StepModel
from tokenmill.runtime.worker import MIN_STEP_TOKENS, Worker
from tokenmill.testing import checkpoints

VOCAB = 307
CONTEXT = 160

Answer = list[tuple[int, TokenLogprobs]]


@dataclass(frozen=True)
class Model:
    """A tiny decoder, to be run by one kind of kernels."""

    decoder: Decoder
    precision: Precision
    least_block: int
    """The smallest block that its cache can have."""

    def served(self, num_blocks: int, block_size: int, max_tokens: int) -> StepModel:
        """With a pool of its own."""
        config = self.decoder.config
        if self.precision.kernels == "reference":
            return EagerModel(self.decoder, KVTensors.allocate(config, num_blocks, block_size))
        kv = PagedKV(config, num_blocks, block_size, WeightFormat[self.precision.kv.upper()])
        pool = load().new_pool(torch.get_num_threads())
        return CompiledModel(self.decoder, kv, pool, max_tokens=max_tokens, max_outputs=256)


PRECISIONS = {
    "reference": Precision("reference", "float32", "float32", "float32"),
    "bf16": Precision("fast", "bf16", "bf16", "bf16"),
    "int8": Precision("fast", "int8", "int8", "bf16"),
    "int4": Precision("fast", "int4", "int8", "bf16", group_size=32),
    "w4a16": Precision("fast", "int4", "int8", "bf16", group_size=32, weight_only=True),
    "int8-kv8": Precision("fast", "int8", "bf16", "int8"),
}


def load_as(folder: Path, precision: Precision) -> Model:
    if precision.kernels == "reference":
        return Model(load_model(folder), precision, 1)
    return Model(load_model(folder, scheme=PackedScheme(precision)), precision, 16)


@pytest.fixture(scope="module", params=PRECISIONS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Two layers, grouped queries; the second layer sees a window of 40 positions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "LOGIT_STD", 2.4)  # undecided enough for seeds to matter
        folder = checkpoints.make_checkpoint(
            tmp_path_factory.mktemp("independence"),
            "qwen2",
            vocab_size=VOCAB,
            max_context=256,
            intermediate_size=96,
            tokenizer=False,
            use_sliding_window=True,
            sliding_window=40,
            max_window_layers=1,
        )
    made = load_as(folder, PRECISIONS[request.param])
    assert made.decoder.config.windows == (None, 40)
    return made


# ---- requests --------------------------------------------------------------------------------------------

WISHES: tuple[dict[str, Any], ...] = (
    {"temperature": 0.0},
    {"temperature": 1.0},
    {"temperature": 0.0, "repetition_penalty": 1.3},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.2, "top_k": 20, "presence_penalty": 0.6},
    {"temperature": 1.0, "typical_p": 0.8, "frequency_penalty": 0.5},
    {"temperature": 0.9, "min_p": 0.05, "bad_words_ids": ((7,), (3, 4)), "logit_bias": {9: 2.0}},
    {"temperature": 1.0, "grammar": Grammar("regex", "([a-z]{2,5} |[0-9]+,){900,}")},
)


class Letters:
    """As much of a codec as a grammar needs: tokens of one byte, and some of two and three."""

    special_ids = frozenset({VOCAB - 1})

    def token_bytes(self, token_id: int) -> bytes:
        if token_id < 256:
            return bytes([token_id])
        return f"{chr(97 + token_id % 26)}{token_id % 7}, "[: 1 + token_id % 3].encode()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())


GRAMMARS = GrammarCompiler(cast(TextCodec, Letters()), VOCAB, {VOCAB - 1})


def tokens(count: int, seed: int) -> tuple[int, ...]:
    rng = random.Random(seed)
    return tuple(rng.randrange(VOCAB) for _ in range(count))


def request(number: int, prompt: tuple[int, ...], max_new_tokens: int = 6, **wishes: Any) -> Request:
    params = SamplingParams(**{**WISHES[number % len(WISHES)], "logprobs": number % 3, **wishes})
    return Request(f"r{number}", prompt, params, max_new_tokens, seed=1000 + number)


def mixed_requests(count: int, longest: int, seed: int = 0) -> list[Request]:
    rng = random.Random(seed)
    lengths = [(rng.randint(1, longest), rng.randint(2, 8)) for _ in range(count)]
    return [request(i, tokens(length, seed * 1000 + i), new) for i, (length, new) in enumerate(lengths)]


# ---- the engine over a poisoned pool ---------------------------------------------------------------------


@dataclass
class House:
    """Engine, scheduler, worker; collects what comes out. ``disturb`` is called before each step."""

    model: Model
    block_size: int = 16
    num_blocks: int = 0
    depth: int = 1
    max_seqs: int = 64
    chunk: int = 512
    prefix_caching: bool = True
    max_steps: int = 5000
    answers: dict[tuple[str, int], Answer] = field(default_factory=dict)
    ended: dict[tuple[str, int], str] = field(default_factory=dict)
    records: dict[str, FinishedRecord] = field(default_factory=dict)
    failures: list[Failed] = field(default_factory=list)
    embeddings: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        num_blocks = self.num_blocks or 64 * -(-CONTEXT // self.block_size)
        self.worker = Worker(
            self.model.served(num_blocks, self.block_size, max(self.chunk, MIN_STEP_TOKENS)),
            grammars=GRAMMARS,
            poison=True,
        )
        executor = LocalExecutor(self.worker)
        executor.start()
        self.clock = VirtualClock()
        self.cache = KVCache(num_blocks, self.block_size, prefix_caching=self.prefix_caching)
        config = SchedulerConfig(max_seqs=self.max_seqs, max_step_tokens=self.chunk)
        self.scheduler = Scheduler(self.cache, config)
        self.engine = Engine(self.scheduler, executor, self.clock, depth=self.depth)

    def run(
        self,
        requests: Sequence[Request],
        *,
        arrivals: Sequence[int] | None = None,
        disturb: Callable[[int], None] = lambda step: None,
    ) -> dict[tuple[str, int], Answer]:
        """Run to the end; ``arrivals[i]``: the step before which request i comes (all at once if None)."""
        coming = sorted(zip(arrivals or [0] * len(requests), range(len(requests)), strict=True))
        step = 0
        while coming or self.engine.has_work:
            while coming and (coming[0][0] <= step or not self.engine.has_work):
                self.engine.add(requests[coming.pop(0)[1]])
            disturb(step)
            self._step()
            step += 1
            assert step < self.max_steps, "the engine makes no progress"
        self.cache.pool.check([])
        return self.answers

    def _step(self) -> None:
        self.clock.advance(0.001)
        events = self.engine.step()
        self.scheduler.check()
        for request_id, index, token_ids, logprobs, reason in events.tokens:
            answer = self.answers.setdefault((request_id, index), [])
            answer += zip(token_ids, logprobs or (), strict=True)
            if reason:
                self.ended[request_id, index] = reason
        self.embeddings |= {event.request_id: event.values for event in events.embeddings}
        self.failures += [d for d in events.decisions if isinstance(d, Failed)]
        self.records |= {record.request_id: record for record in events.finished}


class Alone:
    """The reference: each request by itself, in one chunk, remembered."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[str, Answer] = {}

    def __call__(self, req: Request, index: int = 0) -> Answer:
        single = replace(req, params=replace(req.params, n=1, best_of=None), seed=req.sequence_seed(index))
        key = repr((single.prompt_token_ids, single.params, single.seed, single.max_new_tokens))
        if key not in self._known:
            self._known[key] = House(self._model, num_blocks=16).run([single])[req.id, 0]
            assert len(self._known[key]) == req.max_new_tokens
        return self._known[key]

    def check(self, house: House, requests: Sequence[Request]) -> None:
        assert not house.failures
        for req in requests:
            for index in range(req.num_sequences):
                assert house.answers[req.id, index] == self(req, index), (req.id, index)
                assert house.ended[req.id, index] == "length"
            record = house.records[req.id]
            usage = (len(req.prompt_token_ids), req.max_new_tokens * req.num_sequences)
            assert (record.prompt_tokens, record.generated_tokens) == usage, req.id


@pytest.fixture(scope="module")
def alone(model: Model) -> Alone:
    return Alone(model)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """One thread, which is quicker at this size; ``test_two_threads_give_what_one_gave`` takes two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- the weather -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_seqs", "depth"), [(1, 2), (2, 1), (8, 2), (33, 1), (64, 1), (64, 2)])
def test_cc01_company(model: Model, alone: Alone, max_seqs: int, depth: int) -> None:
    """64 requests arriving at random, at concurrency 1 to 64, one and two steps in flight."""
    requests = mixed_requests({1: 10, 2: 16, 8: 32}.get(max_seqs, 64), 60)
    rng = random.Random(max_seqs)
    arrivals = [rng.randrange(0, 1 + 60 // max_seqs) for _ in requests]
    house = House(model, max_seqs=max_seqs, depth=depth, chunk=200)
    house.run(requests, arrivals=arrivals)
    alone.check(house, requests)


def test_two_threads_give_what_one_gave(model: Model, alone: Alone) -> None:
    requests = mixed_requests(16, 60)
    references = [alone(req) for req in requests]
    torch.set_num_threads(2)
    assert Alone(model)(requests[1]) == references[1]
    house = House(model)
    house.run(requests)
    alone.check(house, requests)


@pytest.mark.parametrize("block_size", [1, 8, 16, 64])
@pytest.mark.parametrize("chunk", [1, 7, 16, 64, 512])
def test_cc02_chunks(model: Model, alone: Alone, chunk: int, block_size: int) -> None:
    lengths = (18, 5, 17) if chunk == 1 else (33, 130, 64, 5, 17)
    requests = [request(100 + i, tokens(length, 100 + i), 4) for i, length in enumerate(lengths)]
    house = House(model, chunk=chunk, block_size=max(block_size, model.least_block), depth=1 + chunk % 2)
    house.run(requests)
    alone.check(house, requests)


@pytest.mark.parametrize("block_size", [8, 16, 64])
@pytest.mark.parametrize("depth", [1, 2])
def test_cc03_prefix_hits(model: Model, alone: Alone, block_size: int, depth: int) -> None:
    """Cold, warm by k·B-1, k·B and k·B+1 shared tokens, the whole prompt, and again after eviction."""
    block_size = max(block_size, model.least_block)
    k = 1 if block_size == 64 else 3
    base = tokens(k * block_size + 10, 7)
    shared = {n: base[:n] + tokens(9, n) for n in (k * block_size - 1, k * block_size, k * block_size + 1)}
    house = House(model, block_size=block_size, depth=depth, num_blocks=-(-CONTEXT // block_size))

    def ask(number: int, prompt: tuple[int, ...], cached: int) -> None:
        req = request(number, prompt, 5)
        house.run([req])
        alone.check(house, [req])
        assert house.records[req.id].cached_tokens == cached, (number, len(prompt))

    ask(200, base, 0)
    for number, (n, prompt) in enumerate(shared.items()):
        ask(201 + number, prompt, n // block_size * block_size)
    ask(210, base, (len(base) - 1) // block_size * block_size)
    ask(211, base[: k * block_size], (k - 1) * block_size)  # a full hit leaves one token to compute
    ask(212, base[: k * block_size + 1], k * block_size)
    ask(220, tokens(CONTEXT - 10, 99), 0)  # takes the whole pool: everything else is evicted
    ask(221, base, 0)
    ask(222, base, (len(base) - 1) // block_size * block_size)


@pytest.mark.parametrize("number", [301, 303])
@pytest.mark.parametrize("prefix_caching", [False, True])
def test_cc04_preempted_before_each_of_64_tokens(model: Model, alone: Alone, prefix_caching: bool, number: int) -> None:
    """A sequence loses its blocks before every step, and finds some of them in the prefix cache, or none; 303 is held
    to a grammar, which is followed anew each time."""
    req = request(number, tokens(30, number), 64)
    house = House(model, block_size=max(8, model.least_block), prefix_caching=prefix_caching)

    def disturb(step: int) -> None:
        for seq in house.scheduler.running:
            house.scheduler.preempt(seq, house.clock.now())

    house.run([req], disturb=disturb)
    assert house.scheduler.num_preemptions == 63
    alone.check(house, [req])


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize(("depth", "chunk"), [(1, 16), (2, 16), (1, 512), (2, 512)])
def test_cc04_preempted_at_random(model: Model, alone: Alone, depth: int, chunk: int, prefix_caching: bool) -> None:
    """Before two steps of three, one of five sequences loses its blocks, with its step in flight or not."""
    requests = [request(310 + i, tokens(5 + 15 * i, 310 + i), 16) for i in range(5)]
    house = House(model, depth=depth, chunk=chunk, prefix_caching=prefix_caching)
    rng = random.Random(depth + chunk)

    def disturb(step: int) -> None:
        running = house.scheduler.running
        if running and step % 3 and house.scheduler.num_preemptions < 60:
            house.scheduler.preempt(rng.choice(running), house.clock.now())

    house.run(requests, disturb=disturb)
    assert house.scheduler.num_preemptions > 7
    alone.check(house, requests)


@pytest.mark.parametrize("depth", [1, 2])
def test_cc04_a_pool_too_small_for_all(model: Model, alone: Alone, depth: int) -> None:
    requests = [request(320 + i, tokens(28 + i, 320 + i), 12) for i in range(8)]
    block_size = max(8, model.least_block)
    house = House(model, block_size=block_size, num_blocks=1 + 128 // block_size, depth=depth, chunk=64)
    house.run(requests)
    assert house.scheduler.num_preemptions > 0, "the pool was meant to run out"
    alone.check(house, requests)


@pytest.mark.parametrize("depth", [1, 2])
def test_random_aborts_disturb_nobody(model: Model, alone: Alone, depth: int) -> None:
    requests = mixed_requests(24, 60)
    rng = random.Random(depth)
    block_size = max(8, model.least_block)
    house = House(model, block_size=block_size, num_blocks=480 // block_size, depth=depth, chunk=64)
    aborted: set[str] = set()

    def disturb(step: int) -> None:
        under_way = [req.id for req in requests if (req.id, 0) not in house.ended and req.id not in aborted]
        if step % 2 and under_way and len(aborted) < 10:
            victim = rng.choice(under_way[:12])
            aborted.add(victim)
            house.engine.abort(victim)

    house.run(requests, disturb=disturb)
    assert len(aborted) >= 9 and {failed.request_id for failed in house.failures} == aborted
    house.failures.clear()
    alone.check(house, [req for req in requests if req.id not in aborted])
    house.run([request(399, tokens(9, 399))])
    assert len(house.worker.known_seq_ids) == 1, "the worker forgets what ended (the last is told with the next step)"


@pytest.mark.parametrize("length", [7, 8, 9, 15, 16, 17, 1])
@pytest.mark.parametrize("depth", [1, 2])
def test_cc16_choices_share_the_prompt(model: Model, alone: Alone, length: int, depth: int) -> None:
    """n = 4 from one prompt at block edges: choice i is a separate run with seed + i."""
    req = request(400 + length, tokens(length, 400 + length), 5, n=4, temperature=1.0)
    others = mixed_requests(3, 30, seed=6)
    house = House(model, block_size=max(8, model.least_block), depth=depth, chunk=16)
    house.run([others[0], req, *others[1:]])
    alone.check(house, [req, *others])
    assert len({tuple(t for t, _ in house.answers[req.id, i]) for i in range(4)}) > 1


def test_cc16_choices_under_preemption(model: Model, alone: Alone) -> None:
    req = request(450, tokens(21, 450), 8, n=4, temperature=1.0)
    house = House(model, block_size=max(8, model.least_block), chunk=32)
    rng = random.Random(0)

    def disturb(step: int) -> None:
        running = house.scheduler.running
        if running and step % 2:
            house.scheduler.preempt(rng.choice(running), house.clock.now())

    house.run([req], disturb=disturb)
    alone.check(house, [req])


def test_cc14_seeded_draws_survive_restarts(model: Model) -> None:
    """The same seed alone and among 63 others, three times over."""
    mine = request(1, tokens(30, 1), 8, temperature=1.0)
    crowd = mixed_requests(64, 40, seed=8)[2:]
    answers = []
    for restart in range(3):
        house = House(model, depth=1 + restart % 2)
        house.run([*crowd[:restart], mine, *crowd[restart:]][: 1 if restart == 0 else 64])
        answers.append(house.answers[mine.id, 0] if restart else house.run([replace(mine, id="again")])["again", 0])
    assert answers[0] == answers[1] == answers[2]
