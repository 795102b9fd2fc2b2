"""One turn of the model: what goes into the prompt for it, what constrains it, and what comes out of it in parts.

A model writes one text. In it are its reasoning, its answer and its calls of functions, each marked in the way of its
family (``server/dialects``). A ``Turn`` knows what a request asked for and how the served model says it: it gives the
messages and tools as the chat template wants them, the grammar that holds the model to the request, and a
``TurnParser`` per choice, which tells the text's parts from each other as the text comes. Chat completions and
responses both go this way, by ``chat_prompt.prompt_of``::

    turn = turn_of(context, ToolWishes(functions, "auto"), form=grammar_of(body))
    ids = codec.encode_chat(turn.messages(messages), tools=turn.tools)
    params = turn.params(params, ids)         # then ``await context.service.compile(params.grammar)`` if there is one
    parsers = [turn.parser(ids) for _ in range(n)]
    parser.push(output.text) for every output, and parser.finish() at its choice's end
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tokenmill.core.errors import InvalidRequest
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.engine.faults import fire
from tokenmill.engine.text import TextCodec
from tokenmill.server import jsonio
from tokenmill.server.context import Context
from tokenmill.server.dialects import Dialect, Function, Reasoning, dialect_of, reasoning_of
from tokenmill.server.dialects.lark import Terms, answer_grammar
from tokenmill.server.dialects.reader import Parse, Piece, PieceKind, Reader, Sink
from tokenmill.server.wishes import ToolWishes

__all__ = ["Function", "Piece", "PieceKind", "ToolWishes", "Turn", "TurnParser", "turn_of"]

PROMPT_END_TOKENS = 16
"""So much of a prompt's end shows whether it has the model begin with reasoning."""


class TurnParser:
    """Tells the parts of one choice's text from each other, as it comes. Never takes anything back."""

    def __init__(self, parse: Callable[[Reader], Parse[None]], *, calls_only: bool = False) -> None:
        """``calls_only``: the text is held to calls, so what the length cut off before its name was one, too."""
        self._sink = Sink(calls_only=calls_only)
        self._reader = Reader(self._sink)
        self._parse = parse(self._reader)
        self.num_reasoning_tokens = 0
        """Of the tokens so far, those of the reasoning, its markers included."""
        next(self._parse, None)

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return self._sink.num_calls

    def push(self, text: str, num_tokens: int = 0) -> list[Piece]:
        """What is now certain. ``num_tokens``: of how many tokens ``text`` is."""
        fire("turn.parse", text)
        reasoned = self._sink.reasons
        self._reader.push(text)
        next(self._parse, None)
        if self._sink.reasons:
            self.num_reasoning_tokens += num_tokens
        elif reasoned:
            self.num_reasoning_tokens += num_tokens - num_tokens * self._sink.num_after_reasoning // max(1, len(text))
        return self._sink.collect()

    def finish(self) -> list[Piece]:
        """What was held back, now that nothing follows; a call that was under way ends."""
        self._reader.close()
        next(self._parse, None)
        self._sink.last()
        return self._sink.collect()


class Turn:
    """What one request makes of the model's turn; see ``turn_of``."""

    tools: list[dict[str, Any]] | None
    """What the chat template is given as ``tools``."""

    def __init__(
        self,
        codec: TextCodec,
        wishes: ToolWishes,
        dialect: Dialect | None,
        reasoning: Reasoning | None,
        form: Grammar | None,
    ) -> None:
        self._codec = codec
        self._wishes = wishes
        self._dialect = dialect
        self._reasoning = reasoning
        self._form = form
        self._functions = {function.name: function for function in wishes.callable}
        self.tools = dialect.tools(wishes.functions) if dialect is not None and self._functions else None

    @property
    def calls(self) -> bool:
        """Whether functions may be called."""
        return bool(self._functions)

    @property
    def descriptions(self) -> list[str]:
        """What the prompt says of each function, in about as many characters."""
        return [jsonio.dumps(function.wire).decode() for function in self._wishes.functions] if self.calls else []

    @property
    def reasons(self) -> bool:
        """Whether the model may reason before it answers."""
        return self._reasoning is not None

    def messages(self, messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """A conversation, in the shape of chat completions' messages, as the chat template wants it."""
        if self._dialect is None:
            return list(messages)
        return self._dialect.history(messages, self._wishes.functions if self._functions else ())

    def params(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> SamplingParams:
        """``params`` with the grammar of this turn, and with the markers shown that the parser must see.

        Raises:
            InvalidRequest: a form of answer that cannot be combined with calls or reasoning.
        """
        terms = Terms(self._codec.special_tokens)
        shown = {token_id for marker in self._markers() for token_id in terms.special_in(marker)}
        grammar = self._grammar(terms, prompt_token_ids)
        return replace(params, grammar=grammar, shown_special_ids=tuple(sorted(shown)))

    def parser(self, prompt_token_ids: Sequence[int]) -> TurnParser:
        """A parser for one choice."""
        dialect, functions, reasoning = self._dialect, self._functions, self._reasoning
        begun = self._reasoning_begun(prompt_token_ids)

        def parse(reader: Reader) -> Parse[None]:
            if reasoning is not None:
                yield from reasoning.read(reader, begun=begun)
            if dialect is not None and self._reads_calls:
                yield from dialect.read(reader, functions)
            marked = self._reads_calls or reasoning is not None
            yield from reader.rest(reader.sink.content if marked else reader.sink.plain)

        return TurnParser(parse, calls_only=self.calls and self._wishes.choice == "required")

    def _markers(self) -> tuple[str, ...]:
        calls = self._dialect.markers if self._dialect is not None and self._reads_calls else ()
        return calls if self._reasoning is None else (*calls, self._reasoning.opening, self._reasoning.closing)

    @property
    def _reads_calls(self) -> bool:
        return self._dialect is not None and (bool(self._functions) or self._dialect.marks_all)

    def _reasoning_begun(self, prompt_token_ids: Sequence[int]) -> bool:
        end = self._codec.decode(prompt_token_ids[-PROMPT_END_TOKENS:], skip_special_tokens=False)
        return self._reasoning is not None and self._reasoning.begun_by(end)

    def _grammar(self, terms: Terms, prompt_token_ids: Sequence[int]) -> Grammar | None:
        wishes = self._wishes
        constrained = self._dialect is not None and (wishes.constrained or (self._form is not None and wishes.callable))
        if not constrained and (self._form is None or self._reasoning is None):
            return self._form
        return answer_grammar(
            terms,
            self._dialect,
            wishes.callable,
            required=wishes.choice == "required",
            several=wishes.parallel,
            otherwise=self._form,
            reasoning=None if self._reasoning is None else (self._reasoning, self._reasoning_begun(prompt_token_ids)),
        )


def turn_of(context: Context, wishes: ToolWishes, *, form: Grammar | None = None) -> Turn:
    """The turn that a request asks for.

    Args:
        wishes: the functions; without any, only reasoning is told from the answer.
        form: the form of an answer that is no call; None: free text.

    Raises:
        InvalidRequest: there are functions, and how this model calls them is not known.
    """
    codec, settings = context.service.codec, context.settings
    has_calls = bool(wishes.callable)
    dialect = dialect_of(codec.chat_template(with_tools=has_calls), settings.tool_dialect)
    if dialect is None and has_calls:
        raise InvalidRequest(
            "How this model writes calls of functions cannot be told from its chat template; the operator can name it "
            "with --tool-dialect.",
            param="tools",
            code="unknown_tool_dialect",
        )
    reasoning = reasoning_of(codec.chat_template(with_tools=has_calls), settings.reasoning_dialect)
    return Turn(codec, wishes, dialect, reasoning, form)
