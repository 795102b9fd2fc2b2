"""The parsers of tool calls and reasoning: right at every cut, never taking back, linear, harmless (SE-23)."""

from __future__ import annotations

import gc
import json
import random
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.dialect_examples import (
    BY_NAME,
    EXAMPLES,
    FUNCTIONS,
    IDS,
    NOW,
    THINK,
    Example,
    byte_codec,
    cut_at,
    joined,
    random_cuts,
    read,
    turn_for,
)
from tokenmill.core.errors import ConfigError
from tokenmill.server.dialects import DIALECTS, dialect_of, reasoning_of
from tokenmill.server.dialects.reader import MAX_KEPT
from tokenmill.server.settings import ServerSettings
from tokenmill.server.turn import Function

CODEC = byte_codec()
NAMES = sorted(DIALECTS)


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_real_outputs_are_read(example: Example) -> None:
    parts = joined(read(example, [example.text], CODEC))
    assert (parts.content, parts.reasoning, parts.calls) == (example.content, example.reasoning, list(example.calls))
    for name, arguments in parts.calls:
        assert name in ("get_weather", "now")
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_every_cut_reads_the_same(example: Example) -> None:
    whole = joined(read(example, [example.text], CODEC))
    assert joined(read(example, example.text, CODEC)) == whole  # a character at a time
    for place in range(len(example.text) + 1):
        assert joined(read(example, cut_at(example.text, [place]), CODEC)) == whole, place
    draw = random.Random(example.text)
    for _ in range(20):
        assert joined(read(example, random_cuts(example.text, draw), CODEC)) == whole


@pytest.mark.parametrize("example", EXAMPLES, ids=IDS)
def test_what_was_said_is_never_taken_back(example: Example) -> None:
    """Of every beginning of the text, the arguments and the content are a beginning of the whole's."""
    turn, prompt = turn_for(example, CODEC)
    parser = turn.parser(prompt)
    calls: list[str] = []
    said = {"content": "", "reasoning": ""}
    for char in example.text:
        for piece in parser.push(char):
            if piece.kind == "tool_begin":
                calls.append("")
            elif piece.kind == "tool_arguments":
                calls[piece.index] += piece.text
            elif piece.kind in said:
                said[piece.kind] += piece.text
        for so_far, (_, whole) in zip(calls, example.calls, strict=False):
            assert whole.startswith(so_far)
        assert example.content.startswith(said["content"])
        assert example.reasoning.startswith(said["reasoning"])


NAMED_FIRST = [example for example in EXAMPLES if example.calls and '"arguments": "' not in example.text]


@pytest.mark.parametrize("example", NAMED_FIRST, ids=lambda e: e.dialect)
def test_arguments_come_as_they_are_written(example: Example) -> None:
    """Before the last character of a call's arguments is there, those before it have been handed on."""
    turn, prompt = turn_for(example, CODEC)
    parser = turn.parser(prompt)
    num_parts = sum(piece.kind == "tool_arguments" for char in example.text for piece in parser.push(char))
    held = "arguments" in example.text.partition('"name"')[0]  # nothing can be told before the name is known
    assert num_parts > len(example.calls) or held or all(call == NOW for call in example.calls)


@pytest.mark.parametrize("name", NAMES)
def test_text_without_markers_is_content_to_the_last_character(name: str) -> None:
    for text in ("Hello", " \n leading and trailing \n", "a < b [c] {d} <tool", "x" * 1000, "", "\n"):
        example = Example(name, text, (), text)
        for parts in ([text], list(text)):
            assert joined(read(example, parts, CODEC)).content == text


_MARKERS = sorted({m for dialect in DIALECTS.values() for m in dialect.markers} | {"<think>", "</think>", "[THINK]"})
_TOKENS = [*_MARKERS, *'{}[]()",:=\\\n', '"name"', '"arguments"', "get_weather", "now", "to=functions.", "\\u12", "'"]


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.lists(st.one_of(st.sampled_from(_TOKENS), st.text(max_size=4)), max_size=40),
    st.sampled_from([None, THINK, BY_NAME["granite"]]),
)
def test_se23_no_text_raises_and_cuts_do_not_matter(name: str, parts: list[str], kind: object) -> None:
    """SE-23: and where nothing was called, nothing of the text is lost but whitespace."""
    text = "".join(parts)
    example = Example(name, text, (), kind=kind)  # type: ignore[arg-type]
    whole = joined(read(example, [text], CODEC))
    assert joined(read(example, parts, CODEC)) == whole
    assert joined(read(example, text, CODEC)) == whole
    is_subsequence(whole.content, text)
    if not whole.calls and kind is None and name != "harmony":
        kept, wanted = ("".join(t.split()) for t in (whole.content, text))
        for marker in DIALECTS[name].markers:  # the ends of sections that hold no call are swallowed
            kept, wanted = kept.replace(marker, ""), wanted.replace(marker, "")
        assert kept == wanted


def is_subsequence(part: str, whole: str) -> None:
    rest = iter(whole)
    assert all(char in rest for char in part)


def hostile(example: Example) -> dict[str, Callable[[int], str]]:
    start = example.text[: max(1, example.text.find("{") + 1)]
    return {
        "braces": lambda size: "{" * size,
        "brackets": lambda size: "[" * size,
        "a call of braces": lambda size: start + "{" * size,
        "an endless string": lambda size: start + '"' + "a" * size,
        "backslashes": lambda size: start + '"' + "\\" * size,
        "whitespace": lambda size: start + " " * size + "x",
        "beginnings of markers": lambda size: "<" * size,
        "the whole again and again": lambda size: example.text * (size // len(example.text) + 1),
        "starts": lambda size: start * (size // len(start) + 1),
    }


@pytest.mark.parametrize("name", NAMES)
def test_se23_time_is_linear(name: str) -> None:
    """SE-23: eight times the text takes about eight times the time, whole or in small parts."""
    example = next(e for e in EXAMPLES if e.dialect == name and e.calls)
    for case, make in hostile(example).items():
        for size_of_part in (7, 10**9):
            small, large = make(4_000), make(32_000)
            ratios = []
            while not ratios or (ratios[-1] > 24 and len(ratios) < 6):  # on a busy machine one measurement means little
                ratios.append(seconds(example, large, size_of_part) / seconds(example, small, size_of_part))
            assert min(ratios) <= 24, (case, size_of_part, ratios)


def seconds(example: Example, text: str, size_of_part: int) -> float:
    """Processor time to read ``text`` in such parts, and at least a tenth of a millisecond."""
    parts = [text[i : i + size_of_part] for i in range(0, len(text), size_of_part)]
    gc.disable()
    started = time.process_time()
    read(example, parts, CODEC)
    took = time.process_time() - started
    gc.enable()
    return max(took, 1e-4)


def test_se23_ten_megabytes_of_braces() -> None:
    """SE-23: in seconds, and nothing lost."""
    for name in ("hermes", "llama3_json", "mistral"):
        text = "{" * 10_000_000
        assert joined(read(Example(name, text, ()), [text], CODEC)).content == text


def test_se23_a_hundred_thousand_tags() -> None:
    text = "<tool_call>" * 100_000
    assert joined(read(Example("hermes", text, ()), [text], CODEC)).content == text


def test_se23_code_in_arguments_is_text() -> None:
    """SE-23: nothing of Python's is evaluated, whatever stands there."""
    for value in ("__import__('os').getcwd()", "1+1", "x", "f'{1}'", "[i for i in (1,)]", "nan", "{1: 2}"):
        text = f"[get_weather(city={value})]"
        parts = joined(read(Example("pythonic", text, ()), [text], CODEC))
        assert parts.calls[0][1].startswith('{"city": ')
        with pytest.raises(json.JSONDecodeError):
            json.loads(parts.calls[0][1])


def test_held_back_text_is_bounded() -> None:
    """A call whose name does not come is content, and comes as soon as it is too long to be one."""
    turn, prompt = turn_for(Example("hermes", "", ()), CODEC)
    parser = turn.parser(prompt)
    text = '<tool_call>{"arguments": {"a": "' + "x" * (2 * MAX_KEPT)
    said = "".join(piece.text for i in range(0, len(text), 100) for piece in parser.push(text[i : i + 100]))
    assert len(said) > len(text) - 1000
    assert text.startswith(said)


def test_a_call_that_is_cut_off_keeps_what_there_is() -> None:
    text = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Par'
    assert joined(read(Example("hermes", text, ()), [text], CODEC)).calls == [("get_weather", '{"city": "Par')]
    cut = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_'
    assert joined(read(Example("hermes", cut, ()), list(cut), CODEC)).content == ""


def test_after_a_broken_call_the_rest_is_content() -> None:
    text = '<tool_call>\n{"name": "now", "arguments": {"a": [1}}\n</tool_call>\n<tool_call>{"name": "now"}</tool_call>'
    parts = joined(read(Example("hermes", text, ()), list(text), CODEC))
    assert parts.calls == [("now", '{"a": [1'), ("now", "{}")]
    assert parts.content == "}}\n</tool_call>"


def test_reasoning_that_never_ends_is_no_answer() -> None:
    example = Example("hermes", "<think>\nand so on \n", (), reasoning="and so on \n", kind=THINK)
    parts = joined(read(example, list(example.text), CODEC))
    assert (parts.content, parts.reasoning) == ("", "and so on \n")


def test_reasoning_that_the_prompt_closed_is_not_begun() -> None:
    """Qwen 3 with ``enable_thinking: false``: the template writes an empty reasoning."""
    assert THINK.begun_by("<|im_start|>assistant\n<think>\n")
    assert not THINK.begun_by("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert not THINK.begun_by("<|im_start|>assistant\n")


def test_reasoning_tokens_are_counted() -> None:
    """A token at a time exactly; of several that come together, those up to the end by their share of the text."""
    for begun, parts, wanted in (
        (False, [("<think>", 1), ("a", 1), ("b", 1), ("</think>", 1), ("c", 1), ("d", 1)], 4),
        (True, [("a", 1), ("b</think>", 2), ("c", 1)], 3),
        (True, [("aaaa</think>cccccccccccc", 6)], 3),
        (False, [("no reasoning at all", 5)], 0),
    ):
        turn, prompt = turn_for(Example("hermes", "", (), kind=THINK, begun=begun), CODEC)
        parser = turn.parser(prompt)
        for text, num_tokens in parts:
            parser.push(text, num_tokens)
        assert parser.num_reasoning_tokens == wanted


def test_a_template_without_tools_gets_the_generic_dialect() -> None:
    assert dialect_of("{% for m in messages %}{{ m.content }}{% endfor %}") is DIALECTS["generic"]
    assert dialect_of("{{ tools }} some format of its own") is None
    assert dialect_of("{{ tools }} some format of its own", "hermes") is DIALECTS["hermes"]
    assert reasoning_of("<think></think>", "none") is None
    assert reasoning_of("", "think") is THINK


@pytest.mark.parametrize("name", ["tool_dialect", "reasoning_dialect"])
def test_a_name_that_is_none_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(ConfigError, match=r"auto, .*not 'qwen9'"):
        ServerSettings(**{name: "qwen9"})  # type: ignore[arg-type]
    assert ServerSettings(tool_dialect="mistral", reasoning_dialect="none").tool_dialect == "mistral"


def test_tags_tell_strings_from_other_values_by_the_schema() -> None:
    """Qwen3-Coder: ``2`` is a number for a number and text for a text; what is no JSON stays text."""
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "number": {"type": "number"},
            "union": {"type": ["string", "integer"]},
            "option": {"enum": ["1", "2"]},
            "untyped": {},
        },
    }
    functions = (Function("f", None, schema),)
    text = "<tool_call>\n<function=f>\n"
    for key, value in (("text", "2"), ("number", "2.5"), ("union", "seven"), ("option", "1"), ("untyped", "{x")):
        text += f"<parameter={key}>\n{value}\n</parameter>\n"
    text += "</function>\n</tool_call>"
    turn, prompt = turn_for(Example("qwen3_coder", text, ()), CODEC, functions)
    parser = turn.parser(prompt)
    arguments = joined([*parser.push(text), *parser.finish()]).calls[0][1]
    assert json.loads(arguments) == {"text": "2", "number": 2.5, "union": "seven", "option": "1", "untyped": "{x"}


def test_every_dialect_has_an_example() -> None:
    assert {example.dialect for example in EXAMPLES if example.calls} == set(DIALECTS)
    assert len(FUNCTIONS) == 2
