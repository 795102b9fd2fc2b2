"""Reading a text that is still being written.

A parser here is a generator over a ``Reader``: it asks for what should come next with ``yield from`` and is suspended
where that has not come yet, so it is written like a parser of whole texts and is right at every cut. What it finds it
hands on as ``Piece``s, which are final: text is held back only while it may still become a marker, and a call is held
back only until its name is certain.

Every character is looked at a fixed number of times, and what is held back is bounded (``MAX_KEPT``), so a text of any
kind costs time linear in its length. A text that is no call after all is given out as content, as it was written.
"""

from __future__ import annotations

import re
import secrets
import string
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeVar

T = TypeVar("T")
Parse = Generator[None, None, T]
Emit = Callable[[str], None]

MAX_KEPT = 2**16
"""Most characters that are held back before a call's name is known."""
MAX_DEPTH = 256
"""Arguments that nest deeper are no call."""

_ALPHABET = string.ascii_letters + string.digits
_NESTING = re.compile(r'[{}\[\]"]')
_IN_STRING = re.compile(r'["\\]')
_SCALAR = re.compile(r"[-+.0-9A-Za-z]*")
_SPACE = re.compile(r"\s*")
_CLOSER = {"{": "}", "[": "]"}
_ESCAPES = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}

PieceKind = Literal["content", "reasoning", "tool_begin", "tool_arguments", "tool_end"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Something new in a turn. The texts of one kind (and ``index``), joined, are the whole of it."""

    kind: PieceKind
    text: str = ""
    """Of content, reasoning, tool_arguments."""
    index: int = 0
    """Which call, from 0, for the three kinds of tool pieces."""
    id: str = ""
    name: str = ""
    """Id and function of the call, in ``tool_begin``."""


class Malformed(Exception):
    """This is not written as a call is."""


class Sink:
    """Collects pieces. Whitespace beside a call or a reasoning belongs to the format and is left out."""

    def __init__(self, *, calls_only: bool = False) -> None:
        """``calls_only``: there is no content; what seems to be some is the beginning of a call that was cut off."""
        self._calls_only = calls_only
        self.num_calls = 0
        self.open = False
        """A call has begun and not ended."""
        self.reasons = False
        """A reasoning has begun and not ended."""
        self.num_after_reasoning = 0
        """How many characters of the last push came after its end."""
        self._made: list[Piece] = []
        self._texts: list[str] = []
        self._kind: PieceKind = "content"
        self._space: list[str] = []
        self._at_edge = False

    def content(self, text: str) -> None:
        if not self._calls_only:
            self._trimmed("content", text)

    def reasoning(self, text: str) -> None:
        self._trimmed("reasoning", text)

    def plain(self, text: str) -> None:
        """Content of a text in which nothing is marked: just as it is."""
        self._add("content", text)

    def edge(self) -> None:
        """A marker stands here: whitespace around it is no text."""
        self._space.clear()
        self._at_edge = True

    def begin(self, name: str) -> None:
        self.end()
        self.edge()
        self._flush()
        self.open = True
        call_id = "call_" + "".join(secrets.choice(_ALPHABET) for _ in range(24))
        self._made.append(Piece("tool_begin", index=self.num_calls, id=call_id, name=name))
        self.num_calls += 1

    def arguments(self, text: str) -> None:
        self._add("tool_arguments", text)

    def end(self) -> None:
        if self.open:
            self._flush()
            self.open = False
            self._made.append(Piece("tool_end", index=self.num_calls - 1))

    def last(self) -> None:
        """Nothing follows: whitespace that was held back is text after all, and an open call ends."""
        self.end()
        self._add(self._kind, "".join(self._space))
        self._space.clear()

    def collect(self) -> list[Piece]:
        """The pieces since the last time, neighbours of one kind joined."""
        self._flush()
        made, self._made = self._made, []
        return made

    def _trimmed(self, kind: PieceKind, text: str) -> None:
        if self._at_edge:
            text = text.lstrip()
            self._at_edge = not text
        body = text.rstrip()
        if body:
            self._add(kind, "".join(self._space) + body)
            self._space.clear()
        if len(body) < len(text):
            self._space.append(text[len(body) :])

    def _add(self, kind: PieceKind, text: str) -> None:
        if kind != self._kind:
            self._flush()
            self._kind = kind
        if text:
            self._texts.append(text)

    def _flush(self) -> None:
        if self._texts:
            index = self.num_calls - 1 if self._kind == "tool_arguments" else 0
            self._made.append(Piece(self._kind, "".join(self._texts), index))
            self._texts.clear()


class Reader:
    """The text so far, from the place where the parser stands; ``sink`` takes what it finds."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._text = ""
        self._at = 0
        self._ended = False
        self._kept: list[str] | None = None
        self._num_kept = 0

    # ---- the side of whoever has the text ----

    def push(self, text: str) -> None:
        self._text = self._text[self._at :] + text
        self._at = 0

    def close(self) -> None:
        """Nothing follows."""
        self._ended = True

    @property
    def num_unread(self) -> int:
        return len(self._text) - self._at

    # ---- attempts ----

    def attempt(self, marker: str, call: Callable[[], Parse[None]]) -> Parse[None]:
        """Read a call of which ``marker`` has been taken. What turns out to be none is content, marker included."""
        self._kept, self._num_kept = [marker], len(marker)
        try:
            yield from call()
        except Malformed:
            if self._kept is not None:
                kept, self._kept = "".join(self._kept), None
                self.sink.content(kept)
        self._kept = None
        self.sink.end()

    def begin(self, name: str) -> None:
        """Announce a call: from here on it is one, whatever follows."""
        self.forget()
        self.sink.begin(name)

    def end(self) -> None:
        """A call is complete; should what follows be no other one, it is content."""
        self.sink.end()
        self._kept, self._num_kept = [], 0

    def forget(self) -> None:
        """The attempt has succeeded: what was read belongs to the format."""
        self._kept = None

    # ---- what a parser asks for ----

    def more(self) -> Parse[bool]:
        """Wait for more text; False: there is none."""
        if self._ended:
            return False
        yield
        return True

    def peek(self, size: int = 1) -> Parse[str]:
        """The next ``size`` characters, fewer at the end; ``size`` is small."""
        while len(self._text) - self._at < size and (yield from self.more()):
            pass
        return self._text[self._at : self._at + size]

    def at(self, *texts: str) -> Parse[str]:
        """That of ``texts`` which stands here, now taken; "" for none of them. None of them begins another."""
        size = max(map(len, texts))
        while True:
            here = self._text[self._at : self._at + size]
            for text in texts:
                if here.startswith(text):
                    return self._take(len(text))
            if not any(text.startswith(here) for text in texts) or not (yield from self.more()):
                return ""

    def expect(self, *texts: str) -> Parse[str]:
        """One of ``texts``, or ``Malformed``."""
        found = yield from self.at(*texts)
        if not found:
            raise Malformed
        return found

    def closed(self, text: str) -> Parse[None]:
        """Take ``text`` if it stands here, behind whitespace, or as much of it as there is when the text ends."""
        yield from self.space()
        while True:
            here = self._text[self._at : self._at + len(text)]
            if here == text or (self._ended and text.startswith(here)):
                self._take(len(here))
                return
            if not text.startswith(here) or not (yield from self.more()):
                return

    def space(self) -> Parse[None]:
        """Whitespace, however much."""
        yield from self._run(_SPACE, ignore)

    def spaces(self, emit: Emit) -> Parse[None]:
        """The same, handed on."""
        yield from self._run(_SPACE, emit)

    def word(self, pattern: re.Pattern[str]) -> Parse[str]:
        """As many characters as ``pattern``, a starred class of them, takes."""
        parts: list[str] = []
        yield from self._run(pattern, parts.append)
        return "".join(parts)

    def until(self, emit: Emit, *markers: str) -> Parse[str]:
        """Hand text on up to the first of ``markers``, which is taken and returned; "" at the end of the text."""
        find, prefixes, longest = _finder(markers)
        while True:
            hit = find.search(self._text, self._at)
            if hit is not None:
                emit(self._take(hit.start() - self._at))
                return self._take(len(hit.group()))
            emit(self._take(len(self._text) - self._at - self._beginning(prefixes, longest)))
            if not (yield from self.more()):
                emit(self._take(len(self._text) - self._at))
                return ""

    def rest(self, emit: Emit) -> Parse[None]:
        """Hand everything on."""
        while True:
            emit(self._take(len(self._text) - self._at))
            if not (yield from self.more()):
                return

    def json_value(self, emit: Emit) -> Parse[None]:
        """Hand one JSON value on just as it is written; its brackets must match."""
        first = yield from self.peek()
        if first == '"':
            emit(self._take(1))
            yield from self._string_body(emit)
        elif first in ("{", "["):
            yield from self._nested(emit)
        else:
            word = yield from self.word(_SCALAR)
            if not word:
                raise Malformed
            emit(word)

    def json_string(self, emit: Emit) -> Parse[None]:
        """Hand on what a JSON string says."""
        yield from self.expect('"')
        while True:
            hit = _IN_STRING.search(self._text, self._at)
            if hit is None:
                emit(self._take(len(self._text) - self._at))
                if not (yield from self.more()):
                    raise Malformed
                continue
            emit(self._take(hit.start() - self._at))
            if hit.group() == '"':
                self._take(1)
                return
            emit((yield from self._escape()))

    def text_of(self, parse: Callable[[Emit], Parse[None]]) -> Parse[str]:
        """What ``parse`` hands on, whole."""
        parts: list[str] = []
        yield from parse(parts.append)
        return "".join(parts)

    # ---- inside ----

    def _take(self, size: int) -> str:
        taken = self._text[self._at : self._at + size]
        if self._kept is not None:
            self._kept.append(taken)
            self._num_kept += len(taken)
        self._at += size
        if self._kept is not None and self._num_kept > MAX_KEPT:
            raise Malformed
        return taken

    def _run(self, pattern: re.Pattern[str], emit: Emit) -> Parse[None]:
        while True:
            found = pattern.match(self._text, self._at)
            emit(self._take(found.end() - self._at if found else 0))
            if self._at < len(self._text) or not (yield from self.more()):
                return

    def _beginning(self, prefixes: frozenset[str], longest: int) -> int:
        """How many characters at the end may be the beginning of a marker."""
        available = len(self._text) - self._at
        for size in range(min(longest - 1, available), 0, -1):
            if self._text[len(self._text) - size :] in prefixes:
                return size
        return 0

    def _nested(self, emit: Emit) -> Parse[None]:
        closers: list[str] = []
        while True:
            hit = _NESTING.search(self._text, self._at)
            if hit is None:
                emit(self._take(len(self._text) - self._at))
                if not (yield from self.more()):
                    raise Malformed
                continue
            char = hit.group()
            if char in _CLOSER:
                if len(closers) == MAX_DEPTH:
                    raise Malformed
                closers.append(_CLOSER[char])
            elif char != '"' and closers.pop() != char:
                raise Malformed
            emit(self._take(hit.end() - self._at))
            if char == '"':
                yield from self._string_body(emit)
            if not closers:
                return

    def _string_body(self, emit: Emit) -> Parse[None]:
        """A JSON string after its opening quote, as written."""
        while True:
            hit = _IN_STRING.search(self._text, self._at)
            emit(self._take((hit.start() if hit else len(self._text)) - self._at))
            if hit is None:
                if not (yield from self.more()):
                    raise Malformed
            elif hit.group() == '"':
                emit(self._take(1))
                return
            else:
                yield from self.peek(2)
                emit(self._take(2))

    def _escape(self) -> Parse[str]:
        """One escape of a JSON string; two where they are halves of one character."""
        mark = yield from self.peek(2)
        if mark[1:] in _ESCAPES:
            self._take(2)
            return _ESCAPES[mark[1:]]
        high = _code_point((yield from self.peek(6)))
        self._take(6)
        if not 0xD800 <= high < 0xDC00:
            return chr(high) if not 0xDC00 <= high < 0xE000 else "\ufffd"
        following = yield from self.peek(6)
        if not following.startswith("\\u"):
            return "\ufffd"
        low = _code_point(following)
        if not 0xDC00 <= low < 0xE000:
            return "\ufffd"
        self._take(6)
        return chr(0x10000 + ((high - 0xD800) << 10) + low - 0xDC00)


def ignore(text: str) -> None:
    """Nobody wants it."""


def _code_point(escape: str) -> int:
    r"""Of ``\uXXXX``."""
    digits = escape[2:]
    if not escape.startswith("\\u") or len(digits) != 4 or not all(c in "0123456789abcdefABCDEF" for c in digits):
        raise Malformed
    return int(digits, 16)


@lru_cache(maxsize=256)
def _finder(markers: Iterable[str]) -> tuple[re.Pattern[str], frozenset[str], int]:
    """A pattern that finds the first marker, all proper beginnings of markers, and the longest one's length."""
    texts = sorted(markers, key=len, reverse=True)
    prefixes = frozenset(text[:size] for text in texts for size in range(1, len(text)))
    return re.compile("|".join(map(re.escape, texts))), prefixes, len(texts[0])
