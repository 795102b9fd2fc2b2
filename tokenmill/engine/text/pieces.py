"""The exact bytes of each token, and how they join into text.

A tokenizer's decoder is a chain of steps (``tokenizer.json``, field ``decoder``). Here the chain is read once
into a rule from a token to its bytes; text is those bytes joined and decoded as UTF-8, where bytes that are no
UTF-8 show as U+FFFD. Only two things depend on position, and only on the very start: the first piece may be
spelt differently (``first``), and one leading character may be dropped (``lead``). So text can be produced
token by token, in constant time each, and the increments join to the whole by construction.

Equal to the ``tokenizers`` library wherever the bytes are valid UTF-8, and for byte-level vocabularies
everywhere. For byte-fallback vocabularies the library turns a whole run of byte tokens into U+FFFD when any
of it is invalid; here, as in SentencePiece, the valid part is kept, since what was already streamed cannot be
taken back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tokenmill.core.errors import NotSupported

Step = Callable[[str, bool], str | bytes]
"""(token, whether it is the first of the text) → its text, or its bytes where it may be part of a character."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[int, str]:
    """Byte → the printable character that stands for it in byte-level vocabularies (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    others = (byte for byte in range(256) if byte not in table)
    return table | {byte: chr(0x100 + index) for index, byte in enumerate(others)}


@dataclass(frozen=True, slots=True)
class PieceRule:
    """How a token becomes bytes."""

    steps: tuple[Step, ...]
    lead: bytes = b""
    """Dropped from the start of the text, once, if it is there."""

    @classmethod
    def from_decoder(cls, decoder: Mapping[str, Any] | None) -> PieceRule:
        """Read the ``decoder`` of a ``tokenizer.json``.

        Raises:
            NotSupported: a step whose text depends on tokens still to come, or an unknown one.
        """
        if decoder is None:
            return cls((_spaced,))
        chain = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
        steps: list[Step] = []
        lead = b""
        fused = False
        for step in chain:
            fused = fused or step["type"] == "Fuse"
            if step["type"] == "Strip":
                lead = _lead(step, fused)
            elif step["type"] != "Fuse":
                steps.append(_step(step))
        return cls(tuple(steps), lead)

    def __call__(self, token: str, first: bool = False) -> bytes:
        piece: str | bytes = token
        for step in self.steps:
            if isinstance(piece, bytes):
                return piece
            piece = step(piece, first)
        return piece if isinstance(piece, bytes) else piece.encode()


def _lead(step: Mapping[str, Any], fused: bool) -> bytes:
    if step["start"] > 1 or step["stop"] or not fused:
        raise NotSupported("decoder step Strip is supported only to drop one character at the start of the text")
    return str(step["content"]).encode() if step["start"] else b""


def _step(step: Mapping[str, Any]) -> Step:
    match step["type"]:
        case "ByteLevel":
            return _byte_level()
        case "ByteFallback":
            return _byte_fallback
        case "Replace" if "String" in step["pattern"]:
            old, new = step["pattern"]["String"], step["content"]
            return lambda token, first: token.replace(old, new)
        case "Metaspace":
            return _metaspace(step["replacement"], drops_first=step.get("prepend_scheme", "always") != "never")
        case "WordPiece":
            return _word_piece(step["prefix"], cleanup=step["cleanup"])
    raise NotSupported(f"tokenizer.json: decoder step {step['type']} is not supported")


def _spaced(token: str, first: bool) -> str:
    return token if first else " " + token


def _byte_level() -> Step:
    byte_of = {char: byte for byte, char in byte_alphabet().items()}

    def to_bytes(token: str, first: bool) -> bytes:
        if all(char in byte_of for char in token):
            return bytes(byte_of[char] for char in token)
        return token.encode()  # an added token, spelt as it is

    return to_bytes


def _byte_fallback(token: str, first: bool) -> str | bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token


def _metaspace(replacement: str, *, drops_first: bool) -> Step:
    return lambda token, first: token.replace(replacement, "" if first and drops_first else " ")


_CLEANUPS = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""What the ``tokenizers`` library's WordPiece decoder tidies up, in its order."""


def _word_piece(prefix: str, *, cleanup: bool) -> Step:
    def decode(token: str, first: bool) -> str:
        if not first:
            token = token.removeprefix(prefix) if token.startswith(prefix) else " " + token
        for untidy, tidy in _CLEANUPS if cleanup else ():
            token = token.replace(untidy, tidy)
        return token

    return decode
