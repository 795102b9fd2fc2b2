"""What is reported: one object of a known form, a command that can be typed, and lines that say why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.perf.plan.problems import DEVICE, PAIR, PLAIN, problem
from tokenmill.cli.plan import plan as command
from tokenmill.core.errors import TokenmillError
from tokenmill.perf.calibrate import save_effects
from tokenmill.perf.costs import Layout
from tokenmill.perf.plan import Prices, make_report
from tokenmill.perf.plan.slo import METRICS
from tokenmill.perf.plan.workload import STATISTICS

LOAD = "input=500,output=200,rate=5"
PLAN_FIELDS = {
    "hardware", "devices", "layout", "precision", "replicas", "max_seqs", "max_step_tokens", "mode", "predicted",
    "throughput", "cost_per_hour", "cost_per_million_tokens", "bottleneck", "command",
}  # fmt: skip


def of(report: dict[str, Any], number: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = report["plans"][number]
    return found


def test_the_form_of_a_report() -> None:
    asked = problem("ttft=1,itl=60ms", hardware=(DEVICE, PAIR), prices=Prices.among((DEVICE,), {"Plain": 1.8}))
    report = json.loads(json.dumps(make_report(asked, "seven"), allow_nan=False))
    assert report["feasible"] is True
    assert "keeps TTFT p99 1 s, ITL p99 60 ms" in report["reason"]
    assert len(report["plans"]) == asked.top
    for plan in report["plans"]:
        assert set(plan) >= PLAN_FIELDS
        for metric in METRICS:
            for statistic in STATISTICS:
                low, mean, high = (plan["predicted"][f"{metric}_{statistic}_s{end}"] for end in ("_low", "", "_high"))
                assert 0 < low <= mean <= high
    best = of(report)
    assert best["layout"] == {"tp": 1, "pp": 1, "dp": 1, "ep": 1}
    assert best["cost_per_hour"] == 1.8
    assert best["cost_per_million_tokens"] == pytest.approx(1.8 / 3600 / 1000 * 1e6)  # 5 × 200 tokens a second
    simulated = best["simulated"]
    assert simulated["breaks"] == []
    assert simulated["e2e_mean_s"] == pytest.approx(best["predicted"]["e2e_mean_s"], rel=0.15)
    assert {one["hardware"] for one in report["rejected"]} == {"Plain", "Pair"}
    assert any("× the best" in one["reason"] for one in report["rejected"])


@pytest.mark.parametrize("output", [1, 2, 3])
@pytest.mark.parametrize("prompt", [1, 9000])
def test_the_shortest_answers_have_times_too(prompt: int, output: int) -> None:
    network = replace(DEVICE, name="Networked", internode_bytes_per_s=50e9)
    asked = problem("", f"input={prompt},output={output},rate=50", hardware=(network,))
    report = make_report(asked, "seven", simulated=False)
    json.dumps(report, allow_nan=False)
    assert of(report)["predicted"]["ttft_p99_s_high"] > 0
    assert (of(report)["predicted"]["itl_p99_s"] > 0) is (output > 1)


def test_without_prices_watts_are_named() -> None:
    report = make_report(problem(), "seven", simulated=False)
    assert of(report)["cost_per_hour"] is None
    assert of(report)["power_w"] == 400
    assert "watts" in report["ranked_by"]
    assert "simulated" not in of(report)


def test_separate_pools_and_their_commands() -> None:
    network = replace(DEVICE, name="Networked", internode_bytes_per_s=50e9)
    report = make_report(problem(hardware=(network,), top=50), "org/seven", simulated=False)
    plan = next(plan for plan in report["plans"] if plan["mode"] == "disaggregated")
    assert set(plan["pools"]) == {"prefill", "decode"}
    assert plan["devices"] == sum(pool["devices"] for pool in plan["pools"].values())
    assert "--disaggregation-mode prefill" in plan["command"]
    assert plan["engine"] == "sglang"


def test_a_command_says_what_was_planned() -> None:
    report = make_report(problem(hardware=(PAIR,), layout=Layout(tp=2), precisions=("int4",)), "a b", simulated=False)
    plan = of(report)
    assert plan["command"].startswith("vllm serve 'a b' --max-model-len 704 ")
    for words in ("--tensor-parallel-size 2", "--quantization awq", f"--max-num-seqs {plan['max_seqs']}"):
        assert words in plan["command"]
    assert "this engine does not run on such devices" in plan["command_note"]


def test_our_own_command_on_a_processor() -> None:
    processor = replace(DEVICE, name="CPU", kind="cpu", memory_bytes_per_s=4e11)
    report = make_report(problem("itl=200ms", "input=100,output=50,rate=0.2", hardware=(processor,)), "x")
    assert of(report)["command"].startswith("tokenmill serve x --max-context 192 --max-seqs ")
    assert of(report)["command"].endswith("--weights bf16 --itl-slo-s 0.2")
    assert of(report)["engine"] == "tokenmill"


# ---- command line ----------------------------------------------------------------------------------------


@pytest.fixture
def effects(tmp_path: Path) -> Path:
    path = tmp_path / "effects.json"
    save_effects(PLAIN, path)
    return path


def run(*words: str) -> tuple[int, str]:
    """(what the command returns, what it prints)."""
    result = CliRunner().invoke(command, list(words), standalone_mode=False)
    if result.exception:
        raise result.exception
    return result.return_value, result.stdout


def test_the_command_line() -> None:
    words = ("--model", "Llama-3.1-8B", "--hardware", "H100", "--workload", LOAD, "--no-simulate", "--precision", "fp8")
    code, text = run(*words, "--slo", "itl=50ms", "--price", "H100=2.5", "--json")
    report = json.loads(text)
    assert (code, report["feasible"], of(report)["precision"]) == (0, True, "fp8")
    code, text = run(*words, "--slo", "itl=1us")
    assert code == 1
    assert text.startswith("infeasible: even idle, ")
    assert "feasible: relax ITL p99 to " in text
    assert "the tightest that can be reached: ITL p99 " in text
    code, text = run(*words, "--slo", "itl=50ms", "--top", "2")
    assert code == 0
    assert "vllm serve Llama-3.1-8B" in text
    assert "why not:" in text


def test_a_config_and_a_calibration(tmp_path: Path, effects: Path) -> None:
    config = {
        "model_type": "llama", "hidden_size": 512, "num_hidden_layers": 2, "num_attention_heads": 8,
        "num_key_value_heads": 8, "intermediate_size": 1024, "vocab_size": 1000, "max_position_embeddings": 2048,
    }  # fmt: skip
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    words = ("--hardware", "L4", "--workload", LOAD, "--no-simulate", "--json", "--calibration", str(effects))
    output = tmp_path / "kept" / "plan.json"
    code, _ = run("--model", str(path), *words, "--output", str(output))
    assert code == 0
    assert json.loads(output.read_text())["bench"] == "plan"
    with pytest.raises(TokenmillError, match="more than the 2048"):
        run("--model", str(path), "--workload", "input=2000,output=200,rate=1")
    path.write_text(json.dumps({name: value for name, value in config.items() if name != "vocab_size"}))
    with pytest.raises(TokenmillError, match="vocab_size is missing"):
        run("--model", str(path), *words)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--hardware", "H1000"], "did you mean H100"),
        (["--layout", "tp=3"], "tp=3 does not divide the 32 query heads"),
        (["--layout", "np=3"], "unknown key 'np'"),
        (["--layout", "tp=0"], "tp must be a whole number"),
        (["--slo", "itl=nan"], "itl must be a time above 0"),
        (["--precision", "fp7"], "unknown number format 'fp7'"),
        (["--price", "H100=-2"], "must be a number above 0"),
        (["--model", "gpt-17"], "gpt-17"),
        (["--trace", "missing.csv"], "beside --trace only rate=N"),
    ],
)
def test_bad_input_is_one_line_that_names_it(words: list[str], named: str, tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    with pytest.raises(TokenmillError, match=named):
        run("--model", "Llama-3.1-8B", "--workload", LOAD, "--output", str(output), *words)
    assert not output.exists()


def test_a_trace(shared: Path) -> None:
    trace = shared / "data" / "traces" / "azure" / "AzureLLMInferenceTrace_conv.csv"
    words = ("--model", "Llama-3.1-8B", "--hardware", "H100", "--slo", "itl=50ms", "--no-simulate", "--json")
    report = json.loads(run(*words, "--trace", str(trace))[1])
    assert report["workload"]["input_tokens"] == pytest.approx(1155, rel=0.01)
    assert report["workload"]["output_tokens"] == pytest.approx(211, rel=0.01)
    faster = json.loads(run(*words, "--trace", str(trace), "--workload", "rate=100")[1])
    assert of(faster)["devices"] > of(report)["devices"]
