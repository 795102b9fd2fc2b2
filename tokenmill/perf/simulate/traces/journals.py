"""Our own journals (``serve --journal FILE``): yesterday's traffic, to be served again on something else.

A journal tells of every sequence when its request arrived, its prompt and how many tokens it got. Prompts are cut into
pieces of 16 tokens, named by the content up to their end, so that what began alike begins alike again; their text is
not kept. A journal without moments (written before they were) gives the order and, as arrival, when the engine took a
request up, in seconds of its steps. A sequence taken up again after a preemption is one request.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tokenmill.core.errors import ConfigError
from tokenmill.engine.journal import read_header
from tokenmill.perf.simulate.traces.draw import Draw
from tokenmill.perf.simulate.workload import Trace, TraceRequest, make_trace

PIECE_TOKENS = 16

Key = tuple[float | None, int, tuple[int, ...]]
"""Arrival (None: not told), seed and prompt: by these a sequence is known again after a preemption."""


@dataclass(slots=True)
class _Sequence:
    arrival_s: float
    prompt: tuple[int, ...]
    num_generated: int = 0


class _Reader:
    """Follows plans and results."""

    def __init__(self) -> None:
        self.sequences: list[_Sequence] = []
        self._by_id: dict[int, _Sequence] = {}
        self._dropped: dict[Key, _Sequence] = {}
        self._keys: dict[int, Key] = {}
        self._engine_s = 0.0

    def plan(self, plan: Mapping[str, Any], arrived_s: Mapping[str, float]) -> None:
        for seq_id in plan["dropped"]:
            if seq_id in self._by_id:
                self._dropped[self._keys.pop(seq_id)] = self._by_id.pop(seq_id)
        for new in plan["new"]:
            seq_id, prompt = new["seq_id"], tuple(new["token_ids"][: new["prompt_len"]])
            told_s = arrived_s.get(str(seq_id))
            key = (told_s, new["seed"], prompt)
            found = self._dropped.pop(key, None)
            if found is None or len(prompt) + found.num_generated != len(new["token_ids"]):
                found = _Sequence(self._engine_s if told_s is None else told_s, prompt)
                self.sequences.append(found)
            self._by_id[seq_id], self._keys[seq_id] = found, key

    def result(self, result: Mapping[str, Any]) -> None:
        self._engine_s += result["seconds"]
        for seq_id, token_ids in zip(result["seq_ids"], result["token_ids"], strict=True):
            if seq_id in self._by_id:
                self._by_id[seq_id].num_generated += len(token_ids)


def read(path: Path, draw: Draw) -> Trace:
    """The whole journal; a last line cut short by a crash is left out."""
    read_header(path)
    reader = _Reader()
    for number, record in _records(path):
        try:
            if "plan" in record:
                reader.plan(record["plan"], record.get("arrived_s", {}))
            else:
                reader.result(record["result"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{path.name}, line {number}: is not a plan or a result ({what})") from error
    requests = [
        TraceRequest(s.arrival_s, len(s.prompt), s.num_generated, _pieces(s.prompt), PIECE_TOKENS)
        for s in reader.sequences
    ]
    return make_trace(path.name, "journal", requests)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8") as file:
        for number, text in enumerate(file, 1):
            if number == 1:
                continue
            if not text.endswith("\n"):
                return
            try:
                record = json.loads(text)
            except ValueError as error:
                raise ConfigError(f"{path.name}, line {number}: is not JSON ({error})") from error
            yield number, record


def _pieces(prompt: tuple[int, ...]) -> tuple[int, ...]:
    """A name for each whole piece, made from everything up to its end."""
    names, state = [], blake2b(digest_size=8)
    for start in range(0, len(prompt) - PIECE_TOKENS + 1, PIECE_TOKENS):
        state.update(repr(prompt[start : start + PIECE_TOKENS]).encode())
        names.append(int.from_bytes(state.digest(), "big"))
    return tuple(names)
