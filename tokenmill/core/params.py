"""How a request wants its tokens chosen: ``SamplingParams``, checked when it is made.

Stages and their order (``runtime/sampling`` carries them out, one object a stage)::

    logits → bias, bans, min_tokens → penalties → grammar → temperature → top-k → top-p → min-p → typical → draw

Log-probabilities are those of the model's own distribution, before any stage.

Seed rule: choice ``i`` of a request (``n`` or ``best_of`` > 1) draws with seed ``(seed + i) mod 2**64``,
exactly as a separate request with that seed would. A draw depends on the seed and the token's position
alone, so it is the same whoever shares the batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from tokenmill.core.errors import InvalidRequest
from tokenmill.core.grammar import Grammar

MAX_N = 128
MAX_BEST_OF = 20
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 4
MAX_STOP_BYTES = 4096
MAX_LOGIT_BIAS = 1024
MAX_BAD_WORDS = 256
MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """What the client asked for; every field is checked on creation (``InvalidRequest`` names the field)."""

    n: int = 1
    """How many choices to return; they share the prompt's KV blocks."""
    best_of: int | None = None
    """Choices to draw, of which the ``n`` with the highest mean log-probability are returned."""
    max_tokens: int | None = None
    """Most tokens to generate; None: until the context is full."""
    min_tokens: int = 0
    """End-of-sequence and stop tokens are banned until this many tokens are out."""
    temperature: float = 1.0
    """0 is greedy; ties go to the lowest token id."""
    top_k: int = 0
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of most likely tokens whose probability reaches top_p (nucleus sampling)."""
    min_p: float = 0.0
    """Keep tokens at least min_p times as likely as the likeliest."""
    typical_p: float = 1.0
    """Keep the tokens whose surprise is nearest the entropy, up to this mass (locally typical sampling)."""
    repetition_penalty: float = 1.0
    """Divide positive and multiply negative logits of tokens in prompt or output (CTRL, Keskar et al. 2019)."""
    presence_penalty: float = 0.0
    """Subtracted once from the logit of each token already generated."""
    frequency_penalty: float = 0.0
    """Subtracted from the logit of a generated token as often as it occurred."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits; -100 bans a token."""
    bad_words: tuple[str, ...] = ()
    """Texts that must not be generated; the text layer turns them into ``bad_words_ids``."""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    """Token sequences that must not be generated."""
    allowed_token_ids: tuple[int, ...] | None = None
    """If given, no other token can be drawn."""
    stop: tuple[str, ...] = ()
    """Generation ends before the first of these texts."""
    stop_token_ids: tuple[int, ...] = ()
    """Generation ends at the first of these tokens."""
    include_stop: bool = False
    """Keep the stop string in the text."""
    ignore_eos: bool = False
    """Go on after the model's end-of-sequence token."""
    seed: int | None = None
    """None: drawn by the service when the request is submitted, and reported."""
    deterministic: bool = False
    """The same tokens in any company, however its prompt is cut and whatever is cached. On a CPU that always holds; on
    a GPU, steps with such a request are slower (docs/explanation/independence.md)."""
    logprobs: int | None = None
    """Return each token's log-probability and those of this many likeliest tokens (0: the token's own only)."""
    prompt_logprobs: int | None = None
    """The same for the prompt's tokens; such a request does not read the prefix cache."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text."""
    shown_special_ids: tuple[int, ...] = ()
    """Special tokens that stay in the text all the same: markers that somebody reads it by."""
    grammar: Grammar | None = None
    """If given, only answers that it accepts can be generated. One that is complete ends, whatever else bans the end
    (``min_tokens``, ``logit_bias``, …); stop strings, stop tokens and ``max_tokens`` may cut one short."""

    def __post_init__(self) -> None:
        _check_int("n", self.n, 1, MAX_N)
        if self.best_of is not None:
            _check_int("best_of", self.best_of, 1, MAX_BEST_OF)
            if self.best_of < self.n:
                raise InvalidRequest(f"best_of ({self.best_of}) must be at least n ({self.n})", param="best_of")
        if self.max_tokens is not None:
            _check_int("max_tokens", self.max_tokens, 0, 2**31 - 1)
        _check_int("min_tokens", self.min_tokens, 0, 2**31 - 1)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})", param="min_tokens"
            )
        _check_float("temperature", self.temperature, 0.0, 2.0)
        _check_int("top_k", self.top_k, 0, 2**31 - 1)
        _check_float("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_float("min_p", self.min_p, 0.0, 1.0)
        _check_float("typical_p", self.typical_p, 0.0, 1.0, above=True)
        _check_float("repetition_penalty", self.repetition_penalty, 0.0, 1e6, above=True)
        _check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        self._check_bias()
        self._check_stops()
        if self.grammar is not None and self.ignore_eos:
            raise InvalidRequest(
                "ignore_eos goes on after the answer's end, where a grammar allows nothing: leave one out",
                param="ignore_eos",
            )
        if type(self.deterministic) is not bool:
            kind = type(self.deterministic).__name__
            raise InvalidRequest(
                f"deterministic must be true or false, not {kind}", param="deterministic", code="invalid_type"
            )
        if self.seed is not None:
            _check_int("seed", self.seed, -(2**63), MAX_SEED)
        for name in ("logprobs", "prompt_logprobs"):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), 0, MAX_LOGPROBS)

    def _check_bias(self) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequest(
                f"logit_bias holds {len(self.logit_bias)} entries; at most {MAX_LOGIT_BIAS}", param="logit_bias"
            )
        for token_id, bias in self.logit_bias.items():
            _check_int("logit_bias", token_id, 0, 2**31 - 1)
            _check_float("logit_bias", bias, -100.0, 100.0)
        if len(self.bad_words) + len(self.bad_words_ids) > MAX_BAD_WORDS:
            raise InvalidRequest(f"at most {MAX_BAD_WORDS} bad_words", param="bad_words")
        if any(not word for word in (*self.bad_words, *self.bad_words_ids)):
            raise InvalidRequest("a bad word must not be empty", param="bad_words")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidRequest("allowed_token_ids must name at least one token", param="allowed_token_ids")

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(f"stop holds {len(self.stop)} strings; at most {MAX_STOP_STRINGS}", param="stop")
        for text in self.stop:
            if not text:
                raise InvalidRequest("a stop string must not be empty", param="stop")
            if len(text.encode("utf-8", "surrogatepass")) > MAX_STOP_BYTES:
                raise InvalidRequest(f"a stop string must be at most {MAX_STOP_BYTES} bytes", param="stop")
        for token_id in self.stop_token_ids:
            _check_int("stop_token_ids", token_id, 0, 2**31 - 1)
        for token_id in self.shown_special_ids:
            _check_int("shown_special_ids", token_id, 0, 2**31 - 1)

    @property
    def num_sequences(self) -> int:
        """How many sequences the engine generates for this request."""
        return max(self.n, self.best_of or 1)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


def _check_int(name: str, value: object, low: int, high: int) -> None:
    if type(value) is not int:
        raise InvalidRequest(f"{name} must be an integer, not {type(value).__name__}", param=name, code="invalid_type")
    if not low <= value <= high:
        raise InvalidRequest(f"{name} must be between {low} and {high}, not {_brief(value)}", param=name)


def _check_float(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    if type(value) is not float and type(value) is not int:
        raise InvalidRequest(f"{name} must be a number, not {type(value).__name__}", param=name, code="invalid_type")
    if not math.isfinite(value) or not low <= value <= high or (above and value == low):
        bound = f"above {low}" if above else f"at least {low}"
        raise InvalidRequest(f"{name} must be {bound} and at most {high}, not {_brief(value)}", param=name)


def _brief(value: float) -> str:
    text = str(value) if abs(value) < 10**30 else "a number above 10^30 in size"
    return text if len(text) <= 40 else text[:37] + "..."


FIELD_NAMES = frozenset(f.name for f in fields(SamplingParams))
