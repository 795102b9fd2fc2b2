"""Text as it is generated: token by token, never taking anything back.

``Detokenizer`` holds back bytes that may still become a character; ``StopMatcher`` holds back text that may
still become a stop string. What either lets go is final: joined, the increments are the text of the whole.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol


class Pieces(Protocol):
    """What the detokenizer asks of the codec."""

    special_ids: frozenset[int]

    def token_bytes(self, token_id: int, first: bool = False) -> bytes: ...

    @property
    def lead(self) -> bytes: ...


class Detokenizer:
    """Token ids in, text out, in constant time per token.

    ``at_start``: the tokens begin a text of their own, so rules about its start apply (SentencePiece drops the
    leading space). False where they continue a prompt, and prompt + text must read on correctly.
    """

    __slots__ = ("_at_start", "_decoder", "_lead", "_pieces", "_skipped")

    def __init__(
        self,
        pieces: Pieces,
        *,
        skip_special_tokens: bool = True,
        shown_special_ids: Iterable[int] = (),
        at_start: bool = True,
    ) -> None:
        self._pieces = pieces
        self._skipped = pieces.special_ids.difference(shown_special_ids) if skip_special_tokens else frozenset[int]()
        self._at_start = at_start
        self._lead = pieces.lead if at_start else b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that is now certain; "" while a character is incomplete."""
        if token_id in self._skipped:
            return ""
        piece = self._pieces.token_bytes(token_id, self._at_start)
        self._at_start = False
        if self._lead and piece:
            piece = piece.removeprefix(self._lead)
            self._lead = b""
        return self._decoder.decode(piece)

    def finish(self) -> str:
        """What is left: U+FFFD for a character that was never completed."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Finds the first stop string in a text that arrives in parts.

    First is what ends first; of several that end at one character, the longest. An automaton (Aho & Corasick
    1975) is built once; a character then costs amortised constant time however long and many the stops are.
    The depth of its state is the length of the longest suffix that may still become a stop: exactly what must
    be held back.
    """

    __slots__ = ("_children", "_depth", "_fail", "_first", "_found", "_held", "_include_stop", "_state")

    def __init__(self, stops: Iterable[str], include_stop: bool = False) -> None:
        self._include_stop = include_stop
        self._children: list[dict[str, int]] = [{}]
        self._depth = [0]
        self._found: list[str | None] = [None]
        for stop in stops:
            self._insert(stop)
        self._fail = self._links()
        self._first = frozenset(self._children[0])
        self._state = 0
        self._held: deque[str] = deque()

    def push(self, text: str) -> tuple[str, str | None]:
        """``(text to send on, the stop that was found or None)``; nothing is to be pushed after a find."""
        if not self._state and self._first.isdisjoint(text):
            return text, None
        for char in text:
            self._held.append(char)
            self._state = self._next(char)
            stop = self._found[self._state]
            if stop is not None:
                return self._release(0 if self._include_stop else len(stop)), stop
        return self._release(self._depth[self._state]), None

    def finish(self) -> str:
        """The text held back, now that nothing follows."""
        self._state = 0
        return self._release(0)

    def _release(self, num_kept: int) -> str:
        return "".join([self._held.popleft() for _ in range(len(self._held) - num_kept)])

    def _next(self, char: str) -> int:
        state = self._state
        while state and char not in self._children[state]:
            state = self._fail[state]
        return self._children[state].get(char, 0)

    def _insert(self, stop: str) -> None:
        state = 0
        for char in stop:
            if char not in self._children[state]:
                self._children[state][char] = len(self._children)
                self._children.append({})
                self._depth.append(self._depth[state] + 1)
                self._found.append(None)
            state = self._children[state][char]
        self._found[state] = stop

    def _links(self) -> list[int]:
        """State → the state of its longest proper suffix that is in the automaton (breadth first)."""
        fail = [0] * len(self._children)
        queue = deque(self._children[0].values())
        while queue:
            parent = queue.popleft()
            for char, state in self._children[parent].items():
                queue.append(state)
                link = fail[parent]
                while link and char not in self._children[link]:
                    link = fail[link]
                fail[state] = self._children[link].get(char, 0)
                if self._found[state] is None:
                    self._found[state] = self._found[fail[state]]
        return fail


def decode_all(pieces: Pieces, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
    """The text of ``token_ids`` as a whole: what a ``Detokenizer`` would have brought in parts."""
    detokenizer = Detokenizer(pieces, skip_special_tokens=skip_special_tokens)
    return "".join(map(detokenizer.push, token_ids)) + detokenizer.finish()
