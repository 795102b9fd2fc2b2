"""The parts of a batch by themselves: reading lines, keeping what is done, sharing slots."""

from __future__ import annotations

import asyncio
import json
import os
import tracemalloc
from collections.abc import Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tokenmill.core.errors import ModelNotFound
from tokenmill.server.batches import ledger as ledger_module
from tokenmill.server.batches.ledger import Ledger
from tokenmill.server.batches.lines import Checked, Complaint, LineReader, Stopped, check, digest, parse
from tokenmill.server.batches.slots import Slots
from tokenmill.server.protocol.batches import OutputLine
from tokenmill.server.store import Store

URL = "/v1/completions"
LIMIT = 2**20


def request(custom_id: str, **body: Any) -> bytes:
    body = {"model": "m", "prompt": "a", **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": body}).encode()


def write(path: Path, lines: Iterable[bytes]) -> Path:
    with open(path, "wb") as file:
        file.writelines(line + b"\n" for line in lines)
    return path


def checked(path: Path, max_bytes: int = LIMIT) -> Checked:
    return check(LineReader(path, max_bytes), URL, lambda model: None, lambda: False)


# ---- lines -------------------------------------------------------------------------------------------


def test_ac10_a_large_input_is_never_in_memory(tmp_path: Path) -> None:
    """AC-10: of 24 MB of lines less than 4 MB are held at any moment; of 200 MB it would be no more."""
    path = write(tmp_path / "input", (request(f"id {i}", prompt="x" * 8000) for i in range(3000)))
    assert path.stat().st_size > 24e6
    tracemalloc.start()
    try:
        assert checked(path) == Checked(3000, "m", [])
        assert tracemalloc.get_traced_memory()[1] < 4e6
    finally:
        tracemalloc.stop()


def test_a_line_that_is_too_long_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "input", [request("a"), request("b", prompt="x" * 5000), request("c")])
    errors = checked(path, 1000).errors
    assert [(error["code"], error["line"]) for error in errors] == [("line_too_long", 2)]


def test_blank_lines_and_line_ends_of_all_kinds(tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"\n" + request("a") + b"\r\n\r\n   \n" + request("b"))
    assert checked(path) == Checked(2, "m", [])


def test_what_no_field_can_hold_is_left_to_the_field() -> None:
    """A NaN must be refused by the endpoint, not be taken for a field that was left out."""
    line = parse(request("a").replace(b'"a"}', b'"a", "temperature": NaN, "top_p": 1e400}'), URL)
    assert b'"temperature": NaN' in line.encoded()
    assert b'"top_p": Infinity' in line.encoded()


def test_a_model_that_is_not_served_is_told_once_a_line(tmp_path: Path) -> None:
    def not_served(model: Any) -> None:
        raise ModelNotFound(f"The model '{model}' does not exist.")

    path = write(tmp_path / "input", [request("a"), request("b")])
    found = check(LineReader(path, LIMIT), URL, not_served, lambda: False)
    assert [(error["code"], error["line"]) for error in found.errors] == [
        ("model_not_found", 1),
        ("model_not_found", 2),
    ]


def test_a_check_that_nobody_waits_for_stops(tmp_path: Path) -> None:
    path = write(tmp_path / "input", (request(f"id {i}", prompt="x" * 8000) for i in range(100)))
    reader = LineReader(path, LIMIT)
    with pytest.raises(Stopped):
        check(reader, URL, lambda model: None, lambda: True)
    assert reader.number < 20


@pytest.mark.parametrize(
    "text", [b"[" * 100_000, b'{"a": ' * 100_000, b"1" * 10_000, b'"' + b"\\ud800" + b'"', b"\x00"]
)
def test_hostile_lines_are_complaints(text: bytes) -> None:
    with pytest.raises(Complaint):
        parse(text, URL)


# ---- what is done ------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store")
    yield opened
    opened.close()


def made(custom_id: str) -> OutputLine:
    body = {"usage": {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}}
    return {
        "id": "batch_req_0",
        "custom_id": custom_id,
        "response": {"status_code": 200, "request_id": "req_0", "body": body},
        "error": None,
    }


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


@pytest.mark.parametrize(
    "torn",
    [b"", b'{"id":"batch_req_0","custom_id":"c","resp', b"\x00" * 64, b'{"custom_id":"c","response":null}', b"\xff\n"],
)
def test_ft26_what_is_not_a_whole_line_is_cut_off(store: Store, torn: bytes) -> None:
    """FT-26: a kill may cut the last line off anywhere; a crash of the machine may leave zeros."""

    async def work() -> None:
        first = Ledger(store, "batch_1")
        await first.open()
        await first.record([("output", made("a")), ("errors", made("b"))])
        await first.close()
        with open(first.path("output"), "ab") as file:
            file.write(torn)
        again = Ledger(store, "batch_1")
        await again.open()
        assert again.done == {digest("a"), digest("b")}
        assert again.counts == {"output": 1, "errors": 1}
        assert again.usage["total_tokens"] == 10
        await again.record([("output", made("c"))])
        await again.close()
        rows = again.path("output").read_bytes().splitlines()
        assert [json.loads(row)["custom_id"] for row in rows] == ["a", "c"]

    run(work())


def test_lines_that_finish_together_share_a_flush(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    flushes = []
    fsync = os.fsync
    monkeypatch.setattr(ledger_module.os, "fsync", lambda fd: (flushes.append(fd), fsync(fd)))

    async def work() -> None:
        ledger = Ledger(store, "batch_1")
        await ledger.open()
        await asyncio.gather(*(ledger.record([("output", made(str(i)))]) for i in range(100)))
        assert ledger.counts["output"] == 100
        await ledger.close()

    run(work())
    assert len(flushes) <= 3


def test_a_line_counts_when_it_is_on_the_disk_and_not_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk is full nothing counts, and stopping does not wait for room."""
    monkeypatch.setattr(ledger_module, "FULL_WAIT_S", 0.01)

    def full(file: Any, data: bytes) -> None:
        file.write(data[:10])
        raise OSError(28, "No space left on device")

    async def work() -> None:
        ledger = Ledger(store, "batch_1")
        await ledger.open()
        with monkeypatch.context() as patch:
            patch.setattr(ledger_module, "write_all", full)
            waiting = asyncio.ensure_future(ledger.record([("output", made("a"))]))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            assert ledger.done == set()
            assert ledger.path("output").read_bytes() == b""
            waiting.cancel()
            await ledger.close()
        again = Ledger(store, "batch_1")
        await again.open()
        assert again.done == set()
        await again.close()

    run(work())


# ---- slots -------------------------------------------------------------------------------------------


def test_slots_go_round_the_tenants() -> None:
    """A tenant with many batches does not keep another's waiting."""

    async def work() -> None:
        slots, order = Slots(1), []

        async def one(tenant: str) -> None:
            await slots.take(tenant)
            order.append(tenant)
            await asyncio.sleep(0)
            slots.release()

        await slots.take("a")
        tasks = [asyncio.ensure_future(one(tenant)) for tenant in "aaaaaabb"]
        await asyncio.sleep(0)
        slots.release()
        await asyncio.gather(*tasks)
        assert order == list("abab") + ["a"] * 4
        assert slots.num_taken == 0

    run(work())


def test_slots_shrink_when_lines_are_turned_away_and_grow_again() -> None:
    slots = Slots(64)
    for _ in range(64):  # sent together, turned away together
        slots.refused(0)
    assert slots.limit == 32
    for _ in range(20):
        slots.refused(slots.period)
    assert slots.limit == 1
    for _ in range(64 * 64):
        slots.answered()
    assert slots.limit == 64


def test_a_slot_is_not_lost_with_whoever_waited_for_it() -> None:
    async def work() -> None:
        slots = Slots(1)
        await slots.take("a")
        waiting = [asyncio.ensure_future(slots.take("a")) for _ in range(3)]
        await asyncio.sleep(0)
        slots.release()  # the first has it, and is cancelled before it runs
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert slots.num_taken == 0
        await asyncio.wait_for(slots.take("b"), 5)

    run(work())
