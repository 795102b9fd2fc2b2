"""One server for the whole folder, and the check after every test that nothing was left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.support import Running, running_server
from tokenmill.server.settings import ServerSettings


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Running]:
    with running_server(ServerSettings(port=0, body_timeout_s=1.0, ping_s=0.5), step_s=0.002) as running:
        yield running


@pytest.fixture
def server(shared_server: Running) -> Iterator[Running]:
    """Fails the test that leaves a request running, a block held, or the server unable to answer."""
    yield shared_server
    shared_server.wait_idle()
    response = shared_server.post("/v1/completions", shared_server.completion(max_tokens=1))
    assert response.status_code == 200, response.text
    shared_server.wait_idle()
