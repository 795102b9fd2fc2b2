"""Responses that are kept: continued, listed, deleted, cancelled, bounded, and each for its tenant only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import openai
import pytest
from openai.types.responses import ResponseItemList
from pydantic import TypeAdapter

from tests.server.response_events import check_events, check_response, read_events, unchunked
from tests.server.service import MODEL
from tests.server.support import RawStream, Running, error_of, raw_request, running_server, wait_until
from tokenmill.server.access.keys import add_key, new_key
from tokenmill.server.protocol.response_body import ItemList, ResponseBody
from tokenmill.server.responses.store import Bounds, Memory, NotKept, ResponseStore, Stored
from tokenmill.server.settings import ServerSettings
from tokenmill.server.store import Store, storage_full

RESPONSES = "/v1/responses"
UNKNOWN = "resp_" + 32 * "0"
SLOW = {"model": MODEL, "input": "Go on and on", "max_output_tokens": 450}


def body(**more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": "Hi", "max_output_tokens": 4, **more}


def create(server: Running, **more: Any) -> dict[str, Any]:
    response = server.post(RESPONSES, body(**more))
    assert response.status_code == 200, response.text
    return dict(response.json())


# ---- continued ----


def test_ac09_a_conversation_by_previous_response_id(server: Running) -> None:
    """AC-09: three turns, as if all had been sent each time; instructions are of one turn only."""
    client = server.client()
    first = client.responses.create(model=MODEL, input="One", instructions="Be kind.", max_output_tokens=4)
    second = client.responses.create(
        model=MODEL, input="Two", max_output_tokens=4, previous_response_id=first.id, extra_body={"seed": 1}
    )
    third = client.responses.create(
        model=MODEL, input="Three", max_output_tokens=4, previous_response_id=second.id, extra_body={"seed": 2}
    )
    history: Any = [
        {"role": "user", "content": "One"},
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Two"},
        {"role": "assistant", "content": second.output_text},
        {"role": "user", "content": "Three"},
    ]
    by_hand = client.responses.create(model=MODEL, input=history, max_output_tokens=4, extra_body={"seed": 2})
    assert third.output_text == by_hand.output_text
    assert third.usage is not None
    assert by_hand.usage is not None
    assert third.usage.input_tokens == by_hand.usage.input_tokens
    assert third.previous_response_id == second.id
    streamed = read_events(
        server.post(RESPONSES, body(input="Three", seed=2, stream=True, previous_response_id=second.id)).text
    )
    assert check_events(streamed)["output"][0]["content"][0]["text"] == third.output_text


def test_two_continuations_of_one_response(server: Running) -> None:
    """A conversation may fork: neither sees the other."""
    first = create(server)
    forks = [create(server, input=text, previous_response_id=first["id"]) for text in ("Left", "Right one")]
    counts = [
        server.client()
        .responses.input_tokens.count(model=MODEL, input="x", previous_response_id=fork["id"])
        .input_tokens
        for fork in forks
    ]
    alone = server.client().responses.input_tokens.count(model=MODEL, input="x", previous_response_id=first["id"])
    assert all(count > alone.input_tokens for count in counts)


def test_an_item_by_its_id(server: Running) -> None:
    """A reference stands for the item; one to nothing, or to a response that was not kept, is refused."""
    first = create(server)
    reference = {"type": "item_reference", "id": first["output"][0]["id"]}
    user = {"role": "user", "content": "Hi"}
    referred = create(server, input=[user, reference, {"role": "user", "content": "b"}], seed=3)
    text = first["output"][0]["content"][0]["text"]
    said = {"role": "assistant", "content": text}
    assert (
        referred["usage"]["input_tokens"]
        == create(server, input=[user, said, {"role": "user", "content": "b"}])["usage"]["input_tokens"]
    )
    unkept = create(server, store=False)
    for wrong in ("msg_1", f"msg_{32 * '0'}_0", first["output"][0]["id"][:-1] + "9", unkept["output"][0]["id"]):
        refused = server.post(RESPONSES, body(input=[user, {"id": wrong}]))
        assert (refused.status_code, error_of(refused)["code"]) == (404, "item_not_found")
    twice = server.post(RESPONSES, body(input=[reference], previous_response_id=first["id"]))
    assert (twice.status_code, error_of(twice)["param"]) == (400, "input")
    assert "Duplicate item" in error_of(twice)["message"]


def test_only_what_is_there_can_be_continued(server: Running) -> None:
    unkept, deleted = create(server, store=False), create(server)
    assert server.http.delete(f"{server.url}{RESPONSES}/{deleted['id']}").status_code == 200
    for response_id in (UNKNOWN, unkept["id"], deleted["id"], "resp_", "x" * 64):
        refused = server.post(RESPONSES, body(previous_response_id=response_id))
        error = error_of(refused)
        assert (refused.status_code, error["code"]) == (400, "previous_response_not_found")
        assert (error["param"], error["type"]) == ("previous_response_id", "invalid_request_error")
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().responses.create(model=MODEL, input="a", previous_response_id=UNKNOWN)
    assert caught.value.code == "previous_response_not_found"


# ---- asked for ----


def test_ac09_retrieved_as_it_was(server: Running) -> None:
    """AC-09: whole and streamed, log-probabilities included."""
    wishes = body(include=["message.output_text.logprobs"], top_logprobs=2, metadata={"k": "v"})
    whole = server.post(RESPONSES, wishes).json()
    streamed = check_events(read_events(server.post(RESPONSES, {**wishes, "stream": True}).text))
    for made in (whole, streamed):
        kept = server.get(f"{RESPONSES}/{made['id']}").json()
        check_response(kept)
        assert kept == made


def test_ac09_input_items(server: Running) -> None:
    """AC-09: its own only, in pages, in both orders; by the official client, too."""
    items: Any = [{"role": "user", "content": f"Word {i}"} for i in range(7)]
    first = create(server, input=items)
    path = f"{RESPONSES}/{first['id']}/input_items"
    listed = server.get(path, params={"order": "asc"}).json()
    ResponseItemList.model_validate(listed, strict=True)
    TypeAdapter(ItemList).validate_python(listed, strict=True)
    assert [item["content"][0]["text"] for item in listed["data"]] == [f"Word {i}" for i in range(7)]
    assert (listed["first_id"], listed["last_id"]) == (listed["data"][0]["id"], listed["data"][-1]["id"])
    assert server.get(path).json()["data"] == listed["data"][::-1]
    page = server.get(path, params={"order": "asc", "limit": 3}).json()
    assert (len(page["data"]), page["has_more"]) == (3, True)
    rest = server.get(path, params={"order": "asc", "limit": 5, "after": page["last_id"]}).json()
    assert page["data"] + rest["data"] == listed["data"]
    assert not rest["has_more"]
    by_client = [item.id for item in server.client().responses.input_items.list(first["id"], limit=2, order="asc")]
    assert by_client == [item["id"] for item in listed["data"]]
    second = create(server, input="More", previous_response_id=first["id"])
    assert len(server.get(f"{RESPONSES}/{second['id']}/input_items").json()["data"]) == 1
    for query, code in (({"limit": 0}, 400), ({"limit": 101}, 400), ({"order": "up"}, 400), ({"after": "x"}, 404)):
        assert server.get(path, params=query).status_code == code, query


def test_ac09_delete(server: Running) -> None:
    """AC-09: once; then it is unknown everywhere."""
    made = create(server)
    path = f"{RESPONSES}/{made['id']}"
    answer = server.http.delete(server.url + path)
    assert answer.json() == {"id": made["id"], "object": "response", "deleted": True}
    client = server.client()
    for call in (
        client.responses.retrieve,
        client.responses.delete,
        client.responses.cancel,
        client.responses.input_items.list,
    ):
        with pytest.raises(openai.NotFoundError) as caught:
            call(made["id"])
        assert caught.value.code == "response_not_found"


def test_what_is_not_in_the_background_is_not_cancelled(server: Running) -> None:
    refused = server.post(f"{RESPONSES}/{create(server)['id']}/cancel")
    assert refused.status_code == 400
    assert "background" in error_of(refused)["message"]


def test_a_stream_of_what_has_no_events_is_refused(server: Running) -> None:
    path = f"{RESPONSES}/{create(server)['id']}"
    for query in (
        {"stream": "true"},
        {"starting_after": "3"},
        {"stream": "maybe"},
        {"starting_after": "-1", "stream": "true"},
    ):
        refused = server.get(path, params=query)
        assert refused.status_code == 400, query
        assert error_of(refused)["param"] in query


# ---- in the background ----


def poll(server: Running, response_id: str, until: tuple[str, ...], within_s: float = 10) -> dict[str, Any]:
    deadline_s = time.monotonic() + within_s
    while True:
        response = server.get(f"{RESPONSES}/{response_id}").json()
        check_response(response)
        if response["status"] in until:
            return dict(response)
        assert time.monotonic() < deadline_s, response["status"]
        time.sleep(0.01)


def test_ac09_background(server: Running) -> None:
    """AC-09: begun, polled, complete; the same answer as in the foreground."""
    started = create(server, background=True, seed=4, max_output_tokens=40)
    assert (started["status"], started["output"], started["usage"]) == ("queued", [], None)
    over = poll(server, started["id"], ("incomplete",))
    assert over["background"]
    assert (
        over["output"][0]["content"][0]["text"]
        == create(server, seed=4, max_output_tokens=40)["output"][0]["content"][0]["text"]
    )
    again = server.post(f"{RESPONSES}/{started['id']}/cancel").json()
    assert again == over, "what is over stays as it is"


def test_ac09_background_cancelled(server: Running) -> None:
    """AC-09: its blocks are free at once; twice is as good as once; it cannot be continued."""
    started = server.post(RESPONSES, {**SLOW, "background": True}).json()
    poll(server, started["id"], ("in_progress",))
    refused = server.post(RESPONSES, body(previous_response_id=started["id"]))
    assert (refused.status_code, error_of(refused)["param"]) == (400, "previous_response_id")
    cancelled = server.client().responses.cancel(started["id"])
    assert cancelled.status == "cancelled"
    assert server.wait_idle(5) < 5
    assert server.get(f"{RESPONSES}/{started['id']}").json()["status"] == "cancelled"
    assert server.client().responses.cancel(started["id"]).status == "cancelled"
    refused = server.post(RESPONSES, body(previous_response_id=started["id"]))
    assert error_of(refused)["param"] == "previous_response_id"


def test_background_deleted_under_way(server: Running) -> None:
    started = server.post(RESPONSES, {**SLOW, "background": True}).json()
    poll(server, started["id"], ("in_progress",))
    assert server.http.delete(f"{server.url}{RESPONSES}/{started['id']}").status_code == 200
    server.wait_idle(5)
    assert server.get(f"{RESPONSES}/{started['id']}").status_code == 404


def test_ac09_background_streamed_and_taken_up_again(server: Running) -> None:
    """AC-09: who leaves does not end it, and who comes back gets what he missed."""
    stream = server.client().responses.create(
        model=MODEL, input="Hi", max_output_tokens=60, background=True, stream=True
    )
    seen = []
    for event in stream:
        seen.append(event)
        if len(seen) == 10:
            break
    stream.close()
    response_id = cast(Any, seen[0]).response.id
    assert [event.type for event in seen[:3]] == ["response.created", "response.queued", "response.in_progress"]
    events = read_events(server.get(f"{RESPONSES}/{response_id}", params={"stream": "true"}).text)
    response = check_events(events)
    assert response["status"] == "incomplete"
    rest = read_events(server.get(f"{RESPONSES}/{response_id}?stream=true&starting_after=9").text)
    assert rest == events[10:]
    by_client = list(server.client().responses.retrieve(response_id, stream=True, starting_after=9))
    assert [event.sequence_number for event in by_client] == [event["sequence_number"] for event in rest]
    assert server.get(f"{RESPONSES}/{response_id}").json() == response
    nothing = server.get(f"{RESPONSES}/{response_id}?stream=true&starting_after={len(events) - 1}")
    assert (nothing.status_code, nothing.text) == (200, "")


def test_background_followed_until_cancelled(server: Running) -> None:
    """Whoever follows is told, and not by a clean end."""
    started = server.post(RESPONSES, {**SLOW, "background": True}).json()
    stream = iter(server.client().responses.retrieve(started["id"], stream=True))
    next(stream)
    server.post(f"{RESPONSES}/{started['id']}/cancel")
    with pytest.raises(openai.APIError) as caught:
        list(stream)
    assert caught.value.code == "response_cancelled"
    with pytest.raises(openai.APIError) as caught:
        list(server.client().responses.retrieve(started["id"], stream=True, starting_after=10_000))
    assert caught.value.code == "response_cancelled"


def fail_at_fifth(seq_id: int, position: int) -> str | None:
    return "logits were not finite" if position >= 13 + 5 else None


def test_background_that_fails_says_so() -> None:
    with running_server(step_s=0.002, fail=fail_at_fifth) as running:
        started = create(running, background=True, max_output_tokens=40)
        failed = poll(running, started["id"], ("failed",))
        assert failed["error"]["code"] == "server_error"
        assert "not finite" in failed["error"]["message"]
        events = iter(running.client().responses.retrieve(started["id"], stream=True))
        with pytest.raises(openai.APIError) as caught:
            list(events)
        assert caught.value.code == "numerical_error"


def test_a_background_response_is_taken_or_refused_at_once() -> None:
    """What a queue does not take is never accepted: there is nothing to ask for."""
    with running_server(ServerSettings(port=0, max_waiting_requests=2), step_s=0.01, max_seqs=1) as running:
        taken = [running.post(RESPONSES, {**SLOW, "background": True}) for _ in range(8)]
        codes = [response.status_code for response in taken]
        assert codes[0] == 200
        assert set(codes) <= {200, 429, 503}
        assert codes[-1] != 200
        for response in taken:
            if response.status_code == 200:
                running.post(f"{RESPONSES}/{response.json()['id']}/cancel")
            else:
                assert "retry-after" in response.headers
        running.wait_idle(5)


def test_a_response_that_cannot_be_kept_is_an_error(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is promised that is not there: whole, streamed, in the background."""

    async def full(*arguments: Any) -> None:
        raise storage_full()

    monkeypatch.setattr(ResponseStore, "put", full)
    for wishes in (body(), body(background=True), body(background=True, stream=True)):
        refused = server.post(RESPONSES, wishes)
        assert (refused.status_code, error_of(refused)["code"]) == (507, "storage_full")
    with pytest.raises(openai.APIError) as caught:
        list(server.client().responses.create(model=MODEL, input="a", max_output_tokens=3, stream=True))
    assert caught.value.code == "storage_full"
    assert server.post(RESPONSES, body(store=False)).status_code == 200


def test_st01_begun_followed_left_cancelled_and_deleted_at_random(server: Running) -> None:
    """ST-01: whatever clients do to responses, each ends as one thing for all, and nothing stays behind."""
    draw = random.Random(7)

    async def live(client: openai.AsyncOpenAI) -> str | None:
        wishes: Any = {"model": MODEL, "input": "Go on", "max_output_tokens": draw.choice((1, 20, 200))}
        background, streamed, patience = draw.random() < 0.6, draw.random() < 0.6, draw.randint(1, 30)
        if not streamed:
            response_id = (await client.responses.create(**wishes, background=background)).id
        else:
            stream = await client.responses.create(**wishes, background=background, stream=True)
            seen = []
            async for event in stream:
                seen.append(event)
                if len(seen) >= patience:
                    break
            await stream.close()
            response_id = cast(Any, seen[0]).response.id
        if not background:
            return None
        if draw.random() < 0.5:
            follow = await client.responses.retrieve(response_id, stream=True, starting_after=draw.randint(0, 9))
            with contextlib.suppress(openai.APIError):
                async for event in follow:
                    if event.sequence_number > patience:
                        break
            await follow.close()
        fate = draw.random()
        if fate < 0.3:
            await client.responses.cancel(response_id)
        elif fate < 0.5:
            await client.responses.delete(response_id)
            return None
        return str(response_id)

    async def all_at_once() -> list[str | None]:
        async with server.async_client() as client:
            return await asyncio.gather(*(live(client) for _ in range(40)))

    kept = [response_id for response_id in asyncio.run(all_at_once()) if response_id is not None]
    server.wait_idle(20)
    assert len(kept) > 5
    for response_id in kept:
        over = poll(server, response_id, ("incomplete", "completed", "cancelled"))
        *_, last = read_events(follow_raw(server, response_id))
        assert (last["type"] == "error") == (over["status"] == "cancelled")


def follow_raw(server: Running, response_id: str) -> str:
    """The events of a response, however they end."""
    head = f"GET {RESPONSES}/{response_id}?stream=true HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    return unchunked(raw_request(server.port, head.encode()))


# ---- whose it is ----


@contextlib.contextmanager
def two_tenants(folder: Path, **options: Any) -> Iterator[tuple[Running, list[openai.OpenAI]]]:
    book = folder / "keys.json"
    keys = []
    for tenant in ("acme", "umbrella"):
        record, key = new_key(tenant=tenant)
        add_key(book, record)
        keys.append(key)
    with running_server(ServerSettings(port=0, keys=book, **options), step_s=0.002) as running:
        yield (
            running,
            [openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0, timeout=30) for key in keys],
        )


def test_se16_another_tenants_response_does_not_exist(tmp_path: Path) -> None:
    """SE-16: told in the very words that an unknown one is; and nothing happens to it."""
    with two_tenants(tmp_path) as (_, (mine, theirs)):
        kept = mine.responses.create(model=MODEL, input="My secret", max_output_tokens=4)
        live = mine.responses.create(**SLOW, background=True)
        calls: list[Any] = [
            lambda i: theirs.responses.retrieve(i),
            lambda i: list(theirs.responses.retrieve(i, stream=True)),
            lambda i: theirs.responses.delete(i),
            lambda i: theirs.responses.cancel(i),
            lambda i: theirs.responses.input_items.list(i),
            lambda i: theirs.responses.create(model=MODEL, input="a", previous_response_id=i),
            lambda i: theirs.responses.input_tokens.count(model=MODEL, input="a", previous_response_id=i),
            lambda i: theirs.responses.create(
                model=MODEL, input=cast(Any, [{"type": "item_reference", "id": i.replace("resp", "msg") + "_i0"}])
            ),
        ]
        for call in calls:
            told = [refusal(call, response_id) for response_id in (kept.id, live.id, UNKNOWN)]
            assert told[0] == told[1] == told[2]
            assert told[0][0] in (404, 400)  # 400: what cannot be continued
        assert mine.responses.retrieve(live.id).status in ("queued", "in_progress")
        assert mine.responses.retrieve(kept.id).output_text == kept.output_text
        assert mine.responses.cancel(live.id).status == "cancelled"
        ids = {mine.responses.create(model=MODEL, input="a", max_output_tokens=1).id for _ in range(8)}
        assert len(ids) == 8
        assert all(int(response_id.removeprefix("resp_"), 16) >= 0 and len(response_id) == 37 for response_id in ids)


def refusal(call: Any, response_id: str) -> tuple[int, str]:
    """Status and body, with the id taken out: all else must be the same."""
    with pytest.raises(openai.APIStatusError) as caught:
        call(response_id)
    text = json.dumps(caught.value.body).replace(response_id.removeprefix("resp_"), "ID")
    return caught.value.status_code, text


# ---- how much is kept ----


def stored(response_id: str, previous: str | None = None, size: int = 10, age_s: float = 0.0) -> Stored:
    response = {
        "id": response_id,
        "created_at": int(time.time() - age_s),
        "status": "completed",
        "previous_response_id": previous,
        "output": [],
        "padding": size * "x",
    }
    return Stored(cast(ResponseBody, response), [])


def run_store(bounds: Bounds, work: Any) -> None:
    memory = Memory()
    asyncio.run(work(ResponseStore(bounds, memory)))
    memory.close()


def test_the_tenant_with_most_gives_up_its_oldest() -> None:
    """And another's single response outlives a flood; by number and by bytes."""

    async def flood(store: ResponseStore) -> None:
        await store.put("quiet", stored("resp_quiet"))
        for i in range(30):
            await store.put("loud", stored(f"resp_{i}", size=1000))
        assert await store.get("quiet", "resp_quiet") is not None
        there = [i for i in range(30) if await store.get("loud", f"resp_{i}") is not None]
        assert there == list(range(30 - len(there), 30))
        assert 0 < len(there) <= 9

    run_store(Bounds(10, 10**9, 1000), flood)
    run_store(Bounds(1000, 9000, 1000), flood)


def test_a_conversation_that_goes_on_keeps_its_beginning() -> None:
    async def chat(store: ResponseStore) -> None:
        await store.put("t", stored("resp_0"))
        for i in range(1, 12):
            await store.put("t", stored(f"resp_idle_{i}"))
            if i % 2:
                continue
            chain, is_all = await store.chain("t", f"resp_{i // 2 - 1}", 100)
            assert is_all
            assert [found.response["id"] for found in chain] == [f"resp_{j}" for j in range(i // 2)]
            await store.put("t", stored(f"resp_{i // 2}", previous=f"resp_{i // 2 - 1}"))
        assert await store.get("t", "resp_idle_1") is None
        assert await store.delete("t", "resp_2")
        for tenant, last, missing in (("t", "resp_5", "resp_2"), ("other", "resp_1", "resp_1")):
            with pytest.raises(NotKept, match=missing):
                await store.chain(tenant, last, 100)

    run_store(Bounds(8, 10**9, 1000), chat)


def test_a_conversation_that_is_too_long_to_read_is_told(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never a part of it for the whole, unless that was wished."""
    monkeypatch.setattr("tokenmill.server.responses.store.MAX_READ_BYTES", 3000)
    last = create(server, input="Turn 0")
    for i in range(1, 6):
        last = create(server, input=f"Turn {i}", previous_response_id=last["id"], truncation="auto")
    refused = server.post(RESPONSES, body(previous_response_id=last["id"]))
    error = error_of(refused)
    assert (error["code"], error["param"]) == ("context_length_exceeded", "previous_response_id")
    shortened = create(server, previous_response_id=last["id"], truncation="auto")
    assert shortened["usage"]["input_tokens"] > create(server)["usage"]["input_tokens"]


def test_a_response_is_kept_for_so_long() -> None:
    async def wait(store: ResponseStore) -> None:
        await store.put("t", stored("resp_old", age_s=101))
        await store.put("t", stored("resp_new", age_s=50))
        assert await store.get("t", "resp_old") is None
        assert await store.get("t", "resp_new") is not None

    run_store(Bounds(10, 10**9, 100), wait)


def test_the_first_request_may_be_for_what_is_not_there(tmp_path: Path) -> None:
    """Its transaction is rolled back; the table must not go with it."""
    with running_server(ServerSettings(port=0, store_dir=tmp_path / "store")) as server:
        response = server.post(RESPONSES, body(previous_response_id=UNKNOWN))
        assert error_of(response)["code"] == "previous_response_not_found"
        assert server.get(f"{RESPONSES}/{create(server)['id']}").status_code == 200


def test_a_folder_keeps_responses_over_a_restart(tmp_path: Path) -> None:
    """And what was under way is told to have failed, not forgotten."""
    settings = ServerSettings(port=0, store_dir=tmp_path / "store", drain_timeout_s=0.1)
    with running_server(settings, step_s=0.002) as running:
        first = create(running, input="Remember")
        started = running.post(RESPONSES, {**SLOW, "background": True}).json()
        stream = RawStream(running.port, RESPONSES, {**SLOW, "stream": True})
        wait_until(lambda: running.stats()["running"] == 2, 5)
    stream.close()
    with running_server(settings, step_s=0.002) as running:
        assert running.get(f"{RESPONSES}/{first['id']}").json() == first
        second = create(running, input="What?", previous_response_id=first["id"])
        assert second["usage"]["input_tokens"] > first["usage"]["input_tokens"]
        failed = running.get(f"{RESPONSES}/{started['id']}").json()
        assert failed["status"] == "failed"
        check_response(failed)


def test_a_server_that_stops_finishes_what_it_accepted(tmp_path: Path) -> None:
    """Nobody waits on a connection for it, and it is complete all the same."""
    settings = ServerSettings(port=0, store_dir=tmp_path / "store")
    with running_server(settings, step_s=0.002) as running:
        started = create(running, background=True, max_output_tokens=100, seed=1)
        wait_until(lambda: running.stats()["running"] == 1, 5)
    with running_server(settings) as running:
        over = running.get(f"{RESPONSES}/{started['id']}").json()
        assert over["status"] == "incomplete"
        assert over["usage"]["output_tokens"] == 100
        check_response(over)


def test_what_a_killed_process_left_unfinished_has_failed(tmp_path: Path) -> None:
    settings = ServerSettings(port=0, store_dir=tmp_path / "store")

    async def leave(store: ResponseStore) -> None:
        unfinished = stored("resp_left")
        unfinished.response["status"] = "in_progress"
        await store.put("default", unfinished)

    folder = Store(tmp_path / "store")
    asyncio.run(leave(ResponseStore(Bounds(10, 10**6, 1000), folder)))
    folder.close()
    with running_server(settings) as running:
        left = running.get(f"{RESPONSES}/resp_left").json()
        assert left["status"] == "failed"
        assert "restarted" in left["error"]["message"]
