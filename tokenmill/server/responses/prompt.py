"""What goes to the engine for one response, with ``truncation`` where the conversation is too long."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from tokenmill.core.errors import ContextLengthExceeded
from tokenmill.server.body import INLINE_BYTES
from tokenmill.server.chat_prompt import ChatPrompt, prompt_of
from tokenmill.server.context import Context
from tokenmill.server.protocol.response_body import Item
from tokenmill.server.protocol.responses import CountRequest, ResponseRequest
from tokenmill.server.responses.conversation import as_chat, cut, told_here, turns

BYTES_PER_ITEM, BYTES_PER_TOOL = 256, 4096
"""What they cost to be checked, counted as bytes of a body."""
ANSWER_SHARE = 8
"""With ``truncation: auto`` and no ``max_output_tokens``, this part of the context is kept for the answer."""


async def make_prompt(
    context: Context, tenant: str, body: ResponseRequest | CountRequest, items: Sequence[Item]
) -> ChatPrompt:
    """The conversation as the model reads it.

    Raises:
        InvalidRequest: chat does not take it, or it is too long and may not be shortened.
    """
    if body.truncation == "disabled":
        return await _prompt(context, tenant, body, items)
    if (whole := await _fitting(context, tenant, body, items)) is not None:
        return whole
    starts = turns(items)
    best, first, last = None, 0, len(starts) - 1  # of ``starts``: the earliest that fits lies between these two
    while first <= last:
        middle = (first + last) // 2
        prompt = await _fitting(context, tenant, body, cut(items, starts[middle]))
        if prompt is None:
            first = middle + 1
        else:
            best, last = prompt, middle - 1
    return best or await _prompt(context, tenant, body, cut(items, starts[-1]) if starts else items)


async def _prompt(
    context: Context, tenant: str, body: ResponseRequest | CountRequest, items: Sequence[Item]
) -> ChatPrompt:
    cost = BYTES_PER_ITEM * len(items) + BYTES_PER_TOOL * len(body.tools)
    with told_here():
        chat = await context.off_loop(cost, partial(as_chat, context, body, items), inline_bytes=INLINE_BYTES)
        return await prompt_of(context, chat, tenant)


async def _fitting(
    context: Context, tenant: str, body: ResponseRequest | CountRequest, items: Sequence[Item]
) -> ChatPrompt | None:
    limit = context.service.max_context
    wanted = body.max_output_tokens if isinstance(body, ResponseRequest) else None
    try:
        prompt = await _prompt(context, tenant, body, items)
    except ContextLengthExceeded:
        return None
    return prompt if len(prompt.token_ids) + (wanted or limit // ANSWER_SHARE) <= limit else None
