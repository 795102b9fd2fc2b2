"""What structured output costs a step: compiling grammars, and masks for the tokens that may come next.

For each grammar: how long a new one takes to compile (trial in the child process included), how long one that was
compiled before; how long the matcher takes that every answer has of its own; and for each token of random answers, how
long it takes to read it and to find the mask of the next, which is what a step waits for if the model is quicker.
Tokens are drawn evenly among those allowed, with a fixed seed: no model writes such texts, and they are harder.
"""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tokenmill.core.grammar import Grammar
from tokenmill.engine.grammar.compiler import GrammarCompiler
from tokenmill.engine.text import TextCodec

Progress = Callable[[int, int], object]
"""(grammars done, of how many)"""

VARIANTS = 5
"""Grammars of each kind, so that each is new to the compiler."""
ANSWER_TOKENS = 64


def run(tokenizer: Path, *, steps: int = 500, progress: Progress = lambda done, total: None) -> dict[str, Any]:
    """Measure with the vocabulary of a checkpoint folder.

    Args:
        steps: tokens drawn per grammar.

    Raises:
        CheckpointError: there is no tokenizer, or none that can be read.
    """
    codec = TextCodec.load(tokenizer)
    ends = codec.eos_token_ids or frozenset({codec.vocab_size - 1})
    compiler = GrammarCompiler(codec, codec.vocab_size, ends)
    try:
        vocabulary_s = _seconds(lambda: compiler.compile(Grammar("regex", "first")))
        rows = []
        for done, (name, make) in enumerate(GRAMMARS.items()):
            rows.append(_measure(compiler, name, [make(i) for i in range(VARIANTS)], steps, ends))
            progress(done + 1, len(GRAMMARS))
        return {"benchmark": "grammar", "vocab_size": codec.vocab_size, "first_s": vocabulary_s, "rows": rows}
    finally:
        compiler.close()


def _measure(
    compiler: GrammarCompiler, name: str, grammars: list[Grammar], steps: int, ends: frozenset[int]
) -> dict[str, Any]:
    compile_s = [_seconds(lambda grammar=grammar: compiler.compile(grammar)) for grammar in grammars]  # type: ignore[misc]
    again_s = [_seconds(lambda: compiler.compile(grammars[0])) for _ in range(101)]
    begin_s = [_seconds(lambda: compiler.matcher(grammars[0])) for _ in range(21)]
    mask_s = _mask_seconds(compiler, grammars[0], steps, ends)
    return {
        "grammar": name,
        "source_bytes": len(grammars[0].source),
        "compile_ms": statistics.median(compile_s) * 1e3,
        "found_us": statistics.median(again_s) * 1e6,
        "begin_ms": statistics.median(begin_s) * 1e3,
        "tokens": len(mask_s),
        "mask_us_median": statistics.median(mask_s) * 1e6,
        "mask_us_p99": sorted(mask_s)[int(0.99 * (len(mask_s) - 1))] * 1e6,
        "mask_us_max": max(mask_s) * 1e6,
    }


def _mask_seconds(compiler: GrammarCompiler, grammar: Grammar, steps: int, ends: frozenset[int]) -> list[float]:
    """Of every token of random answers: reading it, and finding the mask of the next."""
    rng = random.Random(0)
    found: list[float] = []
    while len(found) < steps:
        matcher = compiler.matcher(grammar)
        tokens: list[int] = []
        for _ in range(ANSWER_TOKENS):
            began_s = time.perf_counter()
            matcher.advance(tokens)
            mask = matcher.allowed()
            found.append(time.perf_counter() - began_s)
            allowed = np.flatnonzero(np.unpackbits(np.frombuffer(mask, np.uint8), bitorder="little"))
            tokens = [int(allowed[rng.randrange(len(allowed))])]
            if tokens[0] in ends:
                break
    return found[:steps]


def _schema(schema: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


def _seconds(work: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    work()
    return time.perf_counter() - began_s


# ---- what is compiled: name → the i-th of its kind ---------------------------------------------------------------


def _flat(i: int) -> Grammar:
    properties = {
        "name": {"type": "string"},
        f"age_{i}": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 5},
    }
    return _schema({"type": "object", "properties": properties, "required": list(properties)})


def _nested(i: int) -> Grammar:
    line = {"type": "object", "properties": {f"f{j}_{i}": {"type": "string"} for j in range(20)}}
    tree = {"type": "object", "properties": {"v": {"type": "number"}, "kids": {"items": {"$ref": "#/$defs/tree"}}}}
    properties = {"lines": {"type": "array", "items": line}, "tree": {"$ref": "#/$defs/tree"}}
    return _schema({"$defs": {"tree": tree}, "type": "object", "properties": properties, "required": ["lines"]})


GRAMMARS: dict[str, Callable[[int], Grammar]] = {
    "any object": lambda i: _schema({"type": "object", "title": str(i)}),
    "small schema": _flat,
    "nested schema": _nested,
    "a thousand values": lambda i: _schema({"enum": [f"value {i} {j}" for j in range(1000)]}),
    "regular expression": lambda i: Grammar("regex", rf"[A-Z][a-z ]{{5,200}}\d{{4}}-{i}\d{{2}}"),
    "choice of ten": lambda i: Grammar("choice", json.dumps([f"answer {i} {j}" for j in range(10)])),
    "lark sums": lambda i: Grammar("lark", f'start: n (("+"|"*") n)*\nn: /[0-9]{{1,{i + 3}}}/ | "(" start ")"'),
}
