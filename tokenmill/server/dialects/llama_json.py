"""Llama 3.1 to 3.3: the answer is ``{"name": …, "parameters": {…}}``, perhaps behind ``<|python_tag|>``.

Nothing else marks such a call, so only an object that names a function of the request is one. Several calls are
separated by semicolons.
"""

from __future__ import annotations

import json

from tokenmill.server.dialects.base import Dialect, Function, Functions, call_object
from tokenmill.server.dialects.lark import Terms
from tokenmill.server.dialects.reader import Parse, Reader

TAG = "<|python_tag|>"


class LlamaJson(Dialect):
    name = "llama3_json"
    signs = ((TAG,), ('"parameters"', "ipython"), ("Environment: ipython",))
    markers = (TAG,)
    plain_start = r"[^{\s]"
    tail = "}"
    between = "; "

    def read(self, reader: Reader, functions: Functions) -> Parse[None]:
        yield from self._calls(reader, functions, "")
        while (yield from reader.until(reader.sink.content, TAG)):
            yield from self._calls(reader, functions, TAG)

    def head(self, terms: Terms, function: Function) -> str:
        return terms.text(f'{{"name": {json.dumps(function.name)}, "parameters": ')

    def _calls(self, reader: Reader, functions: Functions, before: str) -> Parse[None]:
        """The calls that stand here; what came before a thing that is none is content."""
        while True:
            before += yield from reader.text_of(reader.spaces)
            before += yield from reader.at(TAG)
            before += yield from reader.text_of(reader.spaces)
            if (yield from reader.peek()) != "{":
                reader.sink.content(before)
                return
            num_calls = reader.sink.num_calls
            yield from reader.attempt(before, lambda: call_object(reader, functions))
            if reader.sink.num_calls == num_calls:
                return
            before = yield from reader.text_of(reader.spaces)
            before += yield from reader.at(";", ",")
