"""gpt-oss: every message has a channel and perhaps a recipient, ``<|channel|>commentary to=functions.name …``.

``analysis`` is reasoning, ``final`` and what is said in ``commentary`` are content. One call ends the turn.
"""

from __future__ import annotations

import re

from tokenmill.server.dialects.base import Dialect, Function, Functions
from tokenmill.server.dialects.lark import Terms
from tokenmill.server.dialects.reader import Malformed, Parse, Reader

CHANNEL, MESSAGE, CONSTRAIN = "<|channel|>", "<|message|>", "<|constrain|>"
START, END, CALL, RETURN = "<|start|>", "<|end|>", "<|call|>", "<|return|>"
_RECIPIENT = "to=functions."
_NAME = re.compile(r"[A-Za-z0-9_.-]*")


class Harmony(Dialect):
    name = "harmony"
    signs = ((CHANNEL, START, MESSAGE),)
    trigger = CHANNEL + "commentary " + _RECIPIENT
    markers = (CHANNEL, MESSAGE, CONSTRAIN, START, END, CALL, RETURN)
    several = False
    answer = CHANNEL + "final" + MESSAGE
    marks_all = True

    def read(self, reader: Reader, functions: Functions) -> Parse[None]:
        while start := (yield from reader.until(reader.sink.content, START, CHANNEL)):
            yield from reader.attempt(start, lambda: self._message(reader))

    def head(self, terms: Terms, function: Function) -> str:
        return terms.text(f"{function.name} {CONSTRAIN}json{MESSAGE}")

    @staticmethod
    def _message(reader: Reader) -> Parse[None]:
        """A message after its first marker: its header up to ``<|message|>``, and its text."""
        header: list[str] = []
        if not (yield from reader.until(header.append, MESSAGE)):
            raise Malformed
        _, is_call, recipient = "".join(header).partition(_RECIPIENT)
        if is_call and (name := _NAME.match(recipient)) is not None and name.group():
            reader.begin(name.group())
            emit = reader.sink.arguments
        else:
            sink = reader.sink
            emit = sink.reasoning if "analysis" in "".join(header) else sink.content
            reader.forget()
            sink.edge()
        yield from reader.until(emit, END, CALL, RETURN)
        reader.sink.edge()


HARMONY = Harmony()
