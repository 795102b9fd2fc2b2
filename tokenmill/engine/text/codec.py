"""``TextCodec``: all that the rest of the house needs to know about text, in one object.

It is made from a checkpoint folder and never changes. Text to tokens is the ``tokenizers`` library's work;
tokens to text is done here (``pieces.py``), because it must come token by token.

Special tokens that are spelt out: in a raw prompt they count, since such a prompt is the caller's whole; in a
chat only the template's do (``guard.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenmill.core.errors import CheckpointError, InvalidRequest
from tokenmill.engine.text.checkpoint import TextFiles, read_folder
from tokenmill.engine.text.guard import SpecialTokenGuard, ids_of
from tokenmill.engine.text.pieces import PieceRule
from tokenmill.engine.text.regex_safety import gave_up
from tokenmill.engine.text.stream import Detokenizer, decode_all
from tokenmill.engine.text.template import ChatTemplates, Message

PIECE_CHARS = 2**16
CUT_TOKENS = 2**10
"""For ``exceeds``: the size of a piece, and how many tokens a cut may add at most."""


class TextCodec:
    """Text to token ids and back, for one model. Safe to share between threads."""

    vocab_size: int
    """One more than the largest token id; a model may have more rows."""
    special_ids: frozenset[int]
    special_tokens: dict[str, int]
    """Each special token's spelling, and its id."""
    eos_token_ids: frozenset[int]
    """Tokens that end an answer: the tokenizer's and the generation configuration's."""
    bos_token_id: int | None
    lead: bytes
    """What is dropped from the start of a text, once."""

    def __init__(self, files: TextFiles) -> None:
        self._tokenizer = files.tokenizer
        self._tokens = {i: token for token, i in self._tokenizer.get_vocab(with_added_tokens=True).items()}
        added = self._tokenizer.get_added_tokens_decoder()
        self._tokens |= {token_id: token.content for token_id, token in added.items()}
        special = {token_id: token for token_id, token in added.items() if token.special}
        self._rule = PieceRule.from_decoder(files.decoder)
        self._pieces: dict[int, bytes] = {}
        self._guard = SpecialTokenGuard(self._tokenizer, special)
        self._templates = ChatTemplates(files.chat_templates, files.special_tokens)
        self.vocab_size = max(self._tokens) + 1
        self.special_ids = frozenset(special)
        self.special_tokens = {token.content: token_id for token_id, token in special.items()}
        self.eos_token_ids = files.eos_token_ids
        self.bos_token_id = self._tokenizer.token_to_id(files.special_tokens.get("bos_token", ""))
        self.roles = files.special_tokens
        """``bos_token``, ``eos_token``, ``pad_token`` … → the text of each."""
        self.lead = self._rule.lead

    @classmethod
    def load(cls, path: Path) -> TextCodec:
        """From a checkpoint folder.

        Raises:
            CheckpointError: no tokenizer there, or one that is damaged, impossible or unsafe.
            NotSupported: a kind of tokenizer that is not built.
        """
        return cls(read_folder(Path(path)))

    def check_against(self, vocab_rows: int) -> None:
        """Raises ``CheckpointError`` if a token has no row in an embedding of ``vocab_rows``."""
        if self.vocab_size > vocab_rows:
            last = self.vocab_size - 1
            raise CheckpointError(
                f"the tokenizer's token {self._tokens[last]!r} has id {last}, but the embedding has {vocab_rows} rows: "
                "use tokenizer and weights of the same model"
            )

    # ---- text to tokens ----

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of a raw text; special tokens spelt out in it count as such.

        Raises:
            InvalidRequest: a lone surrogate, or text that the tokenizer gives up on.
        """
        _check_unicode(text, "prompt")
        return _attempt(lambda: self._ids(text, add_special_tokens), param="prompt")

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The ids of a conversation (arguments as ``render_chat``); special tokens in messages are plain text."""
        plain = [list(messages), None if tools is None else list(tools), dict(extra or {})]
        _check_unicode(plain, "messages")
        hidden = self._guard.hide(plain)
        text = self._templates.render(
            hidden[0],
            tools=hidden[1],
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            extra=hidden[2],
        )
        if hidden == plain:
            ids = _attempt(lambda: self._ids(text, add_special_tokens=False), param="messages")
            if sum(map(self.special_ids.__contains__, ids)) == self._guard.count(text):
                return ids
        return _attempt(lambda: self._guard.encode(text), param="messages")

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a conversation by the model's chat template (see ``ChatTemplates.render``).

        Raises:
            InvalidRequest: there is no template, or it does not take these messages.
        """
        return self._templates.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            extra=extra,
        )

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    def chat_template(self, *, with_tools: bool) -> str:
        """The source of the template that conversations with or without tools are rendered by; "" if there is none."""
        return self._templates.source(with_tools=with_tools)

    @cached_property
    def max_bytes_per_token(self) -> int:
        """No token stands for more bytes of text: a longer text than ``n`` times this has more than ``n`` tokens."""
        return max(len(self.token_bytes(token_id)) for token_id in self._tokens)

    def exceeds(self, text: str, num_tokens: int) -> bool:
        """Whether a raw text has more than ``num_tokens`` tokens, told from pieces in little memory; False: not surely.

        A cut changes the tokens around it only, by far fewer than are allowed for it here.
        """
        total = 0
        for start in range(0, len(text), PIECE_CHARS):
            total += len(self.encode(text[start : start + PIECE_CHARS], add_special_tokens=False)) - CUT_TOKENS
            if total > num_tokens:
                return True
        return False

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        return ids_of(self._tokenizer, text, add_special_tokens=add_special_tokens)

    # ---- tokens to text ----

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of ``token_ids``; ids without a token have none. Bytes that are no UTF-8 show as U+FFFD."""
        return decode_all(self, token_ids, skip_special_tokens=skip_special_tokens)

    def detokenizer(self, *, skip_special_tokens: bool = True, at_start: bool = True) -> Detokenizer:
        """Decodes token by token; ``at_start`` is False where the tokens continue a prompt."""
        return Detokenizer(self, skip_special_tokens=skip_special_tokens, at_start=at_start)

    def token_text(self, token_id: int) -> str:
        """One token's text; U+FFFD where it holds part of a character."""
        return self.token_bytes(token_id).decode(errors="replace")

    def token_bytes(self, token_id: int, first: bool = False) -> bytes:
        """One token's exact bytes (``first``: at the start of a text); none for an id without a token."""
        if first:
            return self._rule(self._tokens.get(token_id, ""), first=True)
        piece = self._pieces.get(token_id)
        if piece is None:
            token = self._tokens.get(token_id)
            piece = self._rule(token) if token is not None else b""
            self._pieces[token_id] = piece
        return piece


def _attempt(encode: Callable[[], list[int]], param: str) -> list[int]:
    try:
        return encode()
    except BaseException as error:
        if gave_up(error):
            raise InvalidRequest("the tokenizer gives up on this text", param=param) from error
        raise


def _check_unicode(value: Any, param: str) -> None:
    """Raises ``InvalidRequest`` for a lone surrogate anywhere in ``value``."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(f"{param} is no valid Unicode (a lone surrogate)", param=param) from error
    elif isinstance(value, Mapping):
        for item in (*value.keys(), *value.values()):
            _check_unicode(item, param)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_unicode(item, param)
