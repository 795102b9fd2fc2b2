"""The comparison with other engines, on fake ones: no peer is installed here."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cli.support import call
from tokenmill.bench.peers import environments, process
from tokenmill.bench.peers.compare import Comparison, contenders, pairs, ratios
from tokenmill.bench.peers.environments import OURS, PEERS, Environments, Peer
from tokenmill.bench.peers.process import Contender, Runner, RunnerFailed
from tokenmill.bench.peers.protocol import Setup
from tokenmill.bench.peers.runners import llama_cpp
from tokenmill.bench.peers.runners.ours import Ours
from tokenmill.bench.peers.shapes import MODELS, kv_bytes_per_token, make_checkpoint, weight_bytes
from tokenmill.bench.peers.work import TASKS, Task, make_prompts, rate
from tokenmill.core.errors import SetupError, TokenmillError

ROOT = Path(__file__).resolve().parents[2]
TINY = MODELS["qwen3-0.6b"] | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 4096,
}
DECODE = Task("decode_b1", "decode", (3,), (4,))
BATCH = Task("decode_b8", "decode", (3, 5), (4, 4))
PREFILL = Task("prefill_512", "prefill", (9,), (1,))
SERVE = Task("serve", "total", (3, 4, 5), (2, 4, 3), max_repeats=1)


def fake(tmp_path: Path, engine: str, precision: str = "bf16", step_s: float = 0.005, mood: str = "") -> Contender:
    return Contender(
        engine=engine,
        precision=precision,
        label=precision,
        command=(sys.executable, str(ROOT / "tests" / "bench" / "fake_runner.py"), str(step_s), mood),
        environment=os.environ | {"PYTHONPATH": str(ROOT)},
        folder=tmp_path / engine / f"tiny-0.1b-{precision}",
        log=tmp_path / "logs" / f"{engine}-{precision}.log",
    )


def comparison(tmp_path: Path, *contenders: Contender, tasks: tuple[Task, ...] = (DECODE,), **more: Any) -> Comparison:
    more = {"repeats": 1, "say": lambda text: None} | more
    return Comparison("tiny", tmp_path / "checkpoint", TINY, tasks, contenders, threads=1, **more)


# ---- the work --------------------------------------------------------------------------------------------


def test_the_serving_load_is_always_the_same_and_as_large_as_said() -> None:
    serve = TASKS["serve"]
    assert (len(serve.prompts), sum(serve.prompts), sum(serve.outputs)) == (32, 8505, 2327)
    assert min(serve.prompts) >= 16 and max(serve.prompts) <= 512
    assert min(serve.outputs) >= 16 and max(serve.outputs) <= 128
    assert serve.prompts[:3] == (408, 182, 358), "results of different days must be comparable"


def test_prompts_depend_on_the_seed_alone_and_share_no_beginning() -> None:
    first, again, other = (make_prompts((40, 40), 1000, seed) for seed in ("a", "a", "b"))
    assert first == again
    assert len({tuple(prompt[:4]) for prompt in first + other}) == 4
    assert all(0 <= token < 1000 for prompt in first for token in prompt)


def test_decode_counts_only_steps_in_which_every_sequence_made_a_token() -> None:
    # The second prompt was computed in the second step; the last step is the second sequence's alone.
    events = [(2.0, 1), (3.0, 2), (3.5, 2), (4.0, 2), (9.0, 1)]
    assert rate(BATCH, events) == pytest.approx(4 / 1.0)


def test_prefill_counts_the_prompt_until_the_first_token() -> None:
    assert rate(PREFILL, [(0.5, 1)]) == pytest.approx(18.0)


def test_total_counts_every_token_until_the_last() -> None:
    assert rate(SERVE, [(1.0, 3), (2.0, 3), (3.0, 2), (4.0, 1)]) == pytest.approx(9 / 4)


def test_an_engine_that_makes_too_few_tokens_is_told_apart() -> None:
    with pytest.raises(TokenmillError, match="made 3 tokens where 4 were asked for"):
        rate(DECODE, [(1.0, 1), (2.0, 1), (3.0, 1)])


def test_a_decode_rate_needs_two_full_steps() -> None:
    with pytest.raises(TokenmillError, match="never made a token of every sequence"):
        rate(BATCH, [(float(step), 1) for step in range(8)])


def test_rows_of_an_earlier_run_stay_unless_measured_again(tmp_path: Path) -> None:
    earlier = [row("decode_b1", OURS, "bf16", 9.0), row("decode_b1", OURS, "int8", 8.0), row("serve", "a", "bf16", 7.0)]
    run = comparison(tmp_path, fake(tmp_path, OURS), earlier=earlier).run()
    kept = [(one["task"], one["precision"]) for one in run["rows"]]
    assert kept == [("decode_b1", "int8"), ("serve", "bf16"), ("decode_b1", "bf16")]
    assert run["rows"][-1]["tokens_per_s"] != 9.0


# ---- ratios ----------------------------------------------------------------------------------------------


def row(task: str, engine: str, precision: str, tokens_per_s: float | None) -> dict[str, Any]:
    return {"task": task, "engine": engine, "precision": precision, "label": "", "tokens_per_s": tokens_per_s}


def test_a_ratio_is_ours_over_the_best_peer_of_the_same_class() -> None:
    rows = [
        row("decode_b1", OURS, "bf16", 45.0),
        row("decode_b1", "a", "bf16", 30.0),
        row("decode_b1", "b", "bf16", 20.0),
        row("decode_b1", OURS, "int4", 120.0),
        row("decode_b1", "a", "int4", 60.0),
        row("decode_b1", "a", "int8", 999.0),
        row("decode_b8", OURS, "int8", 300.0),
        row("decode_b8", OURS, "int4", 290.0),
        row("decode_b8", "a", "int8", None),
        row("decode_b8", "b", "int4", 200.0),
        row("decode_b8", OURS, "bf16", 1.0),
    ]
    assert ratios(rows) == {"decode_b1_bf16": 1.5, "decode_b1_int4": 2.0, "decode_b8_quantised": 1.5}
    ours, best = pairs(rows)["decode_b1_int8"]
    assert ours is None and best is not None and best["engine"] == "a"


# ---- runs on fake engines --------------------------------------------------------------------------------


def test_engines_take_turns_and_the_rates_are_divided(tmp_path: Path) -> None:
    said: list[str] = []
    kept: list[dict[str, Any]] = []
    engines = fake(tmp_path, OURS, step_s=0.005), fake(tmp_path, "slow", step_s=0.2, mood="chatty")
    run = comparison(tmp_path, *engines, tasks=(DECODE, SERVE), repeats=2, say=said.append, keep=kept.append)
    figures = run.run()
    turns = [line.split(" bf16")[0] for line in said if "tok/s" in line]
    assert turns == [
        "decode_b1: tokenmill", "decode_b1: slow", "decode_b1: tokenmill", "decode_b1: slow",
        "serve: tokenmill", "serve: slow",
    ]  # fmt: skip
    assert len(kept) == 2 and kept[-1] == figures and len(kept[0]["rows"]) == 2
    assert figures["versions"] == {"tokenmill": {"pytest": pytest.__version__}, "slow": {"pytest": pytest.__version__}}
    assert figures["ratios"]["tiny"]["decode_b1_bf16"] > 2  # 40, if sleeping were exact
    first = figures["rows"][0]
    assert len(first["samples"]) == len(first["other_cpu"]) == 2 and first["reason"] is None
    assert first["peak_bytes"] > 1e6 and first["first_token_s"] >= 0.01
    assert json.loads(json.dumps(figures)) == figures


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        ("no-prepare", "cannot use the checkpoint: RuntimeError: no such format at …/file.bin"),
        ("no-load", "cannot load: MemoryError: too large"),
        ("dies", "the process ended: Error: the last words"),
        ("short", "made 3 tokens where 4 were asked for"),
    ],
)
def test_an_engine_that_fails_is_a_row_with_the_reason_and_the_others_go_on(
    tmp_path: Path, mood: str, reason: str
) -> None:
    figures = comparison(tmp_path, fake(tmp_path, "bad", mood=mood), fake(tmp_path, "good"), repeats=2).run()
    bad, good = figures["rows"]
    assert (bad["engine"], bad["tokens_per_s"], bad["reason"]) == ("bad", None, reason)
    assert good["tokens_per_s"] > 0 and good["reason"] is None and len(good["samples"]) == 2


def test_an_engine_that_is_not_installed_is_a_row_with_the_reason(tmp_path: Path) -> None:
    engines = fake(tmp_path, "absent"), fake(tmp_path, "good")
    absent, good = comparison(tmp_path, *engines, failed={"absent": "not installed"}).run()["rows"]
    assert absent["reason"] == "not installed" and good["reason"] is None
    assert not (tmp_path / "absent").exists()


def test_files_are_made_once_and_not_taken_for_done_when_making_them_failed(tmp_path: Path) -> None:
    comparison(tmp_path, fake(tmp_path, "a", "int4", mood="no-prepare")).run()
    contender = fake(tmp_path, "a", "int4")
    assert not contender.folder.exists()
    for _ in range(2):
        (made,) = comparison(tmp_path, contender).run()["rows"]
        assert made["reason"] is None
        assert (contender.folder / "weights").read_text() == "checkpoint int4"
        (contender.folder / "weights").touch()


def test_disturbed_samples_are_left_out_while_there_are_quiet_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.5, 0.01, 0.01, 0.5, 0.5, 0.5])  # two engines, three turns each
    answers = iter([10.0, 1.0, 2.0, 20.0, 30.0, 30.0])

    def run(*_: object) -> dict[str, Any]:
        step_s = 1 / next(answers)
        events = [[step_s * step, 1] for step in range(1, 5)]
        return {"events": events, "other_cpu": next(shares), "peak_bytes": 1}

    monkeypatch.setattr(process.Runners, "run", run)
    monkeypatch.setattr(process.Runners, "prepare", lambda *_: None)
    rows = comparison(tmp_path, fake(tmp_path, "a"), fake(tmp_path, "b"), repeats=3).run()["rows"]
    assert [row["tokens_per_s"] for row in rows] == [2.0, 1.0]
    assert not any(row["disturbed"] for row in rows)
    monkeypatch.undo()
    shares, answers = iter([0.5, 0.07]), iter([4.0, 8.0])
    monkeypatch.setattr(process.Runners, "run", run)
    monkeypatch.setattr(process.Runners, "prepare", lambda *_: None)
    (row,) = comparison(tmp_path, fake(tmp_path, "a"), repeats=2).run()["rows"]
    assert row["tokens_per_s"] == 6.0 and row["disturbed"]


# ---- processes -------------------------------------------------------------------------------------------


def state(pid: int) -> str:
    """``R``, ``S``, ``T`` (stopped) …, or nothing when the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def becomes(pid: int, states: str, timeout_s: float = 20.0) -> bool:
    end = time.monotonic() + timeout_s
    while state(pid) not in states.split(",") and time.monotonic() < end:
        time.sleep(0.02)
    return state(pid) in states.split(",")


def loaded(contender: Contender) -> Runner:
    contender.folder.mkdir(parents=True)
    (contender.folder / "weights").touch()
    fields = {"model": ".", "precision": "bf16", "folder": str(contender.folder), "threads": 1}
    fields |= {"context": 8, "num_tokens": 8, "kv_bytes": 1, "num_sequences": 1}
    runner = Runner(contender)
    runner.ask({"load": fields}, 60)
    return runner


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[Runner]:
    runner = loaded(fake(tmp_path, "a"))
    yield runner
    runner.close()


def test_a_runner_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    runner = loaded(fake(tmp_path, "slow", mood="hangs"))
    with pytest.raises(RunnerFailed, match="the process ended: took more than 1 s"):
        runner.ask({"run": {"prompts": [[1]], "outputs": [1]}}, 1)
    assert state(runner._process.pid) == ""


def test_a_runner_is_stopped_except_while_it_is_asked(runner: Runner) -> None:
    pid = runner._process.pid
    for _ in range(2):
        runner.ask({"run": {"prompts": [[1]], "outputs": [1]}}, 60)
        assert becomes(pid, "T")
    with pytest.raises(RunnerFailed, match="unknown request 'dance'"):
        runner.ask({"dance": {}}, 60)
    assert becomes(pid, "T")
    runner.close()
    assert state(pid) == ""


def test_an_engine_gives_way_when_memory_is_short_and_the_last_one_to_run_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = iter([10 << 30, 1 << 30, 9 << 30])  # asked for b; for c, twice
    monkeypatch.setattr(process, "available_bytes", lambda: next(free))
    run = comparison(tmp_path)
    engines = [fake(tmp_path, name) for name in "abc"]
    with run.runners as runners:
        for engine in engines:
            runners.prepare(engine, tmp_path)
            setup = run._setup(DECODE, engine)
            runners.run(engine, setup, {"prompts": [[1]], "outputs": [2]}, 4 << 30)
        assert list(runners._loaded) == ["a bf16", "c bf16"]
    assert not runners._loaded


def test_no_engine_outlives_its_orchestrator(tmp_path: Path) -> None:
    contender = fake(tmp_path, "a")
    code = f"""
import os, time
from pathlib import Path
from tokenmill.bench.peers.process import *
folder = Path({str(tmp_path)!r})
runner = Runner(Contender("a", "bf16", "", {contender.command!r}, dict(os.environ), folder / "x", folder / "log"))
(folder / "x").mkdir()
runner.ask({{"prepare": {{"model": ".", "precision": "bf16", "folder": str(folder / "x")}}}}, 60)
print(runner._process.pid, flush=True)
time.sleep(600)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert becomes(pid, "T")
        owner.send_signal(signal.SIGKILL)
    assert becomes(pid, ",Z")


def test_other_processes_share_of_the_machine_is_seen(runner: Runner) -> None:
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        answer = runner.ask({"run": {"prompts": [[1]], "outputs": [100]}}, 60)
    finally:
        busy.kill()
        busy.wait()
    assert answer["other_cpu"] > 0.3 / (os.cpu_count() or 1)


# ---- environments ----------------------------------------------------------------------------------------


def test_every_peer_has_a_runner_and_a_pinned_version() -> None:
    for peer in PEERS.values():
        assert (environments.PACKAGE / "bench" / "peers" / "runners" / f"{peer.module}.py").exists()
        assert all("==" in package for package in peer.packages)
    assert "bf16" in set.intersection(*(set(peer.precisions) for peer in PEERS.values()))


def test_contenders_are_ours_and_every_format_of_the_peers(tmp_path: Path) -> None:
    found = list(contenders(Environments(tmp_path), list(PEERS.values()), "qwen3-0.6b", 2, {"kv": "int8"}))
    names = {contender.name for contender in found}
    assert {"tokenmill bf16", "tokenmill int8", "tokenmill int4", "vllm int8", "openvino int4"} <= names
    assert "transformers int8" not in names
    assert (found[0].engine, found[0].label, found[0].options) == (OURS, "bf16, kv int8", {"kv": "int8"})
    assert not any(contender.options for contender in found if contender.engine != OURS)
    theirs = next(contender for contender in found if contender.engine == "vllm")
    path = Path(theirs.environment["PYTHONPATH"])
    assert [entry.name for entry in path.iterdir()] == ["tokenmill"], "nothing of ours but the package leaks to a peer"


def test_an_installation_that_fails_says_why_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = Environments(tmp_path)
    peer = Peer("some", "none", ("some==1",), {"bf16": "bf16"}, remove=("other",))
    calls: list[list[str]] = []

    def fails(command: list[str], *more: Any) -> None:
        run([sys.executable, "-c", "print('ERROR: no such version\\n'); print('a hint'); exit(1)"], *more)

    def works(command: list[str], *_: Any) -> None:
        calls.append(command[1:])
        home.python(peer).parent.mkdir(parents=True, exist_ok=True)
        home.python(peer).touch()

    run = environments._run
    monkeypatch.setattr(environments, "_run", fails)
    with pytest.raises(SetupError, match=r"^some could not be installed: ERROR: no such version$"):
        home.install(peer)
    assert not home.is_installed(peer)
    monkeypatch.setattr(environments, "_run", works)
    home.install(peer)
    assert [call[1:3] for call in calls] == [["venv", "--clear"], ["pip", "install"], ["pip", "uninstall"]]
    assert home.is_installed(peer) and "some==1" in calls[1]
    home.install(peer)
    assert len(calls) == 3, "a complete environment is left alone"
    assert not home.is_installed(replace(peer, packages=("some==2",))), "another version is another environment"


# ---- checkpoints and our runner --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("checkpoint"), TINY)


@pytest.mark.parametrize(("name", "millions"), [("qwen3-0.6b", 596), ("llama-3.2-1b", 1236)])
def test_shapes_have_as_many_parameters_as_the_models_they_are_named_after(name: str, millions: int) -> None:
    assert round(weight_bytes(MODELS[name]) / 2e6) == millions
    assert kv_bytes_per_token(MODELS[name]) == {"qwen3-0.6b": 114688, "llama-3.2-1b": 32768}[name]


def test_a_checkpoint_is_written_once_and_holds_what_its_config_says(checkpoint: Path) -> None:
    weights = checkpoint / "model.safetensors"
    before = weights.stat().st_mtime_ns
    make_checkpoint(checkpoint, TINY)
    assert weights.stat().st_mtime_ns == before
    from safetensors.torch import load_file

    tensors = load_file(weights)
    assert sum(tensor.numel() for tensor in tensors.values()) * 2 == weight_bytes(TINY)
    query = tensors["model.layers.1.self_attn.q_proj.weight"].float()
    assert query.shape == (64, 64) and query.std().item() == pytest.approx(0.02, rel=0.1)


def test_our_runner_makes_the_tokens_that_were_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    engine = Ours()
    engine.load(
        Setup(str(checkpoint), "bf16", str(tmp_path), 1, context=40, num_tokens=96, kv_bytes=1, num_sequences=3)
    )
    prompts, outputs = make_prompts((5, 9, 21), 4096, "x"), [3, 6, 2]
    events = engine.generate(prompts, outputs).events
    assert sum(count for _, count in events) == 11
    assert [seconds for seconds, _ in events] == sorted(seconds for seconds, _ in events)
    assert max(count for _, count in events) == 3


def test_the_name_and_order_of_a_tensor_in_llama_cpps_file() -> None:
    import numpy

    assert llama_cpp.gguf_name("model.layers.3.mlp.up_proj.weight") == "blk.3.ffn_up.weight"
    assert llama_cpp.gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    # One head of six rows: row i of the first half lands beside row i of the second.
    turned = llama_cpp.interleave_halves(numpy.arange(6).reshape(6, 1), 6)
    assert turned[:, 0].tolist() == [0, 3, 1, 4, 2, 5]


def test_bfloat16_words_are_read_as_they_were_written(checkpoint: Path) -> None:
    import numpy

    found = llama_cpp.read_bfloat16(checkpoint / "model.safetensors", numpy)
    shape, words = found["model.norm.weight"]
    assert shape == (64,)
    assert ((words.astype(numpy.uint32) << 16).view(numpy.float32) == 1.0).all()
    assert sum(math.prod(shape) for shape, _ in found.values()) * 2 == weight_bytes(TINY)


# ---- command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "name"), [("--peer", "vlm"), ("--task", "decode_b7"), ("--precision", "fp8"), ("--model", "gpt")]
)
def test_an_unknown_name_is_refused_with_the_known_ones(
    capsys: pytest.CaptureFixture[str], option: str, name: str
) -> None:
    done = call(capsys, "bench", "peers", option, name)
    assert done.code == 2 and f"{option} {name}: there are " in done.err


def test_the_command_keeps_and_prints_what_was_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engines = [fake(tmp_path, OURS, step_s=0.002), fake(tmp_path, "vllm", mood="no-load"), fake(tmp_path, "llama.cpp")]
    monkeypatch.setattr("tokenmill.bench.peers.compare.contenders", lambda *_: engines)
    monkeypatch.setattr("tokenmill.bench.peers.shapes.MODELS", {"tiny": TINY})
    arguments = ["bench", "peers", "--model", "tiny", "--task", "decode_b1", "--repeat", "1", "--skip-install"]
    arguments += ["--environments", tmp_path / "home", "--output", tmp_path / "peers.json"]
    done = call(capsys, *arguments)
    assert done.code == 0, done.err
    assert "decode_b1_bf16" in done.out and "llama.cpp bf16" in done.out
    assert "vllm bf16: not installed" in done.out
    kept = json.loads((tmp_path / "peers.json").read_text())
    assert {"machine", "versions", "ratios", "rows"} <= set(kept)
    assert "not installed" in [row["reason"] for row in kept["rows"]]
