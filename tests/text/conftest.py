"""Real tokenizers, each loaded once per run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tokenmill import builtin
from tokenmill.engine.text import TextCodec

CodecOf = Callable[[str], TextCodec]


@pytest.fixture(scope="session")
def tokenizer_folder(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name → a checkpoint folder with that tokenizer's files under the names that checkpoints use."""
    data = shared / "data" / "tokenizers"

    @cache
    def folder(name: str) -> Path:
        if name == "gpt2":
            path = tmp_path_factory.mktemp("gpt2")
            shutil.copy(data / "gpt2" / "encoder.json", path / "vocab.json")
            shutil.copy(data / "gpt2" / "vocab.bpe", path / "merges.txt")
            (path / "config.json").write_text(json.dumps({"model_type": "gpt2", "eos_token_id": 50256}))
            return path
        if name in ("mistral-v1", "mistral-v3"):
            file = {"mistral-v1": "tokenizer.model.v1", "mistral-v3": "mistral_instruct_tokenizer_240323.model.v3"}
            path = tmp_path_factory.mktemp(name)
            shutil.copy(data / "mistral" / file[name], path / "tokenizer.model")
            return path
        if "stories" in name:
            path = tmp_path_factory.mktemp(name)
            shutil.copy(data / "simplestories" / f"{name}.json", path / "tokenizer.json")
            return path
        return data / name

    return folder


@pytest.fixture(scope="session")
def codec_of(tokenizer_folder: Callable[[str], Path]) -> CodecOf:
    """Name → the codec of that real tokenizer."""
    return cache(lambda name: TextCodec.load(tokenizer_folder(name)))


@pytest.fixture(scope="session")
def story() -> TextCodec:
    """The built-in model's codec: byte-level BPE with a ChatML template."""
    return TextCodec.load(builtin.path("story"))
