"""``tokenmill simulate``: from the command line to one object, and one line for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import call
from tokenmill.perf.result import missing_in

Capsys = pytest.CaptureFixture[str]
BASE = ("simulate", "--model", "Llama-3.1-8B", "--hardware", "H100")
SMALL = (*BASE, "--workload", "input=100-300,output=5-20,rate=20,requests=40")


def report(capsys: Capsys, *arguments: object) -> dict[str, Any]:
    done = call(capsys, *arguments, "--json")
    assert done.err == "" or "kept in" in done.err
    found: dict[str, Any] = json.loads(done.out)
    return found


def without_timing(found: dict[str, Any]) -> dict[str, Any]:
    return {name: part for name, part in found.items() if name not in ("date", "command", "machine", "simulation")}


def test_a_simulation_has_the_form_of_a_measurement(capsys: Capsys, tmp_path: Path) -> None:
    kept = tmp_path / "result.json"
    found = report(capsys, *SMALL, "--slo", "ttft=1,itl=0.5", "--output", kept, "--price", "2")
    assert found["bench"] == "simulate" and missing_in(found) == []
    assert found["requests"]["completed"] == 40 and found["goodput"]["share"] == 1.0
    assert found["cost"]["price"] > 0 and found["simulation"]["speed_factor"] > 0
    assert json.loads(kept.read_text()) == found


def test_the_table_names_what_matters(capsys: Capsys) -> None:
    done = call(capsys, *SMALL)
    assert done.code == 0
    for word in ("H100", "first token", "memory bandwidth", "times as fast as real time"):
        assert word in done.out


def test_the_seed_decides_and_skipping_steps_does_not(capsys: Capsys) -> None:
    first, again, other = (without_timing(report(capsys, *SMALL, "--seed", seed)) for seed in (1, 1, 2))
    assert first == again != other
    plain = report(capsys, *SMALL, "--seed", 1, "--every-step")
    assert (
        plain["pools"]["serve"]["steps_planned"] == plain["pools"]["serve"]["steps"] == first["pools"]["serve"]["steps"]
    )
    assert plain["latency"]["e2e_s"] == pytest.approx(first["latency"]["e2e_s"], rel=1e-6)


def test_everything_about_clusters_reaches_the_simulation(capsys: Capsys) -> None:
    options = ("--prefill-replicas", 1, "--decode-replicas", 2, "--transfer-bandwidth", "1GB", "--transfer-overlap")
    found = report(capsys, *SMALL, *options, "--fail", "t=0.5,replica=1,down=1", "--autoscale", "min=1,max=3,cold=1")
    assert set(found["pools"]) == {"prefill", "decode"}
    assert found["events"]["transfers"] >= 40 and found["events"]["failures"] == 1
    assert found["engine"]["transfer"]["bytes_per_s"] == 1e9
    assert found["pools"]["decode"]["autoscale"]["cold_start_s"] == 1


def test_a_trace_is_cut_clipped_and_sped_up(capsys: Capsys, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"input_toks": 100 + i, "output_toks": 5, "arrival_time": 10.0 + i} for i in range(50)]
    trace.write_text("\n".join(json.dumps(row) for row in rows))
    found = report(
        capsys, *BASE, "--trace", trace, "--window", "10:40", "--requests", 20, "--rate", 5, "--max-context", 120
    )
    assert (found["load"]["requests"], found["load"]["clipped"]) == (20, 14)
    assert found["rate_per_s"] == pytest.approx(5.0)
    assert found["load"]["input_tokens"]["max"] == 115


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        ((), "--workload"),
        (("--workload", "input=5,tea=3"), "tea"),
        (("--workload", "input=5,rate=x"), "rate"),
        (("--workload", "input=5"), "rate"),
        (("--workload", "input=5,rate=-1"), "above 0"),
        (("--trace", "nowhere.csv"), "nowhere.csv"),
        (("--workload", "input=5,rate=1", "--tp", "3"), "3"),
        (("--workload", "input=5,rate=1", "--prefill-replicas", "1"), "go together"),
        (("--workload", "input=5,rate=1", "--fail", "t=3"), "replica"),
        (("--workload", "input=5,rate=1", "--fail", "t=3,replica=4"), "replica 4"),
        (("--workload", "input=5,rate=1", "--autoscale", "min=3,max=2"), "min"),
        (("--workload", "input=5,rate=1", "--window", "5"), "A:B"),
        (("--workload", "input=5,rate=1", "--slo", "ttft=soon"), "ttft=0.5"),
        (("--workload", "input=5,rate=1", "--router", "dice"), "least_loaded"),
        (("--workload", "input=5,rate=1", "--memory-share", "0.1"), "--tp"),
        (("--workload", "input=5,rate=1", "--precision", "tea"), "tea"),
        (("--workload", "input=5,rate=1", "--model", "nobody-1T"), "nobody-1T"),
        (("--workload", "input=5,rate=1", "--hardware", "abacus"), "abacus"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments: tuple[str, ...], remedy: str, capsys: Capsys) -> None:
    done = call(capsys, *BASE, *arguments)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert remedy in done.err
    assert "bug" not in done.err
