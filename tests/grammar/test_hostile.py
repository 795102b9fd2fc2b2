"""BI-19, BI-20, BI-21 and the grammar part of FT-09: hostile grammars cost little and break nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.grammar.support import PROMPT, draw, new_compiler, new_sequence, noise, schema_grammar
from tokenmill.core.errors import InvalidRequest, Unavailable
from tokenmill.core.grammar import Grammar
from tokenmill.engine.grammar import trial as trials
from tokenmill.engine.grammar.compiler import Budget, GrammarCompiler
from tokenmill.engine.grammar.matcher import GrammarMatcher
from tokenmill.runtime.sampling import Sampler

BAD_CODES = {"invalid_schema", "unsupported_schema", "grammar_too_complex", "invalid_grammar"}
COMPILE_S = 12.0
"""The budget is 2 s of processor time; a busy machine gives it out slowly."""


def chain(num: int) -> dict[str, Any]:
    """References to references: a long enough chain of them overflows the compiler's stack."""
    links: dict[str, Any] = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(num)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{num}": {"type": "integer"}}}


def deep(num: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(num):
        schema = {"type": "array", "items": schema}
    return schema


REFUSED_SCHEMAS: dict[str, Any] = {
    "an unknown type": {"type": "strnig"},
    "a type that is a number": {"type": 7},
    "a cycle of references": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}},
    "a reference to itself": {"$ref": "#"},
    "a dangling reference": {"$ref": "#/$defs/nowhere"},
    "a remote reference": {"$ref": "http://169.254.169.254/x"},
    "a remote reference deep inside": {"properties": {"a": {"items": {"$ref": "file:///etc/passwd"}}}},
    "a long chain of references": chain(3000),
    "an empty enum": {"enum": []},
    "minimum above maximum": {"type": "integer", "minimum": 5, "maximum": 3},
    "lengths the wrong way round": {"type": "string", "minLength": 5, "maxLength": 3},
    "two thousand optional properties": {"type": "object", "properties": {f"p{i}": {} for i in range(2000)}},
    "a pattern with look-around": {"type": "string", "pattern": "(?=a)b"},
    "a pattern that is none": {"type": "string", "pattern": "(a"},
    "false": False,
    "never true": {"allOf": [{"type": "integer"}, {"type": "string"}]},
}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every attempt to open a connection is noted, and fails."""
    calls: list[Any] = []

    def refuse(self: socket.socket, address: Any) -> None:
        calls.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    return calls


@pytest.mark.parametrize("name", REFUSED_SCHEMAS)
def test_a_hostile_schema_is_refused(compiler: GrammarCompiler, no_network: list[Any], name: str) -> None:
    """BI-19."""
    began_s = time.monotonic()
    with pytest.raises(InvalidRequest) as caught:
        compiler.compile(schema_grammar(REFUSED_SCHEMAS[name]), param="response_format.json_schema.schema")
    assert caught.value.code in BAD_CODES
    assert str(caught.value.param).startswith("response_format.json_schema.schema")
    assert len(caught.value.message) < 600 and "\n" not in caught.value.message
    assert time.monotonic() - began_s < COMPILE_S
    assert not no_network


@pytest.mark.parametrize("depth", [101, 5000, 100_000])
def test_depth_is_counted_before_anything_parses(compiler: GrammarCompiler, depth: int) -> None:
    """BI-19."""
    source = '{"items":' * depth + "{}" + "}" * depth
    began_s = time.monotonic()
    with pytest.raises(InvalidRequest, match=r"nests deeper|bytes; at most"):
        compiler.compile(Grammar("json_schema", source))
    assert time.monotonic() - began_s < 1.0


def expect(error: InvalidRequest, codes: set[str]) -> None:
    assert error.code in codes, error.message


HUGE_BUT_FINE: dict[str, Any] = {
    "deep": deep(95),
    "nothing asked": {},
    "a very long string": {"type": "string", "minLength": 10**6, "maxLength": 10**6},
    "a million items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**6},
    "ten thousand values": {"enum": [f"value {i}" for i in range(10_000)]},
}


@pytest.mark.parametrize("name", HUGE_BUT_FINE)
def test_a_huge_one_compiles_within_its_budget_or_is_refused(compiler: GrammarCompiler, name: str) -> None:
    """BI-19: either way, and then its steps are cheap."""
    grammar = schema_grammar(HUGE_BUT_FINE[name])
    began_s = time.monotonic()
    try:
        compiler.compile(grammar)
    except InvalidRequest as error:
        expect(error, {"grammar_too_complex"})
    else:
        draw(compiler, grammar, 0, max_tokens=10)
    assert time.monotonic() - began_s < COMPILE_S


HOSTILE_PATTERNS = [
    "(a+)+b",
    "((a{100}){100}){100}",
    "(b|c)(a{999999999})",
    "[ab]*a[ab]{30}",
    "(.*a){25}b",
    "(" * 4000,
    "a?" * 4000,
    ".*" * 2000 + "x",
    r"(\w{0,200}){0,200}",
    "(x+x+)+y",
    "(?i)" + "[^a-z]{0,3}foo" * 500,
    "[" * 4000,
    "a{1000}{1000}",
    "\\",
]


def as_lark(pattern: str) -> Grammar:
    return Grammar("lark", "start: /" + pattern.replace("/", r"\/") + "/")


@pytest.mark.parametrize(
    "field",
    [lambda p: Grammar("regex", p), as_lark, lambda p: schema_grammar({"type": "string", "pattern": p})],
    ids=["regex", "lark", "schema"],
)
def test_a_hostile_pattern_costs_little_whatever_field_it_comes_in(
    compiler: GrammarCompiler, field: Callable[[str], Grammar]
) -> None:
    """BI-20: refused, or compiled within the budget; and then no step takes long, or that answer alone fails."""
    for pattern in HOSTILE_PATTERNS:
        began_s = time.monotonic()
        try:
            compiler.compile(field(pattern))
        except InvalidRequest as error:
            expect(error, BAD_CODES)
        else:
            assert slowest_step_s(compiler, field(pattern)) < 1.0, pattern
        assert time.monotonic() - began_s < COMPILE_S, pattern


def slowest_step_s(compiler: GrammarCompiler, grammar: Grammar) -> float:
    seq, sampler, slowest_s = new_sequence(compiler, grammar, 1), Sampler(), 0.0
    for _ in range(20):
        began_s = time.monotonic()
        (sample,) = sampler.sample(noise(seq)[None], [seq])
        slowest_s = max(slowest_s, time.monotonic() - began_s)
        if sample.token_id is None or sample.token_id in seq.stop_token_ids:
            break
        seq.token_ids.append(sample.token_id)
    return slowest_s


HOSTILE_LARK = {
    "left recursion": 'start: start "a" | "b"',
    "endless recursion": "start: start",
    "recursion in a circle": "start: a\na: b\nb: a",
    "a long chain of rules": "\n".join(["start: r0", *(f"r{i}: r{i + 1}" for i in range(4000)), 'r4000: "a"']),
    "a long chain of terminals": "\n".join(["start: T0", *(f"T{i}: T{i + 1}" for i in range(4000)), 'T4000: "a"']),
    "doubling terminals": "\n".join(["start: T0", *(f"T{i}: T{i + 1} T{i + 1}" for i in range(30)), 'T30: "a"']),
    "doubling rules": "\n".join(["start: r0", *(f"r{i}: r{i + 1} r{i + 1}" for i in range(30)), 'r30: "a" | ""']),
    "nested brackets": "start: " + "(" * 5000 + '"a"' + ")" * 5000,
    "a million repetitions": 'start: a{1000000}\na: "x"',
    "ambiguous to the core": 'start: e\ne: e e | "a" | ""',
    "a megabyte": 'start: "' + "a" * 2**20 + '"',
    "five thousand alternatives": "start: " + " | ".join(f'"w{i}"' for i in range(5000)),
    "a remote schema": 'start: %json {"$ref":"http://127.0.0.1:9/x"}',
    "empty": "  \n",
    "no grammar": "hello, world",
    "gbnf that never ends": "root ::= root " * 2000,
}


@pytest.mark.parametrize("name", HOSTILE_LARK)
def test_a_hostile_lark_grammar_costs_little(compiler: GrammarCompiler, no_network: list[Any], name: str) -> None:
    """BI-20."""
    grammar = Grammar("lark", HOSTILE_LARK[name])
    began_s = time.monotonic()
    try:
        compiler.compile(grammar)
    except InvalidRequest as error:
        expect(error, BAD_CODES)
    else:
        assert slowest_step_s(compiler, grammar) < 1.0
    assert time.monotonic() - began_s < COMPILE_S
    assert not no_network


@pytest.mark.parametrize("source", ["[]", '["a", 1]', '{"a": 1}', "yes", '["a"', json.dumps(["x"] * 5000), "[" * 10**5])
def test_a_bad_choice_is_refused(compiler: GrammarCompiler, source: str) -> None:
    """BI-20."""
    with pytest.raises(InvalidRequest):
        compiler.compile(Grammar("choice", source))


def test_what_kills_the_trial_kills_nothing_else(compiler: GrammarCompiler) -> None:
    """BI-20: a stack overflow ends the child; the next grammar finds another."""
    for length in (4000, 5000, 6000):
        with pytest.raises(InvalidRequest) as caught:
            compiler.compile(schema_grammar(chain(length)))
        assert caught.value.code == "grammar_too_complex"
        compiler.compile(Grammar("regex", f"still here {length}"))


def test_a_refused_grammar_costs_nothing_the_second_time(compiler: GrammarCompiler) -> None:
    grammar = schema_grammar({"type": "integer", "multipleOf": 999983})
    for attempt in range(3):
        began_s = time.monotonic()
        with pytest.raises(InvalidRequest):
            compiler.compile(grammar)
        assert attempt == 0 or time.monotonic() - began_s < 0.5


# ---- the cache -----------------------------------------------------------------------------------------------


def unique(number: int) -> Grammar:
    return schema_grammar(
        {"type": "object", "properties": {f"k{number}": {"type": "integer"}}, "required": [f"k{number}"]}
    )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_the_cache_is_bounded() -> None:
    """BI-21: in entries, in bytes as reckoned, and in bytes as the machine sees them."""
    compiler = new_compiler(Budget(max_entries=40, max_bytes=4 * 2**20))
    try:
        for number in range(60):
            compiler.compile(unique(number))
        gc.collect()
        before = resident_bytes()
        for number in range(60, 260):
            compiler.compile(unique(number))
            stats = compiler.stats()
            assert stats["entries"] <= 40 and stats["bytes"] <= 4 * 2**20
        gc.collect()
        assert resident_bytes() - before < 16 * 2**20
        assert compiler.stats()["misses"] == 260
        compiler.compile(unique(259))
        assert compiler.stats()["hits"] == 1
    finally:
        compiler.close()


def test_a_grammar_in_use_outlives_the_cache() -> None:
    """BI-21: a hundred others do not make the worker compile again what a request under way has."""
    compiler = new_compiler(Budget(max_entries=4))
    try:
        kept = compiler.compile(unique(0))
        for number in range(1, 20):
            compiler.compile(unique(number))
        misses = compiler.stats()["misses"]
        assert compiler.compile(unique(0)) is kept
        assert compiler.stats()["misses"] == misses
    finally:
        compiler.close()


def test_no_answer_uses_up_what_others_need(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of one grammar share no limit: each fails where it fails alone, however many went before."""
    from llguidance import LLParserLimits

    few = LLParserLimits(max_lexer_states=400, verbose_errors=False)
    monkeypatch.setattr("tokenmill.engine.grammar.compiler.limits", lambda: few)
    grammar = Grammar("regex", "([ab]*a[ab]{14}c){90,}")
    lengths = []
    for _ in range(4):
        seq, sampler = new_sequence(compiler, grammar, 5), Sampler()
        for _ in range(600):
            (sample,) = sampler.sample(noise(seq)[None], [seq])
            if sample.token_id is None:
                break
            seq.token_ids.append(sample.token_id)
        assert sample.error_code == "grammar_failed"
        lengths.append(len(seq.token_ids))
    assert lengths[0] > len(PROMPT) + 3
    assert len(set(lengths)) == 1


def test_many_who_ask_for_one_grammar_have_it_compiled_once() -> None:
    compiler = new_compiler()

    async def ask() -> None:
        await asyncio.gather(*(compiler.ready(unique(1), param="response_format") for _ in range(50)))

    try:
        asyncio.run(ask())
        assert compiler.stats()["misses"] == 1
    finally:
        compiler.close()


def test_more_than_can_wait_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = new_compiler(Budget(num_threads=1, max_waiting=3))
    gate = threading.Event()
    run = trials.Trial.run
    monkeypatch.setattr(trials.Trial, "run", lambda self, grammar: (gate.wait(30), run(self, grammar))[1])
    try:
        waiting = [compiler.start(unique(number)) for number in range(3)]
        with pytest.raises(Unavailable) as caught:
            compiler.start(unique(3))
        assert caught.value.code == "grammar_queue_full" and caught.value.retry_after_s
        gate.set()
        assert all(future.result(30) for future in waiting)
        compiler.compile(unique(3))
    finally:
        gate.set()
        compiler.close()


def test_tenants_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """One who asks for ten new grammars waits for them himself: who asks for one then waits for one of his."""
    compiler = new_compiler(Budget(num_threads=1, max_waiting=4))
    gate, order = threading.Event(), list[Grammar]()
    run = trials.Trial.run

    def gated(self: trials.Trial, grammar: Grammar) -> str:
        gate.wait(30)
        order.append(grammar)
        return run(self, grammar)

    monkeypatch.setattr(trials.Trial, "run", gated)
    try:
        many = [compiler.start(unique(number), "many") for number in range(4)]
        with pytest.raises(Unavailable):
            compiler.start(unique(4), "many")
        one = [compiler.start(unique(number), "one") for number in (10, 11)]  # its share of the four
        with pytest.raises(Unavailable):
            compiler.start(unique(12), "one")
        gate.set()
        assert all(future.result(30) for future in (*many, *one))
        assert order == [unique(number) for number in (0, 1, 10, 2, 11, 3)]
        compiler.start(unique(4), "many").result(30)
    finally:
        gate.set()
        compiler.close()


# ---- faults on the way (FT-09) -----------------------------------------------------------------------------------


def test_a_matcher_that_fails_ends_its_own_row(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    """FT-09: whatever it raises, in whatever thread; its neighbours draw what they draw without it."""
    grammar = Grammar("regex", "[a-z]+")
    advance = GrammarMatcher.advance

    class Panic(BaseException):
        """As native code panics: no ``Exception``."""

    def broken(self: GrammarMatcher, token_ids: list[int]) -> None:
        if 77 in token_ids:
            raise Panic("in native code")
        advance(self, token_ids)

    sequences = [new_sequence(compiler, grammar, seed) for seed in range(3)]
    alone = [Sampler().sample(noise(seq)[None], [new_sequence(compiler, grammar, seq.seed)])[0] for seq in sequences]
    monkeypatch.setattr(GrammarMatcher, "advance", broken)
    sequences[1].token_ids.append(77)
    sampler = Sampler()
    sampler.look_ahead(sequences)
    samples = sampler.sample(torch.stack([noise(sequences[0]), noise(sequences[1]), noise(sequences[2])]), sequences)
    assert [samples[0].token_id, samples[2].token_id] == [alone[0].token_id, alone[2].token_id]
    assert samples[1].token_id is None and samples[1].error_code == "grammar_failed"
    assert "position 4" in (samples[1].error or "") and "Panic" in (samples[1].error or "")


def test_a_token_that_the_grammar_forbids_is_an_error_and_no_end(compiler: GrammarCompiler) -> None:
    """The library's mask then allows the end, as if the answer were whole; it must not be believed."""
    seq = new_sequence(compiler, Grammar("regex", "[0-9]{4}"))
    seq.token_ids.append(300)
    (sample,) = Sampler().sample(noise(seq)[None], [seq])
    assert sample.token_id is None and sample.error_code == "grammar_failed"
    assert f"position {len(PROMPT) + 1}" in (sample.error or "")


def test_without_a_compiler_the_request_fails_and_says_why() -> None:
    seq = new_sequence(None, Grammar("json_object"))  # type: ignore[arg-type]
    (sample,) = Sampler().sample(noise(seq)[None], [seq])
    assert sample.token_id is None and "no grammar compiler" in (sample.error or "")
