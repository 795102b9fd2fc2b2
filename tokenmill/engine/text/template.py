"""Chat templates: a list of messages becomes the text that the model was trained to read.

Rendered as the ``transformers`` library does (``apply_chat_template``): fields that are null are left out, a
message's reasoning is offered under each of its names, tools choose the ``tool_use`` template if there is one.
What a template refuses is the client's mistake and names ``messages``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2

from tokenmill.core.errors import CheckpointError, InvalidRequest
from tokenmill.engine.text import sandbox

Message = Mapping[str, Any]

_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")
_OWN_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt"})
_CUT = "\ufdd2"  # stands where a continued message ends; the space after it shows whether the template strips
_TEMPLATE_FAULTS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class ChatTemplates:
    """The templates of one checkpoint, compiled."""

    def __init__(
        self,
        sources: Mapping[str, str],
        special_tokens: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        """
        Args:
            sources: name → Jinja source; ``default``, and perhaps ``tool_use``.
            special_tokens: ``bos_token``, ``eos_token``, … as templates may name them.
            now: the moment that ``strftime_now`` shows.

        Raises:
            CheckpointError: a template that does not compile.
        """
        self._special_tokens = dict(special_tokens)
        self._sources = dict(sources)
        self._templates = {name: _compile(name, source, now) for name, source in sources.items()}

    def __bool__(self) -> bool:
        return bool(self._templates)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: ``{"role": …, "content": …}`` and whatever else the template knows.
            tools: JSON schemas of functions.
            add_generation_prompt: end with the opening of the assistant's turn.
            continue_final_message: end inside the last message instead, so that the model goes on with it.
            extra: further variables for the template.

        Raises:
            InvalidRequest: there is no template, or it does not take these messages.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other: set one to false",
                param="continue_final_message",
            )
        if clash := _OWN_VARIABLES.intersection(extra or ()):
            raise InvalidRequest(f"template variable {min(clash)!r} has a field of its own", param=min(clash))
        chat = _prepared(messages)
        if continue_final_message:
            chat = [*chat[:-1], _with_cut(chat[-1])]
        variables = {
            "documents": None,
            **self._special_tokens,
            **(extra or {}),
            "messages": chat,
            "tools": list(tools) if tools is not None else None,
            "add_generation_prompt": add_generation_prompt,
        }
        text = _render(self._choose(with_tools=tools is not None), variables)
        return _cut(text) if continue_final_message else text

    def source(self, *, with_tools: bool) -> str:
        """The Jinja source that ``render`` takes; "" if there is none."""
        name = self._name(with_tools=with_tools)
        return "" if name is None else self._sources[name]

    def _name(self, *, with_tools: bool) -> str | None:
        names = ("tool_use", "default") if with_tools else ("default",)
        return next((name for name in names if name in self._sources), None)

    def _choose(self, *, with_tools: bool) -> jinja2.Template:
        if (name := self._name(with_tools=with_tools)) is not None:
            return self._templates[name]
        raise InvalidRequest(
            "this model has no chat template: use /v1/completions, or put a chat_template.jinja into its folder",
            param="messages",
            code="no_chat_template",
        )


def _compile(name: str, source: str, now: Callable[[], datetime]) -> jinja2.Template:
    try:
        return sandbox.compile_template(source, now)
    except jinja2.TemplateSyntaxError as error:
        raise CheckpointError(f"chat template {name!r}, line {error.lineno}: {error.message}") from error
    except (RecursionError, MemoryError, SyntaxError, ValueError) as error:
        # Python's own limits on what it compiles: depth, blocks, digits
        raise CheckpointError(f"chat template {name!r} is nested too deeply or no template: {error}") from error


def _render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    try:
        text = sandbox.render(template, variables)
        text.encode()  # half a character of UTF-16, which a template can make, is a ValueError here
        return text
    except sandbox.RefusedByTemplate as error:
        raise InvalidRequest(f"the model's chat template refuses these messages: {error}", param="messages") from error
    except sandbox.OverBudget as error:
        raise InvalidRequest(
            f"the model's chat template wants too much for these messages: {error}",
            param="messages",
            code="template_budget_exceeded",
        ) from error
    except _TEMPLATE_FAULTS as error:
        detail = " ".join(str(error).split())[:200]
        raise InvalidRequest(
            f"the model's chat template cannot render these messages: {type(error).__name__}: {detail}",
            param="messages",
        ) from error


def _prepared(messages: Sequence[Message]) -> list[dict[str, Any]]:
    if not messages:
        raise InvalidRequest("messages must hold at least one message", param="messages")
    if not all(isinstance(message, Mapping) for message in messages):
        raise InvalidRequest("messages must be objects", param="messages", code="invalid_type")
    return [_prepared_message(message) for message in messages]


def _prepared_message(message: Message) -> dict[str, Any]:
    """The message without its nulls, its reasoning under every name that a template may read."""
    fields = {name: value for name, value in message.items() if value is not None}
    reasoning = next((fields[name] for name in _REASONING_NAMES if name in fields), None)
    if reasoning is None:
        return fields
    return {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _with_cut(message: dict[str, Any]) -> dict[str, Any]:
    """The message with a mark where its text ends."""
    content = message.get("content")
    if isinstance(content, str):
        return message | {"content": content + _CUT + " "}
    blocks = list(content) if isinstance(content, list) else []
    for index in reversed(range(len(blocks))):
        if isinstance(blocks[index], dict) and isinstance(blocks[index].get("text"), str):
            blocks[index] = blocks[index] | {"text": blocks[index]["text"] + _CUT + " "}
            return message | {"content": blocks}
    raise InvalidRequest("continue_final_message needs text in the last message", param="messages")


def _cut(text: str) -> str:
    """The text up to the mark; what the template strips at a message's end is stripped here too."""
    end = text.rfind(_CUT)
    if end < 0:
        raise InvalidRequest(
            "the model's chat template does not show the last message, so it cannot be continued", param="messages"
        )
    return text[:end] if text[end + 1 : end + 2] == " " else text[:end].rstrip()
