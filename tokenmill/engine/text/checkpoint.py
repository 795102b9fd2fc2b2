"""What a checkpoint folder says about text, read with suspicion.

Files come from strangers. Sizes and counts are bounded before anything is parsed, ids and patterns are checked
before the tokenizer is built; whatever is refused is named with its file and field. Every tokenizer ends up as
one ``tokenizer.json`` (``formats.py``); what ``tokenizer_config.json`` adds to it is added here, by the rules
of the ``transformers`` library.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tokenmill.core.errors import CheckpointError
from tokenmill.engine.text import formats
from tokenmill.engine.text.formats import Conversion, Spec, parse_json
from tokenmill.engine.text.regex_safety import check_pattern, gave_up

MAX_FILE_BYTES = 128 * 2**20
MAX_ENTRIES = 4_000_000
"""Tokens plus merges; the largest vocabularies in use have about 800,000."""
MAX_CONFIG_BYTES = 16 * 2**20
MAX_TEMPLATE_BYTES = 2**20
MAX_ADDED_CHARS = 1024
"""Of one added token: every beginning of every special one is kept, to be found in users' text."""


@dataclass(frozen=True, slots=True)
class TextFiles:
    """All that ``TextCodec`` is built from."""

    tokenizer: Tokenizer
    decoder: Mapping[str, Any] | None
    """The ``decoder`` of the ``tokenizer.json``."""
    special_tokens: Mapping[str, str]
    """Role (``bos_token``, ``eos_token``, …) → token."""
    eos_token_ids: frozenset[int]
    chat_templates: Mapping[str, str]
    """Name (``default``, ``tool_use``, …) → Jinja source."""


def read_folder(folder: Path) -> TextFiles:
    """Read everything about text from a checkpoint folder.

    Raises:
        CheckpointError: a file is missing, damaged or beyond its bounds.
        NotSupported: a tokenizer of a kind that is not built.
    """
    config = _read_config(folder / "tokenizer_config.json")
    conversion = _read_tokenizer(folder, config)
    special_tokens = {**conversion.special_tokens, **_special_tokens(folder, config)}
    spec = _completed(conversion.spec, special_tokens, config, folder)
    tokenizer = build(spec)
    return TextFiles(
        tokenizer=tokenizer,
        decoder=spec.get("decoder"),
        special_tokens=special_tokens,
        eos_token_ids=_eos_token_ids(folder, tokenizer, special_tokens),
        chat_templates=_chat_templates(folder, config),
    )


def build(spec: Spec) -> Tokenizer:
    """The tokenizer of a checked ``tokenizer.json``; it neither truncates nor pads."""
    check(spec)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(spec | {"truncation": None, "padding": None}))
    except BaseException as error:  # the library raises bare Exception, or panics
        if not (isinstance(error, Exception) or gave_up(error)):
            raise
        raise CheckpointError(f"tokenizer.json: {' '.join(str(error).split())[:300]}") from error
    for token in spec.get("added_tokens", ()):
        found = tokenizer.token_to_id(token["content"])
        if found != token["id"]:
            raise CheckpointError(f"tokenizer.json: added token {token['content']!r} has id {token['id']} and {found}")
    return tokenizer


# ---- checks ----------------------------------------------------------------------------------------------


def check(spec: Spec) -> None:
    """Raises ``CheckpointError`` for a ``tokenizer.json`` with impossible ids or unsafe patterns (MF-06)."""
    vocab = _vocabulary(spec)
    added = _added_tokens(spec.get("added_tokens"), "tokenizer.json: added_tokens")
    merges = spec["model"].get("merges") or []
    if not isinstance(merges, list):
        raise CheckpointError("tokenizer.json: model.merges must be a list")
    ids = [*vocab.values(), *(token["id"] for token in added if vocab.get(token["content"]) != token["id"])]
    if len(ids) + len(merges) > MAX_ENTRIES:
        raise CheckpointError(f"tokenizer.json: more than {MAX_ENTRIES} tokens and merges")
    if not ids:
        raise CheckpointError("tokenizer.json: the vocabulary is empty")
    if any(type(token_id) is not int or token_id < 0 for token_id in ids):
        raise CheckpointError("tokenizer.json: model.vocab: token ids must be integers from 0 on")
    if len(set(ids)) < len(ids):
        raise CheckpointError("tokenizer.json: model.vocab: two tokens share one id")
    if max(ids) >= 2 * len(ids) + 1024:
        raise CheckpointError(f"tokenizer.json: {len(ids)} tokens with ids up to {max(ids)}: more gaps than tokens")
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        for pattern in sorted(set(_patterns(spec.get(part)))):
            check_pattern(pattern)


def _vocabulary(spec: Spec) -> dict[str, int]:
    """Token → id of the model itself, without added tokens."""
    try:
        vocab = spec["model"]["vocab"]
        return dict(vocab) if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError("tokenizer.json: no model with a vocabulary") from error


def _added_tokens(value: Any, source: str) -> list[Spec]:
    """The tokens of a list that may be absent, each with its content and its id."""
    tokens = [] if value is None else value
    if not isinstance(tokens, list) or not all(map(_is_token, tokens)):
        raise CheckpointError(
            f"{source} must list tokens, each with a content of 1 to {MAX_ADDED_CHARS} characters and an id"
        )
    return tokens


def _is_token(token: Any) -> bool:
    return (
        isinstance(token, dict)
        and isinstance(token.get("content"), str)
        and 0 < len(token["content"]) <= MAX_ADDED_CHARS
        and type(token.get("id")) is int
    )


def _patterns(part: Any) -> Iterator[str]:
    """Every regular expression inside a part of the file."""
    if isinstance(part, dict):
        if isinstance(part.get("Regex"), str):
            yield part["Regex"]
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from _patterns(item)


# ---- reading ---------------------------------------------------------------------------------------------


def _read(path: Path, max_bytes: int) -> bytes:
    size = path.stat().st_size
    if size > max_bytes:
        raise CheckpointError(f"{path.name} has {size} bytes; at most {max_bytes} are read")
    return path.read_bytes()


def _read_text(path: Path, max_bytes: int) -> str:
    try:
        return _read(path, max_bytes).decode()
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path.name} is not UTF-8") from error


def _read_config(path: Path) -> dict[str, Any]:
    """A small JSON object; {} where there is no such file."""
    if not path.is_file():
        return {}
    config = parse_json(_read_text(path, MAX_CONFIG_BYTES), path.name)
    if not isinstance(config, dict):
        raise CheckpointError(f"{path.name} must hold a JSON object")
    return config


def _read_vocabulary(path: Path) -> Any:
    """A large JSON file; its strings are counted before it is parsed."""
    data = _read(path, MAX_FILE_BYTES)
    if data.count(b'"') > 4 * MAX_ENTRIES:
        raise CheckpointError(f"{path.name} holds more than {MAX_ENTRIES} tokens and merges")
    return parse_json(data, path.name)


def _read_tokenizer(folder: Path, config: Mapping[str, Any]) -> Conversion:
    if (path := folder / "tokenizer.json").is_file():
        spec = _read_vocabulary(path)
        if not isinstance(spec, dict):
            raise CheckpointError("tokenizer.json must hold a JSON object")
        return Conversion(spec, {})
    if (path := folder / "tokenizer.model").is_file():
        data = _read(path, MAX_FILE_BYTES)
        return formats.from_sentencepiece(data) if formats.is_sentencepiece(data) else formats.from_tiktoken(data)
    if (path := folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        merges = _read_text(folder / "merges.txt", MAX_FILE_BYTES)
        if merges.count("\n") > MAX_ENTRIES:
            raise CheckpointError(f"merges.txt holds more than {MAX_ENTRIES} merges")
        family = config.get("tokenizer_class") or _read_config(folder / "config.json").get("model_type") or ""
        return formats.from_vocab_and_merges(_read_vocabulary(path), merges, str(family))
    raise CheckpointError(
        f"no tokenizer in {folder.name}: it needs tokenizer.json, tokenizer.model, or vocab.json with merges.txt"
    )


# ---- what the configuration adds -------------------------------------------------------------------------


def _special_tokens(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Role → token, from both places it may stand; ``tokenizer_config.json`` wins."""
    named = {**_read_config(folder / "special_tokens_map.json"), **config}
    contents = {role: _content(value) for role, value in named.items() if role.endswith("_token")}
    return {role: content for role, content in contents.items() if content}


def _content(token: Any) -> str | None:
    """A token is written as a string or as an object with its flags."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _completed(spec: Spec, special_tokens: Mapping[str, str], config: Mapping[str, Any], folder: Path) -> Spec:
    """``spec`` with the tokens and the framing that stand in other files."""
    added = [
        *_added_tokens(spec.get("added_tokens"), "tokenizer.json: added_tokens"),
        *_added_tokens(_config_tokens(config, folder, special_tokens), "added tokens of tokenizer_config.json"),
    ]
    by_content = {token["content"]: token for token in reversed(added)}  # the first mention wins
    vocab = _vocabulary(spec)
    for token in special_tokens.values():
        if token not in by_content and token in vocab:
            by_content[token] = formats.added_token(vocab[token], token)
    spec = spec | {"added_tokens": sorted(by_content.values(), key=lambda token: token["id"])}
    if "add_bos_token" in config or "add_eos_token" in config:
        bos, eos = bool(config.get("add_bos_token")), bool(config.get("add_eos_token"))
        spec = formats.with_bos_and_eos(spec, special_tokens, bos=bos, eos=eos)
    return spec


def _config_tokens(config: Mapping[str, Any], folder: Path, special_tokens: Mapping[str, str]) -> list[Spec]:
    """Added tokens outside ``tokenizer.json``: newer folders' ``added_tokens_decoder``, older ones' own file."""
    decoder = config.get("added_tokens_decoder") or {}
    try:
        tokens = [formats.added_token(int(token_id), "") | token for token_id, token in decoder.items()]
        listed = {token["content"] for token in tokens}
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError("tokenizer_config.json: added_tokens_decoder must map ids to tokens") from error
    specials = set(special_tokens.values())
    for content, token_id in _read_config(folder / "added_tokens.json").items():
        if content not in listed:
            tokens.append(formats.added_token(token_id, content, special=content in specials))
    return tokens


def _eos_token_ids(folder: Path, tokenizer: Tokenizer, special_tokens: Mapping[str, str]) -> frozenset[int]:
    """The tokenizer's own end, and those of ``generation_config.json`` (else of ``config.json``)."""
    path = folder / "generation_config.json"
    generation = _read_config(path if path.is_file() else folder / "config.json")
    listed = generation.get("eos_token_id")
    ids = {token_id for token_id in (listed if isinstance(listed, list) else [listed]) if type(token_id) is int}
    own = tokenizer.token_to_id(special_tokens["eos_token"]) if "eos_token" in special_tokens else None
    return frozenset(ids | {own} if own is not None else ids)


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Name → source. A file of its own wins over the configuration's."""
    templates = _template_entries(config.get("chat_template"))
    templates |= _template_entries(_read_config(folder / "chat_template.json").get("chat_template"))
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = _read_text(path, MAX_TEMPLATE_BYTES)
    if (path := folder / "chat_template.jinja").is_file():
        templates["default"] = _read_text(path, MAX_TEMPLATE_BYTES)
    for name, source in templates.items():
        if len(source) > MAX_TEMPLATE_BYTES:
            raise CheckpointError(f"chat template {name!r} has {len(source)} characters; at most {MAX_TEMPLATE_BYTES}")
    return templates


def _template_entries(value: Any) -> dict[str, str]:
    """A template is written as a string, or as a list of named ones."""
    if isinstance(value, str):
        return {"default": value}
    if not isinstance(value, list):
        return {}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in value}
    except (KeyError, TypeError) as error:
        raise CheckpointError("tokenizer_config.json: chat_template must be a string or a list of templates") from error
