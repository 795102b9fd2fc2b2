"""Grammars as a fuzz target: what compiles is followed for some tokens, as an answer would be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tokenmill import builtin
from tokenmill.core.errors import GrammarFailed
from tokenmill.core.grammar import Grammar, GrammarKind
from tokenmill.engine.grammar.compiler import GrammarCompiler
from tokenmill.engine.text import TextCodec

SCHEMAS: list[Any] = [
    {
        "$defs": {"t": {"type": "object", "properties": {"k": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}},
        "type": "object",
        "properties": {
            "a": {"type": "string", "pattern": "^a{2,5}$"},
            "b": {"enum": ["x", 1, None]},
            "c": {"$ref": "#/$defs/t"},
        },
        "required": ["a"],
        "additionalProperties": False,
    },
    {
        "anyOf": [{"type": "integer", "minimum": 1, "multipleOf": 3}, {"type": "number", "maximum": 2.5}],
        "allOf": [{"type": ["integer", "null"]}],
    },
    {
        "type": "array",
        "prefixItems": [{"const": {"a": [1]}}],
        "minItems": 1,
        "maxItems": 4,
        "items": {"format": "date"},
    },
    {"type": "object", "patternProperties": {"^x": {"type": "boolean"}}, "minProperties": 1, "maxProperties": 3},
]
PATTERNS = [b"^[a-z]{2,5}(yes|no)?\\d+$", b"(a+)+b", b"[^\\n\\w]{1,300}.*x{3}", b"(?i)a|\\u{1F600}\\p{L}"]
PATTERN_WORDS = (b"(", b")", b"{9}", b"{1,999}", b"*", b"+", b"?", b"|", b"[", b"]", b"^", b"$", b"\\", b"(?:", b".*")
LARKS = [
    b'start: sum\nsum: n ("+" n)*\nn: /[0-9]{1,3}/ | "(" sum ")"\n',
    b'start: %json {"type": "object", "properties": {"a": {"enum": [1, 2]}}}\n',
    b'root ::= "a" item{2,3}\nitem ::= [a-z]+ | "(" root ")"\n',
    b'%llguidance {}\nstart: (a | B)+ T\na: "x"*\nB: "y" /z?/\nT[lazy]: /.*end/\n',
]
LARK_WORDS = (b"start", b": ", b"|", b'"', b"/", b"(", b")", b"*", b"{1,9}", b"\n", b"a", b"%json {}", b"::=", b"<[0]>")


@cache
def compiler() -> GrammarCompiler:
    codec = TextCodec.load(builtin.path("story"))
    return GrammarCompiler(codec, codec.vocab_size, codec.eos_token_ids)


def follow(kind: GrammarKind) -> Callable[[bytes], None]:
    """A target's ``run``: compile, and take the first, the last and the middle one of what may come."""

    def run(data: bytes) -> None:
        grammar = Grammar(kind, data.decode("utf-8", "replace"))
        compiler().compile(grammar)
        matcher = compiler().matcher(grammar)
        tokens: list[int] = []
        with contextlib.suppress(GrammarFailed):
            for step in range(12):
                matcher.advance(tokens)
                allowed = np.flatnonzero(np.unpackbits(np.frombuffer(matcher.allowed(), np.uint8), bitorder="little"))
                assert len(allowed), "no token, and no error"
                tokens = [int(allowed[(0, -1, len(allowed) // 2)[step % 3]])]

    return run
