"""A grammar's first compilation, in a child process that may be killed.

The child converts the source to llguidance's own form, compiles it for a vocabulary of single bytes and takes some
steps. It has a budget of processor time, memory and stack; a grammar that exceeds one ends the child by a signal, and
only the child. The next trial starts another.

One line of JSON goes either way: ``[kind, source]`` down; ``{"text": …}`` or ``{"error": …}`` up.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenmill.core.errors import SetupError
from tokenmill.core.grammar import Grammar
from tokenmill.engine.grammar.source import overrun, refusal, unanchored

if TYPE_CHECKING:
    from llguidance import LLParserLimits
    from llguidance._lib import JsonCompileOptions

CPU_S = 2.0
MEMORY_BYTES = 256 * 2**20
"""Data that the child may have altogether."""
STACK_BYTES = 2**21
"""A quarter of what a thread has on Linux: what fits here fits there."""
WALL_S = 30.0
"""A child that gets no processor time at all is given up after this long."""
STEPS = 48
"""Bytes that a trial follows a grammar for: many limits show only on the way."""

JSON_OPTIONS: JsonCompileOptions = {
    "whitespace_flexible": True,
    "whitespace_pattern": "\\x20",
    "item_separator": ",",
    "key_separator": ":",
    "coerce_one_of": False,
    "lenient": False,
}
"""At most one space between two tokens of JSON: a model cannot lose itself in whitespace. A schema's own
``x-guidance`` does not override it; a keyword that is not implemented is an error, and so is a ``oneOf`` whose branches
may overlap."""


_NEEDED = ("PATH", "PYTHON", "LD_", "DYLD_", "VIRTUAL_ENV", "LANG", "LC_")
"""What the child is told of the environment: keys and tokens are none of its business."""

_TOKEN_IDS = re.compile(r"<\[[0-9,^ -]+\]>")
_ANY_SPECIAL = "<[257]>"
"""Special tokens stand in a Lark grammar by number; the trial's vocabulary has one (``_Bytes``) in place of each."""


@dataclass(slots=True)
class Trial:
    """A child process that grammars are tried in, started when it is first needed. For one thread at a time."""

    _child: subprocess.Popen[bytes] | None = None

    def run(self, grammar: Grammar) -> str:
        """The grammar in llguidance's form.

        Raises:
            Refused: it does not compile, or not within the budget.
        """
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child = _spawn()
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        try:
            child.stdin.write(json.dumps([grammar.kind, grammar.source]).encode() + b"\n")
            child.stdin.flush()
            ready, _, _ = select.select([child.stdout], [], [], WALL_S)
            line = child.stdout.readline() if ready else b""
        except BrokenPipeError:
            line = b""
        if not line:
            raise self._overrun(child)
        answer = json.loads(line)
        if "error" in answer:
            raise refusal(grammar, answer["error"])
        text: str = answer["text"]
        return text

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _overrun(self, child: subprocess.Popen[bytes]) -> Exception:
        """Why the child is gone (or never answered); it is gone afterwards."""
        child.kill()
        child.communicate()
        self._child = None
        if child.returncode > 0:  # not a signal: Python itself did not start
            return SetupError("the process that compiles grammars does not start; is llguidance installed?")
        return overrun("time" if child.returncode in (-signal.SIGPROF, -signal.SIGKILL) else "memory")


def _spawn() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", f"from {__name__} import serve; serve()"]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name.startswith(_NEEDED)},
    )


def limits() -> LLParserLimits:
    """llguidance's own, per matcher: with these a step takes at most some tens of milliseconds, and an answer's lexer
    some tens of megabytes (a state has one to two kilobytes)."""
    from llguidance import LLParserLimits

    return LLParserLimits(
        max_lexer_states=20_000,
        step_lexer_fuel=100_000,
        step_max_items=50_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


# ---- in the child ----------------------------------------------------------------------------------------


def serve() -> None:
    """Answer trials until the parent closes the pipe; never raises what a grammar does wrong."""
    import resource

    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    tokenizer = _byte_tokenizer()
    threading.stack_size(STACK_BYTES)
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        answers: list[dict[str, str]] = []
        worker = threading.Thread(target=lambda line=line, answers=answers: answers.append(_answer(tokenizer, line)))
        worker.start()
        worker.join()
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        answer = answers[0] if answers else {"error": "the compiler failed"}  # native code panicked
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _answer(tokenizer: Any, line: bytes) -> dict[str, str]:
    try:
        kind, source = json.loads(line)
        text = convert(kind, source)
        complaint = _try(tokenizer, _TOKEN_IDS.sub(_ANY_SPECIAL, text) if kind == "lark" else text)
    except Exception as error:  # noqa: BLE001  (whatever is wrong with it, the parent is told)
        return {"error": str(error) or type(error).__name__}
    return {"error": complaint} if complaint else {"text": text}


def convert(kind: str, source: str) -> str:
    """llguidance's form of a grammar. Raises ``ValueError`` where it cannot be converted."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import any_to_lark

    if kind == "json_schema":
        schema = "{}" if source.strip() == "true" else source  # options can only be applied to an object
        return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)
    if kind == "json_object":
        return LLMatcher.grammar_from_json_schema('{"type": "object"}', overrides=JSON_OPTIONS)
    if kind == "choice":
        return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in json.loads(source)))
    if kind == "lark":
        return LLMatcher.grammar_from_lark(any_to_lark(source) if "::=" in source else source)
    return LLMatcher.grammar_from_regex(unanchored(source))


def _try(tokenizer: Any, text: str) -> str:
    """Compile and take some steps; what went wrong, or ""."""
    from llguidance import LLMatcher

    matcher = LLMatcher(tokenizer, text, limits=limits(), log_level=0)
    choice = 1
    for _ in range(STEPS):
        if matcher.is_error():
            break
        mask = matcher.compute_bitmask()
        allowed = [token for token in (*range(256), 257) if mask[token >> 3] >> (token & 7) & 1]
        if matcher.is_error() or not allowed:
            break
        choice = (choice * 1103515245 + 12345) % 2**31
        matcher.consume_token(allowed[choice // 65536 % len(allowed)])
    return str(matcher.get_error())


class _Bytes:
    """A vocabulary of single bytes, an end and another special token."""

    tokens = (*(bytes([byte]) for byte in range(256)), b"<end>", b"<special>")
    special_token_ids = (256, 257)
    eos_token_id = 256
    bos_token_id = None
    is_tokenizer_wrapper = True

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def _byte_tokenizer() -> Any:
    from llguidance import LLTokenizer

    return LLTokenizer(_Bytes())  # type: ignore[arg-type]  # it asks for these attributes, not for the class
