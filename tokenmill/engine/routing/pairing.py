"""Prefill here, decode there: which two replicas share a request.

The prompt is computed, and the first token drawn, by a replica of the prefill pool; its keys and values then go to
a replica of the decode pool, which draws the rest (Splitwise, Patel et al., ISCA 2024; DistServe, Zhong et al.,
OSDI 2024). Each pool has its own router: prompts want a replica that knows their prefix, answers the one with the
most room. The second is chosen when the prompt is done, since only then is it known who has room.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenmill.core.request import Request
from tokenmill.engine.routing.policies import Router


@dataclass(frozen=True, slots=True)
class Pairing:
    """A router for each pool."""

    prefill: Router
    decode: Router

    def prompt_part(self, request: Request) -> Request:
        """What the prefill pool is asked for: the prompt and one token."""
        return replace(request, max_new_tokens=min(1, request.max_new_tokens))

    def answer_part(self, request: Request, first_token: int) -> Request | None:
        """What is left for the decode pool once the first token is drawn; None: nothing."""
        if request.max_new_tokens <= 1:
            return None
        prompt = (*request.prompt_token_ids, first_token)
        return replace(request, prompt_token_ids=prompt, max_new_tokens=request.max_new_tokens - 1)
