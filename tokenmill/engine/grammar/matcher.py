"""One answer's way through its grammar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenmill.core.errors import GrammarFailed

MAX_MESSAGE_CHARS = 200


class GrammarMatcher:
    """``engine/contracts.py``'s ``Matcher`` over one of llguidance's. Not thread-safe: one thread at a time."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher
        self.complete = False

    def advance(self, token_ids: Sequence[int]) -> None:
        if self.complete:  # these are ends: a step may be planned before the last one's token is known
            return
        if token_ids and not self._matcher.consume_tokens(list(token_ids)):
            self._fail()

    def allowed(self) -> bytes:
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error():  # its mask would allow the end, as if the answer were whole
            self._fail()
        self.complete = self._matcher.is_stopped()
        return mask

    def _fail(self) -> None:
        reason = " ".join(str(self._matcher.get_error()).replace("<non-verbose/>", "").split())
        raise GrammarFailed(f"the answer cannot go on ({reason[:MAX_MESSAGE_CHARS]})")
