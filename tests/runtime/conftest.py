"""A tiny model for the tests of the worker, made and judged by Hugging Face."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from tests.runtime.support import VOCAB
from tokenmill.models.load import load_model


@dataclass(frozen=True)
class Tiny:
    """One random checkpoint, as we load it and as Hugging Face does."""

    ours: Any
    theirs: Any


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """One thread is quicker for tiny tensors, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    transformers = pytest.importorskip("transformers")

    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    folder = tmp_path_factory.mktemp("tiny")
    theirs.save_pretrained(folder)
    return Tiny(load_model(folder), theirs)
