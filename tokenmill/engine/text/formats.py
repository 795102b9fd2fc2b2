"""Every tokenizer becomes a ``tokenizer.json``: one format inside, whatever the folder holds.

- ``vocab.json`` + ``merges.txt``: byte-level BPE. The files do not say how text is cut into words before
  merging, so only families whose rule is known are taken.
- ``tokenizer.model`` with base64 lines: tiktoken ranks (Llama 3). A rank is both a token's id and its merge
  priority.
- ``tokenizer.model`` in protobuf: a SentencePiece BPE model (Llama 2, Mistral). A piece's score is its merge
  priority. The wire format is simple enough to read here.

In the last two, any two tokens merge whose concatenation is a token; so each token yields a merge for every
way to split it into two tokens, in the order of priority.
"""

from __future__ import annotations

import base64
import binascii
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from tokenmill.core.errors import CheckpointError, NotSupported
from tokenmill.engine.text.pieces import byte_alphabet

Spec = dict[str, Any]
"""A ``tokenizer.json``, parsed."""

T = TypeVar("T", str, bytes)

MAX_TOKEN_LENGTH = 2048
"""Of one token of a ``tokenizer.model``: all the ways to cut it in two are looked at."""

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES_ONLY = GPT2_BYTES | {"use_regex": False}


@dataclass(frozen=True, slots=True)
class Conversion:
    """A tokenizer in the one format, with the special tokens that its own format implies."""

    spec: Spec
    special_tokens: Mapping[str, str]
    """Role (``bos_token``, …) → token."""


# ---- vocab.json + merges.txt -----------------------------------------------------------------------------


def from_vocab_and_merges(vocab: Any, merges: str, family: str) -> Conversion:
    """Byte-level BPE of ``family``: a tokenizer class or model type, as the checkpoint's configuration names it."""
    kind = family.lower().removesuffix("fast").removesuffix("tokenizer").split("_")[0]
    if kind not in ("gpt2", "qwen2", "qwen3"):
        raise CheckpointError(
            f"vocab.json and merges.txt do not say how text is cut into words, and {family or 'the configuration'!r} "
            "is no family that is known (gpt2, qwen2, qwen3): convert the tokenizer to tokenizer.json"
        )
    pairs = [line.split(" ") for line in merges.split("\n") if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise CheckpointError("merges.txt: every line must hold two tokens")
    spec = _byte_level_spec(vocab, pairs)
    end = "<|endoftext|>"
    if kind == "gpt2":
        spec["pre_tokenizer"] = GPT2_BYTES
        return Conversion(spec, {"bos_token": end, "eos_token": end, "unk_token": end})
    spec["normalizer"] = {"type": "NFC"}
    spec["pre_tokenizer"] = _words_then_bytes(QWEN2_WORDS)
    return Conversion(spec, {"eos_token": end, "pad_token": end})


def _byte_level_spec(vocab: Any, merges: list[list[str]]) -> Spec:
    return _spec(_bpe(vocab, merges), decoder=GPT2_BYTES)


def _words_then_bytes(pattern: str) -> Spec:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, BYTES_ONLY]}


def _spec(model: Spec, decoder: Spec) -> Spec:
    blank = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor"))
    return {"version": "1.0", **blank, "added_tokens": [], "decoder": decoder, "model": model}


def _bpe(vocab: Any, merges: list[list[str]], **options: Any) -> Spec:
    defaults = {"dropout": None, "unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    affixes = {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {"type": "BPE", **affixes, **defaults, **options, "vocab": vocab, "merges": merges}


def added_token(token_id: int, content: str, *, special: bool = True) -> Spec:
    """An entry of ``added_tokens`` that is matched as it is, wherever it stands."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": special, **flags}


# ---- tiktoken --------------------------------------------------------------------------------------------

_LLAMA3_NUM_RANKS = 128_000
_LLAMA3_NAMED = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    4: "<|finetune_right_pad_id|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    8: "<|eom_id|>",
    9: "<|eot_id|>",
    10: "<|python_tag|>",
}


def from_tiktoken(data: bytes) -> Conversion:
    """Llama 3's ``tokenizer.model``: lines of base64 token and rank. Source: the model's own reference code."""
    ranks = _tiktoken_ranks(data)
    if len(ranks) != _LLAMA3_NUM_RANKS:
        raise CheckpointError(
            f"tokenizer.model: {len(ranks)} ranks are not Llama 3's {_LLAMA3_NUM_RANKS}, and the file does not name "
            "the special tokens and word rule of others: convert the tokenizer to tokenizer.json"
        )
    alphabet = byte_alphabet()
    spelt = {token: "".join(alphabet[byte] for byte in token) for token in ranks}
    merges = [[spelt[left], spelt[right]] for left, right in _all_merges(ranks, lambda token: ranks[token])]
    vocab = {spelt[token]: rank for token, rank in ranks.items()}
    spec = _spec(_bpe(vocab, merges, ignore_merges=True), decoder=GPT2_BYTES)
    spec["pre_tokenizer"] = _words_then_bytes(LLAMA3_WORDS)
    spec["added_tokens"] = [added_token(len(ranks) + index, name) for index, name in enumerate(_llama3_specials())]
    specials = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    return Conversion(with_bos_and_eos(spec, specials, bos=True, eos=False), specials)


def _llama3_specials() -> Iterator[str]:
    reserved = 0
    for index in range(256):
        if index in _LLAMA3_NAMED:
            yield _LLAMA3_NAMED[index]
        else:
            yield f"<|reserved_special_token_{reserved}|>"
            reserved += 1


def _tiktoken_ranks(data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        for line in data.splitlines():
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error) as error:
        raise CheckpointError(f"tokenizer.model: line {len(ranks) + 1} is no base64 token and rank") from error
    return ranks


def _all_merges(vocab: Mapping[T, int], priority: Callable[[T], float]) -> list[tuple[T, T]]:
    """Every pair of tokens whose concatenation is a token, the most urgent first (smallest ``priority``)."""
    merges: list[tuple[T, T]] = []
    if (longest := max(map(len, vocab), default=0)) > MAX_TOKEN_LENGTH:
        raise CheckpointError(f"tokenizer.model: a token of length {longest}; at most {MAX_TOKEN_LENGTH} are read")
    for token in sorted(vocab, key=priority):
        splits = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        known = [(left, right) for left, right in splits if left in vocab and right in vocab]
        merges += sorted(known, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    return merges


def with_bos_and_eos(spec: Spec, special_tokens: Mapping[str, str], *, bos: bool, eos: bool) -> Spec:
    """``spec`` with a post-processor that frames text by the begin and end tokens that are asked for and exist."""
    begin = special_tokens.get("bos_token") if bos else None
    end = special_tokens.get("eos_token") if eos else None
    ids = {token["content"]: token["id"] for token in spec["added_tokens"]}
    framing = {token: ids[token] for token in (begin, end) if token in ids}
    text = [{"Sequence": {"id": "A", "type_id": 0}}]
    before = [{"SpecialToken": {"id": begin, "type_id": 0}}] if begin in framing else []
    after = [{"SpecialToken": {"id": end, "type_id": 0}}] if end in framing else []
    processor = {
        "type": "TemplateProcessing",
        "single": before + text + after,
        "pair": before + text + after + [{"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [i], "tokens": [token]} for token, i in framing.items()},
    }
    return spec | {"post_processor": processor}


# ---- SentencePiece ---------------------------------------------------------------------------------------

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_SPACE = "▁"


def from_sentencepiece(data: bytes) -> Conversion:
    """A SentencePiece BPE model. Source: sentencepiece_model.proto (field numbers below)."""
    try:
        return _from_sentencepiece(data)
    except (IndexError, TypeError, ValueError, struct.error) as error:
        raise CheckpointError("tokenizer.model is cut off or no SentencePiece model") from error


def _from_sentencepiece(data: bytes) -> Conversion:
    fields = _collect(data)
    trainer = _collect(fields.get(2, [b""])[-1])
    normalizer = _collect(fields.get(3, [b""])[-1])
    if trainer.get(3, [1])[-1] != 2:
        raise NotSupported("tokenizer.model: only SentencePiece BPE is read; convert the tokenizer to tokenizer.json")
    if normalizer.get(2, [b""])[-1] or normalizer.get(4, [1])[-1]:
        raise NotSupported(
            "tokenizer.model: a SentencePiece model that rewrites text is not read; convert it to tokenizer.json"
        )
    pieces = [_piece(entry) for entry in fields.get(1, [])]
    has_prefix = bool(normalizer.get(3, [1])[-1])
    return _sentencepiece_spec(pieces, trainer, has_prefix)


def _sentencepiece_spec(pieces: list[tuple[str, float, int]], trainer: Mapping[int, Any], prefix: bool) -> Conversion:
    vocab = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    plain = {piece: index for index, (piece, _, kind) in enumerate(pieces) if kind == _NORMAL}
    merges = [list(pair) for pair in _all_merges(plain, lambda piece: -pieces[plain[piece]][1])]
    unknown = next((piece for piece, _, kind in pieces if kind == _UNKNOWN), None)
    has_bytes = any(kind == _BYTE for _, _, kind in pieces)
    model = _bpe(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
    steps: list[Spec] = [{"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}]
    steps += [{"type": "ByteFallback"}, {"type": "Fuse"}]
    steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    spec = _spec(model, decoder={"type": "Sequence", "decoders": steps})
    spec["normalizer"] = {"type": "Sequence", "normalizers": _space_rules(prefix)}
    spec["added_tokens"] = [
        added_token(index, piece, special=kind != _USER_DEFINED)
        for index, (piece, _, kind) in enumerate(pieces)
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    ids = {"unk_token": trainer.get(40, [0])[-1], "bos_token": trainer.get(41, [1])[-1]}
    ids["eos_token"] = trainer.get(42, [2])[-1]
    specials = {role: pieces[index][0] for role, index in ids.items() if 0 <= index < len(pieces)}
    return Conversion(with_bos_and_eos(spec, specials, bos=True, eos=False), specials)


def _space_rules(prefix: bool) -> list[Spec]:
    """Spaces become visible; text after the start, or after a special token, gets one in front."""
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    return [{"type": "Prepend", "prepend": _SPACE}, replace] if prefix else [replace]


def _piece(entry: bytes) -> tuple[str, float, int]:
    fields = _collect(entry)
    score = struct.unpack("<f", fields[2][-1])[0] if 2 in fields else 0.0
    return fields.get(1, [b""])[-1].decode(), score, fields.get(3, [_NORMAL])[-1]


def _collect(message: bytes) -> dict[int, list[Any]]:
    """Field number → its values in order: integers, or bytes still to be read."""
    fields: dict[int, list[Any]] = {}
    for number, value in _wire(message):
        fields.setdefault(number, []).append(value)
    return fields


def _wire(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The (field number, value) pairs of a protobuf message; IndexError where it ends too early."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value if value < 1 << 63 else value - (1 << 64)
            continue
        if kind == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(kind, len(message))
        if position + size > len(message):
            raise IndexError(position)
        yield key >> 3, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        value |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise IndexError(position)


def is_sentencepiece(data: bytes) -> bool:
    """A ``tokenizer.model`` is either protobuf, which starts with a length-delimited field 1, or base64 text."""
    return data[:1] == b"\n"


def parse_json(text: str | bytes, name: str) -> Any:
    """Parse a JSON file of a checkpoint; ``CheckpointError`` names the file."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{name} is no valid JSON: {error}") from error
