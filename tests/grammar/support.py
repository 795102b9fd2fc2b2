"""Answers drawn from random logits: what a model with no sense at all writes within a grammar.

No model runs here: the sampler is given noise instead of logits, so a schema that is kept to is kept to by the
grammar alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from tokenmill import builtin
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.engine.grammar.compiler import Budget, GrammarCompiler
from tokenmill.engine.text import TextCodec
from tokenmill.runtime.sampling import SampledSequence, Sampler

PROMPT = (5, 6, 7)


@cache
def codec() -> TextCodec:
    return TextCodec.load(builtin.path("story"))


def new_compiler(budget: Budget | None = None) -> GrammarCompiler:
    return GrammarCompiler(codec(), codec().vocab_size, codec().eos_token_ids, budget=budget)


def schema_grammar(schema: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


@dataclass
class Drawn:
    token_ids: list[int]
    text: str
    ended: bool
    """The end-of-sequence token came; else the tokens ran out."""


def new_sequence(compiler: GrammarCompiler, grammar: Grammar | None, seed: int = 0, **wishes: Any) -> SampledSequence:
    params = SamplingParams(grammar=grammar, **wishes)
    return SampledSequence(list(PROMPT), len(PROMPT), params, seed, codec().eos_token_ids, codec().vocab_size, compiler)


def noise(seq: SampledSequence, *, end: float = 0.0, spread: float = 2.0) -> torch.Tensor:
    """Logits [V] that depend on the sequence's seed and length alone. ``end`` raises those of what ends things: the
    shorter the answers, the quicker the tests."""
    generator = torch.Generator().manual_seed(seq.seed * 100_003 + len(seq.token_ids))
    logits = torch.randn(seq.vocab_size, generator=generator) * spread
    logits[list(closing_ids())] += end
    return logits


@cache
def closing_ids() -> tuple[int, ...]:
    """Tokens that close something: the end, and whatever begins with a quote, a bracket or a brace."""
    closers = (b'"', b"}", b"]")
    plain = (i for i in range(codec().vocab_size) if codec().token_bytes(i).startswith(closers))
    return (*codec().eos_token_ids, *plain)


def draw(
    compiler: GrammarCompiler,
    grammar: Grammar,
    seed: int,
    *,
    max_tokens: int = 400,
    end: float = 3.0,
    **wishes: Any,
) -> Drawn:
    """One answer, token by token. Raises ``AssertionError`` with the reason where a row fails."""
    seq = new_sequence(compiler, grammar, seed, **wishes)
    sampler = Sampler()
    for _ in range(max_tokens):
        sampler.look_ahead([seq])
        (sample,) = sampler.sample(noise(seq, end=end)[None], [seq])
        assert sample.token_id is not None, sample.error
        seq.token_ids.append(sample.token_id)
        if sample.token_id in seq.stop_token_ids:
            break
    answer = seq.token_ids[len(PROMPT) :]
    ended = answer[-1] in seq.stop_token_ids
    text = b"".join(codec().token_bytes(token_id) for token_id in (answer[:-1] if ended else answer))
    return Drawn(answer, text.decode(errors="replace"), ended)
