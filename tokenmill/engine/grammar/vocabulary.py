"""The model's vocabulary as llguidance wants it: each token's bytes, the special ones, the ends.

The bytes are those that the client will see (``engine/text/pieces.py``), whatever kind of tokenizer the checkpoint has.
Where a grammar leaves one text only, llguidance asks for that text's tokens, so that the model is led along its usual
ones; ``ForcedText`` answers with the checkpoint's own tokenizer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from typing import Any

from tokenmill.core.errors import InvalidRequest, SetupError
from tokenmill.engine.text import TextCodec

MAX_ENCODED_CHARS = 4096
"""Longer forced text is tokenised in pieces."""
_SENTINEL = "\x02"
"""Stands before a text that must not be taken for the beginning of one; it merges with nothing."""


class ForcedText:
    """The tokens of a text inside an answer; their bytes are exactly the text's."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, codec: TextCodec, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._codec = codec
        self._special = codec.special_ids | frozenset(eos_token_ids)
        self.special_token_ids = sorted(self._special)
        self.eos_token_id = eos_token_ids[0]
        self.tokens = [codec.token_bytes(token_id) for token_id in range(vocab_size)]
        self._by_bytes: dict[bytes, int] | None = None

    def __call__(self, text: str) -> list[int]:
        found: list[int] = []
        for begin in range(0, len(text), MAX_ENCODED_CHARS):
            found += self._piece(text[begin : begin + MAX_ENCODED_CHARS])
        return found

    def _piece(self, text: str) -> list[int]:
        for lead in ("", _SENTINEL):
            try:
                token_ids = self._codec.encode(lead + text, add_special_tokens=False)
            except InvalidRequest:
                break
            for begin in range(len(token_ids) if lead else 1):
                if self._stands_for(token_ids[begin:], text):
                    return token_ids[begin:]
                if begin > 3:
                    break
        return self._longest(text.encode())

    def _stands_for(self, token_ids: Sequence[int], text: str) -> bool:
        plain = self._special.isdisjoint(token_ids)
        return plain and b"".join(self._codec.token_bytes(token_id) for token_id in token_ids) == text.encode()

    def _longest(self, data: bytes) -> list[int]:
        """Always the longest token that fits: for text that the tokenizer spells otherwise.

        Raises ``ValueError`` where none does; llguidance makes that the matcher's error.
        """
        if self._by_bytes is None:
            plain = (token_id for token_id in reversed(range(len(self.tokens))) if token_id not in self._special)
            self._by_bytes = {self.tokens[token_id]: token_id for token_id in plain if self.tokens[token_id]}
        longest = max(map(len, self._by_bytes), default=0)
        found: list[int] = []
        at = 0
        while at < len(data):
            sizes = range(min(longest, len(data) - at), 0, -1)
            size = next((size for size in sizes if data[at : at + size] in self._by_bytes), 0)
            if size == 0:
                raise ValueError(f"the vocabulary cannot spell byte {data[at]:#04x}")
            found.append(self._by_bytes[data[at : at + size]])
            at += size
        return found


def build_tokenizer(codec: TextCodec, vocab_size: int, eos_token_ids: Iterable[int]) -> Any:
    """llguidance's ``LLTokenizer`` over ``vocab_size`` rows; rows without a token are never allowed.

    Raises:
        InvalidRequest: the model has no end-of-sequence token, so that no answer could be complete.
        SetupError: llguidance is not installed.
    """
    check_installed()
    from llguidance import LLTokenizer

    ends = sorted(token_id for token_id in eos_token_ids if token_id < vocab_size)
    if not ends:
        raise InvalidRequest("structured output needs a model with an end-of-sequence token", code="not_supported")
    return LLTokenizer(ForcedText(codec, vocab_size, ends), eos_token=ends)  # type: ignore[arg-type]


def check_installed() -> None:
    """Raise ``SetupError`` where llguidance is missing."""
    if importlib.util.find_spec("llguidance") is None:
        raise SetupError("structured output needs llguidance: pip install llguidance")
