"""``LLM`` with grammars: a real model, its scheduler and its worker; and the journal of such a run, replayed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from tests.grammar.support import schema_grammar
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import GrammarFailed, InvalidRequest
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.engine.grammar.matcher import GrammarMatcher
from tokenmill.engine.journal import read_records, replay
from tokenmill.launch import Silent, inspect, load_executor
from tokenmill.llm import LLM

SCHEMA = {
    "type": "object",
    "properties": {"who": {"type": "string", "maxLength": 20}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["who", "n"],
    "additionalProperties": False,
}
OPTIONS = {"model": "story-draft", "kernels": "reference", "num_threads": 1, "max_context": 128}
PROMPT = "Once upon a time there was"


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(**OPTIONS, num_blocks=64) as llm:
        yield llm


def test_every_choice_keeps_to_its_own_copy(llm: LLM) -> None:
    params = SamplingParams(max_tokens=60, seed=1, n=4, grammar=schema_grammar(SCHEMA))
    (answer,) = llm.generate(PROMPT, params)
    texts = [choice.text for choice in answer.choices]
    assert len(set(texts)) > 1 and all(choice.finish_reason == "stop" for choice in answer.choices)
    for text in texts:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_a_batch_of_different_grammars_and_none(llm: LLM) -> None:
    """Together and one by one, the same answers."""
    grammars = [Grammar("regex", r"[a-z]{3,9}\.[0-9]"), None, schema_grammar(SCHEMA), Grammar("choice", '["a", "bc"]')]
    params = [SamplingParams(max_tokens=40, seed=7, grammar=grammar) for grammar in grammars]
    together = [answer.text for answer in llm.generate([PROMPT] * 4, params)]
    assert together == [llm.generate(PROMPT, one)[0].text for one in params]
    assert re.fullmatch(r"[a-z]{3,9}\.[0-9]", together[0])


def test_preempted_by_a_small_pool_the_answers_are_the_same(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=60, seed=seed, grammar=schema_grammar(SCHEMA)) for seed in range(6)]
    expected = [answer.text for answer in llm.generate([PROMPT] * 6, params)]
    with LLM(**OPTIONS, num_blocks=8, block_size=16) as small:
        found = [answer.text for answer in small.generate([PROMPT] * 6, params)]
        assert small.launched.engine.scheduler.num_preemptions > 0
    assert found == expected


def test_a_bad_grammar_is_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InvalidRequest) as caught:
        llm.generate(PROMPT, SamplingParams(grammar=Grammar("regex", "(a")))
    assert caught.value.param == "grammar"
    assert not llm.launched.engine.has_work


def test_a_grammar_that_fails_on_the_way_ends_one_answer(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """FT-09."""
    (alone,) = llm.generate(PROMPT, SamplingParams(max_tokens=12, temperature=0.0))
    advance = GrammarMatcher.advance

    def broken(self: GrammarMatcher, token_ids: list[int]) -> None:
        if token_ids:
            raise RuntimeError("a bug in the matcher")
        advance(self, token_ids)

    monkeypatch.setattr(GrammarMatcher, "advance", broken)
    params = [
        SamplingParams(max_tokens=12, temperature=0.0),
        SamplingParams(max_tokens=12, grammar=schema_grammar(SCHEMA)),
    ]
    found = dict(llm.iter_completions([PROMPT, PROMPT], params))
    error, plain = found[1], found[0]
    assert isinstance(error, GrammarFailed) and "RuntimeError" in error.message
    assert not isinstance(plain, Exception) and plain.text == alone.text
    assert llm.launched.engine.scheduler.cache.pool.num_held == 0


def test_a_journal_with_grammars_replays_bit_for_bit(tmp_path: Path) -> None:
    journal = tmp_path / "run.jsonl"
    with LLM(**OPTIONS, num_blocks=64, journal=str(journal)) as llm:
        llm.generate(PROMPT, SamplingParams(max_tokens=40, seed=3, grammar=schema_grammar(SCHEMA)))
    config = EngineConfig.from_options(**OPTIONS, num_blocks=64)
    checkpoint = inspect(config)
    executor, _ = load_executor(config, checkpoint, Silent())
    steps = list(replay(read_records(journal), executor))
    checkpoint.grammars.close()
    assert len(steps) > 5 and not any(mismatches for _, mismatches in steps)
