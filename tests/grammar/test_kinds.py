"""Regular expressions, choices and Lark grammars: whole answers match; and what sampling wishes do to them."""

from __future__ import annotations

import json
import re

import pytest
import torch

from tests.grammar.support import PROMPT, Drawn, codec, draw, new_sequence, noise, schema_grammar
from tokenmill.core.errors import InvalidRequest
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.engine.grammar.compiler import GrammarCompiler
from tokenmill.engine.grammar.source import as_lark
from tokenmill.runtime.sampling import Sampler

PATTERNS = [
    r"[a-f]{3}-\d+",
    r"^(yes|no|may be)$",
    r"(\([0-9]{3}\) )?[0-9]{3}-[0-9]{4}",
    r"[^\n]{5,30}!",
    r"x*",
    r"\$\d+\.\d{2}",
    r"line one\nline two",
    r"äöü[é-ï]+",
    r"^a/b\/c\\$",
    r"two\$",
    "a line\nand another",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_regular_expression_matches_the_whole_answer(compiler: GrammarCompiler, pattern: str) -> None:
    drawn = [draw(compiler, Grammar("regex", pattern), seed, max_tokens=80) for seed in range(4)]
    ended = [one for one in drawn if one.ended]
    assert ended
    assert all(re.fullmatch(pattern, one.text) for one in ended)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_as_a_term_of_a_lark_grammar_it_matches_the_same(compiler: GrammarCompiler, pattern: str) -> None:
    lark = Grammar("lark", f"start: {as_lark(pattern)}\n")
    drawn = [draw(compiler, lark, seed, max_tokens=80) for seed in range(2)]
    assert all(re.fullmatch(pattern, one.text) for one in drawn if one.ended)
    assert [one.text for one in drawn] == [
        draw(compiler, Grammar("regex", pattern), seed, max_tokens=80).text for seed in range(2)
    ]


def test_a_choice_is_one_of_them(compiler: GrammarCompiler) -> None:
    choices = ["yes", "no", "may be", 'a "quoted" one\n', "größer 🙂", "no, never", "\\"]
    drawn = [draw(compiler, Grammar("choice", json.dumps(choices)), seed) for seed in range(12)]
    assert all(one.ended and one.text in choices for one in drawn)
    assert len({one.text for one in drawn}) > 2


def test_a_lark_grammar_is_kept_to(compiler: GrammarCompiler) -> None:
    lark = 'start: sum\nsum: product ("+" product)*\nproduct: NUMBER ("*" NUMBER)*\nNUMBER: /[1-9][0-9]{0,2}/'
    drawn = [draw(compiler, Grammar("lark", lark), seed) for seed in range(6)]
    assert any(one.ended for one in drawn)
    for one in drawn:
        if one.ended:
            assert re.fullmatch(r"[1-9][0-9]{0,2}([+*][1-9][0-9]{0,2})*", one.text)


def test_gbnf_is_read_too(compiler: GrammarCompiler) -> None:
    gbnf = 'root ::= greeting " " name\ngreeting ::= "hello" | "bye"\nname ::= [a-z]{2,4}'
    drawn = draw(compiler, Grammar("lark", gbnf), 1)
    assert drawn.ended and re.fullmatch("(hello|bye) [a-z]{2,4}", drawn.text)


# ---- what else a request may wish -----------------------------------------------------------------------------


def test_the_end_comes_only_where_the_grammar_accepts(compiler: GrammarCompiler) -> None:
    """Even from a model that wants nothing but the end."""
    eos = next(iter(codec().eos_token_ids))
    drawn = draw(compiler, Grammar("regex", "[ab]{3}c{0,9}"), 0, logit_bias={eos: 100.0})
    assert drawn.ended and re.fullmatch("[ab]{3}c{0,9}", drawn.text) and len(drawn.token_ids) <= 4


def test_an_answer_that_is_complete_ends_whatever_bans_the_end(compiler: GrammarCompiler) -> None:
    eos = next(iter(codec().eos_token_ids))
    choice = Grammar("choice", '["yes", "no"]')
    for wishes in ({"min_tokens": 50}, {"logit_bias": {eos: -100.0}}, {"bad_words_ids": ((eos,),)}):
        drawn = draw(compiler, choice, 3, max_tokens=60, **wishes)
        assert drawn.ended and drawn.text in ("yes", "no"), wishes


def test_min_tokens_holds_while_the_grammar_can_go_on(compiler: GrammarCompiler) -> None:
    eos = next(iter(codec().eos_token_ids))
    drawn = draw(compiler, Grammar("regex", "[a-z]+"), 0, min_tokens=12, logit_bias={eos: 100.0})
    assert drawn.ended and len(drawn.token_ids) == 13


def test_bans_and_grammar_both_hold(compiler: GrammarCompiler) -> None:
    """``allowed_token_ids`` within a grammar; where nothing is left, an error that says so, and never a token."""
    yes, no = (codec().encode(text, add_special_tokens=False)[-1] for text in ("yes", "no"))
    seq = new_sequence(compiler, Grammar("regex", "[0-9]+"), allowed_token_ids=(yes, no))
    (sample,) = Sampler().sample(noise(seq)[None], [seq])
    assert sample.token_id is None and "banned at position 3" in (sample.error or "") and sample.error_code is None


def test_ignore_eos_and_a_grammar_exclude_each_other() -> None:
    with pytest.raises(InvalidRequest) as caught:
        SamplingParams(grammar=Grammar("json_object"), ignore_eos=True)
    assert caught.value.param == "ignore_eos"


def test_log_probabilities_are_those_of_the_model(compiler: GrammarCompiler) -> None:
    """Untouched by the mask, as by every other stage."""
    seq = new_sequence(compiler, Grammar("choice", '["zebra"]'), logprobs=2)
    logits = noise(seq)
    (sample,) = Sampler().sample(logits.clone()[None], [seq])
    assert sample.logprobs is not None and sample.token_id is not None
    expected = torch.log_softmax(logits.double(), 0)[sample.token_id]
    assert sample.logprobs.logprob == pytest.approx(float(expected), abs=1e-4)


def test_a_row_without_logits_fails_alone(compiler: GrammarCompiler) -> None:
    """NaN in one row of three; the others draw what they draw alone."""
    sequences = [new_sequence(compiler, Grammar("regex", "[a-z]+"), seed) for seed in range(3)]
    logits = torch.stack([noise(seq) for seq in sequences])
    alone = [Sampler().sample(logits[i : i + 1].clone(), [sequences[i]])[0].token_id for i in range(3)]
    logits[1, 7] = float("nan")
    samples = Sampler().sample(logits, sequences)
    assert [sample.token_id for sample in samples] == [alone[0], None, alone[2]]


# ---- independence (E12) -------------------------------------------------------------------------------------

MIXED = [
    Grammar("regex", "[a-z]{4,12}"),
    None,
    Grammar("choice", '["red", "green", "blue"]'),
    schema_grammar({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
    Grammar("lark", 'start: "x" /[0-9]/+'),
]


def together(compiler: GrammarCompiler, num_tokens: int) -> list[list[int]]:
    sequences = [new_sequence(compiler, grammar, seed) for seed, grammar in enumerate(MIXED)]
    sampler = Sampler()
    for _ in range(num_tokens):
        sampler.look_ahead(sequences)
        samples = sampler.sample(torch.stack([noise(seq) for seq in sequences]), sequences)
        for seq, sample in zip(sequences, samples, strict=True):
            assert sample.token_id is not None, sample.error
            seq.token_ids.append(sample.token_id)
    return [seq.token_ids[len(PROMPT) :] for seq in sequences]


def test_alone_and_in_company_the_tokens_are_the_same(compiler: GrammarCompiler) -> None:
    company = together(compiler, 10)  # some go on after their end, as a step planned ahead does
    for seed, grammar in enumerate(MIXED):
        seq, sampler = new_sequence(compiler, grammar, seed), Sampler()
        for _ in range(10):
            (sample,) = sampler.sample(noise(seq)[None], [seq])  # without looking ahead
            assert sample.token_id is not None
            seq.token_ids.append(sample.token_id)
        assert seq.token_ids[len(PROMPT) :] == company[seed]


def test_made_anew_after_a_preemption_it_goes_on_as_before(compiler: GrammarCompiler) -> None:
    grammar = MIXED[3]
    whole = draw(compiler, grammar, 4, end=0.0, max_tokens=30)
    for cut in (1, 7, 15):
        seq, sampler = new_sequence(compiler, grammar, 4), Sampler()
        seq.token_ids += whole.token_ids[:cut]  # as a plan brings a sequence back: with what it has generated
        for expected in whole.token_ids[cut:]:
            (sample,) = sampler.sample(noise(seq)[None], [seq])
            assert sample.token_id == expected
            seq.token_ids.append(sample.token_id)


def test_the_same_answer_at_every_run(compiler: GrammarCompiler) -> None:
    grammar = schema_grammar({"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 4})
    runs: list[Drawn] = [draw(compiler, grammar, 9) for _ in range(3)]
    assert runs[0] == runs[1] == runs[2]
