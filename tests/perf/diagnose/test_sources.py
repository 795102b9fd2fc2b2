"""Cases from journals, results and other engines' metrics; what cannot be diagnosed is refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.support import call
from tests.perf.diagnose.engines import SHAPE, Truth
from tokenmill.core.errors import ConfigError, SetupError
from tokenmill.engine.telemetry import StepAccount, StepClass, Telemetry
from tokenmill.perf.calibrate import Calibration
from tokenmill.perf.diagnose import Limits, diagnose
from tokenmill.perf.diagnose.prometheus import Page, Window, foreign_case

Capsys = pytest.CaptureFixture[str]
HARDWARE = """
[[device]]
name = "a machine"
kind = "cpu"
vendor = "x"
source = "made up"
family = "x"
memory_bytes = 16_000_000_000
memory_bytes_per_s = 20e9
peaks = { bf16 = 100e9, int8 = 200e9 }
"""


def vllm_page(steps: int, *, waiting: int, usage: float, preemptions: int = 0, running: int = 8) -> Page:
    """vLLM's names after ``steps`` steps of 20 ms, each of ``running`` sequences of 500 + 100 tokens."""
    generated = steps * running
    ended = generated / 100
    lines = [
        f'vllm:num_requests_running{{model_name="m"}} {running}',
        f'vllm:num_requests_waiting{{model_name="m"}} {waiting}',
        f'vllm:kv_cache_usage_perc{{model_name="m"}} {usage}',
        f'vllm:num_preemptions_total{{model_name="m"}} {preemptions * steps}',
        f'vllm:generation_tokens_total{{model_name="m"}} {generated}',
        f'vllm:prompt_tokens_total{{model_name="m"}} {ended * 500}',
        f'vllm:iteration_tokens_total_count{{model_name="m"}} {steps}',
        f'vllm:inter_token_latency_seconds_sum{{model_name="m"}} {generated * 0.02}',
        f'vllm:inter_token_latency_seconds_count{{model_name="m"}} {generated}',
        f'vllm:time_to_first_token_seconds_count{{model_name="m"}} {ended}',
        f'vllm:time_to_first_token_seconds_bucket{{model_name="m",le="0.1"}} {ended * 0.5}',
        f'vllm:time_to_first_token_seconds_bucket{{model_name="m",le="0.5"}} {ended}',
        f'vllm:time_to_first_token_seconds_bucket{{model_name="m",le="+Inf"}} {ended}',
        f'vllm:request_generation_tokens_sum{{model_name="m"}} {generated}',
        f'vllm:request_generation_tokens_count{{model_name="m"}} {ended}',
    ]
    return Page.parse("# HELP x y\n" + "\n".join(lines))


def window(**more: object) -> Window:
    return Window([vllm_page(0, **more), vllm_page(450, **more)], 10.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("usage", "waiting", "preemptions", "regime"),
    [(0.99, 40, 0, "memory capacity"), (0.5, 40, 2, "memory capacity"), (0.3, 40, 0, "scheduler"), (0.3, 0, 0, None)],
)
def test_of_another_engine_the_queue_is_diagnosed(
    usage: float, waiting: int, preemptions: int, regime: str | None
) -> None:
    found = diagnose(foreign_case(window(usage=usage, waiting=waiting, preemptions=preemptions), None))
    assert found.regime == regime
    assert found.steps == 450
    assert found.rows == pytest.approx(8 + 0.08 - 0.08, abs=0.1)
    assert found.parts == pytest.approx({"model": 9.0, "idle": 1.0})
    assert any("--model and --hardware" in sentence for sentence in found.unknown)


def test_with_model_and_hardware_another_engines_steps_are_priced() -> None:
    case = foreign_case(window(usage=0.99, waiting=40), Truth(bytes_per_s=1e12).deployment, Limits(eager=True))
    found = diagnose(case, Calibration())
    assert found.regime == "memory capacity"
    assert found.parts["weights"] > 0.5 * found.wall_s
    assert sum(found.parts.values()) == pytest.approx(found.wall_s)
    assert found.changes[0].metric == "tokens_per_s"


def test_percentiles_come_from_what_grew() -> None:
    latencies = window(usage=0.1, waiting=0).latencies()
    assert 0.4 < latencies["ttft"] <= 0.5
    assert "e2e" not in latencies


def test_a_page_of_nobody_is_refused() -> None:
    with pytest.raises(SetupError, match="not the metrics page of Tokenmill or vLLM"):
        Page.parse("go_goroutines 12\n")
    with pytest.raises(SetupError, match="generation_tokens_total"):
        foreign_case(Window([Page.parse("vllm:num_requests_running 1")] * 2, 1.0), None)


def test_nothing_observed_is_refused() -> None:
    case = foreign_case(window(usage=0.1, waiting=0), None)
    with pytest.raises(SetupError, match="--seconds"):
        diagnose(type(case)(StepAccount(), Truth().deployment))


def test_an_account_survives_json_and_differences_add_up() -> None:
    first = StepAccount({"model": 1.0, "idle": 2.0}, {3: StepClass(2, 1.0, 2, 20, 0, 0, 0, 2)}, {"kv_blocks": 0.5})
    second = StepAccount(
        {"model": 4.0, "idle": 2.5},
        {3: StepClass(5, 3.0, 5, 50, 0, 0, 0, 5), 7: StepClass(1, 1.0, 1, 9, 0, 0, 0, 1)},
        {"kv_blocks": 0.75},
    )
    back = StepAccount.from_dict(json.loads(json.dumps(second.as_dict())))
    assert back == second
    grown = second.minus(first)
    assert grown.parts == {"model": 3.0, "idle": 0.5}
    assert grown.classes[3] == StepClass(3, 2.0, 3, 30, 0, 0, 0, 3)
    assert grown.num_steps == 4
    assert grown.blocked_s == {"kv_blocks": 0.25}
    assert second.minus(second).num_steps == 0


def test_an_engine_that_never_stepped_has_an_empty_account() -> None:
    assert Telemetry().account(5.0).wall_s == 0.0


# ---- the command -----------------------------------------------------------------------------------------


@pytest.fixture
def hardware(tmp_path: Path) -> Path:
    path = tmp_path / "machine.toml"
    path.write_text(HARDWARE)
    return path


def test_a_journal_is_diagnosed(capsys: Capsys, tmp_path: Path, hardware: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    options = ("--model", "story-draft", "--num-blocks", "64", "--max-context", "256", "--journal", journal)
    call(capsys, "generate", "Once", *options, "--max-tokens", "40")
    report = json.loads(call(capsys, "diagnose", journal, "--hardware", hardware, "--json").out)
    assert report["steps"] >= 35
    assert sum(report["parts"].values()) == pytest.approx(report["wall_s"])
    assert report["regime"] in ("memory bandwidth", "compute", "host overhead")
    assert any("journal" in sentence for sentence in report["unknown"])
    text = call(capsys, "diagnose", journal, "--hardware", hardware)
    assert report["regime"] in text.out
    assert "together" in text.out


def test_a_result_is_diagnosed(capsys: Capsys, hardware: Path, tmp_path: Path) -> None:
    row = {"batch": 4, "milliseconds": 2.0, "gigabytes_per_s": 3.0, "host_microseconds": 300.0}
    row["kernel_share"] = {"linear_int8": 0.7, "attention": 0.2, "choose": 0.1}
    result = {"bench": "step", "model": "story-draft", "precision": "int8 weights, bf16 KV", "weights_bytes": 2e6}
    path = tmp_path / "step.json"
    path.write_text(json.dumps(result | {"bandwidth_gigabytes_per_s": 10.0, "batches": [row]}, indent=2))
    report = json.loads(call(capsys, "diagnose", path, "--hardware", hardware, "--json").out)
    assert report["parts"]["weights"] == pytest.approx(0.7 * 1.7e-3, rel=1e-6)
    assert report["parts"]["host scheduling"] == pytest.approx(0.3e-3)
    assert report["parts"]["sampling"] == pytest.approx(0.17e-3)
    assert report["ceilings"]["bytes_per_s"] == 10e9
    done = call(capsys, "diagnose", path, "--hardware", hardware, "--batch", "8")
    assert done.code == 1
    assert "there are 4" in done.err


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "neither a journal"),
        ("{}", "neither a journal"),
        ('{"bench": "serve"}', "neither a journal"),
        ('{"journal": 1, "model": "story-draft", "kernels": "reference", "dtype": "float32"}\n', "no finished step"),
    ],
)
def test_other_files_are_refused_in_a_line(
    content: str, says: str, capsys: Capsys, tmp_path: Path, hardware: Path
) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    done = call(capsys, "diagnose", path, "--hardware", hardware)
    assert done.code == 1
    assert says in done.err
    assert done.err.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("http://127.0.0.1:9",), "is it running"),
        (("no/such/file",), "give a server's address"),
        (("http://127.0.0.1:9", "--seconds", "0"), "--seconds must be above 0"),
        (
            ("http://127.0.0.1:9", "--slo", "ttft=fast"),
            "ttft must be a time above 0, like ttft=0.5 or ttft=200ms, not 'fast'",
        ),
        (("http://127.0.0.1:9", "--slo", "speed=1"), "with a name of ttft, itl, tpot, e2e"),
    ],
)
def test_what_cannot_be_reached_or_meant_is_refused_in_a_line(
    arguments: tuple[str, ...], says: str, capsys: Capsys
) -> None:
    done = call(capsys, "diagnose", *arguments)
    assert done.code == 1
    assert says in done.err


def test_a_shape_for_tests_is_the_one_that_the_formulas_here_count() -> None:
    from tests.perf.diagnose.engines import KV_BYTES, PARAMETERS

    embedding = SHAPE.vocab_size * SHAPE.hidden_size
    norms = (2 * SHAPE.num_layers + 1) * SHAPE.hidden_size
    assert SHAPE.num_parameters - embedding - norms == PARAMETERS
    assert SHAPE.kv_elements_per_token * 2 == KV_BYTES


def test_config_errors_are_config_errors() -> None:
    from tokenmill.bench.diagnose import parse_slo

    assert parse_slo("ttft=0.5, itl=0.05") == {"ttft": 0.5, "itl": 0.05}
    with pytest.raises(ConfigError):
        parse_slo("ttft=nan")
