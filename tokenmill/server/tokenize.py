"""``POST /tokenize``, ``POST /detokenize``, ``GET /tokenizer_info``: the model's tokens, without generating."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from tokenmill.core.errors import InvalidRequest
from tokenmill.server.answers import json_response
from tokenmill.server.chat_prompt import encode_messages
from tokenmill.server.context import Context
from tokenmill.server.protocol.others import (
    DetokenizeAnswer,
    DetokenizeRequest,
    TokenizeAnswer,
    TokenizeRequest,
    TokenizerInfo,
)
from tokenmill.server.turn import ToolWishes, turn_of


async def tokenize(context: Context, request: Request, body: TokenizeRequest) -> Response:
    """The tokens of a text or of a conversation."""
    context.check_model(body.model)
    codec = context.service.codec
    if body.messages is not None:
        turn = turn_of(context, ToolWishes())
        ids = await encode_messages(context, body.messages, turn, add_generation_prompt=body.add_generation_prompt)
    else:
        text = body.prompt or ""
        special = body.add_special_tokens
        ids = await context.tokenise([text], "prompt", lambda: codec.encode(text, add_special_tokens=special))

    def respond() -> Response:
        answer: TokenizeAnswer = {
            "count": len(ids),
            "max_model_len": context.service.max_context,
            "tokens": ids,
            "token_strs": [codec.token_text(token_id) for token_id in ids] if body.return_token_strs else None,
        }
        return json_response(answer)

    return await context.off_loop(len(ids), respond)


async def detokenize(context: Context, request: Request, body: DetokenizeRequest) -> Response:
    """The text of token ids, special tokens included."""
    context.check_model(body.model)
    if (beyond := max(body.tokens, default=0)) >= context.service.vocab_size:
        raise InvalidRequest(
            f"token id {beyond} is not below {context.service.vocab_size}, the vocabulary", param="tokens"
        )
    codec = context.service.codec
    text = await context.off_loop(4 * len(body.tokens), lambda: codec.decode(body.tokens, skip_special_tokens=False))
    answer: DetokenizeAnswer = {"prompt": text}
    return json_response(answer)


async def tokenizer_info(context: Context, request: Request) -> Response:
    """Names of special tokens and the chat template, under vLLM's address: lm-evaluation-harness looks here."""
    codec, service = context.service.codec, context.service
    answer: TokenizerInfo = {
        "tokenizer_class": "tokenmill",
        "model_max_length": service.max_context,
        "vocab_size": service.vocab_size,
        "bos_token": codec.roles.get("bos_token"),
        "eos_token": codec.roles.get("eos_token"),
        "pad_token": codec.roles.get("pad_token"),
        "unk_token": codec.roles.get("unk_token"),
        "chat_template": codec.chat_template(with_tools=False) or None,
    }
    return json_response(answer)
