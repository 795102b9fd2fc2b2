"""From a conversation to what the engine is given: the prompt's tokens, the sampling parameters, and the turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tokenmill.core.errors import InvalidRequest
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.engine.grammar.source import Refused, check
from tokenmill.server import jsonio
from tokenmill.server.context import Context
from tokenmill.server.protocol.chat import ChatRequest, Message
from tokenmill.server.structured import field_of, grammar_of
from tokenmill.server.turn import Turn, turn_of


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    token_ids: list[int]
    params: SamplingParams
    turn: Turn


async def prompt_of(context: Context, body: ChatRequest, tenant: str) -> ChatPrompt:
    """What the engine is given for ``body``. Its grammar, if there is one, has been compiled in ``tenant``'s turn.

    Raises:
        InvalidRequest: the template does not take these messages, or the grammar cannot be compiled.
        ContextLengthExceeded: too long by far (see ``Context.tokenise``).
    """
    form = grammar_of(body)
    if form is not None:
        await context.service.compile(form, param=field_of(body), tenant=tenant)
    turn = turn_of(context, body.wishes, form=form)
    token_ids = await encode_messages(
        context,
        body.messages,
        turn,
        add_generation_prompt=body.opens_turn,
        continue_final_message=body.continue_final_message,
        extra=_template_variables(context, body),
    )
    num_bytes = sum(map(len, turn.descriptions))
    params = await context.off_loop(num_bytes, lambda: turn.params(body.to_params(), token_ids))
    if params.grammar is not None and params.grammar != form:
        await _compile(context, body, params.grammar, tenant)
    return ChatPrompt(token_ids, params, turn)


async def _compile(context: Context, body: ChatRequest, grammar: Grammar, tenant: str) -> None:
    """Compile a turn's grammar; if it cannot be, the error names the tool that is to blame, where one is."""
    num_bytes = len(grammar.source)
    await context.off_loop(num_bytes, partial(_check, grammar, "tools"))  # bounds what follows
    for path, _, schema in _schemas(body):
        await context.off_loop(num_bytes, partial(_check, schema, path))
    try:
        await context.service.compile(grammar, param="tools", tenant=tenant)
    except InvalidRequest:
        for path, strict, schema in _schemas(body):
            if strict:
                await context.service.compile(schema, param=path, tenant=tenant)
        raise


def _schemas(body: ChatRequest) -> list[tuple[str, bool, Grammar]]:
    """Each tool's path, whether its arguments must obey its schema to the letter, and the schema as a grammar."""
    return [
        (
            f"tools[{index}].function.parameters",
            tool.function.strict,
            Grammar("json_schema", jsonio.dumps(tool.function.parameters).decode()),
        )
        for index, tool in enumerate(body.tools)
    ]


def _check(grammar: Grammar, path: str) -> None:
    try:
        check(grammar)
    except Refused as error:
        raise error.at(path) from None


async def encode_messages(context: Context, messages: Sequence[Message], turn: Turn, **wishes: Any) -> list[int]:
    """The tokens of a conversation and of the turn's tools by the model's template.

    Raises:
        InvalidRequest: there is no template, or it does not take these messages.
        ContextLengthExceeded: too long by far (see ``Context.tokenise``).
    """
    codec = context.service.codec
    if not codec.has_chat_template:
        raise InvalidRequest("This model has no chat template; use /v1/completions.", param="messages")
    plain = [message.for_template() for message in messages]
    if "developer" not in codec.chat_template(with_tools=bool(turn.tools)):
        for each in plain:  # OpenAI's newer name of a system message, which most templates refuse
            each["role"] = "system" if each["role"] == "developer" else each["role"]
    texts = [message["content"] for message in plain]
    texts += [call.function.arguments for message in messages for call in message.tool_calls]
    texts += turn.descriptions

    def encode() -> list[int]:
        return codec.encode_chat(turn.messages(plain), tools=turn.tools, **wishes)

    return await context.tokenise(texts, "messages", encode)


def _template_variables(context: Context, body: ChatRequest) -> dict[str, Any]:
    """What the template is told besides messages and tools; raises ``InvalidRequest`` for what it does not know."""
    variables = dict(body.chat_template_kwargs)
    effort = body.reasoning_effort
    if effort is None:
        return variables
    template = context.service.codec.chat_template(with_tools=bool(body.tools))
    if "reasoning_effort" in template:
        variables.setdefault("reasoning_effort", effort)
    elif "enable_thinking" in template:
        variables.setdefault("enable_thinking", effort != "none")
    elif "thinking is defined" in template:
        variables.setdefault("thinking", effort != "none")
    else:
        raise InvalidRequest(
            "'reasoning_effort' is not supported by this model: its chat template knows nothing of it. Leave it out.",
            param="reasoning_effort",
            code="not_supported",
        )
    return variables
