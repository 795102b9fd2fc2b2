"""``info``, ``replay`` and ``bench``: what they report, as text and as one JSON object."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.cli.conftest import SMALL
from tests.cli.support import call
from tokenmill import builtin

Capsys = pytest.CaptureFixture[str]


def test_info_says_what_it_is_and_every_byte_it_needs(capsys: Capsys) -> None:
    report = json.loads(call(capsys, "info", "story-draft", "--kernels", "reference", "--json").out)
    config = json.loads((builtin.path("story-draft") / "config.json").read_text())
    with safe_open(builtin.path("story-draft") / "model.safetensors", "pt") as weights:
        stored = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    assert report["model"]["parameters"] == stored
    assert report["model"]["layers"] == config["num_hidden_layers"]
    memory = report["memory"]
    assert sum(item["bytes"] for item in memory["items"]) == memory["total_bytes"] <= memory["available_bytes"]
    assert sum(item["bytes"] for item in memory["items"] if item["group"] == "weights") == 4 * stored

    text = call(capsys, "info", "story-draft", "--kernels", "reference").out
    assert config["architectures"][0] in text and f"{memory['items'][0]['bytes']:,}" in text


def test_what_was_foreseen_is_what_is_taken(capsys: Capsys) -> None:
    done = call(capsys, "info", *SMALL, "--load", "--json")
    measured = json.loads(done.out)["measured"]
    for name in ("weights", "kv"):
        assert measured[name]["measured_bytes"] == measured[name]["foreseen_bytes"] > 0
    assert "equal" in call(capsys, "info", *SMALL, "--load").out


def test_a_journal_replays_bit_for_bit_and_a_changed_one_does_not(capsys: Capsys, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"
    call(capsys, "generate", "Once", "--model", *SMALL, "--max-tokens", "10", "--logprobs", "2", "--journal", journal)
    done = call(capsys, "replay", journal)
    assert done.code == 0 and "every bit equal" in done.out

    lines = journal.read_text().splitlines()
    position, record = next((i, json.loads(line)) for i, line in enumerate(lines) if '"result"' in line)
    (token_ids,) = record["result"]["token_ids"]
    record["result"]["token_ids"] = [[token_ids[0] ^ 1]]
    lines[position] = json.dumps(record)
    journal.write_text("\n".join(lines) + "\n")
    report = call(capsys, "replay", journal, "--json")
    assert report.code == 1
    assert [one["field"] for one in json.loads(report.out)["mismatches"]] == ["token_ids"]


def test_a_load_on_a_real_server_leaves_no_block_in_use(capsys: Capsys, server_url: str, tmp_path: Path) -> None:
    kept = tmp_path / "results" / "serve.json"
    done = call(
        capsys, "bench", "serve", "--url", server_url, "--num-requests", 12, "--prompt-tokens", "4-60",
        "--output-tokens", "2-20", "--rate", "20", "--slo", "e2e=1000", "--output", kept, "--json",
    )  # fmt: skip
    report = json.loads(done.out)
    assert done.code == 0
    counts = report["requests"]
    assert (counts["completed"], counts["failed"], counts["truncated"]) == (12, 0, 0)
    assert report["goodput"]["requests_per_s"] == pytest.approx(report["throughput"]["requests_per_s"])
    assert set(report["latency"]["ttft_s"]) == {"mean", "p50", "p90", "p95", "p99", "max"}
    assert report["counted_by"] == {"usage": 12}
    assert report["blocks_in_use"] == 0.0
    assert json.loads(kept.read_text()) == report

    text = call(
        capsys, "bench", "serve", "--url", server_url, "--num-requests", 6, "--output-tokens", "2", "--rate", 20,
        "--rate", 40, "--warmup", 2, "--calibrate", "--metrics", f"{server_url}/metrics", "--endpoint", "chat",
        "--slo", "ttft=100",
    )  # fmt: skip
    assert text.code == 0 and "4 completed, 0 failed" in text.out and "first token" in text.out
    assert "90 % of the requests keep the limits up to 40 requests a second" in text.out
    assert "2 before them as warm-up" in text.out and "on a server that does nothing" in text.out
    assert "tokenmill_generation_tokens_total" in text.out


def test_bench_scheduler(capsys: Capsys) -> None:
    report = json.loads(call(capsys, "bench", "scheduler", "--num-requests", 60, "--batch-size", 4, "--json").out)
    (row,) = report["rows"]
    assert row["batch"] == 4 and row["us_per_step_median"] > 0 and report["machine"]["cores"]
    assert "µs" in call(capsys, "bench", "scheduler", "--num-requests", 60, "--batch-size", 4).out


def test_bench_grammar(capsys: Capsys) -> None:
    report = json.loads(call(capsys, "bench", "grammar", "--steps", 20, "--json").out)
    assert report["vocab_size"] == 4096 and report["machine"]["cores"]
    assert all(row["tokens"] == 20 and row["compile_ms"] > row["found_us"] / 1e3 > 0 for row in report["rows"])
    assert "mask µs" in call(capsys, "bench", "grammar", "--steps", 5).out


def test_bench_kv_waste(capsys: Capsys, tmp_path: Path) -> None:
    lengths = tmp_path / "lengths.csv"
    lengths.write_text("ContextTokens,GeneratedTokens\n100,20\n30,40\n")
    report = json.loads(call(capsys, "bench", "kv-waste", lengths, "--json").out)
    assert report["requests"] == 2 and report["bench"] == "kv-waste"


def test_threads_are_set(capsys: Capsys) -> None:
    before = torch.get_num_threads()
    try:
        call(capsys, "info", *SMALL, "--load")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
