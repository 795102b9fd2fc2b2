"""``tokenmill generate``: one prompt, and files that survive being killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL
from tests.cli.support import call, process
from tokenmill.cli.generate import _resume
from tokenmill.core.errors import ConfigError

Capsys = pytest.CaptureFixture[str]
MODEL = ("--model", *SMALL)
COMMON = (*MODEL, "--max-tokens", "12", "--ignore-eos", "--seed", "5")


def write_rows(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_one_prompt_as_text_and_as_json(capsys: Capsys) -> None:
    plain = call(capsys, "generate", "Once upon a time", *COMMON)
    report = json.loads(call(capsys, "generate", "Once upon a time", *COMMON, "--json").out)
    assert plain.code == 0 and plain.out == report["choices"][0]["text"] + "\n"
    assert report["usage"]["completion_tokens"] == 12
    assert report["seed"] == 5 and report["timing"]["total_s"] > 0
    assert report["choices"][0]["finish_reason"] == "length"


def test_a_file_of_prompts(capsys: Capsys, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "Once upon a time"},
        {"id": "chat", "messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 3},
        {"id": 77, "prompt": [5, 6, 7], "n": 2},
        {"id": "too long", "prompt": [5] * 5000},
    ]
    output = tmp_path / "out.jsonl"
    done = call(
        capsys, "generate", "--input", write_rows(tmp_path / "in.jsonl", rows), "--output", output, *COMMON, "--json"
    )
    report = json.loads(done.out)
    answers = {row["id"]: row for row in read_rows(output)}
    assert done.code == 1  # one of them failed
    assert (report["rows"], report["answered"], report["failed"], report["skipped"]) == (4, 3, 1, 0)
    assert set(answers) == {1, "chat", 77, "too long"}
    assert answers["chat"]["usage"]["completion_tokens"] == 3
    assert len(answers[77]["choices"]) == 2
    assert answers["too long"]["error"]["code"] == "context_length_exceeded"
    alone = json.loads(call(capsys, "generate", "Once upon a time", *COMMON, "--json").out)
    assert answers[1]["choices"] == alone["choices"]


def test_killed_and_started_again_every_id_is_answered_once_and_as_if_never_killed(
    capsys: Capsys, tmp_path: Path
) -> None:
    rows: list[dict[str, object]] = [{"id": f"r{i}", "prompt": f"Number {i} was", "seed": i} for i in range(60)]
    rows += [{"id": "slow", "prompt": "And then", "max_tokens": 1500, "ignore_eos": True}]
    source, output = write_rows(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    options = ("--input", source, "--output", output, *COMMON)
    with process("generate", *options) as started:
        while not output.exists() or output.read_text().count("\n") < 5:
            assert started.popen.poll() is None, started.text
        started.signal(signal.SIGKILL)
        started.wait()
    before = output.read_text()
    assert 5 <= before.count("\n") < len(rows)
    output.write_text(before + '{"id": "r59", "choi')  # as if it had been killed in the middle of a line

    rows[-1]["max_tokens"] = 20
    write_rows(source, rows)
    done = call(capsys, "generate", *options)
    assert done.code == 0 and "are done already" in done.err
    answers = read_rows(output)
    assert output.read_text().startswith(before)
    assert sorted(str(row["id"]) for row in answers) == sorted(str(row["id"]) for row in rows)
    whole = tmp_path / "whole.jsonl"
    call(capsys, "generate", "--input", source, "--output", whole, *COMMON)
    texts = {row["id"]: row["choices"][0]["text"] for row in read_rows(whole)}
    assert {row["id"]: row["choices"][0]["text"] for row in answers} == texts

    again = call(capsys, "generate", *options, "--json")
    assert json.loads(again.out)["skipped"] == len(rows) and "loading" not in again.err


@pytest.mark.parametrize(
    ("row", "cause"),
    [
        ('{"prompt": "a", "temprature": 1}', "unknown field 'temprature'"),
        ('{"prompt": "a", "temperature": true}', "temperature must be a number"),
        ('{"prompt": "a", "messages": []}', "either prompt or messages"),
        ("{}", "either prompt or messages"),
        ('{"prompt": [1, true]}', "list of token ids"),
        ('{"prompt": ""', "line 2"),
        ("[]", "must be a JSON object"),
        ('{"prompt": "a", "id": 1}', "id 1 occurs twice"),
        ('{"prompt": "a", "id": null}', "id must be"),
    ],
)
def test_a_bad_line_is_refused_by_its_number_before_anything_is_loaded(
    row: str, cause: str, capsys: Capsys, tmp_path: Path
) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"prompt": "fine"}\n' + row + "\n")
    done = call(capsys, "generate", "--input", source, "--output", tmp_path / "out.jsonl", *MODEL)
    assert done.code == 1 and cause in done.err and "line 2" in done.err
    assert "loading" not in done.err and not (tmp_path / "out.jsonl").exists()


def test_a_file_that_is_no_output_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    with pytest.raises(ConfigError, match=r"notes\.txt is not an output"):
        _resume(path)
    assert path.read_text() == "my notes\n"


def test_an_output_that_cannot_be_written_is_told_before_anything_is_loaded(capsys: Capsys, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "a"}])
    done = call(capsys, "generate", "--input", source, "--output", tmp_path / "nowhere" / "out.jsonl", *MODEL)
    assert done.code == 1 and "No such file or directory" in done.err and "out.jsonl" in done.err
    assert "loading" not in done.err
