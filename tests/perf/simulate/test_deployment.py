"""From model and device to an engine: what fits, what a step costs, what a link carries."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tokenmill.core.engine_config import CacheConfig, SchedulerConfig
from tokenmill.core.errors import CheckpointError, ConfigError, DoesNotFit
from tokenmill.core.step import StepPlan
from tokenmill.perf.calibrate import Calibration
from tokenmill.perf.costs import Layout, Work, formats_named
from tokenmill.perf.hardware import find
from tokenmill.perf.roofline import Roofline, predict_step
from tokenmill.perf.simulate.deployment import Simulated, find_shape
from tokenmill.perf.simulate.pricing import Run
from tokenmill.perf.terms import Deployment


def deployment(model: str = "Llama-3.1-8B", precision: str = "bf16", layout: Layout | None = None) -> Simulated:
    deployment = Deployment(find_shape(model), formats_named(precision), layout or Layout(), find("H100"))
    return Simulated(deployment, Calibration())


def test_blocks_are_what_weights_and_reserve_leave() -> None:
    found = deployment()
    engine = found.engine(CacheConfig(), SchedulerConfig(), depth=1, memory_share=0.9, reserved=2e9)
    room = 0.9 * find("H100").memory_bytes - 2e9 - found.weight_bytes
    assert found.kv_bytes_per_token == 32 * 2 * 8 * 128 * 2
    assert engine.cache.num_blocks == int(room / (16 * found.kv_bytes_per_token))
    doubled = deployment(layout=Layout(dp=2))
    assert doubled.num_blocks(16, room) == 2 * found.num_blocks(16, room)
    given = found.engine(CacheConfig(num_blocks=7), SchedulerConfig(), depth=1, memory_share=0.9, reserved=0)
    assert given.cache.num_blocks == 7


def test_what_does_not_fit_says_what_would() -> None:
    with pytest.raises(DoesNotFit, match="--tp"):
        deployment("Llama-3.1-70B").kv_bytes(0.9, 2e9)
    with pytest.raises(DoesNotFit, match="no KV block"):
        deployment().num_blocks(16, 1e6)


@pytest.mark.parametrize(
    ("model", "layout"), [("Llama-3.1-8B", Layout()), ("Llama-3.1-8B", Layout(tp=2)), ("Mixtral-8x7B", Layout(tp=2))]
)
def test_the_quick_price_of_a_step_is_that_of_its_operations(model: str, layout: Layout) -> None:
    found = deployment(model, layout=layout)
    d, cost = found.deployment, Roofline(found.deployment, found.calibration)
    rng = random.Random(1)
    for _ in range(30):
        rows = rng.randint(1, 20)
        counts = tuple(rng.choice((1, 1, 1, rng.randint(2, 900))) for _ in range(rows))
        plan = StepPlan(0, tuple(range(rows)), tuple(rng.randint(0, 3000) for _ in range(rows)), counts)
        wanted = predict_step(d.shape, d.formats, d.layout, d.hardware, Work.of(plan), found.calibration)
        assert cost.predict(plan).seconds == pytest.approx(wanted.seconds, rel=1e-9)


def test_a_run_s_price_is_that_of_its_steps() -> None:
    d = deployment()
    cost = Roofline(d.deployment, d.calibration)
    starts = (100, 900, 4000, 20)
    found = Run(cost, (0, 1, 2, 3), starts).seconds(700)
    for i in (0, 1, 17, 350, 500, 699):
        plan = StepPlan(0, (0, 1, 2, 3), tuple(start + i for start in starts), (1,) * 4)
        assert found[i] == pytest.approx(cost.predict(plan).seconds, rel=2e-6)


def test_a_link_carries_the_whole_replica_s_keys_and_values() -> None:
    d = deployment(layout=Layout(tp=2))
    link = d.transfer(None, 0.0, overlap=False)
    assert link.bytes_per_token == 2 * d.kv_bytes_per_token
    assert link.bytes_per_s == 2 * (d.deployment.hardware.internode_bytes_per_s or 0.0) > 0
    assert d.transfer(1e9, 0.5, overlap=True).end_s(100, 0.0, 0.0, 1.0)[1] == 1.5


def test_models_are_found_by_name_and_by_file(tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 100, "max_position_embeddings": 256,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert find_shape(str(tmp_path)).num_layers == find_shape(str(tmp_path / "config.json")).num_layers == 2
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        find_shape(str(tmp_path))
    with pytest.raises(ConfigError, match="nobody"):
        find_shape("nobody-1T")
