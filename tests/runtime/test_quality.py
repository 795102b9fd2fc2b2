"""The measure of quality: zero where nothing changed, and what a calculator says where something did."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tokenmill.bench.quality import run
from tokenmill.compress.evaluate import Sums, compare
from tokenmill.kernels.kv import KVTensors
from tokenmill.models.load import load_model
from tokenmill.runtime.eager import EagerModel
from tokenmill.testing.checkpoints import make_checkpoint


def test_sums_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
    sums = Sums()
    sums.add(p.log(), q.log(), torch.tensor([1]))
    sums.add(p.log(), p.log(), torch.tensor([0]))
    figures = sums.figures()
    kl = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert figures["kl_nats"] == pytest.approx(kl / 2)
    assert figures["nats_per_token"] == pytest.approx(math.log(2))
    assert figures["perplexity"] == pytest.approx(2.0)
    assert figures["agreement"] == 0.5
    assert figures["kl_standard_error"] == pytest.approx(kl / 2)


def test_against_hugging_face(tmp_path: Path) -> None:
    """Mean negative log-likelihood of a text, as transformers computes it."""
    transformers = pytest.importorskip("transformers")
    folder = make_checkpoint(tmp_path, "llama", vocab_size=300, tokenizer=False)
    ids = [(11 * i * i + 5) % 300 for i in range(100)]
    decoder = load_model(folder)
    model = EagerModel(decoder, KVTensors.allocate(decoder.config, 16, 16))
    figures = compare(model, {"itself": model}, [ids])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        loss = theirs(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert figures["reference"]["nats_per_token"] == pytest.approx(loss, rel=1e-4)
    assert figures["itself"]["kl_nats"] == 0 and figures["itself"]["agreement"] == 1


def test_lower_precision_is_farther_and_the_default_is_within_its_bound() -> None:
    """On the built-in model, the bound that ``core/precision.py`` states for the default: 0.01 nats."""
    text = "Once upon a time there was a small fox who lived at the edge of a wood. " * 20
    settings = {name: {"weights": name} for name in ("bf16", "int8", "int4")}
    found = run("story", text, window=64, num_windows=4, settings=settings)["settings"]
    assert found["bf16"]["kl_nats"] < found["int8"]["kl_nats"] < found["int4"]["kl_nats"]
    assert found["int8"]["kl_nats"] < 0.01


def test_a_text_that_is_too_short() -> None:
    with pytest.raises(ValueError, match="a window 256"):
        run("story-draft", "Once.", settings={})
