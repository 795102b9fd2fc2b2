"""Tokens are those of the reference implementations, for real tokenizers of every format that is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.text.conftest import CodecOf
from tests.text.texts import SAMPLES, random_texts
from tokenmill.engine.text import TextCodec
from tokenmill.engine.text.formats import LLAMA3_WORDS

TEXTS = [*SAMPLES, *random_texts(300)]

GOLDEN = {"gpt-2": "gpt2", "llama-bpe": "llama3", "qwen2": "qwen2", "llama-spm": "llama2"}


@pytest.mark.parametrize("golden", GOLDEN)
def test_llama_cpp_golden_files(golden: str, codec_of: CodecOf, shared: Path) -> None:
    codec = codec_of(GOLDEN[golden])
    path = shared / "data" / "tokenizers" / "gguf-vocab" / f"ggml-vocab-{golden}.gguf"
    texts = Path(f"{path}.inp").read_text().split("\n__ggml_vocab_test__\n")
    lines = Path(f"{path}.out").read_text().split("\n")
    assert len(texts) == len(lines) >= 40
    for text, line in zip(texts, lines, strict=True):
        assert codec.encode(text, add_special_tokens=False) == [int(word) for word in line.split()], text
        assert codec.decode(codec.encode(text)) == text


@pytest.mark.parametrize("name", ["qwen2", "gpt2"])
def test_vocab_and_merges_as_transformers(
    name: str, codec_of: CodecOf, tokenizer_folder: Callable[[str], Path]
) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(tokenizer_folder(name))
    codec = codec_of(name)
    for text in TEXTS:
        assert codec.encode(text) == reference.encode(text), text
        assert codec.decode(codec.encode(text)) == reference.decode(reference.encode(text)), text
    assert codec.eos_token_ids >= {reference.eos_token_id}
    assert codec.special_ids == set(reference.all_special_ids)


@pytest.mark.parametrize("name", ["gpt-neox", "stories-3072"])
def test_tokenizer_json_as_transformers(name: str, codec_of: CodecOf, tokenizer_folder: Callable[[str], Path]) -> None:
    transformers = pytest.importorskip("transformers")
    file = str(tokenizer_folder(name) / "tokenizer.json")
    reference = transformers.PreTrainedTokenizerFast(tokenizer_file=file, clean_up_tokenization_spaces=False)
    codec = codec_of(name)
    for text in TEXTS:
        assert codec.encode(text) == reference.encode(text), text
        assert codec.decode(codec.encode(text)) == reference.decode(reference.encode(text), skip_special_tokens=True)


@pytest.mark.parametrize("name", ["llama2", "mistral-v1", "mistral-v3"])
def test_sentencepiece_as_the_sentencepiece_library(
    name: str, codec_of: CodecOf, tokenizer_folder: Callable[[str], Path]
) -> None:
    sentencepiece = pytest.importorskip("sentencepiece")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_folder(name) / "tokenizer.model"))
    codec = codec_of(name)
    assert codec.vocab_size == reference.vocab_size()
    for text in TEXTS:
        if "\u0000" in text:
            continue  # the library ends a text there
        ids = codec.encode(text, add_special_tokens=False)
        assert ids == reference.encode(text), text
        assert codec.decode(ids) == reference.decode(ids) == text
    assert codec.encode("Hi") == [reference.bos_id(), *reference.encode("Hi")]


def test_tiktoken_as_the_tiktoken_library(codec_of: CodecOf, tokenizer_folder: Callable[[str], Path]) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    from tiktoken.load import load_tiktoken_bpe

    ranks = load_tiktoken_bpe(str(tokenizer_folder("llama3") / "tokenizer.model"))
    reference = tiktoken.Encoding("llama3", pat_str=LLAMA3_WORDS, mergeable_ranks=ranks, special_tokens={})
    codec = codec_of("llama3")
    for text in TEXTS:
        ids = codec.encode(text, add_special_tokens=False)
        assert ids == reference.encode(text), text
        assert codec.decode(ids) == text
    assert codec.encode("Hi")[0] == codec.bos_token_id == 128_000
    assert codec.token_text(128_009) == "<|eot_id|>"


def test_the_built_in_model_as_transformers(story: TextCodec, root: Path) -> None:
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(root / "tokenmill" / "builtin" / "story")
    for text in TEXTS:
        assert story.encode(text) == reference.encode(text), text
    chat: list[Any] = [{"role": "user", "content": "Tell me about a fox."}]
    expected = reference.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert story.encode_chat(chat) == expected


def test_special_tokens_in_a_raw_prompt_count(story: TextCodec) -> None:
    ids = story.encode("a<|im_end|>b")
    assert story.special_ids & set(ids)
    assert story.decode(ids) == "ab"
    assert story.decode(ids, skip_special_tokens=False) == "a<|im_end|>b"


@pytest.mark.parametrize("name", ["qwen2", "llama2", "stories-3072"])
def test_token_bytes_join_to_the_text(name: str, codec_of: CodecOf) -> None:
    codec = codec_of(name)
    for text in ("once there was a fox", *(["héllo 日本 🦙\n"] if name != "stories-3072" else [])):
        ids = codec.encode(text, add_special_tokens=False)
        joined = b"".join(map(codec.token_bytes, ids))
        assert joined.decode().lstrip(" ") == codec.decode(ids)
        assert max(map(len, map(codec.token_bytes, ids))) <= codec.max_bytes_per_token


def test_ids_without_a_token_have_no_text(story: TextCodec) -> None:
    assert story.token_bytes(story.vocab_size + 7) == b""
    assert story.decode([*story.encode("hi"), story.vocab_size, -1]) == "hi"
