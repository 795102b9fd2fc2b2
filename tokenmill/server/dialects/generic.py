"""Functions for a model whose chat template knows none: told in words, called in the Hermes format.

What a conversation holds of calls becomes plain text, so that any template shows it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from tokenmill.server.dialects.base import Function, Message
from tokenmill.server.dialects.marked_json import MarkedJson

_PREAMBLE = """You can call functions. Those that there are, each with the JSON schema of its arguments:
{functions}
To call one, write:
<tool_call>
{{"name": "the function's name", "arguments": {{"an argument": "its value"}}}}
</tool_call>
What it returns is given to you between <tool_response> and </tool_response>."""


class Generic(MarkedJson):
    def __init__(self) -> None:
        super().__init__("generic", "<tool_call>", "</tool_call>", (), newlines=True)

    def tools(self, functions: Iterable[Function]) -> list[dict[str, Any]] | None:
        return None

    def history(self, messages: Sequence[Message], functions: Sequence[Function]) -> list[Message]:
        made: list[Message] = []
        after_result = False
        for message in messages:
            told = _in_words(message)
            if after_result and told["role"] == "user":  # many templates want user and assistant to take turns
                made[-1] = {**made[-1], "content": f"{made[-1]['content']}\n\n{told['content']}"}
            else:
                made.append(told)
            after_result = message["role"] == "tool" or (after_result and told["role"] == "user")
        if functions and made:
            preamble = _PREAMBLE.format(functions="\n".join(map(_described, functions)))
            made[0] = {**made[0], "content": f"{preamble}\n\n{made[0]['content']}"}
        return made


def _described(function: Function) -> str:
    told = {"name": function.name, "description": function.description, "parameters": dict(function.parameters)}
    return json.dumps({key: value for key, value in told.items() if value}, ensure_ascii=False)


def _in_words(message: Message) -> Message:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message.get('content', '')}\n</tool_response>"}
    calls = message.get("tool_calls")
    if not calls:
        return message
    parts = [str(message.get("content") or ""), *(_call(call["function"]) for call in calls)]
    kept = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**kept, "content": "\n".join(part for part in parts if part)}


def _call(function: dict[str, Any]) -> str:
    name = json.dumps(function["name"], ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {function["arguments"] or "{}"}}}\n</tool_call>'


GENERIC = Generic()
