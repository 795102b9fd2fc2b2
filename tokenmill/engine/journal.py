"""The journal: every plan and every result, one JSON object a line. A journal is a bug report that replays.

The first line says what the executor must be like (model, block size, number of blocks, precision); the
others alternate as they happened. Beside a plan stand its moment and when the requests new in it arrived (on the
engine's clock), so that a journal is a record of traffic too. ``replay`` hands the plans to an executor and
compares what comes back: tokens and log-probabilities must be equal bit for bit (a float is written so that it
reads back the same; seconds are not compared).
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from tokenmill.core.errors import SetupError, TokenmillError
from tokenmill.core.grammar import Grammar
from tokenmill.core.params import SamplingParams
from tokenmill.core.pooling import Pooling
from tokenmill.core.step import NewSequence, StepPlan, StepResult, TokenLogprobs
from tokenmill.engine.contracts import Executor
from tokenmill.engine.faults import fire

log = logging.getLogger(__name__)

FORMAT = 1

Record = StepPlan | StepResult


class JournalWriter:
    """Appends records to a file; each line is flushed, so that a crash loses nothing that happened before it.

    A file that cannot be written any more (a full disk) ends the journal, and not the engine.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self._file: TextIO = path.open("w", encoding="utf-8")
        self._ended = False
        self._write({"journal": FORMAT, **header})

    def plan(self, plan: StepPlan, time_s: float | None = None, arrived_s: Mapping[int, float] | None = None) -> None:
        """A plan, when it was made, and when the requests of its new sequences arrived (by ``seq_id``)."""
        times = {"time_s": time_s, "arrived_s": dict(arrived_s or {})} if time_s is not None else {}
        self._write({"plan": _plan_to_json(plan), **times})

    def result(self, result: StepResult) -> None:
        self._write({"result": _result_to_json(result)})

    def close(self) -> None:
        with contextlib.suppress(OSError):  # what could not be flushed
            self._file.close()

    def _write(self, record: dict[str, Any]) -> None:
        if self._ended:
            return
        try:
            fire("journal.write", record)
            self._file.write(json.dumps(record, separators=(",", ":")) + "\n")
            self._file.flush()
        except OSError as error:
            self._ended = True
            log.error("the journal %s ends here: %s", self._file.name, error.strerror or error)


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A step that did not replay."""

    step_id: int
    seq_id: int
    field: str
    recorded: object
    replayed: object


@dataclass(slots=True)
class ReplayReport:
    num_steps: int = 0
    num_tokens: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)


def read_header(path: Path) -> dict[str, Any]:
    """The journal's first line: how its executor was built.

    Raises:
        SetupError: the file is not a journal, or one of another format.
    """
    try:
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline())
    except (OSError, ValueError, RecursionError) as error:
        raise SetupError(f"cannot read journal {path}: {error}") from error
    if not isinstance(header, dict) or header.get("journal") != FORMAT:
        raise SetupError(f"{path} is not a journal of format {FORMAT} (serve with --journal FILE writes one)")
    return header


def read_records(path: Path) -> Iterator[Record]:
    """The plans and results in order. A line cut short by a crash ends the journal.

    Raises:
        SetupError: a whole line is neither; names it.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        next(file, None)
        for number, line in enumerate(file, 2):
            if not line.endswith("\n"):
                return
            yield _record(line, path, number)


def _record(line: str, path: Path, number: int) -> Record:
    try:
        record = json.loads(line)
        return _plan_from_json(record["plan"]) if "plan" in record else _result_from_json(record["result"])
    except (AttributeError, LookupError, TypeError, ValueError, RecursionError, TokenmillError) as error:
        raise SetupError(f"{path}, line {number}: is not a plan or a result: {error}") from error


def replay(records: Iterator[Record], executor: Executor) -> Iterator[tuple[StepResult, list[Mismatch]]]:
    """Carry out the recorded plans on ``executor`` (started) and compare each result with the recorded one."""
    pending = []
    for record in records:
        if isinstance(record, StepPlan):
            pending.append(executor.submit(record))
        else:
            yield record, compare(record, pending.pop(0).result())


def compare(recorded: StepResult, replayed: StepResult) -> list[Mismatch]:
    """Where two results of one step differ, bit for bit; their seconds may."""
    found = []
    old_tokens = dict(zip(recorded.seq_ids, recorded.token_ids, strict=True))
    new_tokens = dict(zip(replayed.seq_ids, replayed.token_ids, strict=True))
    pairs: list[tuple[str, Any, Any]] = [
        ("token_ids", old_tokens, new_tokens),
        ("logprobs", recorded.logprobs, replayed.logprobs),
        ("prompt_logprobs", recorded.prompt_logprobs, replayed.prompt_logprobs),
        ("errors", recorded.errors, replayed.errors),
        ("error_codes", recorded.error_codes, replayed.error_codes),
        ("embeddings", recorded.embeddings, replayed.embeddings),
    ]
    for name, old, new in pairs:
        for seq_id in sorted({*old, *new}):
            if old.get(seq_id) != new.get(seq_id):
                found.append(Mismatch(recorded.step_id, seq_id, name, old.get(seq_id), new.get(seq_id)))
    return found


# ---- records as JSON: dictionary keys are strings there, tuples are lists, frozensets are sorted lists ------


def _plan_to_json(plan: StepPlan) -> dict[str, Any]:
    return {
        "step_id": plan.step_id,
        "seq_ids": plan.seq_ids,
        "starts": plan.starts,
        "counts": plan.counts,
        "new": [_new_to_json(new) for new in plan.new],
        "block_updates": dict(plan.block_updates),
        "copies": plan.copies,
        "drafts": dict(plan.drafts),
        "dropped": plan.dropped,
    }


def _new_to_json(new: NewSequence) -> dict[str, Any]:
    return {
        "seq_id": new.seq_id,
        "token_ids": new.token_ids,
        "prompt_len": new.prompt_len,
        "params": asdict(new.params),
        "seed": new.seed,
        "stop_token_ids": sorted(new.stop_token_ids),
        "block_ids": new.block_ids,
        "pooling": None if new.pooling is None else asdict(new.pooling),
    }


def _plan_from_json(data: dict[str, Any]) -> StepPlan:
    return StepPlan(
        step_id=data["step_id"],
        seq_ids=tuple(data["seq_ids"]),
        starts=tuple(data["starts"]),
        counts=tuple(data["counts"]),
        new=tuple(_new_from_json(new) for new in data["new"]),
        block_updates={int(k): (index, tuple(ids)) for k, (index, ids) in data["block_updates"].items()},
        copies=tuple((source, destination) for source, destination in data["copies"]),
        drafts={int(k): tuple(ids) for k, ids in data["drafts"].items()},
        dropped=tuple(data["dropped"]),
    )


def _new_from_json(data: dict[str, Any]) -> NewSequence:
    return NewSequence(
        seq_id=data["seq_id"],
        token_ids=tuple(data["token_ids"]),
        prompt_len=data["prompt_len"],
        params=_params_from_json(data["params"]),
        seed=data["seed"],
        stop_token_ids=frozenset(data["stop_token_ids"]),
        block_ids=tuple(data["block_ids"]),
        pooling=Pooling(**pooling) if (pooling := data.get("pooling")) else None,  # earlier versions wrote none
    )


def _params_from_json(data: dict[str, Any]) -> SamplingParams:
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
    values["logit_bias"] = {int(token_id): bias for token_id, bias in data["logit_bias"].items()}
    values["grammar"] = Grammar(**data["grammar"]) if data.get("grammar") else None
    values["bad_words_ids"] = tuple(tuple(ids) for ids in data["bad_words_ids"])
    return SamplingParams(**values)


def _result_to_json(result: StepResult) -> dict[str, Any]:
    return {
        "step_id": result.step_id,
        "seq_ids": result.seq_ids,
        "token_ids": result.token_ids,
        "logprobs": {k: [_entry_to_json(e) for e in entries] for k, entries in result.logprobs.items()},
        "prompt_logprobs": {
            k: [position, [_entry_to_json(e) for e in entries]]
            for k, (position, entries) in result.prompt_logprobs.items()
        },
        "errors": dict(result.errors),
        "error_codes": dict(result.error_codes),
        "drafts": dict(result.drafts),
        "embeddings": {k: base64.b64encode(values).decode() for k, values in result.embeddings.items()},
        "seconds": result.seconds,
        "sampling_seconds": result.sampling_seconds,
    }


def _entry_to_json(entry: TokenLogprobs) -> list[Any]:
    return [entry.token_id, entry.logprob, entry.rank, entry.top]


def _result_from_json(data: dict[str, Any]) -> StepResult:
    return StepResult(
        step_id=data["step_id"],
        seq_ids=tuple(data["seq_ids"]),
        token_ids=tuple(tuple(ids) for ids in data["token_ids"]),
        logprobs={int(k): _entries(entries) for k, entries in data["logprobs"].items()},
        prompt_logprobs={int(k): (pos, _entries(entries)) for k, (pos, entries) in data["prompt_logprobs"].items()},
        errors={int(k): reason for k, reason in data["errors"].items()},
        error_codes={int(k): code for k, code in data.get("error_codes", {}).items()},  # earlier versions have none
        drafts={int(k): tuple(ids) for k, ids in data["drafts"].items()},
        embeddings={int(k): base64.b64decode(values) for k, values in data.get("embeddings", {}).items()},
        seconds=data["seconds"],
        sampling_seconds=data.get("sampling_seconds", 0.0),  # journals of earlier versions have none
    )


def _entries(data: list[Any]) -> tuple[TokenLogprobs, ...]:
    return tuple(
        TokenLogprobs(token_id, logprob, rank, tuple((i, value) for i, value in top))
        for token_id, logprob, rank, top in data
    )
