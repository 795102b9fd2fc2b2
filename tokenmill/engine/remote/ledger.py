"""What the HTTP process must remember of requests so that another engine can go on with them.

A sequence's state is its prompt, the tokens that came, and its seed (the KV cache can be computed again from these), so
a ledger of delivered tokens is all that it takes to resume a request exactly.

It also knows whom to suspect when an engine dies: the requests that it had in its steps. A process that was killed
from outside (by an operator, or for memory) makes nobody suspect the first time; one that crashed or hung may have a
request to blame, and then its requests are tried one at a time::

    engine dies ─▶ suspects: those in its steps ─▶ new engine: the first alone ─▶ brought a token: innocent ─▶ next
                                                                              └▶ died again: that one is poison
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from tokenmill.core.events import FinishedRecord, StepEvents
from tokenmill.core.request import Progress, Request


@dataclass(slots=True)
class Entry:
    """A request under way."""

    request: Request
    tokens: list[list[int]]
    """By choice: what was delivered."""
    ended: set[int] = field(default_factory=set)
    num_prompt_logprobs: int = 0
    first_token_s: float | None = None
    sent: bool = False
    """The engine has it."""
    taken: bool = False
    """It was in a step of this engine."""
    deaths: int = 0
    """How many engines died with it in their steps."""
    aborted: bool = False

    @property
    def begun(self) -> bool:
        """Somebody has seen something of the answer."""
        return any(self.tokens) or self.num_prompt_logprobs > 0

    @property
    def complete(self) -> bool:
        return len(self.ended) == len(self.tokens)

    def to_send(self) -> Request:
        """The request as an engine must get it now."""
        if not self.begun and not self.ended:
            return self.request
        tokens = tuple(tuple(each) for each in self.tokens)
        return replace(self.request, progress=Progress(tokens, frozenset(self.ended), self.num_prompt_logprobs))


class Ledger:
    """All requests under way, in order of submission."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.suspects: deque[str] = deque()
        """To be tried one at a time; nobody else runs meanwhile."""
        self.on_trial: str | None = None

    def add(self, request: Request) -> Entry:
        entry = Entry(request, [[] for _ in range(request.num_sequences)])
        self.entries[request.id] = entry
        return entry

    @property
    def trying(self) -> bool:
        """Suspects are being tried: others wait."""
        return self.on_trial is not None or bool(self.suspects)

    def took(self, request_ids: Iterable[str]) -> None:
        """These are in a step about to run."""
        for request_id in request_ids:
            if entry := self.entries.get(request_id):
                entry.taken = True

    def brought(self, events: StepEvents, now: float) -> None:
        """Write down what a step brought."""
        for request_id, index, token_ids, _, reason in events.tokens:
            if entry := self.entries.get(request_id):
                entry.tokens[index] += token_ids
                if entry.first_token_s is None:
                    entry.first_token_s = now
                if reason is not None:
                    entry.ended.add(index)
                self._acquit(request_id)
        for told in events.prompt_logprobs:
            if entry := self.entries.get(told.request_id):
                entry.num_prompt_logprobs += len(told.entries)
        for record in events.finished:
            self.drop(record.request_id)

    def drop(self, request_id: str) -> None:
        """It is over."""
        self.entries.pop(request_id, None)
        self._acquit(request_id)

    def true_record(self, record: FinishedRecord) -> FinishedRecord:
        """The record with the first token's moment as it was, whichever engine made it."""
        entry = self.entries.get(record.request_id)
        if entry is None or entry.deaths == 0:
            return record
        return replace(record, first_token_s=entry.first_token_s)

    def unsent(self) -> Iterator[Entry]:
        """Those that an engine is to get now, in order; none while others are tried."""
        if not self.trying:
            yield from [entry for entry in self.entries.values() if not entry.sent]

    def next_suspect(self) -> Entry | None:
        """The one to try now; None: one is on trial, or there are none left."""
        while self.on_trial is None and self.suspects:
            request_id = self.suspects.popleft()
            if entry := self.entries.get(request_id):
                self.on_trial = request_id
                return entry
        return None

    def engine_died(self, *, crashed: bool) -> Entry | None:
        """Nobody has any of them now. Returns the one that is to blame, if one is.

        Args:
            crashed: the engine's own doing, or a hang; False: it was killed from outside.
        """
        tried = self.entries.get(self.on_trial or "")
        guilty = tried is not None and tried.taken and (crashed or tried.deaths >= 2)
        taken = [request_id for request_id, entry in self.entries.items() if entry.taken]
        for request_id in taken:
            self.entries[request_id].deaths += 1
        again = any(self.entries[request_id].deaths > 1 for request_id in taken)
        self.on_trial = None
        left = [] if tried is None or guilty else [tried.request.id]
        known = dict.fromkeys((*left, *self.suspects, *(taken if crashed or again else ())))
        if guilty and tried is not None:
            known.pop(tried.request.id, None)
        self.suspects = deque(known)
        for entry in self.entries.values():
            entry.sent = entry.taken = False
        return tried if guilty else None

    def _acquit(self, request_id: str) -> None:
        if request_id == self.on_trial:
            self.on_trial = None


class PoisonList:
    """Requests that took an engine down: a client that sends one again does not take down another."""

    MAX_ENTRIES = 1000
    KEPT_S = 600.0

    def __init__(self) -> None:
        self._until: dict[int, float] = {}

    def add(self, request: Request, now: float) -> None:
        while len(self._until) >= self.MAX_ENTRIES:
            del self._until[next(iter(self._until))]
        self._until[_key(request)] = now + self.KEPT_S

    def knows(self, request: Request, now: float) -> bool:
        """It, or one with the same prompt and wishes."""
        return bool(self._until) and self._until.get(_key(request), now) > now


def _key(request: Request) -> int:
    return hash((request.prompt_token_ids, request.max_new_tokens, repr(request.params), repr(request.pooling)))
