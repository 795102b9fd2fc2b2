"""``LLM.embed`` against the hidden states of Hugging Face, for every family, by both kinds of kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tokenmill.core.errors import CheckpointError, InvalidRequest, NotSupported
from tokenmill.llm import LLM
from tokenmill.models.pooling import read_pooling
from tokenmill.testing.checkpoints import FAMILIES, make_checkpoint

transformers = pytest.importorskip("transformers")

TEXTS = ["Once upon a time there was a fox.", "A", "The quick brown fox jumps over the lazy dog. " * 4]
TOLERANCE = {"reference": 3e-6, "bf16": 0.015, "int8": 0.04}
"""Largest distance between two vectors of length 1; the fast kernels round weights and activations."""
OPTIONS: dict[str, dict[str, Any]] = {
    "reference": {"kernels": "reference"},
    "bf16": {"kernels": "fast", "weights": "bf16"},
    "int8": {"kernels": "fast", "weights": "int8"},
}


def theirs(folder: Path, prompts: list[tuple[int, ...]], kind: str) -> list[np.ndarray]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).float().eval()
    found = []
    with torch.inference_mode():
        for ids in prompts:
            hidden = model.model(torch.tensor([ids])).last_hidden_state[0].double()
            vector = hidden[-1] if kind == "last" else hidden.mean(0)
            found.append((vector / vector.norm()).numpy())
    return found


CASES = [
    (family, kernels)
    for family in FAMILIES
    for kernels in OPTIONS
    # Rounded activations may choose another expert of a random model: a jump, for which there is no tolerance.
    if kernels != "int8" or family not in ("mixtral", "qwen3_moe")
]


@pytest.mark.parametrize(("family", "kernels"), CASES)
def test_hidden_states_are_those_of_hugging_face(family: str, kernels: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / family, family)
    with LLM(str(folder), num_blocks=64, max_step_tokens=32, num_threads=1, **OPTIONS[kernels]) as llm:
        for kind in ("last", "mean"):
            ours = llm.embed(TEXTS, pooling=kind)
            prompts = [one.prompt_token_ids for one in ours]
            assert prompts == [tuple(llm.codec.encode(text)) for text in TEXTS]
            for one, wanted in zip(ours, theirs(folder, prompts, kind), strict=True):
                assert np.linalg.norm(np.array(one.values) - wanted) < TOLERANCE[kernels]


def test_a_shorter_embedding_is_the_beginning_scaled_anew(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    with LLM(str(folder), num_blocks=64, num_threads=1) as llm:
        (whole,), (plain,), (short,) = (
            llm.embed("A fox.", **wishes) for wishes in ({}, {"normalize": False}, {"dimensions": 10})
        )
        beginning = np.array(plain.values[:10])
        assert np.allclose(short.values, beginning / np.linalg.norm(beginning), atol=1e-6)
        assert np.allclose(whole.values, np.array(plain.values) / np.linalg.norm(plain.values), atol=1e-6)
        assert llm.embed([[5, 6, 7], [8]])[1].prompt_token_ids == (8,)
        with pytest.raises(InvalidRequest, match=r"dimensions \(65\) must not exceed the 64"):
            llm.embed("A fox.", dimensions=65)
        assert llm.generate("A fox.")[0].text is not None, "and it still generates"


def write_pooling(folder: Path, **modes: bool) -> Path:
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    flags = {f"pooling_mode_{name}": value for name, value in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64, **flags}))
    return folder


def test_the_checkpoint_says_how_to_pool(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model")
    write_pooling(folder, mean_tokens=True, lasttoken=False)
    with LLM(str(folder), num_blocks=64, num_threads=1) as llm:
        texts = "A fox and a hen."
        assert llm.embed(texts)[0].values == llm.embed(texts, pooling="mean")[0].values
        assert llm.embed(texts)[0].values != llm.embed(texts, pooling="last")[0].values


def test_a_pooling_that_is_not_built_is_refused(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == "last"
    assert read_pooling(write_pooling(tmp_path, lasttoken=True, cls_token=False)) == "last"
    for modes in ({"cls_token": True}, {"mean_tokens": True, "lasttoken": True}, {"mean_tokens": False}):
        with pytest.raises(NotSupported, match="1_Pooling"):
            read_pooling(write_pooling(tmp_path, **{"lasttoken": False, **modes}))
    write_pooling(tmp_path, lasttoken=True)
    modules = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", "Normalize")]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert read_pooling(tmp_path) == "last"
    (tmp_path / "modules.json").write_text(json.dumps([*modules, {"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(NotSupported, match="Dense"):
        read_pooling(tmp_path)
    (tmp_path / "modules.json").write_text('{"type": 3}')
    with pytest.raises(CheckpointError, match="list of modules"):
        read_pooling(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_a_checkpoint_saved_without_its_output_matrix_is_read(tmp_path: Path, tied: bool) -> None:
    """As embedding models are: ``architectures: ["Qwen3Model"]``, names without ``model.``, no output matrix."""
    folder = make_checkpoint(tmp_path / "model", "qwen3", tie_word_embeddings=tied)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    bare = tmp_path / "bare"
    model.model.save_pretrained(bare)
    assert json.loads((bare / "config.json").read_text())["architectures"] == ["Qwen3Model"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((folder / name).read_bytes())
    vectors = []
    for path in (folder, bare):
        with LLM(str(path), num_blocks=64, num_threads=1, kernels="reference") as llm:
            vectors.append(llm.embed("A fox and a hen.")[0].values)
            if path == bare:
                with pytest.raises(NotSupported, match="no output matrix"):
                    llm.generate("A fox")
    assert vectors[0] == vectors[1]
    with LLM(str(bare), num_blocks=64, num_threads=1) as llm:
        assert np.linalg.norm(np.array(llm.embed("A fox and a hen.")[0].values) - np.array(vectors[0])) < 0.05
