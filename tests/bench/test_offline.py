"""The engine without a network: options in turns, rates, memory, bandwidth."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import call
from tokenmill.bench.offline import run
from tokenmill.cli import main
from tokenmill.core.errors import ConfigError
from tokenmill.engine.telemetry import StepAccount
from tokenmill.perf.calibrate import load_effects
from tokenmill.perf.result import missing_in, runs_of

Capsys = pytest.CaptureFixture[str]
LENGTHS = [(10, 4), (40, 6), (3, 1)]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What the command keeps, and what it prints."""
    folder = tmp_path_factory.mktemp("offline")
    rows = "".join(f"{prompt},{output}\n" for prompt, output in LENGTHS)
    (folder / "lengths.csv").write_text("ContextTokens,GeneratedTokens\n" + rows)
    words = ["bench", "offline", "story-draft", "--num-blocks", "64", "--num-prompts", "3", "--repeat", "2"]
    words += ["--compare", "weights=int8", "--compare", "weights=bf16"]
    printed = io.StringIO()
    with redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        main([*words, "--lengths", str(folder / "lengths.csv"), "--output", str(folder / "offline.json")])
    assert ended.value.code == 0
    return json.loads((folder / "offline.json").read_text(), parse_constant=pytest.fail), printed.getvalue()


@pytest.fixture
def result(done: tuple[dict[str, Any], str]) -> dict[str, Any]:
    return done[0]


def test_each_set_of_options_is_a_run(result: dict[str, Any]) -> None:
    assert [point["options"]["weights"] for point in runs_of(result)] == ["int8", "bf16"]
    for point in runs_of(result):
        assert not missing_in(point)
        assert point["requests"]["completed"] == 3 and not point["requests"]["failed"]
        # Nothing cached: a turn must not find the prompts of the last one.
        assert point["tokens"] == {"input": 53, "cached": 0, "output": 11}
        rates, seconds = point["throughput"], point["window"]["duration_s"]
        assert rates["output_tokens_per_s"] * seconds == pytest.approx(11)
        assert rates["total_tokens_per_s"] * seconds == pytest.approx(64)
        assert rates["output_tokens_per_s"] == min(point["repeats"]["output_tokens_per_s"])  # the lower of two
        assert 0 < point["latency"]["ttft_s"]["p50"] < point["latency"]["e2e_s"]["p99"] <= seconds
        assert 6 <= point["steps"] <= 12


def test_the_ratio_is_to_the_first_options_turn_by_turn(result: dict[str, Any]) -> None:
    first, second = runs_of(result)
    turns = [
        b / a
        for a, b in zip(first["repeats"]["output_tokens_per_s"], second["repeats"]["output_tokens_per_s"], strict=True)
    ]
    assert first["ratio"] == 1.0
    assert second["ratio"] == pytest.approx(sum(turns) / 2)


def test_memory_and_bandwidth_stand_beside_what_was_foreseen(result: dict[str, Any]) -> None:
    int8, bf16 = runs_of(result)
    for point in (int8, bf16):
        memory = point["memory"]
        assert memory["peak_bytes"] > memory["before_loading_bytes"] > 50e6
        assert memory["foreseen_bytes"]["kv"] > 0
        assert memory["measured_to_predicted"] == memory["peak_bytes"] / memory["predicted_bytes"]
        assert 0 < point["bandwidth"]["share"] < 1
    assert int8["memory"]["foreseen_bytes"]["weights"] < bf16["memory"]["foreseen_bytes"]["weights"]


def test_the_cost_model_says_what_each_turn_should_have_brought(result: dict[str, Any]) -> None:
    for point in runs_of(result):
        ratios = point["foreseen"]["measured_to_foreseen"]
        assert set(ratios) == {"output_tokens_per_s", "ttft_s", "tpot_s", "e2e_s"}
        assert all(0.001 < ratio < 1000 for ratio in ratios.values())  # four tokens say nothing about the kernels
        assert len(point["turns"]) == 2
        for turn in point["turns"]:
            account = StepAccount.from_dict(turn["account"])
            assert 6 <= account.num_steps <= 12
            assert 0 < account.busy_s <= turn["seconds"] * 1.01
            assert turn["ceilings"]["memory_bytes_per_s"] > 1e9


def test_calibrate_learns_this_engine_from_it(result: dict[str, Any], tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "offline.json").write_text(json.dumps(result))
    done = call(capsys, "calibrate", tmp_path / "offline.json", "--output", tmp_path / "own.json")
    assert done.code == 0
    assert "weights:bf16" in done.out and "weights:int8" in done.out
    keys = {key for table in load_effects(tmp_path / "own.json").effects.values() for key in table}
    assert {key.rpartition(",")[2] for key in keys} == {"weights:int8", "weights:bf16"}


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("{", "line 1"),
        ("[]", "not a result of bench offline"),
        ('{"bench": "offline"}', "bench offline"),
        ('{"bench": "offline", "turns": [{}], "about": {}}', "not a result of this version"),
    ],
)
def test_calibrate_refuses_other_files(text: str, remedy: str, tmp_path: Path, capsys: Capsys) -> None:
    (tmp_path / "wrong.json").write_text(text)
    done = call(capsys, "calibrate", tmp_path / "wrong.json", "--output", tmp_path / "own.json")
    assert (done.code, done.out) == (1, "")
    assert "wrong.json" in done.err and remedy in done.err
    assert not (tmp_path / "own.json").exists()


def test_unknown_options_are_refused_before_anything_is_started() -> None:
    with pytest.raises(ConfigError, match="unknown engine option 'wieghts'; did you mean 'weights'"):
        run("story-draft", [{"wieghts": "int8"}], LENGTHS)


def test_compare_reads_options_as_the_command_line_does(capsys: pytest.CaptureFixture[str]) -> None:
    done = call(capsys, "bench", "offline", "story-draft", "--compare", "weights=int9")
    assert done.code == 2 and "'int9' is not one of" in done.err


def test_the_table_has_a_line_for_each_set_of_options(done: tuple[dict[str, Any], str]) -> None:
    kept, text = done
    assert "3 prompts at once, 53 tokens in, 11 out; median of 2" in text
    for point in runs_of(kept):
        (line,) = (line for line in text.splitlines() if f"weights={point['options']['weights']}" in line)
        assert f" {point['throughput']['output_tokens_per_s']:.0f} " in line


def test_a_model_that_does_not_load_is_said_in_the_engines_words() -> None:
    with pytest.raises(ConfigError, match="no-such-model"):
        run("no-such-model", [{}], LENGTHS)
