"""Factors: looked up by what they belong to, kept in files, learnt from rows and from live steps."""

from __future__ import annotations

import json
import math
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tokenmill.core.errors import ConfigError
from tokenmill.core.model_config import ModelConfig
from tokenmill.core.precision import Precision
from tokenmill.engine.telemetry import StepAccount, StepClass
from tokenmill.perf.calibrate import (
    Calibration,
    Effects,
    OnlineFit,
    calibration_for,
    keys_of,
    load_effects,
    save_effects,
    shipped_effects,
)
from tokenmill.perf.costs import formats_named
from tokenmill.perf.diagnose import Limits, deployment_of, describe
from tokenmill.perf.diagnose.pricing import work_of
from tokenmill.perf.hardware import Hardware, find
from tokenmill.perf.models import find_model
from tokenmill.perf.roofline import seconds_of
from tokenmill.perf.score.fitting import fit_files, solve
from tokenmill.perf.score.predict import NO_CORRECTIONS, Predictor
from tokenmill.perf.score.rows import COLUMNS, read_rows
from tokenmill.perf.score.turns import fit_results, merged
from tokenmill.perf.terms import NAMES

H100 = find("h100_sxm")


def test_effects_add_up_from_the_general_to_the_particular() -> None:
    effects = Effects(
        {"linear.memory": {"": 0.1, "family:hopper": 0.2, "engine:vllm": 0.4, "engine:vllm,version:0.12.0": 0.8}},
        {"": 0.3, "engine:vllm": 0.1},
    )
    place = NAMES.index("linear.memory")

    def factor(*what: str) -> float:
        return calibration_for(H100, *what, effects=effects).factors[place]

    assert factor() == pytest.approx(math.exp(0.3))
    assert factor("vllm") == pytest.approx(math.exp(0.7))
    assert factor("vllm", "0.12.0") == pytest.approx(math.exp(1.5))
    assert factor("another", "1") == pytest.approx(math.exp(0.3))
    assert calibration_for(H100, "vllm", effects=effects).spread == 0.1
    assert calibration_for(H100, effects=effects).spread == 0.3


def test_what_ships_knows_engines_and_is_near_the_datasheet() -> None:
    shape, formats = find_model("Llama-3.1-70B"), formats_named("fp8")
    calibration = calibration_for(H100, "vllm", "0.12.0", shape=shape, formats=formats)
    assert 1.0 < calibration.factors[NAMES.index("linear.memory")] < 2.5
    assert 1.0 < calibration.factors[NAMES.index("linear.compute")] < 3.5
    assert 0.0 < calibration.spread < 1.0
    low, high = calibration.interval(1.0)
    assert low < 1.0 < high


def test_keys_name_class_and_arithmetic() -> None:
    keys = keys_of(H100, "sglang", "0.5", find_model("DeepSeek-R1"), formats_named("fp8"))
    assert {"family:hopper", "arithmetic:fp8", "class:latent", "engine:sglang", "engine:sglang,version:0.5"} <= set(
        keys
    )


def test_files_round_trip(tmp_path: Path) -> None:
    effects = Effects({"launch": {"engine:x": -0.25}}, {"engine:x": 0.1}, "a note")
    save_effects(effects, tmp_path / "c.json")
    assert load_effects(tmp_path / "c.json") == effects
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


def test_added_effects_hold_beside_those_that_ship() -> None:
    both = shipped_effects().and_(Effects({"launch": {"engine:mine": 0.5}}, {"engine:mine": 0.07}))
    before, after = (calibration_for(H100, "mine", effects=found) for found in (shipped_effects(), both))
    place = NAMES.index("launch")
    assert after.factors[place] == pytest.approx(before.factors[place] * math.exp(0.5))
    assert after.spread == 0.07


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"kind": "other"}', "'kind' must be"),
        ('{"kind": "tokenmill calibration"}', "effects must be a table"),
        ('{"kind": "tokenmill calibration", "effects": {"warp": {}}}', r"effects\.warp: unknown term"),
        ('{"kind": "tokenmill calibration", "effects": {"launch": {"": NaN}}}', r"effects\.launch\[''\]"),
        ('{"kind": "tokenmill calibration", "effects": {"launch": {"": 99}}}', r"between -7\.0 and 7\.0, not 99"),
        ('{"kind": "tokenmill calibration", "effects": {}, "spread": {"": -1}}', "spread"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_effects(path)


# ---- fitting -----------------------------------------------------------------------------------------------


def line(**changes: object) -> str:
    cells = dict.fromkeys(COLUMNS, "") | {
        "source": "test", "model": "Llama-3.1-8B", "hardware": "h100_sxm", "n_devices": "1", "tp": "1", "pp": "1",
        "precision": "bf16", "engine": "mine", "version": "1", "batch_or_concurrency": "8", "input_len": "512",
        "output_len": "128", "metric": "tpot", "value": "10", "unit": "ms", "note": "",
    }  # fmt: skip
    return ",".join(str(value) for value in (cells | changes).values())


def write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")
    return path


def slowed(tmp_path: Path, factor: float) -> Path:
    """Rows as the shipped calibration predicts them, slower by ``factor``."""
    loads = [(batch, length) for batch in (1, 4, 16, 64) for length in (128, 1024, 4096)]
    asked = write(tmp_path / "asked.csv", [line(batch_or_concurrency=b, input_len=n) for b, n in loads])
    predictor = Predictor(None, NO_CORRECTIONS)
    values = [predictor.predict(row).value for row in read_rows(asked)]
    lines = [
        line(batch_or_concurrency=b, input_len=n, value=v * factor) for (b, n), v in zip(loads, values, strict=True)
    ]
    return write(tmp_path / "slow.csv", lines)


def test_calibrate_finds_how_much_slower_an_engine_is(tmp_path: Path) -> None:
    fitted = fit_files([slowed(tmp_path, 1.3)])
    assert fitted.num_rows == 12
    assert fitted.error_before == pytest.approx(1 - 1 / 1.3, rel=1e-3)
    assert fitted.error_after < 0.01
    assert all(set(table) == {"engine:mine,version:1"} for table in fitted.effects.effects.values())


def test_a_wrong_row_does_not_bend_the_rest(tmp_path: Path) -> None:
    path = slowed(tmp_path, 1.0)
    path.write_text(path.read_text() + line(value=9000) + "\n")
    assert fit_files([path]).error_after < 0.02


def test_calibrate_says_when_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no row that can be predicted for engine vllm"):
        fit_files([slowed(tmp_path, 1.0)], engine="vllm")


def test_solve_solves() -> None:
    assert solve([[4.0, 2.0], [2.0, 3.0]], [8.0, 7.0]) == pytest.approx([1.25, 1.5])


# ---- live --------------------------------------------------------------------------------------------------


def steps(number: int, seed: int = 7) -> list[dict[str, float]]:
    chance = random.Random(seed)
    return [
        {"memory": chance.uniform(2e-3, 9e-3), "compute": chance.uniform(1e-4, 9e-3), "host": 1e-3}
        for _ in range(number)
    ]


def test_live_steps_correct_the_model() -> None:
    true, fit, chance = (
        {"memory": 1.4, "compute": 0.8, "host": 2.0},
        OnlineFit(("memory", "compute", "host")),
        random.Random(1),
    )
    for parts in steps(1500):
        fit.observe(parts, sum(true[name] * s for name, s in parts.items()) * chance.gauss(1, 0.02))
    for name, value in true.items():
        assert fit.factors[name] == pytest.approx(value, rel=0.08)
    parts = steps(1, seed=9)[0]
    assert fit.corrected(parts) == pytest.approx(sum(true[name] * s for name, s in parts.items()), rel=0.03)
    assert fit.error < 0.05


def test_outliers_and_nonsense_hardly_move_it() -> None:
    fit, chance = OnlineFit(("memory", "compute", "host")), random.Random(2)
    for number, parts in enumerate(steps(800)):
        fit.observe(parts, sum(parts.values()) * (30.0 if number % 20 == 7 else chance.gauss(1, 0.02)))
        for wrong in (0.0, -1.0, math.nan, math.inf):
            fit.observe(parts, wrong)
    assert fit.num_steps == 800
    assert fit.corrected(steps(1)[0]) == pytest.approx(sum(steps(1)[0].values()), rel=0.1)


def test_it_follows_a_change_and_stays_in_bounds() -> None:
    fit = OnlineFit(("memory", "compute", "host"))
    for parts in steps(2000):
        fit.observe(parts, sum(parts.values()))
    for parts in steps(3000, seed=3):
        fit.observe(parts, 1.5 * sum(parts.values()))
    assert fit.corrected(steps(1)[0]) == pytest.approx(1.5 * sum(steps(1)[0].values()), rel=0.05)
    for parts in steps(3000, seed=4):
        fit.observe(parts, 1000 * sum(parts.values()))
    assert max(fit.factors.values()) <= 4.0


def test_a_plain_calibration_is_the_datasheet() -> None:
    assert set(Calibration().factors) == {1.0}
    assert json.dumps(shipped_effects().note)


# ---- from turns of bench offline ---------------------------------------------------------------------------


QWEN3 = {
    "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 1024, "intermediate_size": 3072,
    "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
    "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "tie_word_embeddings": True,
}  # fmt: skip
MACHINE = Hardware(
    name="this machine", kind="cpu", vendor="", family="avx512", memory_bytes=32e9, memory_bytes_per_s=40e9,
    peaks={"bf16": 0.5e12, "int8": 1e12}, source="made up", confidence="measured",
)  # fmt: skip


def turns(factors: dict[str, float]) -> dict[str, Any]:
    """A result of ``bench offline`` in which every step took what the roofline says under these factors."""
    config = ModelConfig.from_hf(QWEN3)
    precision = Precision("fast", "int8", "int8", "bf16")
    about = describe(config, "made-up", precision, None, Limits())
    deployment = deployment_of(config, "made-up", precision, MACHINE)
    prior = calibration_for(MACHINE, "tokenmill", shape=deployment.shape, formats=deployment.formats)
    true = [factor * factors.get(name, 1.0) for name, factor in zip(NAMES, prior.factors, strict=True)]
    classes = {}
    for key, (rows, tokens) in enumerate([(1, 0), (8, 0), (32, 0), (64, 0), (0, 64), (0, 256), (0, 512), (16, 200)]):
        each = StepClass(10, 0, 10 * rows, 10 * rows * 300, 10 * bool(tokens), 10 * tokens, 0, 10 * rows)
        seconds = 10 * seconds_of(deployment.terms(work_of(each)), true)
        classes[key] = each._replace(seconds=seconds)
    account = StepAccount({"model": sum(each.seconds for each in classes.values())}, classes)
    turn = {"seconds": 1.0, "ceilings": asdict(MACHINE), "account": account.as_dict()}
    return json.loads(json.dumps({"bench": "offline", "about": about, "turns": [turn]}))


def test_own_factors_are_found_again() -> None:
    true = {"linear.memory": 1.3, "linear.compute": 0.8}
    (fitted,) = fit_results({"made up": turns(true)})
    assert fitted.key == "engine:tokenmill,family:avx512,weights:int8"
    assert fitted.error_before > 0.1 and fitted.error_after < 0.04
    for name, factor in true.items():  # of a single model, shared out between its weights and what a step costs at all
        assert fitted.factors[name] == pytest.approx(factor, rel=0.3)
    assert set(merged([fitted]).spread) == {fitted.key}
