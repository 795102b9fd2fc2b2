"""Following answers through their grammars while the model runs.

What may come next depends on the tokens so far, all of which are known before the model computes the next logits. So
``look_ahead`` has threads work the masks out at the beginning of a step; the stage (``stages.GrammarMask``) waits
for them after the model has run, and finds them done. The matchers' work is native code that needs no interpreter.

A follower reads each token once. One that is made anew after a preemption reads what was generated before, and is then
exactly what it was.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tokenmill.core.errors import TokenmillError
from tokenmill.core.grammar import Grammar
from tokenmill.engine.contracts import Grammars, Matcher
from tokenmill.engine.faults import fire

FAULT = "grammar at position {position}: {reason}"
MAX_THREADS = 8

_NUM_THREADS = max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) // 2))
_threads = ThreadPoolExecutor(_NUM_THREADS, "tokenmill-mask")


class Follower:
    """One answer's matcher, how far it has read, and the mask for the token after that.

    Args:
        token_ids: the sequence's own list, which grows.
        begin: where the answer begins in it.
    """

    def __init__(self, grammar: Grammar, grammars: Grammars | None, token_ids: list[int], begin: int) -> None:
        self.fault: str | None = None
        """Why there is no mask."""
        self.complete = False
        """Nothing but the end may come."""
        self._grammar = grammar
        self._grammars = grammars
        self._token_ids = token_ids
        self._num_read = begin
        self._matcher: Matcher | None = None
        self._mask: bytes | None = None
        self._pending: Future[None] | None = None

    def mask(self) -> bytes | None:
        """Bits of the tokens that may come next; None with ``fault`` set."""
        if self._pending is not None:
            self._pending.result()
            self._pending = None
        self.look()
        return self._mask

    @property
    def is_pending(self) -> bool:
        """A thread has it: no other may touch it before ``mask`` has waited."""
        return self._pending is not None

    def await_in(self, pending: Future[None]) -> None:
        """The mask is being worked out."""
        self._pending = pending

    def look(self) -> None:
        """Read the new tokens, and find the mask; what is wrong with the grammar ends this answer only."""
        if self.fault is not None or (self._mask is not None and self._num_read == len(self._token_ids)):
            return
        try:
            if self._matcher is None:
                self._matcher = self._make()
            fire("grammar.advance", tokens=lambda: self._token_ids)
            self._matcher.advance(self._token_ids[self._num_read :])
            self._num_read = len(self._token_ids)
            self._mask = self._matcher.allowed()
            self.complete = self._matcher.complete
        except TokenmillError as error:
            self._fail(error.message)
        except BaseException as error:  # a panic of native code is no Exception
            if isinstance(error, SystemExit | KeyboardInterrupt):
                raise
            self._fail(f"the matcher failed ({type(error).__name__})")

    def _make(self) -> Matcher:
        if self._grammars is None:
            raise TokenmillError("this worker has no grammar compiler")
        return self._grammars.matcher(self._grammar)

    def _fail(self, reason: str) -> None:
        self._mask = None
        self.fault = FAULT.format(position=len(self._token_ids), reason=reason)


def look_ahead(followers: Sequence[Follower]) -> None:
    """Begin to work out the masks of several answers; returns at once."""
    idle = [follower for follower in followers if not follower.is_pending]
    for begin in range(min(_NUM_THREADS, len(idle))):
        share = idle[begin::_NUM_THREADS]
        pending = _threads.submit(_look_all, share)
        for follower in share:
            follower.await_in(pending)


def _look_all(followers: Sequence[Follower]) -> None:
    for follower in followers:
        follower.look()
