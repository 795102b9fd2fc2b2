"""A step taken apart: the parts add up, and the figures are those of a calculator."""

from __future__ import annotations

import pytest

from tokenmill.bench.step import run
from tokenmill.core.errors import ConfigError


def test_the_parts_of_a_step() -> None:
    result = run("story-draft", {"weights": "int8"}, batches=(1, 3), context=20, num_steps=5)
    assert [row["batch"] for row in result["batches"]] == [1, 3]
    for row in result["batches"]:
        assert sum(row["kernel_share"].values()) == pytest.approx(1.0)
        assert {"linear_int8", "attention", "rope_kv", "rms_norm", "choose"} <= set(row["kernel_share"])
        assert 0 < row["host_share"] < 1
        assert row["tokens_per_s"] == pytest.approx(row["batch"] / row["milliseconds"] * 1e3)
        seen = row["batch"] * 22.5 * 3 * 2 * 64 * 2 * 2  # layers, key heads, head size, keys and values, bytes
        total = result["weights_bytes"] + seen
        assert row["gigabytes_per_s"] == pytest.approx(total / row["milliseconds"] / 1e6, rel=0.2)


def test_a_context_beyond_the_models() -> None:
    with pytest.raises(ConfigError, match="--context 5000 and 40 steps are beyond the model's 2048"):
        run("story-draft", {}, batches=(1,), context=5000)


def test_options_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="group_size"):
        run("story-draft", {"group_size": 33})
