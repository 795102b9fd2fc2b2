"""``GrammarCompiler``: grammars compiled off the event loop and off the step, each once, in bounded memory.

Compiling happens in a few threads, for tenants in turns (``turns.py``). Whoever asks for a grammar that is being
compiled waits for the same one; more than ``max_waiting`` different ones are refused with ``Unavailable``, but for a
tenant that has less than its share of them. What came of a grammar, a refusal too, is kept until others push it out; a
request under way holds its own grammar, so the worker finds it however many came since.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

from tokenmill.core.errors import GrammarFailed, TokenmillError, Unavailable
from tokenmill.core.grammar import Grammar
from tokenmill.engine.faults import fire
from tokenmill.engine.grammar.matcher import GrammarMatcher
from tokenmill.engine.grammar.source import Refused, check, refusal
from tokenmill.engine.grammar.trial import Trial, limits
from tokenmill.engine.grammar.turns import Turns
from tokenmill.engine.grammar.vocabulary import build_tokenizer, check_installed
from tokenmill.engine.text import TextCodec

ENTRY_BYTES = 1024
"""What an entry of the cache takes beside its texts."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Bounds of a ``GrammarCompiler``."""

    num_threads: int = 2
    max_waiting: int = 64
    """Different grammars being compiled or waiting for it."""
    wait_s: float = 60.0
    """Longest that a request waits for its grammar."""
    max_entries: int = 1024
    max_bytes: int = 64 * 2**20
    """Of the cache, as reckoned."""


class Compiled:
    """A grammar that is known to compile, in llguidance's form.

    Every answer has a matcher of its own, made from this text in about a millisecond. Copies of one matcher would be
    quicker to make, but they share what the lexer has learnt, and its limits: one answer could use up those of all
    others, and the memory would stay for as long as the grammar is kept.
    """

    __slots__ = ("__weakref__", "text")

    def __init__(self, text: str) -> None:
        self.text = text


class GrammarCompiler:
    """Compiles grammars for one model's vocabulary. Safe to share between threads.

    Args:
        codec: the checkpoint's; nothing is made of it before the first grammar comes.
        vocab_size: rows of the model's output.
        eos_token_ids: tokens that end an answer.
    """

    def __init__(
        self, codec: TextCodec, vocab_size: int, eos_token_ids: Iterable[int], *, budget: Budget | None = None
    ) -> None:
        self.budget = budget or Budget()
        self._codec = codec
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._lock = threading.Lock()
        self._tokenizer: Any = None
        self._tokenizer_lock = threading.Lock()
        self._outcomes: OrderedDict[Grammar, Compiled | Refused] = OrderedDict()
        self._live: WeakValueDictionary[Grammar, Compiled] = WeakValueDictionary()
        self._under_way: dict[Grammar, Future[Compiled]] = {}
        self._turns = Turns[Grammar](self.budget.max_waiting)
        self._num_bytes = 0
        self._counts = {"hits": 0, "misses": 0, "refused": 0}
        self._trials: list[Trial] = []
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(self.budget.num_threads, "tokenmill-grammar")

    # ---- what others call ----------------------------------------------------------------------------

    async def ready(self, grammar: Grammar, *, param: str, tenant: str = "") -> Compiled:
        """Wait until ``grammar`` is compiled, without holding up the event loop. Keep what is returned.

        Raises:
            InvalidRequest: it cannot be; names ``param`` and the place inside it.
            Unavailable: too many others are waiting.
        """
        try:
            future = asyncio.wrap_future(self.start(grammar, tenant))
            return await asyncio.wait_for(asyncio.shield(future), self.budget.wait_s)
        except Refused as error:
            raise error.at(param) from None
        except TimeoutError:
            raise _busy() from None

    def compile(self, grammar: Grammar, *, param: str = "grammar", tenant: str = "") -> Compiled:
        """The same for a caller that may block."""
        try:
            return self.start(grammar, tenant).result(self.budget.wait_s)
        except Refused as error:
            raise error.at(param) from None
        except TimeoutError:
            raise _busy() from None

    def matcher(self, grammar: Grammar) -> GrammarMatcher:
        """A matcher for a new answer; blocks only where nobody compiled the grammar before."""
        matcher = self._matcher(self.compile(grammar).text)
        if matcher.is_error():
            raise GrammarFailed(f"the grammar does not compile again ({matcher.get_error()[:200]})")
        return GrammarMatcher(matcher)

    def warm_up(self) -> None:
        """Make the vocabulary ready in a thread. Where it is large that holds up all of Python for a second: better
        before anyone waits for tokens than at the first grammar. What fails now will be told then."""
        self._pool.submit(self._shared_tokenizer)

    def find(self, grammar: Grammar) -> Compiled | None:
        """What was compiled for ``grammar``, if it is still there; it stays for as long as somebody keeps it."""
        with self._lock:
            outcome = self._outcomes.get(grammar)
            return outcome if isinstance(outcome, Compiled) else self._live.get(grammar)

    def start(self, grammar: Grammar, tenant: str = "") -> Future[Compiled]:
        """Begin to compile, unless that was done or has begun. Raises ``Unavailable`` if too much is waiting."""
        with self._lock:
            done = self._find(grammar)
            if done is not None:
                self._counts["hits"] += 1
                return done
            if grammar in self._under_way:
                return self._under_way[grammar]
            if not self._turns.has_room(tenant):
                raise _busy()
            self._counts["misses"] += 1
            future = self._under_way[grammar] = Future()
            self._turns.put(tenant, grammar)
        self._pool.submit(self._run_next)
        return future

    def stats(self) -> dict[str, int]:
        """Counters and sizes: hits, misses, refused, entries, bytes, waiting."""
        with self._lock:
            sizes = {"entries": len(self._outcomes), "bytes": self._num_bytes, "waiting": len(self._under_way)}
            return {**self._counts, **sizes}

    def close(self) -> None:
        """End the children and the threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for future in self._under_way.values():
            future.cancel()
        for trial in self._trials:
            trial.close()

    # ---- the cache, under the lock -------------------------------------------------------------------

    def _find(self, grammar: Grammar) -> Future[Compiled] | None:
        outcome = self._outcomes.get(grammar) or self._live.get(grammar)
        if outcome is None:
            return None
        if grammar in self._outcomes:
            self._outcomes.move_to_end(grammar)
        future: Future[Compiled] = Future()
        if isinstance(outcome, Refused):
            future.set_exception(outcome.again())
        else:
            future.set_result(outcome)
        return future

    def _keep(self, grammar: Grammar, outcome: Compiled | Refused) -> None:
        self._outcomes[grammar] = outcome
        self._num_bytes += _reckoned(grammar, outcome)
        while len(self._outcomes) > self.budget.max_entries or self._num_bytes > self.budget.max_bytes:
            oldest, dropped = self._outcomes.popitem(last=False)
            self._num_bytes -= _reckoned(oldest, dropped)
        if isinstance(outcome, Compiled):
            self._live[grammar] = outcome
        else:
            self._counts["refused"] += 1

    # ---- in a thread of the pool ---------------------------------------------------------------------

    def _run_next(self) -> None:
        with self._lock:
            tenant, grammar = self._turns.take()
        outcome: Compiled | BaseException
        try:
            outcome = self._compile(grammar)
        except Refused as error:
            outcome = error.again()
        except BaseException as error:  # noqa: BLE001  (whoever waits is told)
            outcome = error
        with self._lock:
            self._turns.done(tenant)
            future = self._under_way.pop(grammar)
            if isinstance(outcome, Compiled | Refused):
                self._keep(grammar, outcome)
        if not future.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Compiled):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)

    def _compile(self, grammar: Grammar) -> Compiled:
        fire("grammar.compile", grammar)
        check_installed()
        check(grammar)
        text = self._trial().run(grammar)
        matcher = self._matcher(text)
        if not matcher.is_error():
            matcher.compute_bitmask()  # with this vocabulary, is there a first token at all?
        if matcher.is_error():
            raise refusal(grammar, matcher.get_error())
        return Compiled(text)

    def _matcher(self, text: str) -> Any:
        from llguidance import LLMatcher

        return LLMatcher(self._shared_tokenizer(), text, limits=limits(), log_level=0)

    def _shared_tokenizer(self) -> Any:
        with self._tokenizer_lock:
            if self._tokenizer is None:
                self._tokenizer = build_tokenizer(self._codec, self._vocab_size, self._eos_token_ids)
            return self._tokenizer

    def _trial(self) -> Trial:
        trial: Trial | None = getattr(self._local, "trial", None)
        if trial is None:
            trial = self._local.trial = Trial()
            self._trials.append(trial)
        return trial


def _reckoned(grammar: Grammar, outcome: Compiled | Refused) -> int:
    """Bytes that an entry of the cache takes."""
    text = outcome.text if isinstance(outcome, Compiled) else outcome.message
    return ENTRY_BYTES + sys.getsizeof(grammar.source) + sys.getsizeof(text)


def _busy() -> TokenmillError:
    return Unavailable("too many new grammars are being compiled", code="grammar_queue_full", retry_after_s=2.0)
