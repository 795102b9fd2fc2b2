"""AC-14: what the official client does with a refusal, and what it is told."""

from __future__ import annotations

import time

import openai
import pytest

from tests.server.service import MODEL
from tests.server.support import Running, wait_until
from tests.server.test_admission import Crowd, GatedExecutor, gated, take_both_places, until_waiting
from tokenmill.server.settings import ServerSettings


def responses(server: Running, status: int) -> float:
    """How many answers with ``status`` completions have had."""
    counter = server.app.context.metrics.responses.labels("/v1/completions", status)
    return float(counter._value.get())


def test_ac14_the_official_client_comes_back_when_it_was_told_to() -> None:
    """Refused twice and then served, without the application hearing of it; each try has an id of its own."""
    with gated(ServerSettings(port=0, max_waiting_requests=1), max_seqs=2, step_s=0.002) as server:
        crowd = Crowd(server)
        running = take_both_places(crowd)
        waiting = crowd.send(1)
        until_waiting(server, 3)
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2) as client:
            told: list[str] = []
            client._client.event_hooks["response"].append(lambda found: told.append(found.headers["x-request-id"]))
            client._client.event_hooks["response"].append(lambda found: len(told) == 2 and GatedExecutor.gate.set())
            began_s = time.monotonic()
            answer = client.completions.create(model=MODEL, prompt="a", max_tokens=1)
            assert answer.choices[0].finish_reason == "length"
            assert time.monotonic() - began_s >= 2.0  # Retry-After is a second at least
        wait_until(lambda: responses(server, 503) == 2, 5)
        assert len(set(told)) == 3
        assert [future.result(30).status_code for future in (*running, *waiting)] == [200] * 3
        crowd.close()


@pytest.mark.parametrize(
    ("wish", "status", "error"),
    [
        ({"max_tokens": -1}, 400, openai.BadRequestError),
        ({"model": "nobody"}, 404, openai.NotFoundError),
    ],
)
def test_ac14_and_not_for_its_own_mistakes(
    server: Running, wish: dict[str, object], status: int, error: type[openai.APIStatusError]
) -> None:
    before = responses(server, status)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=2) as client, pytest.raises(error):
        client.completions.create(**{"model": MODEL, "prompt": "a", **wish})  # type: ignore[call-overload]
    server.get("/health")  # an answer is counted once it has been sent
    wait_until(lambda: responses(server, status) > before, 5)
    assert responses(server, status) == before + 1
