"""Grammars in llguidance's dialect of Lark, put together from texts, JSON schemas and special tokens.

A marker that is a special token of the vocabulary can only be written as that token, any other one only as text; that
is what ``Terms`` knows. ``answer_grammar`` joins what may stand in an answer: a reasoning, then free text, calls, or
an answer of a given form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tokenmill.core.errors import InvalidRequest
from tokenmill.core.grammar import Grammar
from tokenmill.engine.grammar.source import as_lark

if TYPE_CHECKING:
    from tokenmill.server.dialects.base import Dialect, Function
    from tokenmill.server.dialects.reasoning import Reasoning

_NOTES = frozenset({"$comment", "$schema", "default", "deprecated", "description", "examples", "title"})
_SCHEMAS_BY_NAME = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
_SCHEMA_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SCHEMAS = frozenset({"additionalProperties", "contains", "else", "if", "items", "not", "propertyNames", "then"})

_CALL_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""JSON as models are taught to write it in calls."""
_FORM_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": "\\x20", "lenient": False, "coerce_one_of": False}
"""JSON as an answer: at most one space between two tokens of it, so that a model cannot lose itself in them."""

TEXT = r"/(.|\n)*/"


class Terms:
    """How texts, markers and schemas are written as terms of a grammar for one vocabulary."""

    def __init__(self, special: Mapping[str, int]) -> None:
        """``special``: the vocabulary's special tokens with their ids."""
        self._special = special
        self.rules: list[str] = []
        """Rules that terms made here refer to."""
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(special, key=len, reverse=True))) + ")")

    def special_in(self, text: str) -> set[int]:
        """The special tokens that are spelt out in ``text``."""
        return {self._special[part] for part in self._parts(text) if part in self._special}

    def text(self, text: str) -> str:
        """Exactly ``text``; special tokens in it as such. "" for no text."""
        return " ".join(map(self._part, self._parts(text)))

    def json_schema(self, schema: Mapping[str, Any], *, strict: bool) -> str:
        """A JSON value of this schema; where it is not ``strict``, keywords that are not built are passed over."""
        options = {**_CALL_OPTIONS, "lenient": not strict, "coerce_one_of": not strict}
        return "%json " + json.dumps({**without_notes(schema), "x-guidance": options})

    def property_value(self, parameters: Mapping[str, Any], name: str, *, strict: bool) -> str:
        """A JSON value that ``parameters`` allows for its property ``name``."""
        shared = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
        schema = parameters["properties"][name]
        return self.json_schema({**shared, **(schema if isinstance(schema, Mapping) else {})}, strict=strict)

    def lazy_text(self, end: str) -> str:
        """Any text up to and with the first ``end``."""
        rule = f"text_{len(self.rules)}"
        self.rules += self.up_to(rule, end)
        return rule

    def _rule(self, body: str) -> str:
        """The name of a rule made for ``body``."""
        name = f"item_{len(self.rules)}"
        self.rules.append(f"{name}: {body}")
        return name

    def sequence(self, items: Sequence[tuple[str, bool]], separator: str = ", ") -> str:
        """Terms in an order, with ``separator`` between; each comes with whether it must stand there."""
        comma = self.text(separator)
        needed = [self._rule(item) for item, required in items if required]
        beginnings: list[str] = []
        rest = ""
        for item in reversed([item for item, required in items if not required]):
            name = self._rule(item)
            beginnings.append(f"{name} {rest}")
            rest = self._rule(f"({comma} {name})? {rest}")
        if not needed:
            return f"({' | '.join(reversed(beginnings))})?" if beginnings else ""
        return f"{f' {comma} '.join(needed)} {rest}"

    def up_to(self, rule: str, marker: str, text: str = "TEXT") -> list[str]:
        """The rule ``rule``: text up to and with the first ``marker``. ``text``: the terminal of such text."""
        parts = self._parts(marker)
        if parts[0] in self._special:
            return [f"{rule}: {text} {self.text(marker)}"]
        head, *rest = map(self._part, parts)
        return [f"{rule}_first[lazy]: {text} {head}", f"{rule}: {rule}_first {' '.join(rest)}"]

    def _parts(self, text: str) -> list[str]:
        """``text`` cut at its special tokens."""
        return [part for part in (self._split.split(text) if self._special else [text]) if part]

    def _part(self, part: str) -> str:
        return f"<[{self._special[part]}]>" if part in self._special else json.dumps(part)


def answer_grammar(
    terms: Terms,
    dialect: Dialect | None,
    functions: Sequence[Function],
    *,
    required: bool,
    several: bool,
    otherwise: Grammar | None = None,
    reasoning: tuple[Reasoning, bool] | None = None,
) -> Grammar:
    """What an answer may look like.

    Args:
        functions: those that may be called; none: only ``otherwise``.
        required: there must be a call; else there may be free text instead of calls or before them.
        several: more than one call may stand in the answer.
        otherwise: the form of an answer that holds no call; None: free text.
        reasoning: how the model reasons before its answer, and whether the prompt has already begun it.
    """
    rules = ["TEXT: " + TEXT, _free(terms, dialect if functions else None, reasoning)]
    alternatives: list[str] = []
    if dialect is not None and functions:
        rules += _calls(terms, dialect, functions, several=several)
        if required or otherwise is not None or dialect.marks_all:
            alternatives.append(f"{terms.text(dialect.trigger)} calls")
        else:
            rules += _led(terms, dialect)
            alternatives.append("led_calls")
    if not (functions and required):
        lead = terms.text(dialect.answer) if dialect is not None else ""
        if otherwise is not None:
            rules += [f"form: {_embedded(otherwise)}"]
            alternatives.append(f"{lead} form")
        else:
            alternatives.append(f"{lead} FREE")
    start = " | ".join(alternatives)
    if reasoning is not None:
        rules += reasoning[0].rules(terms, begun=reasoning[1])
        start = f"reasoned ({start})"
    return Grammar("lark", "\n".join(["%llguidance {}", f"start: {start}", *rules, *terms.rules]) + "\n")


def without_notes(schema: Any) -> Any:
    """A JSON schema without what is only told to readers, which a grammar is the smaller for."""
    if not isinstance(schema, Mapping):
        return schema
    made: dict[str, Any] = {}
    for key, value in schema.items():
        if key in _SCHEMAS_BY_NAME and isinstance(value, Mapping):
            made[key] = {name: without_notes(inner) for name, inner in value.items()}
        elif key in _SCHEMA_LISTS and isinstance(value, list):
            made[key] = [without_notes(inner) for inner in value]
        elif key in _SCHEMAS:
            made[key] = without_notes(value)
        elif key not in _NOTES:
            made[key] = value
    return made


def _calls(terms: Terms, dialect: Dialect, functions: Sequence[Function], *, several: bool) -> list[str]:
    """``calls``: what follows the trigger."""
    rules = []
    for index, function in enumerate(functions):
        parts = (dialect.head(terms, function), dialect.arguments(terms, function), terms.text(dialect.tail))
        rules.append(f"call_{index}: {' '.join(parts)}")
    rules.append("call: " + " | ".join(f"call_{index}" for index in range(len(functions))))
    more = f"({terms.text(dialect.between)} call)*" if several and dialect.several else ""
    rules.append(f"calls: {terms.text(dialect.opening)} call {more} {terms.text(dialect.closing)}")
    return rules


def _led(terms: Terms, dialect: Dialect) -> list[str]:
    """``led_calls``: calls, after text where they have a trigger."""
    if not dialect.trigger:
        return ["led_calls: calls"]
    return [*terms.up_to("lead", dialect.trigger, text="FREE"), "led_calls: lead calls"]


def _free(terms: Terms, dialect: Dialect | None, reasoning: tuple[Reasoning, bool] | None) -> str:
    """``FREE``: text at an answer's beginning, which must not look like a call or the opening of a reasoning."""
    text = "TEXT" if dialect is None or dialect.trigger else f"/({dialect.plain_start}(.|\\n)*)?/"
    if reasoning is None or reasoning[1] or terms.special_in(reasoning[0].opening):
        return f"FREE: {text}"
    return f"FREE: {text} & ~({json.dumps(reasoning[0].opening)} TEXT)"


def _embedded(grammar: Grammar) -> str:
    """A grammar as one term of another."""
    match grammar.kind:
        case "json_schema":
            schema = json.loads(grammar.source)
            return "%json " + json.dumps({**(schema if isinstance(schema, dict) else {}), "x-guidance": _FORM_OPTIONS})
        case "json_object":
            return "%json " + json.dumps({"type": "object", "x-guidance": _FORM_OPTIONS})
        case "regex":
            return as_lark(grammar.source)
        case "choice":
            return " | ".join(json.dumps(choice) for choice in json.loads(grammar.source))
        case "lark":
            raise InvalidRequest(
                "a grammar of one's own cannot be combined with tools or with a model that reasons first; "
                "use response_format of type json_schema",
                param="response_format",
                code="not_supported",
            )
