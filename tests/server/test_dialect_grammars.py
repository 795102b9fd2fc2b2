"""The grammars of tool calls: they take what models write, nothing else, and whatever they let pass is read back."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import jsonschema
import pytest

from tests.server.dialect_examples import (
    BY_NAME,
    EMPTY,
    EXAMPLES,
    SPECIAL,
    THINK,
    Example,
    Parts,
    byte_codec,
    joined,
    turn_for,
)
from tokenmill.core.errors import InvalidRequest
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.engine.text import TextCodec
from tokenmill.server.dialects import DIALECTS, Function
from tokenmill.server.turn import ToolWishes, Turn

pytest.importorskip("llguidance")

SMALL: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome", 'a"b\nc']},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "hot": {"type": "boolean"},
        "note": {"type": "string", "maxLength": 5, "description": "</tool_call>"},
        "where": {"$ref": "#/$defs/place"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {
        "place": {
            "type": "object",
            "properties": {"x": {"enum": [1, 2]}},
            "required": ["x"],
            "additionalProperties": False,
        }
    },
}
STRICT = (Function("get_weather", None, SMALL, strict=True), Function("now", None, EMPTY, strict=True))
SCHEMAS = {"get_weather": SMALL, "now": EMPTY}
NAMES = sorted(DIALECTS)
LONGEST = 600


@cache
def codec_for(special: bool) -> TextCodec:
    return byte_codec(SPECIAL if special else ())


@cache
def vocabulary(special: bool) -> Any:
    from tokenmill.engine.grammar.vocabulary import build_tokenizer

    codec = codec_for(special)
    return build_tokenizer(codec, codec.vocab_size, codec.eos_token_ids)


def matcher_of(grammar: Grammar, special: bool) -> Any:
    from llguidance import LLMatcher

    from tokenmill.engine.grammar.trial import convert

    matcher = LLMatcher(vocabulary(special), convert(grammar.kind, grammar.source))
    assert not matcher.is_error(), (matcher.get_error(), grammar.source)
    return matcher


def grammar_for(turn: Turn, prompt: Sequence[int]) -> Grammar:
    grammar = turn.params(SamplingParams(), prompt).grammar
    assert grammar is not None
    return grammar


def accepts(grammar: Grammar, text: str, special: bool) -> bool:
    """Whether ``text`` is a whole answer."""
    matcher = matcher_of(grammar, special)
    ids = codec_for(special).encode(text)
    return matcher.try_consume_tokens(ids) == len(ids) and bool(matcher.is_accepting())


@pytest.mark.parametrize("special", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.by_grammar], ids=lambda e: e.dialect)
def test_real_outputs_are_taken(example: Example, special: bool) -> None:
    special = (special and not example.spells_markers) or DIALECTS[example.dialect].marks_all
    codec = codec_for(special)
    turn, prompt = turn_for(example, codec, choice="auto", allowed=frozenset({"get_weather", "now"}))
    assert accepts(grammar_for(turn, prompt), example.text, special)
    turn, prompt = turn_for(example, codec, choice="required")
    assert accepts(grammar_for(turn, prompt), example.text, special) == (bool(example.calls) and not example.content)


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.by_grammar and e.calls], ids=lambda e: e.dialect)
def test_what_was_not_asked_for_is_not_taken(example: Example) -> None:
    special = not example.spells_markers
    codec = codec_for(special)
    name, _ = example.calls[0]
    others = {"get_weather", "now"} - {name}
    turn, prompt = turn_for(example, codec, allowed=frozenset(others))
    assert not accepts(grammar_for(turn, prompt), example.text, special), "a function that may not be called"
    turn, prompt = turn_for(example, codec, parallel=False)
    assert accepts(grammar_for(turn, prompt), example.text, special) == (len(example.calls) == 1), "several calls"
    turn, prompt = turn_for(example, codec, [Function(n, None, {**EMPTY}, True) for n in ("get_weather", "now")])
    fits = all(arguments == "{}" for _, arguments in example.calls)
    assert accepts(grammar_for(turn, prompt), example.text, special) == fits, "arguments against the schema"


def walk(turn: Turn, prompt: Sequence[int], special: bool, draw: random.Random) -> Parts | None:
    """A random answer that the grammar allows, read back; None where it does not end in time."""
    codec = turn._codec
    params = turn.params(SamplingParams(), prompt)
    assert params.grammar is not None
    matcher = matcher_of(params.grammar, special)
    parser = turn.parser(prompt)
    detokenizer = codec.detokenizer(at_start=False)
    detokenizer._skipped = codec.special_ids.difference(params.shown_special_ids)
    pieces = []
    for _ in range(LONGEST):
        mask = matcher.compute_bitmask()
        allowed = [i for i in range(codec.vocab_size) if mask[i >> 3] >> (i & 7) & 1]
        ends = codec.eos_token_ids.intersection(allowed)
        plain = [i for i in allowed if 32 <= (codec.token_bytes(i) or b"\0")[0] < 127 or len(allowed) < 200]
        token_id = min(ends) if ends and draw.random() < 0.5 else draw.choice(plain)
        if token_id in ends:
            return joined([*pieces, *parser.finish()])
        assert matcher.consume_token(token_id)
        pieces += parser.push(detokenizer.push(token_id))
    return None


@pytest.mark.parametrize("special", [True, False], ids=["tokens", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_whatever_the_grammar_lets_pass_is_read_back(name: str, special: bool) -> None:
    """AC-05: required calls of random choice have known names and arguments that obey the schema."""
    draw = random.Random(name)
    kinds = {"harmony": BY_NAME["harmony"], "hermes": THINK, "mistral_args": BY_NAME["mistral"]}
    example = Example(name, "", (), kind=kinds.get(name))
    ended = 0
    special = special or DIALECTS[name].marks_all
    for parallel in (True, False) * 3:
        turn, prompt = turn_for(example, codec_for(special), STRICT, choice="required", parallel=parallel)
        parts = walk(turn, prompt, special, draw)
        if parts is None:
            continue
        ended += 1
        assert parts.content == ""
        assert parts.calls and (parallel or len(parts.calls) == 1)
        for called, arguments in parts.calls:
            check(json.loads(arguments), called, name)
    assert ended >= 2


def check(arguments: Any, called: str, dialect: str) -> None:
    schema = SCHEMAS[called]
    if dialect in ("qwen3_coder", "glm45", "seed_oss", "minimax_m2"):
        arguments.pop("note", None)  # in tags, a string's length is not held to
    jsonschema.validate(arguments, schema)


@pytest.mark.parametrize("name", NAMES)
def test_free_text_stays_free_until_the_trigger(name: str) -> None:
    """auto: any text, but what begins like a call must be one."""
    dialect = DIALECTS[name]
    special = dialect.marks_all
    turn, prompt = turn_for(Example(name, "", ()), codec_for(special), STRICT)
    grammar = grammar_for(turn, prompt)
    for text in ("Hello, no call here.", "a < b, {x} and [y] \n ünï"):
        assert accepts(grammar, dialect.answer + text, special), text
    lead = "Hello " if dialect.trigger and not dialect.marks_all else ""
    assert not accepts(grammar, lead + (dialect.trigger or dialect.opening + "{") + "no", special)


def test_every_grammar_passes_the_compilers_trial() -> None:
    """The way that a request's grammar goes: with special tokens, tried in the child process, compiled, masked."""
    from tokenmill.engine.grammar.compiler import GrammarCompiler

    codec = codec_for(True)
    compiler = GrammarCompiler(codec, codec.vocab_size, codec.eos_token_ids)
    try:
        for name in NAMES:
            for choice in ("auto", "required"):
                turn, prompt = turn_for(Example(name, "", ()), codec, STRICT, choice=choice)
                assert any(compiler.matcher(grammar_for(turn, prompt)).allowed()), name
    finally:
        compiler.close()


def test_arguments_in_any_number_stand_in_order() -> None:
    """Pythonic: separators only between what is there, and a grammar that grows no faster than the parameters."""
    sizes = []
    for required in ([], ["b"]):
        properties = {name: {"type": "integer"} for name in "abcd"}
        function = Function("f", None, {"type": "object", "properties": properties, "required": required}, True)
        turn, prompt = turn_for(Example("pythonic", "", ()), codec_for(True), [function])
        grammar = grammar_for(turn, prompt)
        for text in ("", "a=1", "b=1", "b=1, d=2", "b=1, a=2, c=3, d=4", "a=2, c=3, d=4", "d=1", "a=1, b=2"):
            first = text.partition("=")[0]
            fits = first == "b" if required else text not in ("b=1, a=2, c=3, d=4",)
            assert accepts(grammar, f"[f({text})]", True) == fits, (required, text)
        assert not accepts(grammar, "[f(b=1,)]", True)
    for number in (20, 40):
        properties = {f"parameter_{i}": {"type": "integer"} for i in range(number)}
        function = Function("f", None, {"type": "object", "properties": properties}, True)
        turn, prompt = turn_for(Example("pythonic", "", ()), codec_for(True), [function])
        sizes.append(len(grammar_for(turn, prompt).source))
    assert sizes[1] < 2.2 * sizes[0]


def test_an_answer_is_of_the_form_or_a_call() -> None:
    form = Grammar("json_schema", json.dumps({"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}))
    codec = codec_for(True)
    call = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    for choice, takes_form in (("auto", True), ("required", False)):
        turn = Turn(codec, ToolWishes(STRICT, choice), DIALECTS["hermes"], None, form)  # type: ignore[arg-type]
        grammar = grammar_for(turn, [])
        assert accepts(grammar, call, True)
        assert accepts(grammar, '{"a": 1}', True) == takes_form
        assert not accepts(grammar, "text", True)


def test_reasoning_stands_before_the_form() -> None:
    form = Grammar("json_schema", json.dumps({"enum": [7]}))
    for special in (True, False):
        codec = codec_for(special)
        turn = Turn(codec, ToolWishes(), None, THINK, form)
        grammar = grammar_for(turn, codec.encode("hi"))
        assert accepts(grammar, "7", special)
        assert accepts(grammar, "<think>\nany {text}\n</think>\n\n7", special)
        assert not accepts(grammar, "<think>8", special)
        begun = grammar_for(turn, codec.encode("hi<think>\n"))
        assert accepts(begun, "any {text}</think>7", special)
        assert not accepts(begun, "7", special)


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (Grammar("json_object"), '{"a": [1]}'),
        (Grammar("json_schema", "true"), '"x"'),
        (Grammar("regex", "[a-c]+/x"), "abc/x"),
        (Grammar("regex", r"^\d\/[/]\\$"), "1//\\"),
        (Grammar("regex", "a\nb"), "a\nb"),
        (Grammar("choice", '["yes", "no \\"way\\""]'), 'no "way"'),
    ],
)
def test_every_form_can_stand_after_reasoning(form: Grammar, text: str) -> None:
    codec = codec_for(True)
    turn = Turn(codec, ToolWishes(), None, THINK, form)
    grammar = grammar_for(turn, codec.encode("hi"))
    assert accepts(grammar, f"<think>x</think>{text}", True)
    assert not accepts(grammar, f"<think>x</think>{text}!", True)


def test_a_grammar_of_ones_own_is_not_combined() -> None:
    turn = Turn(codec_for(True), ToolWishes(), None, THINK, Grammar("lark", 'start: "a"'))
    with pytest.raises(InvalidRequest, match="json_schema") as caught:
        turn.params(SamplingParams(), [])
    assert caught.value.code == "not_supported"


def test_without_wishes_there_is_no_grammar() -> None:
    codec = codec_for(True)
    plain = Turn(codec, ToolWishes((Function("now"),)), DIALECTS["hermes"], THINK, None)
    assert plain.params(SamplingParams(), []).grammar is None
    form = Grammar("json_object")
    alone = Turn(codec, ToolWishes(), DIALECTS["hermes"], None, form)
    assert alone.params(SamplingParams(), []).grammar == form


def test_notes_in_schemas_do_not_make_grammars_larger() -> None:
    """What is only told to readers is left out; properties that are called so are not."""
    named = {"type": "object", "properties": {"title": {"type": "integer", "title": "T" * 5000}}, "required": ["title"]}
    turn = Turn(codec_for(True), ToolWishes((Function("f", None, named, True),)), DIALECTS["hermes"], None, None)
    grammar = grammar_for(turn, [])
    assert len(grammar.source) < 1000
    assert accepts(grammar, '<tool_call>\n{"name": "f", "arguments": {"title": 3}}\n</tool_call>', True)
    assert not accepts(grammar, '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>', True)
