"""Log-probabilities in OpenAI's two formats, and vLLM's for prompts.

A log-probability is never below ``FLOOR``: JSON has no minus infinity.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenmill.core.step import TokenLogprobs
from tokenmill.engine.text import Detokenizer, TextCodec
from tokenmill.server.protocol.base import PromptLogprob, PromptLogprobs
from tokenmill.server.protocol.chat import ChoiceLogprobs, TokenLogprob
from tokenmill.server.protocol.completions import CompletionLogprobs

FLOOR = -9999.0


def finite(logprob: float) -> float:
    return max(logprob, FLOOR)


def chat_logprobs(codec: TextCodec, entries: Sequence[TokenLogprobs], num_top: int) -> ChoiceLogprobs:
    """``choices[].logprobs`` of a chat answer or chunk."""
    content: list[TokenLogprob] = [
        {
            "token": codec.token_text(entry.token_id),
            "logprob": finite(entry.logprob),
            "bytes": list(codec.token_bytes(entry.token_id)),
            "top_logprobs": [
                {"token": codec.token_text(i), "logprob": finite(lp), "bytes": list(codec.token_bytes(i))}
                for i, lp in entry.top[:num_top]
            ],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


class CompletionLogprobsWriter:
    """Builds ``choices[].logprobs`` of one completion, increment by increment.

    Offsets count the characters that are certain before a token begins: a token that holds the second half of
    a character has the offset of that character. ``detokenizer`` decodes the same tokens as the text's own.
    """

    def __init__(self, codec: TextCodec, num_top: int, detokenizer: Detokenizer) -> None:
        self._codec = codec
        self._num_top = num_top
        self._detokenizer = detokenizer
        self._num_chars = 0

    def write(self, token_ids: Sequence[int], entries: Sequence[TokenLogprobs | None]) -> CompletionLogprobs:
        """The entries for ``token_ids``; None where there is nothing to say (a prompt's first token)."""
        return {
            "tokens": [self._codec.token_text(token_id) for token_id in token_ids],
            "token_logprobs": [None if entry is None else finite(entry.logprob) for entry in entries],
            "top_logprobs": [None if entry is None else self._top(entry) for entry in entries],
            "text_offset": [self._offset(token_id) for token_id in token_ids],
        }

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """Likeliest first. Of two tokens with one text the likelier stays."""
        top: dict[str, float] = {}
        for token_id, logprob in (*entry.top[: self._num_top], (entry.token_id, entry.logprob)):
            top.setdefault(self._codec.token_text(token_id), finite(logprob))
        return top

    def _offset(self, token_id: int) -> int:
        at = self._num_chars
        self._num_chars += len(self._detokenizer.push(token_id))
        return at


def prompt_logprobs(codec: TextCodec, entries: Sequence[TokenLogprobs | None]) -> PromptLogprobs:
    """vLLM's ``prompt_logprobs``: per token of the prompt, token id → what is known of it."""
    return [None if entry is None else _prompt_entry(codec, entry) for entry in entries]


def _prompt_entry(codec: TextCodec, entry: TokenLogprobs) -> dict[str, PromptLogprob]:
    ranked = [(token_id, logprob, rank) for rank, (token_id, logprob) in enumerate(entry.top, start=1)]
    ranked.append((entry.token_id, entry.logprob, entry.rank))
    made: dict[str, PromptLogprob] = {}
    for token_id, logprob, rank in ranked:
        made.setdefault(
            str(token_id),
            {"logprob": finite(logprob), "rank": rank, "decoded_token": codec.token_text(token_id)},
        )
    return made
