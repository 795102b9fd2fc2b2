"""``LLM`` over a fake executor: what it adds to the engine is text, order and life; the tokens are checked against
the executor's own closed form. That the real executor gives the same is ``test_launch.py``'s matter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tokenmill import builtin
from tokenmill.core.clock import MonotonicClock
from tokenmill.core.engine_config import CacheConfig, EngineConfig, SchedulerConfig
from tokenmill.core.errors import ContextLengthExceeded, RequestError
from tokenmill.core.model_config import ModelConfig
from tokenmill.core.params import SamplingParams
from tokenmill.engine.engine import Engine
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.resolve import ModelLimits
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.text import TextCodec
from tokenmill.launch import Checkpoint, Launched, Measured
from tokenmill.llm import LLM
from tokenmill.perf.memory import Ledger
from tokenmill.testing.executor import FakeExecutor

VOCAB = 4000
GREEDY = SamplingParams(max_tokens=8, ignore_eos=True, seed=3)


@pytest.fixture(scope="module")
def codec() -> TextCodec:
    return TextCodec.load(builtin.path("story"))


def make(codec: TextCodec, *, scheduler: SchedulerConfig | None = None, num_blocks: int = 256, **fake: object) -> LLM:
    config = EngineConfig(cache=CacheConfig(num_blocks=num_blocks), scheduler=scheduler or SchedulerConfig())
    executor = FakeExecutor(num_blocks, 16, vocab_size=VOCAB, **fake)
    executor.start()
    engine = Engine(Scheduler(KVCache(num_blocks, 16), config.scheduler), executor, MonotonicClock())
    model = ModelConfig.from_hf(
        {"architectures": ["LlamaForCausalLM"], "vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 1,
         "num_attention_heads": 2, "intermediate_size": 64}
    )  # fmt: skip
    ledger = Ledger((), 0, "float32", 16, num_blocks, 1024)
    checkpoint = Checkpoint(Path("nowhere"), "fake", model, codec, ledger)
    limits = ModelLimits(max_context=1024, vocab_size=VOCAB, eos_token_ids=frozenset({2}))
    return LLM.over(Launched(config, checkpoint, engine, limits, Measured(0, 0, 0)))


@pytest.fixture
def llm(codec: TextCodec) -> LLM:
    return make(codec)


def expected(llm: LLM, prompt: list[int], params: SamplingParams = GREEDY) -> tuple[int, ...]:
    executor = llm.launched.engine.executor
    assert isinstance(executor, FakeExecutor)
    return executor.expected_tokens(prompt, params.max_tokens or 0, seed=params.seed or 0)


def blocks_held(llm: LLM) -> int:
    llm.launched.engine.scheduler.check()
    return llm.launched.engine.scheduler.cache.pool.num_held


def test_answers_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    prompts = [[5, 6, 7], list(range(10, 400)), [9]]
    longer_first = [SamplingParams(max_tokens=12 - 4 * i, ignore_eos=True) for i in range(3)]
    assert [position for position, _ in llm.iter_completions(prompts, longer_first)] == [2, 1, 0]
    found = llm.generate(prompts, GREEDY)
    assert [one.choices[0].token_ids for one in found] == [expected(llm, prompt) for prompt in prompts]
    assert [one.usage.prompt_tokens for one in found] == [3, 390, 1]
    assert blocks_held(llm) == 0


def test_the_text_is_the_tokens_text(llm: LLM) -> None:
    (answer,) = llm.generate("Once upon a time", GREEDY)
    assert answer.prompt_token_ids == tuple(llm.codec.encode("Once upon a time"))
    assert answer.text == llm.codec.decode(answer.choices[0].token_ids)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 8


def test_one_prompt_as_text_or_tokens_and_parameters_for_each(llm: LLM) -> None:
    assert len(llm.generate([5, 6, 7], GREEDY)) == 1
    short, long = llm.generate(
        ["a", "b"], [SamplingParams(max_tokens=1), SamplingParams(max_tokens=4, ignore_eos=True)]
    )
    assert (short.usage.completion_tokens, long.usage.completion_tokens) == (1, 4)
    with pytest.raises(ValueError, match="2 prompts, but 1"):
        llm.generate(["a", "b"], [GREEDY])
    assert llm.generate([], GREEDY) == []


def test_streamed_increments_make_the_same_answer(llm: LLM) -> None:
    outputs = list(llm.stream("Once", GREEDY))
    (whole,) = llm.generate("Once", GREEDY)
    assert "".join(output.text for output in outputs) == whole.text
    assert sum((output.token_ids for output in outputs), ()) == whole.choices[0].token_ids
    assert [output.finish_reason for output in outputs][-1] == "length"


def test_leaving_a_stream_early_frees_its_blocks(llm: LLM) -> None:
    stream = llm.stream("Once", SamplingParams(max_tokens=500, ignore_eos=True))
    next(stream)
    assert blocks_held(llm) > 0
    stream.close()
    assert blocks_held(llm) == 0
    assert not llm.launched.engine.has_work


def test_a_stream_and_a_batch_share_the_engine(llm: LLM) -> None:
    stream = llm.stream([5, 6, 7], GREEDY)
    first = next(stream)
    (other,) = llm.generate([9], GREEDY)
    rest = [token for output in stream for token in output.token_ids]
    assert (*first.token_ids, *rest) == expected(llm, [5, 6, 7])
    assert other.choices[0].token_ids == expected(llm, [9])


def test_a_stop_string_ends_the_answer_and_the_engine_is_told(llm: LLM) -> None:
    params = SamplingParams(max_tokens=200, ignore_eos=True, seed=3)
    (whole,) = llm.generate([5, 6, 7], params)
    stop = whole.text[20:24]
    (cut,) = llm.generate([5, 6, 7], SamplingParams(max_tokens=200, ignore_eos=True, seed=3, stop=(stop,)))
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert (cut.choices[0].finish_reason, cut.choices[0].stop_reason) == ("stop", stop)
    assert cut.usage.completion_tokens < 200
    assert blocks_held(llm) == 0


def test_every_choice_draws_as_a_request_of_its_own_seed(llm: LLM) -> None:
    (several,) = llm.generate([5, 6, 7], SamplingParams(n=3, max_tokens=6, ignore_eos=True, seed=40))
    alone = [SamplingParams(max_tokens=6, ignore_eos=True, seed=40 + i) for i in range(3)]
    assert [choice.token_ids for choice in several.choices] == [expected(llm, [5, 6, 7], one) for one in alone]
    assert several.usage.completion_tokens == 18


def test_best_of_returns_the_likeliest_and_hides_what_was_not_asked_for(llm: LLM) -> None:
    asked = SamplingParams(n=4, max_tokens=6, ignore_eos=True, seed=40, logprobs=0)
    (every,) = llm.generate([5, 6, 7], asked)
    means = [sum(e.logprob for e in c.logprobs or ()) / len(c.token_ids) for c in every.choices]
    best = max(range(4), key=lambda index: means[index])
    (one,) = llm.generate([5, 6, 7], SamplingParams(n=1, best_of=4, max_tokens=6, ignore_eos=True, seed=40))
    assert one.choices[0].token_ids == every.choices[best].token_ids
    assert one.choices[0].index == 0
    assert one.choices[0].logprobs is None


def test_logprobs_of_answer_and_prompt(llm: LLM) -> None:
    (answer,) = llm.generate([5, 6, 7], SamplingParams(max_tokens=4, ignore_eos=True, logprobs=2, prompt_logprobs=1))
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and len(logprobs) == 4 and all(len(entry.top) == 2 for entry in logprobs)
    assert answer.prompt_logprobs is not None
    assert [entry and entry.token_id for entry in answer.prompt_logprobs] == [None, 6, 7]


def test_a_prompt_alone_can_be_computed(llm: LLM) -> None:
    (answer,) = llm.generate([5, 6, 7], SamplingParams(max_tokens=0, prompt_logprobs=0))
    assert (answer.text, answer.choices[0].finish_reason) == ("", "length")
    assert answer.prompt_logprobs is not None and len(answer.prompt_logprobs) == 3


def test_one_impossible_prompt_is_refused_with_the_numbers_and_the_others_given_up(llm: LLM) -> None:
    with pytest.raises(ContextLengthExceeded, match="1024"):
        llm.generate([[5], [6] * 2000], GREEDY)
    assert blocks_held(llm) == 0
    found = dict(llm.iter_completions([[5], [6] * 2000, [7]], GREEDY))
    assert isinstance(found[1], ContextLengthExceeded)
    assert [found[i].choices[0].token_ids for i in (0, 2)] == [expected(llm, [5]), expected(llm, [7])]


def test_a_request_that_fails_on_the_way_fails_alone(codec: TextCodec) -> None:
    llm = make(codec, fail=lambda seq_id, position: "not finite" if position == 5 else None)
    found = dict(llm.iter_completions([[5, 6], [7] * 10], GREEDY))
    assert isinstance(found[0], RequestError) and "not finite" in str(found[0])
    assert found[1].choices[0].token_ids == expected(llm, [7] * 10)
    with pytest.raises(RequestError, match="not finite"):
        list(llm.stream([5, 6], GREEDY))
    assert blocks_held(llm) == 0


def test_a_dynamic_batch_that_is_not_full_starts_after_its_wait(codec: TextCodec) -> None:
    llm = make(codec, scheduler=SchedulerConfig(batching="dynamic", batch_wait_s=0.05))
    (answer,) = llm.generate([5, 6, 7], GREEDY)
    assert answer.choices[0].token_ids == expected(llm, [5, 6, 7])
    assert answer.account.queue_s >= 0.05


def test_the_account_adds_up(llm: LLM) -> None:
    (answer,) = llm.generate([5, 6, 7], GREEDY)
    account = answer.account
    assert account.queue_s + account.prefill_s + account.decode_s == pytest.approx(account.total_s, abs=1e-6)
    assert 0 < answer.first_token_s <= account.total_s


def test_closing_closes_the_executor(codec: TextCodec) -> None:
    with make(codec) as llm:
        executor = llm.launched.engine.executor
    assert isinstance(executor, FakeExecutor) and executor.closed


def test_progress_goes_to_standard_error(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(llm.generate(["a", "b"], GREEDY, progress=True)) == 2
    assert capsys.readouterr().out == ""
