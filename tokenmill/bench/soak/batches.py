"""One batch from its file to its answers: every ``custom_id`` exactly once, whatever happens to the engine."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

from tokenmill.bench.soak.session import Session
from tokenmill.bench.soak.wire import Answer, multipart

ENDED = {"completed", "failed", "expired", "cancelled"}
LIMIT_S = 300.0
BAD_EVERY = 7
"""Every so many lines one must fail, by its own fault."""


async def batch(session: Session, count: int) -> None:
    """Upload ``count`` lines, run them, compare what came out, delete the files."""
    ids = [session.name("line") for _ in range(count)]
    lines = [_line(session, number, custom_id) for number, custom_id in enumerate(ids)]
    kind, form = multipart({"purpose": "batch"}, "lines.jsonl", "\n".join(map(json.dumps, lines)).encode())
    file = await _surely(session, "file", "POST", "/v1/files", form, content_type=kind)
    asked = {"input_file_id": file["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    found = await _surely(session, "batch", "POST", "/v1/batches", asked)
    began_s = session.record.now_s
    while found["status"] not in ENDED:
        await asyncio.sleep(0.5)
        if session.record.now_s - began_s > LIMIT_S:
            return session.record.breach("batches", f"not over after {LIMIT_S:g} s: {found['request_counts']}")
        found = await _surely(session, "batch, asked for", "GET", f"/v1/batches/{found['id']}")
    session.record.took("batch", session.record.now_s - began_s)
    seen: Counter[str] = Counter()
    files = [found.get("output_file_id"), found.get("error_file_id")]
    for file_id in filter(None, files):
        content = await _surely_answer(session, "file, read", "GET", f"/v1/files/{file_id}/content")
        rows = [json.loads(row) for row in content.body.splitlines()]
        seen.update(row["custom_id"] for row in rows)
        _check_rows(session, rows, ids, is_output=file_id == found.get("output_file_id"))
    if seen != Counter(ids) or found["status"] != "completed":
        lost, twice = set(ids) - set(seen), [name for name, times in seen.items() if times > 1]
        session.record.breach("batches", f"{found['status']}: lost {lost}, more than once {twice}, {len(ids)} lines")
    for file_id in filter(None, [*files, file["id"]]):
        await _surely(session, "file, deleted", "DELETE", f"/v1/files/{file_id}")
    return None


def _line(session: Session, number: int, custom_id: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": session.model, "prompt": session.words(1, 30), "max_tokens": 8, "seed": number}
    if _is_bad(number):
        body["logit_bias"] = {"999999999": 1}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": body}


def _is_bad(number: int) -> bool:
    return number % BAD_EVERY == BAD_EVERY - 1


def _check_rows(session: Session, rows: list[dict[str, Any]], ids: list[str], *, is_output: bool) -> None:
    for row in rows:
        status = (row["response"] or {}).get("status_code")
        bad = row["custom_id"] in ids and _is_bad(ids.index(row["custom_id"]))
        if status != (400 if bad else 200) or is_output == bad:
            session.record.breach("batches", f"{'a bad' if bad else 'a good'} line gave {json.dumps(row)}")


async def _surely(session: Session, *args: Any, **kwargs: Any) -> Any:
    return (await _surely_answer(session, *args, **kwargs)).json()


async def _surely_answer(session: Session, *args: Any, **kwargs: Any) -> Answer:
    """Again until it is not refused: what goes on in a batch must not depend on luck."""
    async with asyncio.timeout(LIMIT_S):
        while (answer := await session.ask(*args, **kwargs)) is None:
            if not session.weather.alive():
                raise TimeoutError("the server is gone")
            await asyncio.sleep(0.5)
    return answer
