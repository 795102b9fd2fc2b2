"""``tokenmill generate``: one prompt to the terminal, or a file of prompts to a file of answers.

A line of the input is an object: ``prompt`` (text or token ids) or ``messages``, an ``id`` if wanted (else the
line's number), and any sampling parameter. A line of the output is the answer under the same id, written the
moment it is done. Started again after it was killed, the command keeps the whole lines of the output and does
the rest: every id is answered exactly once.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenmill.cli.options import engine_options_only, sampling_options
from tokenmill.cli.output import Loading, counting, note, print_json
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import ConfigError, InvalidRequest, RequestError
from tokenmill.core.params import FIELD_NAMES, SamplingParams

if TYPE_CHECKING:
    from tokenmill.llm import LLM, Completion, Prompt

EXTRA_FIELDS = ("id", "prompt", "messages")


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the input, checked."""

    id: str | int
    prompt: Prompt
    params: SamplingParams


@click.command()
@click.argument("prompt", required=False)
@engine_options_only
@sampling_options
@click.option("--input", "input_path", type=click.Path(path_type=Path), help="JSONL file of prompts.")
@click.option("--output", "output_path", type=click.Path(path_type=Path), help="JSONL file for the answers.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def generate(
    prompt: str | None,
    engine: EngineConfig,
    sampling: dict[str, Any],
    input_path: Path | None,
    output_path: Path | None,
    as_json: bool,
) -> int:
    """Continue PROMPT, or every prompt of --input into --output (run again, it goes on where it was stopped)."""
    if (prompt is None) == (input_path is None):
        raise click.UsageError("give a PROMPT, or --input and --output")
    if prompt is not None:
        return _one(prompt, engine, SamplingParams(**sampling), as_json)
    if input_path is None or output_path is None:
        raise click.UsageError("--input needs --output for the answers")
    return _file(input_path, output_path, engine, sampling, as_json)


def _one(prompt: str, engine: EngineConfig, params: SamplingParams, as_json: bool) -> int:
    with _load(engine) as llm:
        if as_json or params.num_sequences > 1:
            (completion,) = llm.generate(prompt, params)
            report = {"model": llm.launched.checkpoint.name, "prompt": prompt, **_answer(completion)}
            print_json(report) if as_json else print("\n\n".join(choice.text for choice in completion.choices))
            return 0
        for output in llm.stream(prompt, params):
            print(output.text, end="", flush=True)
        print()
    return 0


def _file(input_path: Path, output_path: Path, engine: EngineConfig, sampling: dict[str, Any], as_json: bool) -> int:
    rows = _read_rows(input_path, sampling)
    done = _resume(output_path)
    todo = [row for row in rows if row.id not in done]
    if done:
        note(f"{len(rows) - len(todo)} of {len(rows)} are done already")
    started_s = time.monotonic()
    report = {"rows": len(rows), "skipped": len(rows) - len(todo), "answered": 0, "failed": 0, "output_tokens": 0}
    if todo:
        with output_path.open("a", encoding="utf-8") as output, _load(engine) as llm:
            for line in _answers(llm, todo):
                output.write(json.dumps(line, ensure_ascii=False) + "\n")
                output.flush()
                report["failed" if "error" in line else "answered"] += 1
                report["output_tokens"] += line.get("usage", {}).get("completion_tokens", 0)
    seconds = time.monotonic() - started_s
    if as_json:
        print_json({**report, "seconds": seconds, "output": str(output_path)})
    else:
        note(f"{report['answered']} answered, {report['failed']} failed, in {seconds:.1f} s: {output_path}")
    return 1 if report["failed"] else 0


def _answers(llm: LLM, rows: list[Row]) -> Iterator[dict[str, Any]]:
    """A line of output per row, in the order in which they are done."""
    answers = llm.iter_completions((row.prompt for row in rows), (row.params for row in rows))
    with counting("generating", len(rows)) as bar, closing(answers) as completions:
        for count, (position, completion) in enumerate(completions, 1):
            bar.update(count)
            if isinstance(completion, RequestError):
                error = {"message": completion.message, "code": completion.code, "param": completion.param}
                yield {"id": rows[position].id, "error": error}
            else:
                yield {"id": rows[position].id, **_answer(completion)}


def _answer(completion: Completion) -> dict[str, Any]:
    account = completion.account
    return {
        "choices": [
            {
                "index": choice.index,
                "text": choice.text,
                "finish_reason": choice.finish_reason,
                "stop_reason": choice.stop_reason,
                **({} if choice.logprobs is None else {"logprobs": [asdict(entry) for entry in choice.logprobs]}),
            }
            for choice in completion.choices
        ],
        "usage": asdict(completion.usage),
        "seed": completion.seed,
        "timing": {
            "first_token_s": completion.first_token_s,
            "queue_s": account.queue_s,
            "prefill_s": account.prefill_s,
            "decode_s": account.decode_s,
            "total_s": account.total_s,
            "chunks": account.num_chunks,
            "preemptions": account.num_preemptions,
        },
    }


def _load(engine: EngineConfig) -> LLM:
    with Loading() as progress:
        from tokenmill.launch import build
        from tokenmill.llm import LLM

        return LLM.over(build(engine, progress))


# ---- files -----------------------------------------------------------------------------------------------


def _read_rows(path: Path, defaults: dict[str, Any]) -> list[Row]:
    """Every line checked before anything is loaded; raises ``ConfigError`` with the line's number."""
    rows: dict[str | int, Row] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = _row(json.loads(line), number, defaults)
        except (ValueError, TypeError, InvalidRequest) as error:
            raise ConfigError(f"{path}, line {number}: {error}") from error
        if row.id in rows:
            raise ConfigError(f"{path}, line {number}: id {row.id!r} occurs twice")
        rows[row.id] = row
    return list(rows.values())


def _row(data: Any, number: int, defaults: dict[str, Any]) -> Row:
    if not isinstance(data, dict):
        raise ValueError("must be a JSON object")
    unknown = sorted(set(data) - FIELD_NAMES - set(EXTRA_FIELDS))
    if unknown:
        raise ValueError(f"unknown field {unknown[0]!r}")
    if ("prompt" in data) == ("messages" in data):
        raise ValueError("needs either prompt or messages")
    if not isinstance(data.get("id", number), str | int):
        raise ValueError("id must be a text or a number")
    wishes = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    params = SamplingParams(**defaults | {name: wishes[name] for name in wishes if name in FIELD_NAMES})
    return Row(data.get("id", number), _prompt(data), params)


def _prompt(data: dict[str, Any]) -> Prompt:
    prompt = data.get("prompt", data.get("messages"))
    wanted = int if "prompt" in data else dict
    if isinstance(prompt, str) and "prompt" in data:
        return prompt
    if not isinstance(prompt, list) or not prompt or not all(type(item) is wanted for item in prompt):
        raise ValueError("prompt must be a text or a list of token ids, messages a list of objects")
    return prompt


def _resume(path: Path) -> set[str | int]:
    """The ids that are answered; a last line that was cut short is taken away."""
    if not path.exists():
        return set()
    with path.open("rb+") as file:
        whole = file.read()
        keep = whole.rfind(b"\n") + 1
        file.truncate(keep)
        file.flush()
        os.fsync(file.fileno())
    try:
        return {json.loads(line)["id"] for line in whole[:keep].splitlines()}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is not an output of this command: choose another --output") from error
