"""``tokenmill batch``: from file to file, and on after a kill."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import SMALL
from tests.cli.support import call, process

Capsys = pytest.CaptureFixture[str]
MODEL = ("--model", *SMALL)


def write(path: Path, number: int, **more: Any) -> Path:
    body = {"model": "story-draft", "max_tokens": 8, "temperature": 0, "ignore_eos": True, **more}
    rows = [
        {"custom_id": f"id {i}", "method": "POST", "url": "/v1/completions", "body": {**body, "prompt": f"Once {i}"}}
        for i in range(number)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = {row["custom_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


def test_a_file_of_requests(capsys: Capsys, tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", 6), tmp_path / "out.jsonl"
    with source.open("a") as file:
        wrong = {"model": "story-draft", "prompt": "a", "temperature": 9}
        file.write(json.dumps({"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": wrong}))
    done = call(capsys, "batch", source, "--output", output, *MODEL, "--json")
    assert done.code == 1  # one of them failed
    report = json.loads(done.out)
    assert report["status"] == "completed"
    assert report["request_counts"] == {"total": 7, "completed": 6, "failed": 1}
    answers = read(output)
    assert set(answers) == {f"id {i}" for i in range(6)}
    alone = json.loads(
        call(
            capsys, "generate", "Once 3", *MODEL, "--max-tokens", "8", "--temperature", "0", "--ignore-eos", "--json"
        ).out
    )
    assert answers["id 3"]["response"]["body"]["choices"][0]["text"] == alone["choices"][0]["text"]
    assert read(tmp_path / "out.jsonl.errors")["x"]["response"]["body"]["error"]["param"] == "temperature"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl", "out.jsonl.errors"]
    again = call(capsys, "batch", source, "--output", output, *MODEL)
    assert again.code == 1 and "is there already" in again.err


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "'url' in the first line"), ('{"url": "/v1/moderations"}', "'url' in the first line")],
)
def test_inputs_that_are_none(capsys: Capsys, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "in.jsonl").write_text(text)
    done = call(capsys, "batch", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl", *MODEL)
    assert done.code == 1 and message in done.err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_wrong_line_is_named_and_nothing_is_run(capsys: Capsys, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", 3)
    source.write_text(source.read_text() + "{}\n")
    done = call(capsys, "batch", source, "--output", tmp_path / "out.jsonl", *MODEL)
    assert done.code == 1 and "line 4:" in done.err and "nothing was" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.slow
def test_killed_and_run_again(capsys: Capsys, tmp_path: Path) -> None:
    source, output = write(tmp_path / "in.jsonl", 300, max_tokens=40), tmp_path / "out.jsonl"
    with process("batch", source, "--output", output, *MODEL) as started:
        folder = tmp_path / "out.jsonl.batch" / "partial"
        until_s = time.monotonic() + 60
        while not (folder.exists() and sum(path.stat().st_size for path in folder.iterdir())):
            assert time.monotonic() < until_s and started.popen.poll() is None, started.text
            time.sleep(0.01)
        started.signal(signal.SIGKILL)
        started.wait()
    assert not output.exists()
    other = write(tmp_path / "other.jsonl", 3)
    refused = call(capsys, "batch", other, "--output", output, *MODEL)
    assert refused.code == 1 and "another input" in refused.err
    assert call(capsys, "batch", source, "--output", output, *MODEL).code == 0
    assert set(read(output)) == {f"id {i}" for i in range(300)}
    assert not (tmp_path / "out.jsonl.batch").exists()
