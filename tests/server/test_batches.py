"""``/v1/batches``: from a file of requests to its answers, and what stops that: AC-10."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import openai
import pytest
from openai.types import Batch
from pydantic import TypeAdapter

from tests.server.service import MODEL
from tests.server.support import Running, error_of, running_server, wait_until
from tokenmill.core.errors import Unavailable
from tokenmill.core.events import StepEvents
from tokenmill.server.batches import ledger, lines, records, runner
from tokenmill.server.protocol.batches import BatchObject, OutputLine
from tokenmill.server.settings import ServerSettings

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LONG = 60.0
"""Seconds that anything may take on a busy machine."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = ServerSettings(port=0, store_dir=tmp_path_factory.mktemp("batches") / "store", max_tenant_batches=5)
    with running_server(settings, step_s=0.001) as running:
        yield running


@pytest.fixture
def server(shared: Running) -> Iterator[Running]:
    """Fails the test that leaves a batch or a request running."""
    yield shared
    for batch in shared.client().batches.list():
        assert batch.status in ("completed", "failed", "expired", "cancelled"), batch
    shared.wait_idle(LONG)


def line(custom_id: str, body: dict[str, Any], url: str = COMPLETIONS, **more: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **more}


def requests(number: int, **more: Any) -> list[dict[str, Any]]:
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 3, "temperature": 0, **more}
    return [line(f"line {i}", {**body, "prompt": f"Once {i}"}) for i in range(number)]


def begin(server: Running, what: list[dict[str, Any]] | bytes, endpoint: str = COMPLETIONS, **more: Any) -> Batch:
    data = what if isinstance(what, bytes) else "\n".join(map(json.dumps, what)).encode()
    client = server.client()
    file = client.files.create(file=("input.jsonl", data), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


def end_of(server: Running, batch: Batch) -> Batch:
    deadline_s = time.monotonic() + LONG
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < deadline_s, batch
        time.sleep(0.01)
        batch = server.client().batches.retrieve(batch.id)
        assert_counts(batch)
    return batch


def assert_counts(batch: Batch) -> None:
    counts = batch.request_counts
    assert counts is not None
    assert counts.completed + counts.failed <= counts.total or counts.total == 0


def rows(server: Running, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of an output or error file by ``custom_id``, each of the promised shape and there once."""
    if file_id is None:
        return {}
    found = [json.loads(text) for text in server.client().files.content(file_id).text.splitlines()]
    for row in found:
        TypeAdapter(OutputLine).validate_python(row, strict=True)
    by_id = {row["custom_id"]: row for row in found}
    assert len(by_id) == len(found)
    return by_id


# ---- a batch that goes well --------------------------------------------------------------------------


def test_ac10_upload_create_poll_download(server: Running) -> None:
    """AC-10: with the official client; answers and errors by line, all counted; metadata echoed."""
    wishes = requests(40)
    wishes[7]["body"]["max_tokens"] = 0.5
    wishes[8]["body"]["nobody_knows"] = 1
    ttl = {"anchor": "created_at", "seconds": 3600}
    batch = begin(server, wishes, metadata={"who": "me"}, output_expires_after=ttl)
    assert batch.status in ("validating", "in_progress")
    assert batch.expires_at == batch.created_at + 24 * 3600
    batch = end_of(server, batch)
    assert batch.status == "completed"
    assert batch.errors is None
    assert (batch.metadata, batch.model) == ({"who": "me"}, MODEL)
    counts = batch.request_counts
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (40, 38, 2)
    output, errors = rows(server, batch.output_file_id), rows(server, batch.error_file_id)
    assert set(output) | set(errors) == {wish["custom_id"] for wish in wishes}
    assert set(errors) == {"line 7", "line 8"}
    assert errors["line 7"]["response"]["status_code"] == 400
    assert errors["line 7"]["response"]["body"]["error"]["param"] == "max_tokens"
    assert errors["line 8"]["response"]["body"]["error"]["code"] == "unknown_parameter"
    assert all(row["response"]["status_code"] == 200 and row["error"] is None for row in output.values())
    assert len({row["id"] for row in output.values()}) == 38
    usage = batch.usage
    assert usage is not None
    assert usage.output_tokens == sum(r["response"]["body"]["usage"]["completion_tokens"] for r in output.values())
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    stages = [batch.created_at, batch.in_progress_at, batch.finalizing_at, batch.completed_at]
    assert stages == sorted(stages, key=int)  # all are there
    made = server.client().files.retrieve(str(batch.output_file_id))
    assert made.purpose == "batch_output"
    assert made.expires_at == made.created_at + 3600
    body = server.get(f"/v1/batches/{batch.id}").json()
    Batch.model_validate(body, strict=True)
    TypeAdapter(BatchObject).validate_python(body, strict=True)


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (COMPLETIONS, {"prompt": ["Once", "upon a time"], "n": 2, "max_tokens": 9, "seed": 3}),
        (CHAT, {"messages": [{"role": "user", "content": "Again."}], "max_tokens": 9, "seed": 4, "logprobs": True}),
        ("/v1/embeddings", {"input": "Once upon a time"}),
    ],
)
def test_a_line_is_answered_as_the_same_request_alone(server: Running, url: str, body: dict[str, Any]) -> None:
    body = {"model": MODEL, **body}
    alone = server.post(url, body).json()
    batch = end_of(server, begin(server, [line("a", body, url)], url))
    row = rows(server, batch.output_file_id)["a"]
    whole = row["response"]["body"]
    assert row["response"]["request_id"].startswith("req_")
    for different in ("id", "created", "timing"):
        assert (different in whole) == (different in alone)
        whole.pop(different, None), alone.pop(different, None)
    alone["usage"].pop("prompt_tokens_details", None), whole["usage"].pop("prompt_tokens_details", None)  # the cache
    assert whole == alone


def test_lines_for_responses(server: Running) -> None:
    body = {"model": MODEL, "input": "Tell me a story.", "max_output_tokens": 16}
    batch = end_of(server, begin(server, [line("a", body, "/v1/responses")], "/v1/responses"))
    whole = rows(server, batch.output_file_id)["a"]["response"]["body"]
    assert whole["object"] == "response"
    assert batch.usage is not None and batch.usage.output_tokens == whole["usage"]["output_tokens"] > 0


def test_greedy_lines_are_the_interactive_answers(real_url: str) -> None:
    """With a real model, in the company of each other."""
    with openai.OpenAI(base_url=f"{real_url}/v1", api_key="none", max_retries=0, timeout=LONG) as client:
        check_greedy_lines(client)


def check_greedy_lines(client: openai.OpenAI) -> None:
    bodies = [{"prompt": f"Once upon a time {i} dogs", "max_tokens": 12, "temperature": 0} for i in range(6)]
    model = client.models.list().data[0].id
    wishes = [line(str(i), {"model": model, **body}) for i, body in enumerate(bodies)]
    file = client.files.create(file="\n".join(map(json.dumps, wishes)).encode(), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
    wait_until(lambda: client.batches.retrieve(batch.id).status == "completed", LONG)
    text = client.files.content(str(client.batches.retrieve(batch.id).output_file_id)).text
    answers = {row["custom_id"]: row["response"]["body"]["choices"] for row in map(json.loads, text.splitlines())}
    for number, body in enumerate(bodies):
        alone = client.completions.create(model=model, **body)  # type: ignore[call-overload]
        assert answers[str(number)][0]["text"] == alone.choices[0].text


def test_the_async_client_sees_the_same(server: Running) -> None:
    async def run() -> Batch:
        data = "\n".join(map(json.dumps, requests(5))).encode()
        async with server.async_client() as client:
            file = await client.files.create(file=data, purpose="batch")
            batch = await client.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
            while batch.status != "completed":
                await asyncio.sleep(0.02)
                batch = await client.batches.retrieve(batch.id)
            assert (await client.batches.list(limit=1)).data[0].id == batch.id
            content = await client.files.content(str(batch.output_file_id))
            assert len(content.text.splitlines()) == 5
            return batch

    assert asyncio.run(asyncio.wait_for(run(), LONG)).request_counts is not None


# ---- inputs that are wrong ---------------------------------------------------------------------------

GOOD = line("a", {"model": MODEL, "prompt": "a"})
WRONG: dict[str, tuple[bytes, str, int | None, str | None]] = {
    "not JSON": (b'{"custom_id": ', "invalid_json_line", 2, None),
    "a list": (b"[1]", "invalid_json_line", 2, None),
    "not UTF-8": (b'{"custom_id": "\xff"}', "invalid_json_line", 2, None),
    "a key twice": (b'{"custom_id": "b", "custom_id": "b"}', "invalid_json_line", 2, None),
    "no id": (json.dumps({**GOOD, "custom_id": None}).encode(), "invalid_custom_id", 2, "custom_id"),
    "an id that is a number": (json.dumps({**GOOD, "custom_id": 3}).encode(), "invalid_custom_id", 2, "custom_id"),
    "an endless id": (json.dumps({**GOOD, "custom_id": "x" * 513}).encode(), "invalid_custom_id", 2, "custom_id"),
    "an id twice": (json.dumps(GOOD).encode(), "duplicate_custom_id", 2, "custom_id"),
    "GET": (json.dumps({**GOOD, "method": "GET"}).encode(), "invalid_method", 2, "method"),
    "another endpoint": (json.dumps({**GOOD, "url": CHAT}).encode(), "mismatched_url", 2, "url"),
    "an address": (json.dumps({**GOOD, "url": "http://127.0.0.1/"}).encode(), "mismatched_url", 2, "url"),
    "no body": (json.dumps({**GOOD, "body": None}).encode(), "invalid_body", 2, "body"),
    "a field more": (json.dumps({**GOOD, "extra": 1, "custom_id": "b"}).encode(), "unknown_parameter", 2, "extra"),
    "a stream": (
        json.dumps(line("b", {"model": MODEL, "prompt": "a", "stream": True})).encode(),
        "not_in_a_batch",
        2,
        "body.stream",
    ),
    "no model": (
        json.dumps(line("b", {"prompt": "a"})).encode(), "missing_required_parameter", 2, "body.model"
    ),
    "two models": (
        json.dumps(line("b", {"model": "nobody", "prompt": "a"})).encode(), "mismatched_model", 2, "body.model"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_ac10_a_wrong_line_fails_the_batch_by_number(server: Running, case: str) -> None:
    """AC-10: before anything is run; the line and the field are named."""
    text, code, number, param = WRONG[case]
    batch = end_of(server, begin(server, json.dumps(GOOD).encode() + b"\n" + text + b"\n"))
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.errors is not None and batch.errors.data is not None
    error = batch.errors.data[0]
    assert (error.code, error.line, error.param) == (code, number, param)
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    assert batch.request_counts is not None and batch.request_counts.total == 0


def test_ac10_other_inputs_that_fail(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """AC-10: nothing in it, an unknown model, too many lines, and no more complaints than anyone reads."""
    monkeypatch.setattr(lines, "MAX_LINES", 20)

    def codes(what: list[dict[str, Any]] | bytes) -> list[str | None]:
        batch = end_of(server, begin(server, what))
        assert batch.status == "failed"
        assert batch.errors is not None and batch.errors.data is not None
        return [error.code for error in batch.errors.data]

    assert codes(b"\n \n") == ["empty_file"]
    assert codes([line("a", {"model": "nobody", "prompt": "a"})]) == ["model_not_found"]
    assert codes(requests(21)) == ["too_many_lines"]
    assert codes(b"x\n" * 5000) == ["invalid_json_line"] * 100


@pytest.mark.parametrize(
    ("wish", "status", "param"),
    [
        ({"endpoint": "/v1/moderations"}, 400, "endpoint"),
        ({"endpoint": "http://169.254.169.254/"}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"input_file_id": "file-unknown"}, 404, "input_file_id"),
        ({"input_file_id": "../../x"}, 404, "input_file_id"),
        ({"input_file_id": 5}, 400, "input_file_id"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        ({"metadata": {str(i): "" for i in range(17)}}, 400, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, 400, "output_expires_after.seconds"),
        ({"nobody_knows": 1}, 400, "nobody_knows"),
    ],
)
def test_ac10_wrong_wishes(server: Running, wish: dict[str, Any], status: int, param: str) -> None:
    """AC-10."""
    good = {"input_file_id": "file-unknown", "endpoint": COMPLETIONS, "completion_window": "24h"}
    response = server.post("/v1/batches", {**good, **wish})
    assert (response.status_code, error_of(response)["param"]) == (status, param)


def test_only_files_for_batches_are_taken(server: Running) -> None:
    client = server.client()
    file = client.files.create(file=b"x", purpose="user_data")
    with pytest.raises(openai.BadRequestError) as caught:
        client.batches.create(input_file_id=file.id, endpoint=COMPLETIONS, completion_window="24h")
    assert caught.value.param == "input_file_id"


# ---- batches that are stopped ------------------------------------------------------------------------


@contextmanager
def slow_steps(server: Running, step_s: float) -> Iterator[None]:
    usual, server.executor.step_s = server.executor.step_s, step_s
    try:
        yield
    finally:
        server.executor.step_s = usual


def wait_for_some(server: Running, batch: Batch, number: int = 1) -> None:
    def some() -> bool:
        counts = server.client().batches.retrieve(batch.id).request_counts
        return counts is not None and counts.completed >= number

    wait_until(some, LONG)


def test_ac10_cancel(server: Running) -> None:
    """AC-10: lines in flight are given up at once, every line is in one of the files, and input files are kept."""
    with slow_steps(server, 0.02):
        batch = begin(server, requests(300, max_tokens=8, ignore_eos=True))
        wait_for_some(server, batch)
        with pytest.raises(openai.ConflictError) as caught:
            server.client().files.delete(batch.input_file_id)
        assert caught.value.code == "file_in_use"
        cancelled = server.client().batches.cancel(batch.id)
        assert cancelled.status in ("cancelling", "cancelled")
        batch = end_of(server, batch)
    assert batch.status == "cancelled"
    assert batch.cancelling_at is not None and batch.cancelled_at is not None
    server.wait_idle()
    counts = batch.request_counts
    assert counts is not None and counts.completed + counts.failed == counts.total == 300
    output, errors = rows(server, batch.output_file_id), rows(server, batch.error_file_id)
    assert (len(output), len(errors)) == (counts.completed, counts.failed)
    assert 0 < len(output) < 300
    assert set(output).isdisjoint(errors) and len(output) + len(errors) == 300
    assert {row["error"]["code"] for row in errors.values()} == {"batch_cancelled"}
    assert server.client().batches.cancel(batch.id).status == "cancelled"  # again: nothing changes
    assert server.client().files.delete(batch.input_file_id).deleted


def test_ac10_cancelled_while_answers_are_written(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """AC-10: a line whose answer is on its way to the disk is not given up as well."""
    real = ledger.write_all

    def slow(file: Any, data: bytes) -> None:
        time.sleep(0.2)
        real(file, data)

    monkeypatch.setattr(ledger, "write_all", slow)
    batch = begin(server, requests(200))
    wait_for_some(server, batch)
    server.client().batches.cancel(batch.id)
    batch = end_of(server, batch)
    assert batch.status == "cancelled"
    output, errors = rows(server, batch.output_file_id), rows(server, batch.error_file_id)
    assert set(output).isdisjoint(errors) and len(output) + len(errors) == 200


def test_ac10_what_is_over_cannot_be_cancelled(server: Running) -> None:
    """AC-10."""
    batch = end_of(server, begin(server, requests(1)))
    response = server.post(f"/v1/batches/{batch.id}/cancel")
    assert (response.status_code, error_of(response)["code"]) == (409, "batch_not_cancellable")
    assert response.headers["x-should-retry"] == "false"


def test_ac10_expire(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """AC-10: what is done in time is kept, the rest is told."""
    monkeypatch.setattr(records, "WINDOW_S", 1)
    with slow_steps(server, 0.05):
        batch = end_of(server, begin(server, requests(500, max_tokens=8, ignore_eos=True)))
    assert batch.status == "expired"
    assert batch.expired_at is not None
    output, errors = rows(server, batch.output_file_id), rows(server, batch.error_file_id)
    assert set(output).isdisjoint(errors) and len(output) + len(errors) == 500
    assert {row["error"]["code"] for row in errors.values()} == {"batch_expired"}
    assert batch.request_counts is not None and batch.request_counts.completed == len(output)


def test_unfinished_batches_are_limited(server: Running) -> None:
    with slow_steps(server, 0.05):
        batches = [begin(server, requests(20, max_tokens=50, ignore_eos=True)) for _ in range(5)]
        with pytest.raises(openai.RateLimitError) as caught:
            begin(server, requests(1))
        assert caught.value.code == "too_many_batches"
        assert 0 < int(caught.value.response.headers["retry-after"]) <= 120
        for batch in batches:
            server.client().batches.cancel(batch.id)
        for batch in batches:
            assert end_of(server, batch).status == "cancelled"


def test_pages_are_walked_in_order(server: Running) -> None:
    made = [end_of(server, begin(server, requests(1))).id for _ in range(5)]
    listed = [batch.id for batch in server.client().batches.list(limit=2)]
    assert listed[:5] == made[::-1]
    page = server.get("/v1/batches", params={"limit": 2, "after": made[3]}).json()
    assert [batch["id"] for batch in page["data"]] == [made[2], made[1]]
    assert page["has_more"]
    for query, status in (({"limit": "101"}, 400), ({"after": "batch_unknown"}, 404)):
        assert server.get("/v1/batches", params=query).status_code == status


# ---- servers that come and go ------------------------------------------------------------------------


def test_a_batch_waits_for_its_model_and_its_time_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server of another model leaves it alone; and what its time is over for ends at the next start."""
    settings = ServerSettings(port=0, store_dir=tmp_path / "store")
    with running_server(settings, step_s=0.02) as running:
        batch = begin(running, requests(200, max_tokens=20, ignore_eos=True))
        wait_for_some(running, batch)
    monkeypatch.setattr("tests.server.service.MODEL", "another/model")
    with running_server(settings) as running:
        time.sleep(0.3)
        waiting = running.client().batches.retrieve(batch.id)
        assert waiting.status == "in_progress"
        counts = waiting.request_counts
        assert counts is not None and counts.failed == 0 and 0 < counts.completed < 200
    with sqlite3.connect(tmp_path / "store" / "store.db") as db:
        db.execute("UPDATE batches SET body = json_set(body, '$.expires_at', 5)")
    with running_server(settings) as running:
        ended = end_of(running, batch)
        assert ended.status == "expired"
        assert len(rows(running, ended.output_file_id)) == counts.completed
        assert len(rows(running, ended.error_file_id)) == 200 - counts.completed


# ---- an engine that is busy, a disk that is full -----------------------------------------------------


def test_lines_that_are_turned_away_are_sent_again(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full server costs a batch time, not answers; nobody hammers it meanwhile."""
    monkeypatch.setattr(runner, "MIN_WAIT_S", 0.01)
    submit, refused = server.service.submit, []

    def busy(submission: Any) -> Any:
        if submission.background and len(refused) < 6:
            refused.append(submission)
            raise Unavailable("The server is full.", code="overloaded", retry_after_s=0.01)
        return submit(submission)

    monkeypatch.setattr(server.service, "submit", busy)
    batch = end_of(server, begin(server, requests(6)))
    assert len(refused) == 6
    assert batch.status == "completed"
    assert batch.request_counts is not None and batch.request_counts.completed == 6


def test_a_full_disk_costs_time_and_no_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished lines wait in memory for room; what was half written is cut off before it is written again."""
    monkeypatch.setattr(ledger, "FULL_WAIT_S", 0.02)
    real, failures = ledger.write_all, []

    def write_all(file: Any, data: bytes) -> None:
        if len(failures) < 5:
            failures.append(len(data))
            file.write(data[: len(data) // 2])
            raise OSError(28, "No space left on device")
        real(file, data)

    with running_server(ServerSettings(port=0, store_dir=tmp_path / "store"), step_s=0.001) as running:
        monkeypatch.setattr(ledger, "write_all", write_all)
        batch = end_of(running, begin(running, requests(20)))
        assert batch.status == "completed"
        assert len(rows(running, batch.output_file_id)) == 20
        assert len(failures) == 5


def test_background_work_is_marked_and_belongs_to_its_owner(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, seen = server.service.submit, []

    def watch(submission: Any) -> Any:
        seen.append(submission)
        return submit(submission)

    monkeypatch.setattr(server.service, "submit", watch)
    end_of(server, begin(server, requests(3)))
    server.post(COMPLETIONS, server.completion())
    assert [submission.background for submission in seen] == [True, True, True, False]
    assert len({submission.request_id for submission in seen}) == 4


def test_ov12_interactive_requests_do_not_wait_for_a_batch() -> None:
    """OV-12, over HTTP: a batch that fills the engine for as long as it lasts, and requests that come meanwhile.

    By the engine's own clock and by the ratio: waiting for one line of the batch to end would be 200 steps.
    """
    first_s: dict[str, float] = {}

    def watch(events: StepEvents) -> None:
        for record in events.finished:
            if record.first_token_s is not None:
                first_s[record.request_id] = record.first_token_s - record.arrival_s

    def ask(running: Running) -> float:
        times = []
        for number in range(15):
            response = running.post(COMPLETIONS, running.completion(prompt=f"Now {number}", max_tokens=1))
            assert response.status_code == 200
            name = response.headers["x-request-id"]
            wait_until(lambda name=name: name in first_s, LONG)
            times.append(first_s[name])
        return median(times)

    with running_server(ServerSettings(port=0), step_s=0.005, max_seqs=8, max_step_tokens=64) as running:
        running.service.subscribe(watch)
        idle_s = ask(running)
        batch = begin(running, requests(400, max_tokens=200, ignore_eos=True))
        wait_for_some(running, batch, 8)  # the engine is full of it
        before = running.client().batches.retrieve(batch.id).request_counts
        busy_s = ask(running)
        wait_for_some(running, batch, (before.completed if before else 0) + 1)  # and it goes on
        assert busy_s < 4 * idle_s
        assert running.client().batches.cancel(batch.id).status == "cancelling"
        assert end_of(running, batch).status == "cancelled"
