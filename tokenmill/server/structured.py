"""The form of an answer that a request asks for, whatever field it comes in.

========================================  ===========================================================
``response_format``                       OpenAI's: ``text``, ``json_object``, ``json_schema``
``structured_outputs``                    vLLM's: one of ``json``, ``regex``, ``choice``, ``grammar``,
                                          ``json_object``
``guided_json``, ``guided_regex``, …      vLLM's older names of the same
========================================  ===========================================================

``strict`` makes no difference: an answer always keeps to its schema, and what a schema says that cannot be kept to
is refused.
"""

from __future__ import annotations

from typing import Any

from tokenmill.core.grammar import Grammar, GrammarKind
from tokenmill.server import jsonio
from tokenmill.server.protocol.base import GenerationRequest

_KINDS: dict[str, GrammarKind] = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "lark"}
"""By vLLM's names."""


def grammar_of(body: GenerationRequest) -> Grammar | None:
    """What the answer must look like; None: anything."""
    wanted = _wanted(body)
    return None if wanted is None else wanted[1]


def field_of(body: GenerationRequest) -> str:
    """The field that ``grammar_of`` comes from, to name in an error."""
    wanted = _wanted(body)
    return "response_format" if wanted is None else wanted[0]


def _wanted(body: GenerationRequest) -> tuple[str, Grammar] | None:
    field = next(iter(body.forms), None)
    if field is None:
        return None
    if field == "response_format":
        wanted = body.forms[field]
        if wanted.type == "json_object":
            return field, Grammar("json_object")
        return f"{field}.json_schema.schema", _made("json", wanted.json_schema.schema_)
    if field == "structured_outputs":
        name, value = body.forms[field].only
        return f"{field}.{name}", Grammar("json_object") if name == "json_object" else _made(name, value)
    return field, _made(field.removeprefix("guided_"), body.forms[field])


def _made(name: str, value: Any) -> Grammar:
    """A schema may be given as JSON text, too; every other source but a list of choices is text."""
    return Grammar(_KINDS[name], value if isinstance(value, str) else jsonio.dumps(value).decode())
