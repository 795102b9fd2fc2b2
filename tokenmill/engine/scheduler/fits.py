"""Refusing at once what can never be done; needs nothing but the pool's size, so any process may ask."""

from __future__ import annotations

from tokenmill.core.errors import InvalidRequest, NeverFits
from tokenmill.core.request import Request


def check_fits(request: Request, num_blocks: int, block_size: int) -> None:
    """Raise ``NeverFits`` if ``num_blocks`` are too few for one choice of the request, ``InvalidRequest`` if empty."""
    num_prompt = len(request.prompt_token_ids)
    if not num_prompt:
        raise InvalidRequest("the prompt holds no tokens", param="prompt")
    # The last token is returned without its KV being computed.
    needed = -(-(num_prompt + max(request.max_new_tokens - 1, 0)) // block_size)
    if needed > num_blocks:
        raise NeverFits(
            f"prompt ({num_prompt} tokens) and max_tokens ({request.max_new_tokens}) need "
            f"{needed} KV blocks of {block_size} tokens, the pool has {num_blocks}: "
            "ask for fewer tokens, or serve with more KV memory"
        )
