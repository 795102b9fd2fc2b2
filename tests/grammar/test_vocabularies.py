"""Grammars over real tokenizers of every kind (byte-level BPE, tiktoken, SentencePiece), where they are there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import jsonschema
import pytest
import torch

from tests.grammar.support import schema_grammar
from tests.text.conftest import codec_of, tokenizer_folder
from tokenmill.core.errors import InvalidRequest
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.engine.grammar.compiler import GrammarCompiler
from tokenmill.engine.grammar.vocabulary import ForcedText
from tokenmill.engine.text import TextCodec
from tokenmill.runtime.sampling import SampledSequence, Sampler

__all__ = ["codec_of", "tokenizer_folder"]

SCHEMA = {
    "type": "object",
    "properties": {
        "größe": {"enum": ["klein – 1", "groß 日本"]},
        "a long name with spaces": {"type": "integer", "minimum": 1, "maximum": 99},
        "text": {"type": "string", "maxLength": 8},
    },
    "required": ["größe", "a long name with spaces", "text"],
    "additionalProperties": False,
}
NAMES = ["gpt2", "llama2", "llama3", "mistral-v3"]


@pytest.mark.parametrize("name", NAMES)
def test_answers_validate_whatever_the_tokenizer(codec_of: Callable[[str], TextCodec], name: str) -> None:
    codec = codec_of(name)
    rows = codec.vocab_size + 37  # a model may have more rows than its tokenizer has tokens
    ends = codec.eos_token_ids or frozenset({codec.vocab_size - 1})
    compiler = GrammarCompiler(codec, rows, ends)
    grammar = schema_grammar(SCHEMA)
    try:
        for seed in range(1):
            params = SamplingParams(grammar=grammar, temperature=1.0)
            seq = SampledSequence([9], 1, params, seed, ends, rows, compiler)
            generator = torch.Generator().manual_seed(seed)
            for _ in range(120):
                (sample,) = Sampler().sample(torch.randn(1, rows, generator=generator), [seq])
                assert sample.token_id is not None, sample.error
                assert sample.token_id < codec.vocab_size and sample.token_id not in codec.special_ids - ends
                seq.token_ids.append(sample.token_id)
                if sample.token_id in ends:
                    break
            detokenizer = codec.detokenizer(at_start=False)
            text = "".join(detokenizer.push(token_id) for token_id in seq.token_ids[1:-1]) + detokenizer.finish()
            jsonschema.validate(json.loads(text), SCHEMA)
    finally:
        compiler.close()


@pytest.mark.parametrize("name", NAMES)
def test_forced_text_is_spelt_as_the_tokenizer_spells_it(codec_of: Callable[[str], TextCodec], name: str) -> None:
    """Its tokens stand for exactly its bytes, and are few: the model is led along the ways that it knows."""
    codec = codec_of(name)
    forced = ForcedText(codec, codec.vocab_size, [0])
    for text in ('{"name":', ', "a long name with spaces": ', "größe 日本", "\n\n  x", "<s>[INST]</s>", "é" * 5000):
        token_ids = forced(text)
        assert b"".join(codec.token_bytes(token_id) for token_id in token_ids) == text.encode()
        assert not codec.special_ids.intersection(token_ids)
    assert len(forced(', "the name of the person": ')) <= 12


def test_text_that_the_vocabulary_lacks_is_told(codec_of: Callable[[str], TextCodec]) -> None:
    """WordPiece has no token for a brace: it cannot write JSON, and no request may begin to."""
    codec = codec_of("stories-3072")
    compiler = GrammarCompiler(codec, codec.vocab_size, codec.eos_token_ids or {0})
    try:
        for grammar in (schema_grammar(SCHEMA), Grammar("choice", '["日本"]')):
            with pytest.raises(InvalidRequest):
                compiler.compile(grammar)
    finally:
        compiler.close()


def test_a_model_without_an_end_cannot_keep_to_a_grammar() -> None:
    class Endless:
        special_ids: frozenset[int] = frozenset()

        def token_bytes(self, token_id: int) -> bytes:
            return bytes([token_id])

    compiler = GrammarCompiler(cast(TextCodec, Endless()), 256, ())
    try:
        with pytest.raises(InvalidRequest, match="end-of-sequence"):
            compiler.compile(Grammar("json_object"))
    finally:
        compiler.close()


def test_without_the_library_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    from tests.grammar.support import new_compiler
    from tokenmill.core.errors import SetupError

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    compiler = new_compiler()
    try:
        with pytest.raises(SetupError, match="pip install"):
            compiler.compile(Grammar("json_object"))
    finally:
        compiler.close()
