"""Special tokens are the template's to write, never the user's.

A chat becomes one string before it becomes tokens, so a user who writes ``<|im_end|>`` could end their own turn
and speak as the system. Special tokens are therefore told apart by who wrote them:

1. ``hide`` puts a mark (a Unicode noncharacter) between the characters of every special token in what the user
   sent, before the template is rendered. So it can no longer be read as one.
2. In the rendered text, whatever still reads as a special token was written by the template. Each is replaced
   by a seal: a string that stands for that token alone in a second, otherwise equal tokenizer, in which the
   special tokens' own spelling means nothing.
3. The marks are removed, and the second tokenizer encodes the whole. The text is cut into words exactly as
   ever, since nothing but the spelling of the template's own tokens was changed.

A chat in which the user wrote no special token takes none of this: it is rendered and encoded as it is.
A template that deletes text from the middle of a message could still join two harmless halves to a special
token; no template that we know does so.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from tokenizers import AddedToken, Tokenizer, models

MARK = "\ufdd0"
SEAL = "\ufdd1"
_FIRST_SEAL = 0x100000  # a private-use plane: one character per special token


class SpecialTokenGuard:
    """Hides special tokens in users' text; encodes a text so that only the template's own ones count."""

    def __init__(self, tokenizer: Tokenizer, special: Mapping[int, AddedToken]) -> None:
        self._tokenizer = tokenizer
        self._special = special
        contents = [token.content for token in special.values()]
        self._prefixes = frozenset(text[:size] for text in contents for size in range(1, len(text)))
        self._max_chars = max(map(len, contents), default=0)

    def hide(self, value: Any) -> Any:
        """``value`` (text, or lists and dicts of it) with every special token in it made unreadable as one."""
        if isinstance(value, str):
            return self._hide_text(value)
        if isinstance(value, Mapping):
            return {self.hide(key): self.hide(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.hide(item) for item in value]
        return value

    def count(self, text: str) -> int:
        """How many special tokens are spelt out in ``text``."""
        return len(self._find(text))

    def encode(self, marked: str) -> list[int]:
        """The ids of a rendered text whose user parts were hidden; what can be read as special, is."""
        parts: list[str] = []
        end = 0
        for index, start, stop in self._find(marked):
            parts += (marked[end:start], _seal(index))
            end = stop
        text = "".join((*parts, marked[end:])).replace(MARK, "")
        return ids_of(self._sealed, text, add_special_tokens=False)

    def _hide_text(self, text: str) -> str:
        if MARK in text or SEAL in text:
            text = text.replace(MARK, "\ufffd").replace(SEAL, "\ufffd")
        parts: list[str] = []
        end = 0
        for _, start, stop in self._find(text):
            parts += (text[end:start], *(char + MARK for char in text[start:stop]))
            end = stop
        return self._hide_beginning("".join((*parts, text[end:])) if parts else text)

    def _hide_beginning(self, text: str) -> str:
        """Mark the beginning of a special token at the very end: the template may append more of the user's text."""
        trimmed = text.rstrip()
        for size in range(min(self._max_chars - 1, len(trimmed)), 0, -1):
            if trimmed[-size:] in self._prefixes:
                cut = len(trimmed) - size + 1
                return text[:cut] + MARK + text[cut:]
        return text

    def _find(self, text: str) -> list[tuple[int, int, int]]:
        """``(index of the special token, start, stop)`` of each one in ``text``, as the tokenizer would see them."""
        if not self._special:
            return []
        encoding = self._finder.encode_batch([text], add_special_tokens=False)[0]
        return [
            (index - 1, start, stop)
            for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
            if index
        ]

    @cached_property
    def _finder(self) -> Tokenizer:
        """A tokenizer that knows nothing but the special tokens; 0 is all other text."""
        finder = Tokenizer(models.WordLevel({"": 0}, unk_token=""))
        for token in self._special.values():
            bare = AddedToken(token.content, single_word=token.single_word, normalized=False, special=True)
            finder.add_special_tokens([bare])
        return finder

    @cached_property
    def _sealed(self) -> Tokenizer:
        """The tokenizer with every special token spelt as its seal. Built when a user first writes one."""
        spec = json.loads(self._tokenizer.to_str())
        seals = {token.content: _seal(index) for index, token in enumerate(self._special.values())}
        for token in spec["added_tokens"]:
            token["content"] = seals.get(token["content"], token["content"])
        _rename(spec["model"], seals)
        spec["post_processor"] = None
        sealed = Tokenizer.from_str(json.dumps(spec))
        for token_id, token in self._special.items():
            assert sealed.token_to_id(seals[token.content]) == token_id, token.content
        return sealed


def ids_of(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """The ids of ``text``. As a batch of one, which other threads can run beside: ``encode`` keeps them all waiting."""
    return list(tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)


def _seal(index: int) -> str:
    return SEAL + chr(_FIRST_SEAL + index)


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Spell tokens otherwise in a model's vocabulary; merges that would make one go."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {names.get(token, token): token_id for token, token_id in vocab.items()}
    else:
        model["vocab"] = [[names.get(token, token), score] for token, score in vocab]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        pairs = (pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"])
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & names.keys()]
