"""Tokenizer files from strangers: impossible or dangerous ones are refused, by name, before they cost anything (MF-06).

And text from strangers: worst cases for a tokenizer take linear time (BI-15).
"""

from __future__ import annotations

import base64
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from tests.text.conftest import CodecOf
from tokenmill.core.errors import CheckpointError, InvalidRequest, NotSupported, SetupError
from tokenmill.engine.text import TextCodec, checkpoint
from tokenmill.engine.text.checkpoint import TextFiles, build
from tokenmill.engine.text.codec import CUT_TOKENS
from tokenmill.engine.text.formats import GPT2_BYTES, LLAMA3_WORDS, QWEN2_WORDS, added_token
from tokenmill.engine.text.pieces import byte_alphabet
from tokenmill.engine.text.regex_safety import check_pattern


def spec(**changes: Any) -> dict[str, Any]:
    """A small ``tokenizer.json``: bytes only, with one special token."""
    model = {"type": "BPE", "vocab": {char: byte for byte, char in byte_alphabet().items()}, "merges": []}
    base = {"version": "1.0", "added_tokens": [added_token(256, "<end>")], "model": model, "decoder": GPT2_BYTES}
    return {**dict.fromkeys(("normalizer", "post_processor")), "pre_tokenizer": GPT2_BYTES, **base, **changes}


def model(vocab: Any, **changes: Any) -> dict[str, Any]:
    return {"type": "BPE", "vocab": vocab, "merges": [], **changes}


def folder(path: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_the_small_tokenizer_is_fine(tmp_path: Path) -> None:
    codec = TextCodec.load(folder(tmp_path, {"tokenizer.json": spec()}))
    assert codec.decode(codec.encode("héllo<end>")) == "héllo"
    assert codec.special_ids == {256} and codec.vocab_size == 257


CHARS = spec()["model"]["vocab"]

BAD_SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "two tokens, one id": (spec(model=model(CHARS | {"ab": 5})), "share one id"),
    "added token on a taken id": (spec(added_tokens=[added_token(5, "<end>")]), "share one id"),
    "far id": (spec(model=model(CHARS | {"ab": 2**31})), "more gaps than tokens"),
    "far added token": (spec(added_tokens=[added_token(2**31, "<end>")]), "more gaps than tokens"),
    "added token after a gap": (spec(added_tokens=[added_token(300, "<end>")]), "has id 300"),
    "negative id": (spec(model=model(CHARS | {"ab": -1})), "from 0 on"),
    "true as id": (spec(model=model({"a": True})), "from 0 on"),
    "text as id": (spec(model=model({"a": "0"})), "from 0 on"),
    "empty vocabulary": (spec(model=model({}), added_tokens=[]), "empty"),
    "no model": ({"version": "1.0"}, "no model"),
    "merge of unknown tokens": (spec(model=model(CHARS, merges=[["xx", "yy"]])), "tokenizer.json"),
    "added token without content": (spec(added_tokens=[{"id": 256}]), "added_tokens"),
    "added token without id": (spec(added_tokens=[{"content": "<end>"}]), "added_tokens"),
    "added tokens that are none": (spec(added_tokens=[5]), "added_tokens"),
    "added tokens that are no list": (spec(added_tokens={"a": 5}), "added_tokens"),
    "an added token of a megabyte": (spec(added_tokens=[added_token(256, "<" * 2**20)]), "added_tokens"),
    "merges that are no list": (spec(model=model(CHARS, merges=5)), "merges"),
    "nested repetition": (
        spec(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}),
        "nested repetition",
    ),
    "regex in the normalizer": (
        spec(normalizer={"type": "Replace", "pattern": {"Regex": "(.*)*x"}, "content": ""}),
        "nested repetition",
    ),
}


@pytest.mark.parametrize("name", BAD_SPECS)
def test_mf06_impossible_tokenizers_are_refused(name: str, tmp_path: Path) -> None:
    content, message = BAD_SPECS[name]
    with pytest.raises(CheckpointError, match=message):
        TextCodec.load(folder(tmp_path, {"tokenizer.json": content}))


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 100_000, '{"model": 1}', '{"model": {"vocab": 3}}', "\ufeff{}"]
)
def test_mf06_damaged_json(content: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        TextCodec.load(folder(tmp_path, {"tokenizer.json": content}))


def test_mf06_too_many_merges_are_refused_unparsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """10^7 merges: counted, not parsed. Here with the limit scaled down a thousandfold."""
    monkeypatch.setattr(checkpoint, "MAX_ENTRIES", 4_000)
    monkeypatch.setattr(checkpoint, "parse_json", lambda *args: pytest.fail("parsed"))
    many = '{"model": {"merges": [' + ",".join(['["a","b"]'] * 10_000) + "]}}"
    with pytest.raises(CheckpointError, match="more than 4000"):
        TextCodec.load(folder(tmp_path, {"tokenizer.json": many}))
    (tmp_path / "tokenizer.json").unlink()
    files = {"vocab.json": {"a": 0}, "merges.txt": "a b\n" * 10_000, "config.json": "{}"}
    monkeypatch.undo()
    monkeypatch.setattr(checkpoint, "MAX_ENTRIES", 4_000)
    with pytest.raises(CheckpointError, match=r"merges\.txt holds more than 4000"):
        TextCodec.load(folder(tmp_path, files))


def test_mf06_a_huge_file_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(2**40)  # sparse: takes no room
    with pytest.raises(CheckpointError, match="at most"):
        TextCodec.load(tmp_path)


def test_mf06_ids_beyond_the_embedding(codec_of: CodecOf) -> None:
    codec = codec_of("qwen2")
    codec.check_against(151_936)
    codec.check_against(151_646)
    with pytest.raises(CheckpointError, match=r"'<\|im_end\|>' has id 151645, but the embedding has 151645 rows"):
        codec.check_against(151_645)


@pytest.mark.parametrize("pattern", [LLAMA3_WORDS, QWEN2_WORDS, r"[^\]a[b-d]]+|\[x+\)"])
def test_honest_patterns_pass(pattern: str) -> None:
    check_pattern(pattern)


def test_the_patterns_of_real_tokenizers_pass(shared: Path) -> None:
    for path in sorted((shared / "data" / "tokenizers").glob("*/*.json")):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and "added_tokens" in content:
            checkpoint.check(content)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a*)*b",
        "(?:a+b?)*c",
        "((a|b)+c?)+d",
        "(a{1,})+b",
        r"(\s*)+$",
        "(a|a)*b",
        r"a*a*a*a*b",
        r"\p{N}{1,3}(?=(?:\p{N}{3})*$)",
        "(unclosed",
    ],
)
def test_mf06_dangerous_patterns_are_refused(pattern: str) -> None:
    start = time.thread_time()
    with pytest.raises(CheckpointError, match="regular expression"):
        check_pattern(pattern)
    assert time.thread_time() - start < 10


def test_a_pattern_that_gives_up_ends_the_request_only() -> None:
    """Whatever slips through: the matcher's own limit is an error of that request."""
    tokenizer = build(spec())
    tokenizer.pre_tokenizer = Split(Regex("(bx|bx|x)*y"), "isolated")
    codec = TextCodec(TextFiles(tokenizer, GPT2_BYTES, {}, frozenset(), {}))
    with pytest.raises(InvalidRequest, match="gives up"):
        codec.encode("bx" * 40 + "-y")


# ---- folders ---------------------------------------------------------------------------------------------


def test_no_tokenizer_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it needs tokenizer\.json"):
        TextCodec.load(tmp_path)


def test_an_unknown_word_rule_is_not_guessed(tmp_path: Path) -> None:
    files = {"vocab.json": {"a": 0}, "merges.txt": "", "config.json": {"model_type": "falcon"}}
    with pytest.raises(CheckpointError, match="'falcon' is no family that is known"):
        TextCodec.load(folder(tmp_path, files))


@pytest.mark.parametrize("cut", [1, 100, 5000, 499_000])
def test_a_cut_off_sentencepiece_model(cut: int, tokenizer_folder: Callable[[str], Path], tmp_path: Path) -> None:
    data = (tokenizer_folder("llama2") / "tokenizer.model").read_bytes()
    (tmp_path / "tokenizer.model").write_bytes(data[:cut])
    with pytest.raises((SetupError, NotSupported), match=r"tokenizer\.(model|json)"):
        TextCodec.load(tmp_path)


@pytest.mark.parametrize("data", [b"\n\x06\n\x04abcd", base64.b64encode(b"a" * 2**20) + b" 0\n"])
def test_mf06_a_token_of_a_megabyte(data: bytes, tmp_path: Path) -> None:
    """All the ways to cut a token in two are looked at: for one that long, that would never end."""
    if data[:1] == b"\n":
        piece = b"\n\x80\x80\x40" + b"a" * 2**20
        size = len(piece)
        data = (
            b"\n"
            + bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14])
            + piece
            + b"\x12\x02\x18\x02\x1a\x02\x20\x00"
        )
    (tmp_path / "tokenizer.model").write_bytes(data)
    started_s = time.thread_time()
    with pytest.raises(CheckpointError, match="token"):
        TextCodec.load(tmp_path)
    assert time.thread_time() - started_s < 2


def test_sentencepiece_models_that_rewrite_text_are_not_read(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "data" / "tokenizers" / "sentencepiece" / "test_model.model", tmp_path / "tokenizer.model")
    with pytest.raises(NotSupported, match="convert"):
        TextCodec.load(tmp_path)


def test_other_tiktoken_files_are_not_guessed(shared: Path, tmp_path: Path) -> None:
    shutil.copy(shared / "data" / "tokenizers" / "llama4" / "tokenizer.model", tmp_path / "tokenizer.model")
    with pytest.raises(CheckpointError, match="convert"):
        TextCodec.load(tmp_path)


def test_what_the_other_files_add(tmp_path: Path) -> None:
    files = {
        "tokenizer.json": spec(),
        "tokenizer_config.json": {
            "bos_token": {"content": "<begin>"},
            "eos_token": "<end>",
            "add_bos_token": True,
            "added_tokens_decoder": {"257": {"content": "<begin>", "special": True}},
            "chat_template": [{"name": "default", "template": "from the configuration"}],
        },
        "generation_config.json": {"eos_token_id": [256, 7]},
        "chat_template.jinja": "{{ bos_token }}from its own file",
    }
    codec = TextCodec.load(folder(tmp_path, files))
    assert codec.bos_token_id == 257 and codec.eos_token_ids == {256, 7}
    assert codec.encode("a") == [257, *codec.encode("a", add_special_tokens=False)]
    assert codec.render_chat([{"role": "user", "content": "x"}]) == "<begin>from its own file"
    assert codec.encode_chat([{"role": "user", "content": "x"}])[0] == 257


def test_truncation_and_padding_of_the_file_are_ignored(tmp_path: Path) -> None:
    limits = {
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {
            "strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!",
        },
    }  # fmt: skip
    codec = TextCodec.load(folder(tmp_path, {"tokenizer.json": spec(**limits)}))
    assert len(codec.encode("abcdefgh")) == 8 and len(codec.encode("a")) == 1


# ---- worst cases of text ---------------------------------------------------------------------------------

WORST = {
    "one word": "a",
    "spaces": " ",
    "newlines": "\n",
    "joined emoji": "😶‍🌫️",
    "combining marks": "\u0301",
    "digits": "7",
    "zero bytes": "\0",
    "no spaces": "QUJ1c2kx",
    "spaced lines": " \n",
    "special tokens": "<|im_end|>",
}


@pytest.mark.parametrize("unit", WORST.values(), ids=WORST)
@pytest.mark.parametrize("name", ["qwen2", "llama2"])
def test_bi15_worst_cases_take_linear_time(name: str, unit: str, codec_of: CodecOf) -> None:
    codec = codec_of(name)

    def seconds(num_chars: int) -> float:
        text = unit * (num_chars // len(unit))
        start = time.process_time()  # of all threads: the library has its own
        codec.encode(text)
        return time.process_time() - start

    seconds(10_000)
    rounds = [(seconds(10_000), seconds(80_000)) for _ in range(2)]
    ratio = min(long for _, long in rounds) / min(short for short, _ in rounds)
    assert ratio <= 2.5**3, "eight times the text: three doublings"


@pytest.mark.parametrize("unit", WORST.values(), ids=WORST)
@pytest.mark.parametrize("name", ["qwen2", "llama2"])
def test_bi15_a_count_in_pieces_is_sure_or_says_no(name: str, unit: str, codec_of: CodecOf) -> None:
    """Cutting a text must never make one that fits look too long; half its tokens must be seen to be too few."""
    codec = codec_of(name)
    text = unit * (150_000 // len(unit))
    count = len(codec.encode(text))
    assert not codec.exceeds(text, count)
    assert codec.exceeds(text, count // 2) == (count // 2 > 3 * CUT_TOKENS), "three pieces, and so much for each"


def test_bi15_chats_take_linear_time(story: TextCodec) -> None:
    def seconds(count: int) -> float:
        start = time.process_time()
        story.encode_chat([{"role": "user", "content": "<|im_end|> <|im_" * count}])
        return time.process_time() - start

    seconds(1000)
    rounds = [(seconds(1000), seconds(8000)) for _ in range(2)]
    assert min(long for _, long in rounds) / min(short for short, _ in rounds) <= 2.5**3
