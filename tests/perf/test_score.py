"""The scoreboard: rows are read or refused by name, scenarios mean what tables mean, errors are counted right."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner

from tokenmill.cli.app import tokenmill
from tokenmill.core.errors import ConfigError
from tokenmill.perf import steady
from tokenmill.perf.costs import Layout, formats_named, kv_bytes_per_token, weight_bytes
from tokenmill.perf.hardware import find
from tokenmill.perf.models import find_model
from tokenmill.perf.score import (
    NO_CORRECTIONS,
    NotPredicted,
    Predictor,
    Row,
    Scenario,
    points,
    read_rows,
    scenario_of,
    score_files,
    summary,
)
from tokenmill.perf.score.choices import choices, regrets
from tokenmill.perf.score.predict import Corrections
from tokenmill.perf.score.report import errors
from tokenmill.perf.score.rows import COLUMNS
from tokenmill.perf.terms import Deployment

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "perf"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the collected measurements are not here")

ROW = dict.fromkeys(COLUMNS, "") | {
    "source": "NVIDIA/TensorRT-LLM docs", "model": "Llama 3.3 70B", "hardware": "H200-SXM-141GB", "n_devices": "1",
    "tp": "1", "pp": "1", "precision": "fp8", "engine": "TensorRT-LLM", "version": "1.0", "batch_or_concurrency": "max",
    "input_len": "1000", "output_len": "1000", "metric": "output_throughput", "value": "3000", "unit": "tok/s",
}  # fmt: skip
SERVED = ROW | {
    "source": "silicon", "engine": "vllm", "version": "0.12.0", "batch_or_concurrency": "16.0", "n_devices": "4",
    "tp": "4",
    "metric": "tpot", "value": "12", "unit": "ms", "note": "agg; attn_dp=1, moe_tp=4, moe_ep=1; x; id=x_tp4_ep1_7",
}  # fmt: skip


def write(path: Path, *rows: dict[str, str]) -> Path:
    quoted = [",".join(f'"{row[column]}"' for column in COLUMNS) for row in rows]
    path.write_text("\n".join([",".join(COLUMNS), *quoted]) + "\n")
    return path


def scenario(tmp_path: Path, **changes: str) -> Scenario:
    base = SERVED if "attn_dp" in changes.get("note", "") or changes.pop("served", "") else ROW
    return scenario_of(next(iter(read_rows(write(tmp_path / "row.csv", base | changes)))))


# ---- reading -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value": "fast"}, r"line 3: column value: 'fast' is not a number"),
        ({"value": ""}, r"line 3: column value: '' is not a positive number"),
        ({"value": "-1"}, r"line 3: column value"),
        ({"value": "inf"}, r"line 3: column value: 'inf' is not a finite number"),
        ({"tp": "2.5"}, r"line 3: column tp: '2\.5' is not a whole number"),
        ({"n_devices": "0"}, r"line 3: column n_devices"),
        ({"input_len": "long"}, r"line 3: column input_len: 'long' is not a number"),
        ({"model": " "}, r"line 3: column model: empty"),
    ],
)
def test_a_malformed_row_is_named(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    path = write(tmp_path / "t.csv", ROW, ROW | changes)
    with pytest.raises(ConfigError, match=rf"t\.csv: {message}"):
        list(read_rows(path))


def test_missing_columns_and_cells_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("model,hardware\na,b\n")
    with pytest.raises(ConfigError, match=r"line 1: missing column source, params_b"):
        list(read_rows(path))
    path.write_text(",".join(COLUMNS) + "\na,b\n")
    with pytest.raises(ConfigError, match=r"line 2: 2 cells where the header has 17"):
        list(read_rows(path))
    with pytest.raises(ConfigError, match=r"nowhere\.csv: No such file"):
        list(read_rows(tmp_path / "nowhere.csv"))
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not UTF-8"):
        list(read_rows(path))


def test_columns_may_stand_in_any_order(tmp_path: Path) -> None:
    path, order = tmp_path / "t.csv", tuple(reversed(COLUMNS))
    path.write_text(",".join(order) + "\n" + ",".join(ROW[column] for column in order) + "\n")
    (row,) = read_rows(path)
    assert (row.model, row.value, row.tp) == ("Llama 3.3 70B", 3000.0, 1)


def test_notes_are_read(tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path / "t.csv", SERVED | {"note": "agg; attn_dp=8, moe_tp=1, moe_ep=8; FLAG odd"}))
    assert (row.attention_dp, row.expert_parallel, row.flagged) == (8, (1, 8), True)
    note = "disagg; P: 2x(tp4,dp1,ep4) D: 1x(tp8,dp8,ep8); x"
    (row,) = read_rows(write(tmp_path / "t.csv", SERVED | {"note": note}))
    assert row.pools is not None
    assert [(pool.workers, pool.tp, pool.dp, pool.ep) for pool in row.pools] == [(2, 4, 1, 4), (1, 8, 8, 8)]
    (row,) = read_rows(write(tmp_path / "t.csv", ROW | {"note": "Server (p99 TTFT<=2000 TPOT<=200ms)"}))
    assert row.limits_s == (2.0, 0.2)


# ---- scenarios ---------------------------------------------------------------------------------------------


def test_maximum_throughput_is_bound_by_what_memory_holds(tmp_path: Path) -> None:
    found = scenario(tmp_path)
    d = found.deployment
    free = (d.hardware.memory_bytes - weight_bytes(d.shape, d.formats) - steady.ACTIVATION_BYTES) * 0.9
    assert found.group == "max_throughput_dense"
    assert found.batch == free // (kv_bytes_per_token(d.shape, d.formats) * 2000)
    assert found.amount == found.batch


def test_experts_have_a_group_of_their_own(tmp_path: Path) -> None:
    found = scenario(tmp_path, model="Qwen3-30B-A3B", precision="nvfp4", hardware="B200-SXM-180GB")
    assert found.group == "max_throughput_moe"


def test_per_gpu_figures_are_divided(tmp_path: Path) -> None:
    changes = {
        "n_devices": "4",
        "note": "DEP4; attention-DP + EP",
        "model": "Qwen3-235B-A22B",
        "hardware": "B200-SXM-180GB",
    }
    whole = scenario(tmp_path, **changes)
    each = scenario(tmp_path, **changes, metric="output_throughput_per_gpu")
    assert whole.amount is not None
    assert each.amount == whole.amount / 4
    assert whole.deployment.layout == Layout(dp=4, ep=4)


def test_cores_of_a_chip_are_halves(tmp_path: Path) -> None:
    found = scenario(
        tmp_path, hardware="Inferentia2 (inf2.48xlarge)", n_devices="12", tp="24", precision="bf16",
        engine="Transformers NeuronX", batch_or_concurrency="1", metric="tpot_p50", unit="ms", model="Llama-2-13b",
    )  # fmt: skip
    assert found.deployment.hardware.memory_bytes_per_s == find("Inferentia2").memory_bytes_per_s / 2
    assert found.deployment.layout.tp == 24


def test_one_layout_written_twice_is_read_once(tmp_path: Path) -> None:
    note = "agg; attn_dp=1, moe_tp=4, moe_ep=4; id=dsr1_b200_tp4_ep4_9"
    found = scenario(tmp_path, served="1", model="DeepSeek-R1", hardware="b200_sxm", n_devices="16", tp="16", note=note)
    assert found.deployment.layout == Layout(tp=4, ep=4)


def test_flagged_rows_are_kept_apart(tmp_path: Path) -> None:
    assert scenario(tmp_path, served="1", note=SERVED["note"] + "; FLAG doubtful").group == "tpot_flagged"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "Imaginary-12B"}, "Imaginary-12B.*not in the catalogue"),
        ({"hardware": "Abacus 9000"}, "Abacus"),
        ({"hardware": "RTX-4090 + 2x Xeon"}, "several kinds of devices"),
        ({"precision": "fp3"}, "unknown number format 'fp3'"),
        ({"precision": "int4 (experts on CPU)"}, "host's processors"),
        ({"input_len": ""}, "how long inputs and outputs"),
        ({"hardware": "RTX-4090"}, "do not fit"),
        ({"batch_or_concurrency": "open-loop ~10 req/s"}, "arrive by chance"),
        ({"batch_or_concurrency": "many"}, "'many' is not a number of requests"),
        ({"batch_or_concurrency": "4", "metric": "joy"}, "'joy'"),
    ],
)
def test_what_cannot_be_known_is_not_guessed(tmp_path: Path, changes: dict[str, str], reason: str) -> None:
    with pytest.raises(NotPredicted, match=reason):
        scenario(tmp_path, **changes)


# ---- steady state ------------------------------------------------------------------------------------------


def deployment(model: str = "Llama-3.1-8B", **layout: int) -> Deployment:
    return Deployment(find_model(model), formats_named("bf16"), Layout(**layout), find("h100_sxm"))


def seconds(d: Deployment, steps: steady.Steps) -> float:
    return sum(weight * sum(d.terms(work)) for weight, work in steps)


def test_two_rules_of_memory_differ() -> None:
    of_total, of_free = steady.MemoryRule(0.9, True, 1e9), steady.MemoryRule(0.9, False, 1e9)
    assert of_total.kv_bytes(80e9, 40e9) == pytest.approx(31e9)
    assert of_free.kv_bytes(80e9, 40e9) == pytest.approx(35.1e9)


def test_capacity_shrinks_with_length_and_is_zero_when_weights_do_not_fit() -> None:
    rule = steady.MemoryRule(0.9, True)
    short, long = (steady.capacity(deployment(), rule, tokens) for tokens in (1000, 4000))
    assert short // 4 - 1 <= long <= short // 4 + 1
    assert steady.capacity(deployment("Llama-3.1-405B"), rule, 1000) == 0


def test_one_client_waits_for_nobody() -> None:
    d = deployment()
    alone = seconds(d, steady.closed_loop_token(1, 1000, 500, mixes=True))
    assert alone == pytest.approx(seconds(d, steady.per_token(1, 1000, 500)), rel=0.01)


@pytest.mark.parametrize("mixes", [True, False])
def test_more_clients_take_longer_per_token_and_less_in_all(mixes: bool) -> None:
    d = deployment()
    times = [seconds(d, steady.closed_loop_token(c, 1000, 500, mixes=mixes)) for c in (1, 8, 64, 256)]
    assert times == sorted(times)
    rates = [c / t for c, t in zip((1, 8, 64, 256), times, strict=True)]
    assert rates == sorted(rates)


def test_waiting_for_a_place_is_residences() -> None:
    d, token = deployment(), steady.closed_loop_token(10, 1000, 500, mixes=True)
    free = seconds(d, steady.closed_loop_first(10, 1000, 500, 0.0, token))
    queued = seconds(d, steady.closed_loop_first(10, 1000, 500, 1.0, token))
    assert queued - free == pytest.approx(500 * seconds(d, token))


def test_a_batch_is_its_prompts_and_its_tokens() -> None:
    d = deployment()
    first, token = seconds(d, steady.first_token(8, 700)), seconds(d, steady.per_token(8, 700, 101))
    assert seconds(d, steady.generation(8, 700, 101)) == pytest.approx(first + 100 * token)


# ---- scoring -----------------------------------------------------------------------------------------------


def test_errors_are_quantiles_of_fractions() -> None:
    assert errors([0.1, 0.2, 0.3, 0.4, 0.5]) == {"n": 5, "median": 0.3, "mean": 0.3, "p90": 0.46}


def test_corrections_multiply_and_intervals_belong_to_groups(tmp_path: Path) -> None:
    (row,) = read_rows(write(tmp_path / "t.csv", ROW))
    plain = Predictor(None, NO_CORRECTIONS).predict(row)
    slower = Corrections({"max_throughput_dense": 0.1}, {"max_throughput_dense": (0.8, 1.5)})
    found = Predictor(None, slower).predict(row)
    assert found.value == pytest.approx(plain.value / math.exp(0.1))
    assert (found.low, found.high) == (found.value * 0.8, found.value * 1.5)
    assert found.error == abs(found.value / 3000 - 1)


def test_unseen_hardware_is_reported_apart_with_wider_intervals(tmp_path: Path) -> None:
    dense = "max_throughput_dense"
    (row,) = read_rows(write(tmp_path / "t.csv", ROW))
    seen, unseen = (Corrections({}, {dense: (0.8, 1.25)}, {dense: [name]}) for name in ("H200-SXM-141GB", "L4"))
    one, other = (Predictor(None, corrections).predict(row) for corrections in (seen, unseen))
    assert (one.group, other.group) == (dense, "max_throughput_unseen_hardware")
    assert one.value == other.value
    assert other.low < one.low < one.high < other.high


def test_a_file_is_scored(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv", ROW, SERVED, SERVED | {"metric": "ttft", "value": "150"}, ROW | {"model": "Nobody-1B"}
    )
    board = score_files([path])
    found = summary(board)
    assert (found["rows"], found["supported_rows"], found["supported"]) == (4, 3, 0.75)
    assert set(found["groups"]) == {"max_throughput_dense", "tpot", "ttft"}
    assert set(found["groups"]["tpot"]) >= {"n", "median", "mean", "p90"}
    assert found["unsupported"][0]["row"] == 3
    assert found["unsupported"][0]["line"] == 5
    assert "Nobody-1B" in found["unsupported"][0]["reason"]
    assert 0 <= found["interval_coverage"] <= 1
    assert len(points(board)) == 3
    assert "NaN" not in json.dumps(found, allow_nan=False)


class Judged(NamedTuple):
    row: Row
    value: float
    group: str = "g"
    model: str = "m"
    device: str = "d"


def judged(tmp_path: Path, predicted: float, **changes: str) -> Judged:
    return Judged(next(iter(read_rows(write(tmp_path / "row.csv", SERVED | changes)))), predicted)


def test_regret_of_choosing_by_prediction(tmp_path: Path) -> None:
    """The picked option costs what it costs more than the best: in time, or in devices for one rate."""
    times = [
        judged(tmp_path, 11.0, value="10", tp="4"),
        judged(tmp_path, 9.0, value="12", tp="2"),  # picked: predicted to be the best, measured 20 % worse
        judged(tmp_path, 1.0, value="2", tp="8", n_devices="8"),  # more devices: another question
    ]
    (choice,) = choices(times)
    assert (choice.regret, choice.blind) == (pytest.approx(0.2), pytest.approx(0.1))
    rates = [
        judged(tmp_path, 900.0, metric="output_throughput", unit="tok/s", value="1000", n_devices="1", tp="1"),
        judged(tmp_path, 1600.0, metric="output_throughput", unit="tok/s", value="1500", n_devices="2", tp="2"),
    ]
    (choice,) = choices(rates)
    assert choice.regret == pytest.approx(0), "900 a device are predicted against 800"
    assert regrets([choice])["g"]["blind"] == pytest.approx(1 / 6, abs=1e-4), (
        "half of the time a third too many devices"
    )
    assert not choices([rates[0], rates[0]]), "a repeated measurement is no choice"


def test_rows_of_several_files_are_numbered_through(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{name}.csv", ROW | {"model": "Nobody"}, ROW) for name in "ab"]
    assert [row.index for row, _ in score_files(paths).refused] == [0, 2]


def test_an_empty_file_is_no_score(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no rows"):
        score_files([write(tmp_path / "t.csv")])


def test_the_commands_speak_json_and_one_line_errors(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", ROW, SERVED)
    result = CliRunner().invoke(tokenmill, ["score", str(path), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["supported"] == 1.0
    result = CliRunner().invoke(tokenmill, ["score", str(path)])
    assert "2 of 2 rows predicted" in result.stdout
    learnt = tmp_path / "learnt.json"
    result = CliRunner().invoke(
        tokenmill, ["calibrate", str(path), "--engine", "vllm", "--output", str(learnt), "--json"]
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"] == 1
    result = CliRunner().invoke(
        tokenmill,
        [
            "score",
            str(path),
            "--physics-only",
            "--calibration",
            str(learnt),
            "--json",
            "--output",
            str(tmp_path / "r.json"),
        ],
    )
    assert json.loads(result.stdout)["groups"]["tpot"]["median"] < 0.02
    assert len(json.loads((tmp_path / "r.json").read_text())["points"]) == 2
    broken = write(tmp_path / "b.csv", ROW | {"value": "x"})
    result = CliRunner().invoke(tokenmill, ["score", str(broken)])
    assert isinstance(result.exception, ConfigError)


@needs_data
def test_a_sample_of_the_published_rows_is_predicted() -> None:
    """Nearly all are supported; what ships was fitted to them, so errors are below the held-out ones in the docs."""
    rows = [row for name in ("published_perf", "published_perf_silicon") for row in read_rows(DATA / f"{name}.csv")][
        ::40
    ]
    predictor, found = Predictor(), []
    for row in rows:
        try:
            found.append(predictor.predict(row))
        except NotPredicted:
            continue
    assert len(found) / len(rows) > 0.95
    assert sum(p.covered for p in found) / len(found) > 0.8
    dense = sorted(p.error for p in found if p.group == "max_throughput_dense")
    assert dense[len(dense) // 2] < 0.08
