"""Text token by token equals text as a whole, and nothing sent is ever taken back (ST-05, BI-11)."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.text.conftest import CodecOf
from tests.text.texts import SAMPLES, random_texts
from tokenmill.engine.text import StopMatcher, TextCodec
from tokenmill.engine.text.pieces import PieceRule

REPLACEMENT = "\ufffd"


def stream(codec: TextCodec, ids: list[int], *, skip_special_tokens: bool = True) -> list[str]:
    detokenizer = codec.detokenizer(skip_special_tokens=skip_special_tokens)
    return [*map(detokenizer.push, ids), detokenizer.finish()]


def random_ids(codec: TextCodec, rng: random.Random) -> list[int]:
    """Valid text, text with tokens dropped in its middle (which splits characters), or plain noise."""
    ids = codec.encode(rng.choice(SAMPLES) + random_texts(1, rng.randrange(10**9))[0], add_special_tokens=False)
    match rng.randrange(4):
        case 0:
            del ids[: rng.randrange(len(ids) + 1)]
        case 1:
            ids = [i for i in ids if rng.random() < 0.8]
        case 2:
            ids = [rng.randrange(codec.vocab_size) for _ in range(rng.randrange(20))]
    return ids[:60]


@pytest.mark.parametrize(
    ("name", "count"), [("qwen2", 4000), ("llama2", 3000), ("gpt2", 2000), ("simplestories-4096", 1000)]
)
def test_st05_streams_join_to_the_whole(name: str, count: int, codec_of: CodecOf) -> None:
    """ST-05: 10^4 token streams in all; the increments are the text of the whole, however it was cut."""
    codec = codec_of(name)
    rng = random.Random(5)
    for _ in range(count):
        ids = random_ids(codec, rng)
        skip = rng.random() < 0.5
        assert "".join(stream(codec, ids, skip_special_tokens=skip)) == codec.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", ["qwen2", "llama2", "gpt2", "llama3"])
def test_st05_splitting_makes_no_replacement_characters(name: str, codec_of: CodecOf) -> None:
    codec = codec_of(name)
    for text in [*SAMPLES, *random_texts(200, seed=2)]:
        parts = stream(codec, codec.encode(text))
        assert "".join(parts) == codec.decode(codec.encode(text))
        assert not any(REPLACEMENT in part for part in parts)


def test_an_unfinished_character_is_shown_at_the_end_only(codec_of: CodecOf) -> None:
    codec = codec_of("qwen2")
    ids = codec.encode("𓀀")
    assert len(ids) > 1
    assert stream(codec, ids[:-1])[:-1] == [""] * (len(ids) - 1)
    assert stream(codec, ids[:-1])[-1] == REPLACEMENT


@pytest.mark.parametrize("name", ["qwen2", "gpt-neox", "stories-3072", "simplestories-4096"])
def test_decoding_any_ids_equals_the_library(name: str, codec_of: CodecOf) -> None:
    """Also where the bytes are no UTF-8, and with special tokens in between."""
    codec = codec_of(name)
    reference: Tokenizer = codec._tokenizer
    rng = random.Random(3)
    for _ in range(1000):
        ids = random_ids(codec, rng)
        for skip in (True, False):
            assert codec.decode(ids, skip) == reference.decode(ids, skip_special_tokens=skip), ids


def test_decoding_byte_fallback_equals_the_library(codec_of: CodecOf) -> None:
    codec = codec_of("llama2")
    reference: Tokenizer = codec._tokenizer
    rng = random.Random(4)
    compared = 0
    for _ in range(1000):
        ids = random_ids(codec, rng)
        expected = reference.decode(ids)
        if REPLACEMENT not in expected:  # of an invalid run of bytes the library keeps nothing, SentencePiece the rest
            assert codec.decode(ids) == expected
            compared += 1
    assert compared > 500


def test_a_continuation_keeps_its_leading_space(codec_of: CodecOf) -> None:
    codec = codec_of("llama2")
    ids = codec.encode("Once upon", add_special_tokens=False)
    assert codec.decode(ids) == "Once upon"
    detokenizer = codec.detokenizer(at_start=False)
    assert "".join(map(detokenizer.push, ids)) + detokenizer.finish() == " Once upon"


def test_a_metaspace_decoder_drops_the_first_space_only() -> None:
    rule = PieceRule.from_decoder({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"})
    assert rule("▁a", first=True) == b"a"
    assert rule("▁a") == b" a"


def test_detokenizing_is_linear(codec_of: CodecOf) -> None:
    codec = codec_of("qwen2")
    ids = codec.encode("🦙 and 日本 " * 500)
    seconds = {}
    for factor in (1, 8):
        start = time.thread_time()
        stream(codec, ids * factor)
        seconds[factor] = time.thread_time() - start
    assert seconds[8] / seconds[1] < 24


# ---- stop strings ----------------------------------------------------------------------------------------


def first_match(text: str, stops: list[str]) -> tuple[int, str] | None:
    """By trying everything: (start, stop) of the match that ends first; of several, the longest."""
    for end in range(len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return end - len(longest), longest
    return None


def run_matcher(matcher: StopMatcher, parts: list[str]) -> tuple[list[str], str | None]:
    sent = []
    for part in parts:
        text, matched = matcher.push(part)
        sent.append(text)
        if matched is not None:
            return sent, matched
    return [*sent, matcher.finish()], None


parts_of_text = st.lists(st.text("abc", max_size=5), max_size=12)
stop_lists = st.lists(st.text("abc", min_size=1, max_size=8), min_size=1, max_size=4)


@given(parts_of_text, stop_lists, st.booleans())
def test_stops_equal_brute_force(parts: list[str], stops: list[str], include_stop: bool) -> None:
    text = "".join(parts)
    sent, matched = run_matcher(StopMatcher(stops, include_stop), parts)
    expected = first_match(text, stops)
    if expected is None:
        assert (matched, "".join(sent)) == (None, text)
    else:
        start, stop = expected
        assert (matched, "".join(sent)) == (stop, text[: start + (len(stop) if include_stop else 0)])


@given(parts_of_text, stop_lists)
def test_exactly_what_may_become_a_stop_is_held_back(parts: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    seen = sent = ""
    for part in parts:
        seen += part
        text, matched = matcher.push(part)
        sent += text
        if matched is not None:
            return
        beginnings = {stop[:size] for stop in stops for size in range(len(stop))}
        assert seen[len(sent) :] == max((b for b in beginnings if seen.endswith(b)), key=len)


@pytest.mark.parametrize("num_tokens", range(1, 9))
def test_st05_a_stop_across_tokens_is_never_sent_in_part(num_tokens: int, codec_of: CodecOf) -> None:
    codec = codec_of("gpt2")
    rng = random.Random(num_tokens)
    for text in random_texts(60, seed=num_tokens):
        ids = codec.encode(text + " and so on 🦙")
        cut = rng.randrange(max(1, len(ids) - num_tokens))
        stop = codec.decode(ids[cut : cut + num_tokens])
        if not stop or REPLACEMENT in stop:
            continue
        whole = codec.decode(ids)
        expected = whole[: whole.index(stop)]
        matcher, detokenizer = StopMatcher([stop]), codec.detokenizer()
        sent = ""
        matched = None
        for token_id in ids:
            text_part, matched = matcher.push(detokenizer.push(token_id))
            sent += text_part
            assert expected.startswith(sent)
            if matched:
                break
        assert (sent, matched) == (expected, stop)


def test_ties_go_to_the_longest() -> None:
    assert StopMatcher(["b", "ab"]).push("xab") == ("x", "ab")
    assert StopMatcher(["abcd", "bc"]).push("xabcd") == ("xa", "bc")  # ends first


def test_bi11_cost_per_token_does_not_grow_with_the_stop() -> None:
    """BI-11: the same text through 4 stops of 4 characters and 4 stops of 4096 characters."""
    text = ["ab" * 2, "aab", "ba", "aaaa"] * 1000

    def seconds(size: int) -> float:
        stops = [("a" * i + "b" + "a" * size)[: size - 1] + "c" for i in range(4)]
        matcher = StopMatcher(stops)
        start = time.thread_time()
        for part in text:
            matcher.push(part)
        return time.thread_time() - start

    rounds = [(seconds(6), seconds(4096)) for _ in range(9)]
    assert min(long for _, long in rounds) <= 1.2 * min(short for short, _ in rounds)
