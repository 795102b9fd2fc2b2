"""AC-06: every answer that ends validates, for what JSON Schema (draft 2020-12) offers and for random schemas."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.grammar.support import draw, schema_grammar
from tokenmill.core.errors import InvalidRequest
from tokenmill.core.grammar import Grammar
from tokenmill.engine.grammar.compiler import GrammarCompiler


def closed(**properties: Any) -> dict[str, Any]:
    """An object with exactly these properties."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


SCHEMAS: dict[str, Any] = {
    "anything": {},
    "true": True,
    "null": {"type": "null"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "number": {"type": "number"},
    "string": {"type": "string"},
    "several types": {"type": ["integer", "null", "boolean"]},
    "enum of mixed values": {"enum": ["a", 1, None, True, {"k": [1, 2]}, 'é\n"quoted"']},
    "const": {"const": {"a": [1, "two", None]}},
    "integer bounds": {"type": "integer", "minimum": -17, "maximum": 230},
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3},
    "number bounds": {"type": "number", "minimum": 0.5, "maximum": 12.25},
    "multiple of": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    "string lengths": {"type": "string", "minLength": 2, "maxLength": 6},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"},
    "pattern inside": {"type": "string", "pattern": "x[0-9]y", "maxLength": 40},
    "date": {"type": "string", "format": "date"},
    "time": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "array": {"type": "array", "items": {"type": "boolean"}},
    "array lengths": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
    "object": closed(a={"type": "integer"}, b={"type": "string", "maxLength": 5}),
    "optional properties": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "boolean"}, "c": {"type": "null"}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "additional properties": {"type": "object", "additionalProperties": {"type": "integer"}},
    "pattern properties": {
        "type": "object",
        "patternProperties": {"^n_": {"type": "null"}},
        "additionalProperties": False,
    },
    "map with bounds": {
        "type": "object",
        "additionalProperties": {"type": "boolean"},
        "minProperties": 1,
        "maxProperties": 3,
    },
    "any of": {"anyOf": [{"type": "integer"}, closed(x={"type": "null"})]},
    "one of": {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
    "one of by kind": {"oneOf": [closed(kind={"const": "a"}, v={"type": "null"}), closed(kind={"const": "b"})]},
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}]},
    "references": {
        "$defs": {"point": closed(x={"type": "integer"}, y={"type": "integer"})},
        **closed(from_={"$ref": "#/$defs/point"}, to={"$ref": "#/$defs/point"}),
    },
    "recursion": {
        "$defs": {"tree": closed(v={"type": "boolean"}, kids={"type": "array", "items": {"$ref": "#/$defs/tree"}})},
        "$ref": "#/$defs/tree",
    },
    "recursion to the root": {
        "type": "object",
        "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["next"],
        "additionalProperties": False,
    },
    "reference and siblings": {"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "minimum": 5, "maximum": 6},
    "annotations": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "T",
        "description": "D",
        "$comment": "C",
        "examples": [1],
        "default": 1,
        "deprecated": True,
        "type": "integer",
    },
    "an order": closed(
        id={"type": "string", "format": "uuid"},
        state={"enum": ["open", "paid", "sent"]},
        total={"type": "number", "minimum": 0},
        note={"type": ["string", "null"], "maxLength": 20},
        lines={
            "type": "array",
            "maxItems": 2,
            "items": closed(sku={"type": "string", "pattern": "^[A-Z0-9]{4}$"}, n={"type": "integer", "minimum": 1}),
        },
    ),
}


def check(schema: Any, text: str) -> None:
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(text))


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_that_ends_validates(compiler: GrammarCompiler, name: str) -> None:
    """AC-06."""
    schema, grammar = SCHEMAS[name], schema_grammar(SCHEMAS[name])
    ends = 0
    for seed in range(3):
        for wishes in ({"temperature": 1.0}, {"temperature": 1.7, "top_p": 0.9}):
            drawn = draw(compiler, grammar, seed, max_tokens=120, end=4.0, **wishes)
            if drawn.ended:
                ends += 1
                check(schema, drawn.text)
    assert ends >= 2, "most answers must end for the test to mean something"


def test_json_object_is_an_object(compiler: GrammarCompiler) -> None:
    drawn = [draw(compiler, Grammar("json_object"), seed) for seed in range(4)]
    ended = [one for one in drawn if one.ended]
    assert ended and all(isinstance(json.loads(one.text), dict) for one in ended)


def test_no_answer_is_lost_in_whitespace(compiler: GrammarCompiler) -> None:
    """A model that likes nothing but spaces and line breaks is given one space at a time."""
    schema = closed(a={"type": "array", "items": {"type": "integer"}, "minItems": 1, "maxItems": 3})
    for seed in range(5):
        text = draw(compiler, schema_grammar(schema), seed, logit_bias=_spaces()).text
        assert "  " not in text and "\n" not in text and "\t" not in text
        check(schema, text)


def _spaces() -> dict[int, float]:
    from tests.grammar.support import codec

    blank = (i for i in range(codec().vocab_size) if codec().token_bytes(i) and not codec().token_bytes(i).strip())
    return dict.fromkeys(blank, 50.0)


UNSUPPORTED = [
    ({"properties": {"a": {"oneOf": [{"minimum": 2}, {"type": "integer"}]}}}, "properties.a.oneOf", "anyOf"),
    ({"patternProperties": {"a": {"type": "null"}, "b": {"type": "integer"}}}, "patternProperties", "disjoint"),
    ({"not": {"type": "string"}}, "not", "not"),
    (
        {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
        "properties.a.uniqueItems",
        "unique",
    ),
    ({"properties": {"x": {"if": {}, "then": {"type": "null"}}}}, "properties.x.if", "if"),
    ({"items": {"type": "string", "format": "iri-reference"}}, "items.format", "iri-reference"),
    ({"$defs": {"d": {"contains": {"const": 1}}}, "items": {"$ref": "#/$defs/d"}}, "$defs.d.contains", "contains"),
]


@pytest.mark.parametrize(("schema", "path", "word"), UNSUPPORTED)
def test_what_cannot_be_kept_to_is_named(compiler: GrammarCompiler, schema: Any, path: str, word: str) -> None:
    """AC-06: an unsupported keyword is a 400 that names it, and where."""
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(schema_grammar(schema), param="response_format")
    assert caught.value.param == f"response_format.{path}"
    assert word in caught.value.message
    assert caught.value.code == "unsupported_schema"


# ---- random schemas ----------------------------------------------------------------------------------------

NAMES = st.sampled_from(["a", "b", "name", "größe", "x-y", "list"])
ODD_TEXTS = st.text('ab"\\ é', max_size=3)


def a_string(low: int, size: int) -> dict[str, Any]:
    return {"type": "string", "minLength": low, "maxLength": low + size}


def an_integer(low: int, span: int) -> dict[str, Any]:
    return {"type": "integer", "minimum": low, "maximum": low + span}


LEAVES = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {"type": "integer"}, {"type": "number"}]),
    st.builds(a_string, st.integers(0, 3), st.integers(0, 6)),
    st.builds(an_integer, st.integers(-999, 999), st.integers(0, 5000)),
    st.lists(st.one_of(st.integers(-9, 9), ODD_TEXTS, st.none()), min_size=1, max_size=4).map(lambda v: {"enum": v}),
    st.sampled_from([{"type": "string", "pattern": p} for p in ("^[a-c]{1,4}$", "^(yes|no)$", "^\\d+(\\.\\d)?$")]),
)


def _bigger(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def an_object(properties: dict[str, Any], required: set[str], more: bool) -> dict[str, Any]:
        wanted = [name for name in properties if name in required]
        return {"type": "object", "properties": properties, "required": wanted, "additionalProperties": more}

    def an_array(items: Any, low: int, span: int) -> dict[str, Any]:
        return {"type": "array", "items": items, "minItems": low, "maxItems": low + span}

    objects = st.builds(an_object, st.dictionaries(NAMES, inner, max_size=3), st.sets(NAMES), st.just(False))
    arrays = st.builds(an_array, inner, st.integers(0, 2), st.integers(0, 2))
    either = st.lists(inner, min_size=1, max_size=3).map(lambda parts: {"anyOf": parts})
    return st.one_of(objects, arrays, either)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(schema=st.recursive(LEAVES, _bigger, max_leaves=6), seed=st.integers(0, 2**20))
def test_random_schemas(compiler: GrammarCompiler, schema: Any, seed: int) -> None:
    """AC-06."""
    drawn = draw(compiler, schema_grammar(schema), seed, max_tokens=200)
    if drawn.ended:
        check(schema, drawn.text)
