"""``bench gpu``: every stage's way at toy sizes on the CPU, what becomes of units that fail, and the score-card."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.support import call
from tokenmill.bench.gpu import published, run, stages, timing, worker
from tokenmill.bench.gpu.place import Place, slug
from tokenmill.bench.gpu.score import ended_well, read_results, scorecard
from tokenmill.bench.gpu.unit import Context, Failed, Outcome, Stage, Unit
from tokenmill.bench.gpu.worker import DONE, GO_ON, OUT_OF_TIME, read_rows
from tokenmill.core.errors import ConfigError

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")
if torch.cuda.is_available():
    pytest.skip("a rehearsal is for machines without a GPU", allow_module_level=True)

Capsys = pytest.CaptureFixture[str]

QUICK = (
    "attention decode bf16, 1 × 1 of 40",
    "attention decode fp8, 1 × 1 of 40",
    "attention prefill bf16, 8 after 20",
    "linear int4 out, 1 rows",
    "linear fp8 out, 3 rows",
    "linear bf16 out deterministic, 2 rows",
    "experts bf16, 3 tokens",
    "rms_norm with residual, 3 rows",
    "silu_mul, 3 rows",
    "embedding, 3 rows",
    "rope_kv bf16, 3 rows",
    "rope_kv fp8, 3 rows",
    "sample greedy, 3 rows",
    "sample temperature, 2 rows",
)
"""One of each kernel and form; the others take the interpreter longer."""


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context(Place.find(toy=True), tmp_path_factory.mktemp("gpu"))


def units_of(stage: str, context: Context) -> dict[str, Unit]:
    return {unit.name: unit for unit in stages.STAGES[stage].units(context.place)}


# ---- what is measured ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUICK)
def test_a_kernel_is_right_and_timed(name: str, context: Context) -> None:
    found = units_of("kernels", context)[name].run(context).figures
    assert f"{found['kernel']}, {found['size']}" == name
    assert found["microseconds"] > 0 and found["launch_microseconds"] > 0 and found["share"] > 0
    assert found["error"] < 0.1, "its outcome was compared"
    assert not found["captured"] and found["why_not_captured"] == "not on a GPU"


def test_a_kernel_that_is_wrong_is_no_figure(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokenmill.bench.gpu import pointwise

    monkeypatch.setattr(pointwise, "silu_mul", lambda gate_up, out: out.fill_(1.0))
    with pytest.raises(Exception, match="from the one wanted"):
        pointwise.units(context.place)[1].run(context)


def test_floors_are_of_memory_or_arithmetic(context: Context) -> None:
    found = context.ceilings
    assert found.floor_s(found.copy_bytes_per_s, 0.0, "bf16") == (1.0, "memory")
    assert found.floor_s(0.0, found.peaks["bf16"], "no such") == (1.0, "compute")
    device = {"name": "H200", "kind": "gpu", "vendor": "nvidia", "family": "hopper", "memory_bytes": 1e11}
    assert found.hardware(device).peaks["bf16"] == found.peaks["bf16"]


def test_things_that_are_compared_take_turns(context: Context) -> None:
    order: list[str] = []
    calls = {name: [lambda name=name: order.append(name)] * 2 for name in "ab"}
    found = timing.compare(context.place, calls)
    assert set(found) == {"a", "b"} and all(each.seconds >= 0 for each in found.values())
    # Each: twice to compile, twice to launch, twice to warm up; then, before what counts, once more.
    assert order == ["a"] * 6 + ["b"] * 6 + ["a", "a", "b", "b"] * 2


class FakeEvent:
    """A moment of a device that computes nothing; each is a second after the last."""

    now = 0.0

    def record(self) -> None:
        FakeEvent.now += 1.0
        self.at = FakeEvent.now

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, later: FakeEvent) -> float:
        return (later.at - self.at) * 1e3


@pytest.mark.parametrize("capturable", [True, False])
def test_on_a_gpu_replays_are_timed_between_events(capturable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[int] = []
    replayed: list[int] = []

    def capture(calls: object) -> Any:
        if not capturable:
            raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors …")
        return type("Graph", (), {"replay": lambda self: replayed.append(1)})()

    monkeypatch.setattr(timing, "capture", capture)
    monkeypatch.setattr(timing, "event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    found = timing.measure(Place(torch.device("cuda", 0), toy=False), [lambda: launched.append(1)] * 4)
    assert found.seconds == 0.25, "a second between two events, for four calls"
    assert found.captured == capturable and len(launched) == (16 if capturable else 16 + 4 * 7)
    assert len(replayed) == (7 if capturable else 0), "to warm up, to see how long it takes, and five that count"
    assert found.why_not == ("" if capturable else "operation not permitted when stream is capturing")


@pytest.mark.parametrize("name", ["bf16, graphs, batch 1", "bf16, deterministic, batch 2"])
def test_a_decode_step(name: str, context: Context) -> None:
    found = units_of("step", context)[name].run(context).figures
    assert name == f"{found['weights']}, {found['mode']}, batch {found['batch']}"
    assert found["milliseconds"] > 0 and 0 <= found["idle_share"] <= 1 and found["bandwidth_share"] > 0
    assert 0 < found["host_microseconds"] <= found["milliseconds"] * 2e3


def test_throughput_against_foreseen(context: Context) -> None:
    found = units_of("offline", context)["qwen3-30b-a3b bf16"].run(context).figures
    assert found["failed"] == 0 and found["output_tokens_per_s"] > 0 and found["engine_alone_tokens_per_s"] > 0
    assert found["measured_to_foreseen"]["output_tokens_per_s"] > 0
    assert found["memory"]["foreseen_bytes"]["kv"] > 0


def test_transformers_take_turns_with_ours(context: Context) -> None:
    unit = next(iter(units_of("peers", context).values()))
    found = unit.run(context).figures
    assert not found["reasons"] and list(found["ratios"]) == ["transformers"]
    assert set(found["tokens_per_s"]) == {"tokenmill", "transformers"}


# ---- units that fail -------------------------------------------------------------------------------------


def _stage(*units: Unit, apart: bool = False) -> dict[str, Stage]:
    return {"kernels": Stage("kernels", 1.0, lambda place: list(units), apart=apart)}


def _raise(context: Context) -> Outcome:
    raise ValueError("as it happens")


def _fail(context: Context) -> Outcome:
    raise Failed("two of three", {"counts": {"passed": 1}})


GOOD = Unit("good", lambda context: Outcome({"one": 1}, "one"))


def test_a_unit_that_fails_costs_no_other(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    units = (Unit("bad", _raise), Unit("half", _fail), GOOD, Unit("nan", lambda _: Outcome({"x": float("nan")}, "")))
    monkeypatch.setattr(worker, "STAGES", _stage(*units))
    rows = tmp_path / "rows"
    assert worker.work("kernels", rows, context) == DONE
    found = {row["name"]: row for row in read_rows(rows) if "name" in row}
    assert "ValueError: as it happens" in found["bad"]["error"]
    assert found["half"]["error"] == "two of three" and found["half"]["figures"] == {"counts": {"passed": 1}}
    assert found["good"]["figures"] == {"one": 1} and "error" not in found["good"]
    assert "error" in found["nan"], "NaN never reaches a result"


def test_another_process_goes_on_where_one_died(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[str] = []
    units = [Unit(name, lambda context, name=name: ran.append(name) or Outcome({}, "")) for name in "abc"]
    monkeypatch.setattr(worker, "STAGES", _stage(*units, apart=True))
    rows = tmp_path / "rows"
    assert worker.work("kernels", rows, context) == GO_ON and ran == ["a"]
    worker.append(rows, {"begin": "b"})
    rows.open("a").write('{"name": "b", "fig')  # killed while it wrote
    run._mark_lost(rows, -11, (tmp_path / "words").open("w+"))
    assert worker.work("kernels", rows, context) == DONE and ran == ["a", "c"]
    (lost,) = (row for row in read_rows(rows) if row.get("name") == "b")
    assert "died (exit code -11)" in lost["error"]


def test_what_there_was_no_time_for_is_named(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "STAGES", _stage(GOOD))
    rows = tmp_path / "rows"
    late = Context(context.place, tmp_path, deadline=time.time() - 1)
    assert worker.work("kernels", rows, late) == OUT_OF_TIME
    figures = run._figures(read_rows(rows), 0.0)
    assert figures["not_run"] == ["good"] and not ended_well({"kernels": figures})


# ---- the command -----------------------------------------------------------------------------------------


def test_the_command_leaves_a_file_per_stage_and_the_score(capsys: Capsys, tmp_path: Path) -> None:
    done = call(capsys, "bench", "gpu", "--toy", "--stages", "probe", "--minutes", 1, "--output", tmp_path, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out, parse_constant=pytest.fail)
    assert (result["bench"], result["device"], result["ended_well"]) == ("gpu", "toy", True)
    assert {path.name for path in tmp_path.iterdir()} == {"gpu-probe-toy.json", "gpu-toy.json", "toy.toml"}
    assert str(tmp_path.parent) not in (tmp_path / "gpu-probe-toy.json").read_text() + done.out
    again = call(capsys, "bench", "gpu", "--stages", "none", "--output", tmp_path)
    assert again.code == 0 and "not measured" in again.out


def test_bad_stages_and_no_gpu(capsys: Capsys, tmp_path: Path) -> None:
    unknown = call(capsys, "bench", "gpu", "--stages", "kernels,all", "--output", tmp_path)
    assert unknown.code == 1 and "--stages: there is no 'all'; there are tests, kernels" in unknown.err
    with pytest.raises(ConfigError, match="--toy"):
        Place.find(toy=False)


def test_a_machine_without_a_gpu_is_told_at_once(capsys: Capsys, tmp_path: Path) -> None:
    done = call(capsys, "bench", "gpu", "--stages", "probe", "--minutes", 0.5, "--output", tmp_path)
    assert done.code == 1 and "PyTorch sees no GPU here" in done.err
    assert not list(tmp_path.glob("*.json*"))


def test_devices_are_named_shortly() -> None:
    assert slug("NVIDIA H200") == "h200"
    assert slug("NVIDIA H100 80GB HBM3") == "h100-80gb-hbm3"
    assert slug("AMD Instinct MI300X") == "mi300x"


# ---- the score-card --------------------------------------------------------------------------------------


def _results(share: float = 0.9, ratio: float = 4.0) -> dict[str, dict[str, Any]]:
    """Stages' results, as far as the score-card reads them."""

    def stage(*figures: dict[str, Any]) -> dict[str, Any]:
        return {"units": [{"name": str(n), "figures": each} for n, each in enumerate(figures)], "not_run": []}

    kernels = [{"kernel": "attention decode bf16", "size": f"{n} × 1 of 1024", "share": share} for n in (1, 256)]
    kernels += [{"kernel": "attention prefill bf16", "size": "8192 after 0", "share": share}]
    kernels += [
        {
            "kernel": f"linear int4 {matrix}",
            "size": f"{rows} rows",
            "microseconds": 10.0,
            "against_microseconds": {"bf16": 10.0 * ratio},
        }
        for matrix in "abcd"
        for rows in (1, 2, 4, 8, 16)
    ]
    steps = [
        {
            "weights": "bf16",
            "mode": mode,
            "batch": batch,
            "bandwidth_share": share,
            "milliseconds": 4.0 * slower,
            "idle_share": 0.02,
            "host_microseconds": 300.0,
        }
        for mode, slower in (("graphs", 1), ("eager", 1.5), ("deterministic", 1.1))
        for batch in (1, 64)
    ]
    offline = [
        {
            "name": f"8b {precision}",
            "precision": precision,
            "model": "llama-3.1-8b",
            "load": "256 × 1024 + 256",
            "output_tokens_per_s": rate,
            "memory": {"measured_to_foreseen": 1.01},
            "measured_to_foreseen": {"output_tokens_per_s": 0.9},
        }
        for precision, rate in (("bf16", 9000.0), ("fp8", 13000.0))
    ]
    return {"kernels": stage(*kernels), "step": stage(*steps), "offline": stage(*offline)}


def test_each_aim_is_reached_missed_or_not_measured() -> None:
    good = {score.figure.split(",")[0]: score for score in scorecard(_results(), "h200")}
    assert [good[name].reached for name in ("paged decode attention", "prefill attention", "decode step")] == [True] * 3
    assert good["INT4 weight-only product"].reached and "4.00 × at 16" in good["INT4 weight-only product"].seen
    assert good["throughput"].reached and "nothing published" in good["throughput"].seen
    assert good["memory foreseen against the allocator's peak"].reached
    assert good["what `deterministic` costs a decode step"].seen == "+10.0% at batch 1, +10.0% at batch 64"
    assert good["kernels' and engine's tests on the device"].reached is None
    bad = {score.figure.split(",")[0]: score.reached for score in scorecard(_results(0.5, 3.0), "h200")}
    assert [bad[n] for n in ("paged decode attention", "prefill attention", "decode step")] == [False] * 3
    assert bad["INT4 weight-only product"] is False
    assert all(score.reached is None for score in scorecard({}, ""))


def test_results_of_earlier_calls_count(tmp_path: Path) -> None:
    for stage, figures in _results().items():
        (tmp_path / f"gpu-{stage}-h200.json").write_text(json.dumps({"bench": f"gpu-{stage}", **figures}))
    (tmp_path / "gpu-step-h100.json").write_text("{}")
    (tmp_path / "gpu-h200.json").write_text(json.dumps({"bench": "gpu"}))
    assert set(read_results(tmp_path, "h200")) == {"kernels", "step", "offline"}


def test_the_best_published_is_interpolated(tmp_path: Path, shared: Path) -> None:
    rows = [(i, o, o / (1e-5 * i + 2e-5 * o + 3e-8 * o * (i + o / 2))) for i in (100, 1000, 4000) for o in (100, 900)]
    assert published.interpolate(rows, 1000, 900) == pytest.approx(rows[3][2])
    catalogue = shared / "data" / "perf" / "published_perf.csv"
    for (device, precision), known in published.KNOWN.items():
        found = published.best(device, precision, catalogue)
        assert found is not None
        assert found.output_tokens_per_s == pytest.approx(known.output_tokens_per_s, rel=1e-3)
        assert found.source == known.source == published.best(device, precision, tmp_path / "none").source  # type: ignore[union-attr]
    assert published.best("h200", "bf16", catalogue) is None


def test_the_makefile_runs_it(root: Path) -> None:
    text = (root / "Makefile").read_text()
    assert "-m tokenmill bench gpu" in text and os.environ.get("OUT") is None
    for name in stages.STAGES:
        assert name in text
