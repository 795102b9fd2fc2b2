"""Traces: every format read right, every malformed line named, everything drawn the same from the same seed."""

from __future__ import annotations

import io
import json
import math
import tarfile
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev

import pytest

from tests.perf.simulate.support import setup, simulate
from tokenmill.core.clock import VirtualClock
from tokenmill.core.engine_config import SchedulerConfig
from tokenmill.core.errors import ConfigError, SetupError
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import Request
from tokenmill.engine.engine import Engine
from tokenmill.engine.journal import JournalWriter, read_records
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.scheduler import Scheduler
from tokenmill.perf.simulate import TraceRequest, make_trace, select
from tokenmill.perf.simulate.arrivals import arrival_times
from tokenmill.perf.simulate.traces import Draw, detect, read_trace, synthetic
from tokenmill.perf.simulate.workload import Prompts
from tokenmill.testing.executor import FakeExecutor

DATA = Path(__file__).resolve().parents[4] / "shared" / "data" / "traces"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the published traces are not on this machine")
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
    "2023-11-16 18:15:46.6805900,374,44\r\n"
    "2023-11-16 18:15:50.9951690,396,109"
)


def written(folder: Path, text: str, name: str = "trace") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


# ---- formats ---------------------------------------------------------------------------------------------


def test_azure_with_its_line_ends_and_digits(tmp_path: Path) -> None:
    path = written(tmp_path, AZURE)
    trace = read_trace(path, Draw())
    assert (trace.format, len(trace.requests)) == ("azure", 2)
    assert trace.requests[0] == TraceRequest(0.0, 374, 44)
    assert trace.requests[1].arrival_s == pytest.approx(4.314579, abs=1e-6)


def test_mooncake_with_its_hashes(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 1000, "input_length": 700, "output_length": 5, "hash_ids": [7, 8]},
        {"timestamp": 3500, "input_length": 600, "output_length": 6, "hash_ids": [7, 9]},
    ]
    path = written(tmp_path, "\n".join(json.dumps(row) for row in rows))
    trace = read_trace(path, Draw())
    assert trace.format == "mooncake" and trace.shares_prefixes
    assert [request.arrival_s for request in trace.requests] == [0.0, 2.5]
    first, second = Prompts()(trace.requests)
    assert len(first.prompt_token_ids) == 700
    assert first.prompt_token_ids[:512] == second.prompt_token_ids[:512]
    assert first.prompt_token_ids[512:600] != second.prompt_token_ids[512:600]


def test_another_engine_s_run(tmp_path: Path) -> None:
    rows = [{"request_id": f"r{i}", "input_toks": 9 + i, "output_toks": 3, "arrival_time": 1.7e9 + i} for i in range(3)]
    trace = read_trace(written(tmp_path, "\n".join(json.dumps(row) for row in rows)), Draw())
    assert trace.format == "vllm-run"
    assert [(r.arrival_s, r.prompt_tokens) for r in trace.requests] == [(0.0, 9), (1.0, 10), (2.0, 11)]


def test_lengths_get_their_arrivals_from_a_process(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\nXXX,10,1\nXXX,20,2\nXXX,0,2\nXXX,30,3\n"
    path = written(tmp_path, text)
    trace = read_trace(path, Draw(rate=10.0, arrivals="uniform"))
    assert trace.format == "lengths"
    assert sorted((r.prompt_tokens, r.output_tokens) for r in trace.requests) == [(10, 1), (20, 2), (30, 3)]
    assert [r.arrival_s for r in trace.requests] == pytest.approx([0.0, 0.1, 0.2])
    assert len(read_trace(path, Draw(requests=50, rate=10.0)).requests) == 50
    with pytest.raises(ConfigError, match="rate"):
        read_trace(path, Draw())


def archive(folder: Path, **members: str) -> Path:
    path = folder / "clients.tgz"
    with tarfile.open(path, "w:gz") as file:
        for name, text in members.items():
            member = tarfile.TarInfo("m/" + name.replace("__", "-").replace("_csv", ".csv").replace("_json", ".json"))
            member.size = len(text.encode())
            file.addfile(member, io.BytesIO(text.encode()))
    return path


def clients(folder: Path) -> Path:
    """One client of 5 gamma distributed requests a second, one of 2 that only sends in the second window."""
    lengths = {"0": {"input_tokens": "{100: 0.5, 200: 0.5}", "output_tokens": "{7: 1.0}"}}
    none = {"0": {"input_tokens": "{}", "output_tokens": "{}"}}
    late = {"600": {"input_tokens": "{50: 1.0}", "output_tokens": "{9: 1.0}"}}
    return archive(
        folder,
        chunk__1__trace_csv="0,5.0,2.0,Gamma,0.25,0.8\n600,5.0,1.0,,,",
        chunk__1__dataset_json=json.dumps(lengths),
        chunk__2__trace_csv="0,0.0,0.0,,,\n600,2.0,1.0,Weibull,1.0,0.5",
        chunk__2__dataset_json=json.dumps(none | late),
    )


def test_servegen_draws_each_client_s_habits(tmp_path: Path) -> None:
    path = clients(tmp_path)
    trace = read_trace(path, Draw(window_s=(0.0, 1200.0)))
    by_client: dict[str, list[TraceRequest]] = {}
    for request in trace.requests:
        by_client.setdefault(request.tenant, []).append(request)
    assert trace.format == "servegen" and set(by_client) == {"client-1", "client-2"}
    assert len(by_client["client-1"]) == pytest.approx(6000, rel=0.1)
    assert len(by_client["client-2"]) == pytest.approx(1200, rel=0.1)
    assert {r.prompt_tokens for r in by_client["client-1"]} == {100, 200}
    assert {(r.prompt_tokens, r.output_tokens) for r in by_client["client-2"]} == {(50, 9)}
    assert min(r.arrival_s for r in by_client["client-2"]) >= 600 - trace.requests[0].arrival_s - 1
    faster = read_trace(path, Draw(window_s=(0.0, 600.0), rate=20.0))
    assert len(faster.requests) == pytest.approx(12000, rel=0.1)
    assert read_trace(path, Draw(window_s=(0.0, 60.0), seed=1)) == read_trace(path, Draw(window_s=(0.0, 60.0), seed=1))
    assert read_trace(path, Draw(window_s=(0.0, 60.0), seed=2)) != read_trace(path, Draw(window_s=(0.0, 60.0), seed=1))


def journal(path: Path) -> list[Request]:
    """A journal written by a real engine under a virtual clock, small enough a cache for preemptions."""
    clock, executor = VirtualClock(5.0), FakeExecutor(8, 16)
    executor.start()
    scheduler = Scheduler(KVCache(8, 16), SchedulerConfig(max_seqs=4, max_step_tokens=32))
    engine = Engine(scheduler, executor, clock, journal=JournalWriter(path, {"model": "none"}))
    shared = tuple(range(40))
    sent = [
        Request(f"r{i}", (*shared, 100 + i), SamplingParams(), 20 + i, seed=i, arrival_s=5.0 + 0.125 * i)
        for i in range(6)
    ]
    todo = list(sent)
    while todo or engine.has_work:
        while todo and todo[0].arrival_s <= clock.now():
            engine.add(todo.pop(0))
        engine.step()
        clock.advance(0.05)
    assert scheduler.num_preemptions
    engine.close()
    return sent


def test_our_own_journal_gives_its_traffic_back(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    sent = journal(path)
    trace = read_trace(path, Draw())
    assert trace.format == "journal" and trace.shares_prefixes
    found = [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in trace.requests]
    assert found == [(r.arrival_s - 5.0, 41, r.max_new_tokens) for r in sent]
    assert len({r.prefix_ids for r in trace.requests}) == 1
    outcome = simulate(setup(num_blocks=100, prefix_caching=True), list(trace.requests))
    assert [served.cached_tokens for served in outcome.served] == [0, *[32] * 5]
    assert sum(1 for _ in read_records(path)) > 50  # replay reads it as before


def test_a_journal_without_moments_gives_the_order(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal(path)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        line.pop("arrived_s", None)
        line.pop("time_s", None)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    trace = read_trace(path, Draw())
    assert [r.output_tokens for r in trace.requests] == [20 + i for i in range(6)]
    assert [r.arrival_s for r in trace.requests] == sorted(r.arrival_s for r in trace.requests)


# ---- bad input -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (AZURE.replace("396", "many"), "trace, line 3, ContextTokens: must be a number, not 'many'"),
        (AZURE.replace("109", "-9"), "trace, line 3, GeneratedTokens: must be a whole number"),
        (AZURE.replace("109", "9.5"), "trace, line 3, GeneratedTokens: must be a whole number"),
        (AZURE.replace("109", "nan"), "trace, line 3, GeneratedTokens: must be a number"),
        (AZURE.replace(",109", ""), "trace, line 3: 2 fields, the heading has 3"),
        (AZURE.replace("2023-11-16 18:15:50", "yesterday"), "trace, line 3, TIMESTAMP"),
        (AZURE.splitlines()[0] + "\r\n2023-11-16 18:15:46,0,5", "holds no request"),
        ('{"timestamp": 0, "input_length": 5, "hash_ids": []}', "trace, line 1, output_length: is missing"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": ["x"]}', "line 1, hash_ids"),
        ('{"timestamp": 0, "input_length": true, "output_length": 5, "hash_ids": []}', "line 1, input_length"),
        (
            '{"hash_ids": [], "timestamp": 0, "input_length": 5, "output_length": 5}\n[1]',
            "line 2: must be a JSON object",
        ),
        ('{"hash_ids": [], "timestamp": 0, "input_length": 5, "output_length": 5}\n{', "line 2: is not JSON"),
        ('{"input_toks": 5, "output_toks": 5, "arrival_time": "soon"}', "line 1, arrival_time: must be a number"),
        ("num_prefill_tokens,num_decode_tokens\n5,x", "line 2, num_decode_tokens"),
        ("a,b\n1,2", "no trace that is known"),
        ("", "no trace that is known"),
        ('{"journal": 1}\n{"plan": {}}\n', "line 2: is not a plan or a result"),
        ('{"journal": 1}\n{"plan"\n', "line 2: is not JSON"),
        ('{"journal": 9}\n', "not a journal of format"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, place: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SetupError) as caught:
        read_trace(path, Draw(rate=1.0))
    assert place in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("members", "place"),
    [
        ({"chunk__1__trace_csv": "0,x,1.0,Gamma,1,1", "chunk__1__dataset_json": "{}"}, "line 1, rate"),
        ({"chunk__1__trace_csv": "0,1,1.0,Zipf,1,1", "chunk__1__dataset_json": "{}"}, "line 1, distribution"),
        ({"chunk__1__trace_csv": "0,1,1.0,Gamma,0,1", "chunk__1__dataset_json": "{}"}, "line 1, shape"),
        ({"chunk__1__trace_csv": "0,1,1.0,Gamma,1,1", "chunk__1__dataset_json": "[]"}, "chunk-1-dataset.json"),
        ({"chunk__1__trace_csv": "0,1,1.0,Gamma,1,1"}, "holds no pair"),
        (
            {"chunk__1__trace_csv": "0,1,1,Gamma,1,1", "chunk__1__dataset_json": '{"0": {"input_tokens": "{1:"}}'},
            "client-1, input_tokens: is not a table",
        ),
        (
            {"chunk__1__trace_csv": "0,1,1,Gamma,1,1", "chunk__1__dataset_json": '{"0": {"input_tokens": "{}"}}'},
            "client-1: input_tokens has no distribution",
        ),
    ],
)
def test_what_is_wrong_in_an_archive_is_told_with_its_place(
    members: dict[str, str], place: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_trace(archive(tmp_path, **members), Draw())
    assert place in caught.value.message


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        read_trace(tmp_path / "nowhere", Draw())
    with pytest.raises(ConfigError, match="neither text"):
        detect(_bytes(tmp_path))
    with pytest.raises(ConfigError, match="unknown"):
        read_trace(written(tmp_path, AZURE), Draw(), "tea-leaves")


def _bytes(folder: Path) -> Path:
    path = folder / "bytes"
    path.write_bytes(b"\xff\xfe\x00\x80" * 10)
    return path


# ---- choosing a part -------------------------------------------------------------------------------------


def test_a_part_of_a_trace() -> None:
    trace = make_trace("t", "x", [TraceRequest(float(i), 100 + i, 10) for i in range(10)])
    assert len(select(trace, first=3).requests) == 3
    part = select(trace, window_s=(2.0, 5.0))
    assert [(r.arrival_s, r.prompt_tokens) for r in part.requests] == [(0.0, 102), (1.0, 103), (2.0, 104)]
    assert select(trace, speed=4.0).requests[-1].arrival_s == 9 / 4
    clipped = select(trace, max_context=115)
    assert [r.prompt_tokens for r in clipped.requests[3:8]] == [103, 104, 105, 105, 105]
    assert clipped.notes["clipped"] == 4
    assert select(trace, max_context=8).requests[0] == TraceRequest(0.0, 1, 7)
    for wrong in ({"speed": 0.0}, {"window_s": (50.0, 60.0)}):
        with pytest.raises(ConfigError):
            select(trace, **wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("process", "cv"), [("poisson", 1.0), ("gamma:cv=3", 3.0), ("gamma:cv=0.5", 0.5), ("uniform", 0.0)]
)
def test_arrivals_have_the_rate_and_the_burstiness_asked_for(process: str, cv: float) -> None:
    times = arrival_times(process, 20_000, 5.0, Draw().rng("x"))
    gaps = [after - before for before, after in pairwise(times)]
    assert fmean(gaps) == pytest.approx(0.2, rel=0.1)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.1, abs=1e-9)


def test_bursts_come_and_go_at_the_rate_asked_for() -> None:
    times = arrival_times("bursty:on=2,off=8", 20_000, 5.0, Draw().rng("x"))
    assert times[-1] == pytest.approx(4000, rel=0.15)
    counts = [0] * (math.floor(times[-1]) + 1)
    for moment in times:
        counts[math.floor(moment)] += 1
    assert sum(not count for count in counts) / len(counts) > 0.5
    assert arrival_times("all", 3, None, Draw().rng("x")) == [0.0] * 3


@pytest.mark.parametrize("process", ["tea", "gamma:cv=0", "gamma:cv=x", "gamma:tea=1", "bursty:on=-1", "poisson:cv=1"])
def test_unknown_arrivals_are_refused(process: str) -> None:
    with pytest.raises(ConfigError, match="arrivals"):
        arrival_times(process, 3, 1.0, Draw().rng("x"))


def test_a_description_is_drawn_the_same_from_the_same_seed() -> None:
    one, again, other = (synthetic((10, 20), (3, 3), Draw(50, 2.0, seed=seed)) for seed in (1, 1, 2))
    assert one == again != other


# ---- the published files ---------------------------------------------------------------------------------


@needs_data
@pytest.mark.parametrize(
    ("name", "form", "count", "mean_input", "mean_output"),
    [
        ("azure/AzureLLMInferenceTrace_conv.csv", "azure", 19366, 1155, 211),
        ("mooncake/synthetic_trace.jsonl", "mooncake", 3993, 15325, 149),
        ("vllm-runs/RTX4090_Llama-3.1-8B.requests.jsonl", "vllm-run", 300, None, None),
    ],
)
def test_published_traces_are_what_they_are_said_to_be(
    name: str, form: str, count: int, mean_input: int | None, mean_output: int | None
) -> None:
    trace = read_trace(DATA / name, Draw())
    assert (trace.format, len(trace.requests)) == (form, count)
    if mean_input is not None:
        assert fmean(r.prompt_tokens for r in trace.requests) == pytest.approx(mean_input, abs=1)
        assert fmean(r.output_tokens for r in trace.requests) == pytest.approx(mean_output, abs=1)


@needs_data
def test_the_published_clients_can_be_drawn_from() -> None:
    trace = read_trace(DATA / "servegen" / "sg_deepseek-r1.tgz", Draw(window_s=(0.0, 60.0)))
    assert trace.format == "servegen"
    assert len(trace.requests) > 10
    assert all(r.prompt_tokens and r.output_tokens for r in trace.requests)
