"""One choice's tokens becoming text: detokenised as they come, ended by a stop string where one is found.

The engine ends a choice by its tokens; only here is its text known, so only here can a stop string end it.
Tokens past the one that completed the stop string do not belong to the answer, however many steps were in
flight by then.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.core.params import SamplingParams
from tokenmill.core.request import FinishReason
from tokenmill.core.step import TokenLogprobs
from tokenmill.engine.text import Detokenizer, StopMatcher, TextCodec


@dataclass(frozen=True, slots=True)
class Output:
    """One increment of one choice. Concatenated per ``index``, the texts are the answer."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprobs, ...] | None
    """One entry per token of ``token_ids`` when asked for."""
    finish_reason: FinishReason | None
    stop_reason: int | str | None = None
    """The client's stop token or stop string that ended it; None for the model's own end or the length."""


class ChoiceText:
    """Turns the token events of one choice into outputs. ``done`` once it has ended, by whatever."""

    def __init__(self, index: int, params: SamplingParams, codec: TextCodec) -> None:
        self.index = index
        self.num_tokens = 0
        self.sum_logprobs = 0.0
        self.finish_reason: FinishReason | None = None
        self.stopped_by_text = False
        """It was ended here, and the engine has yet to be told."""
        self._params = params
        self._detokenizer = Detokenizer(
            codec,
            skip_special_tokens=params.skip_special_tokens,
            shown_special_ids=params.shown_special_ids,
            at_start=False,
        )
        self._matcher = StopMatcher(params.stop, params.include_stop) if params.stop else None

    @property
    def done(self) -> bool:
        return self.finish_reason is not None

    @property
    def mean_logprob(self) -> float:
        """What ``best_of`` ranks by."""
        return self.sum_logprobs / max(1, self.num_tokens)

    def push(
        self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...] | None, reason: FinishReason | None
    ) -> Output:
        """Take in one token event; not to be called once ``done``."""
        texts = []
        stop_reason: int | str | None = None
        used = 0
        for token_id in token_ids:
            used += 1
            is_stop_token = reason == "stop" and used == len(token_ids)
            text, matched = self._text_of(token_id, is_stop_token)
            texts.append(text)
            if matched is not None:
                self.stopped_by_text = reason is None
                self.finish_reason, stop_reason = "stop", matched
                break
        if not self.done and reason is not None:
            self.finish_reason = reason
            texts.append(self._flush())
            if reason == "stop" and token_ids[-1] in self._params.stop_token_ids:
                stop_reason = token_ids[-1]
        self.num_tokens += used
        used_logprobs = None if logprobs is None else logprobs[:used]
        self.sum_logprobs += sum(entry.logprob for entry in used_logprobs or ())
        return Output(self.index, "".join(texts), token_ids[:used], used_logprobs, self.finish_reason, stop_reason)

    def _text_of(self, token_id: int, is_stop_token: bool) -> tuple[str, str | None]:
        """The text that is certain after this token, and the stop string that it completed."""
        if is_stop_token and not self._params.include_stop:
            return "", None
        text = self._detokenizer.push(token_id)
        return self._matcher.push(text) if self._matcher else (text, None)

    def _flush(self) -> str:
        """What was held back: bytes of an unfinished character, the beginning of a stop string that never came."""
        text = self._detokenizer.finish()
        if self._matcher is None:
            return text
        emitted, matched = self._matcher.push(text)
        if matched is not None:
            self.finish_reason = "stop"
            return emitted
        return emitted + self._matcher.finish()
