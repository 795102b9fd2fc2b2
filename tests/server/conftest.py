"""The servers that the tests share, and the check after every test that nothing was left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.server.support import Running, running_server
from tokenmill.core.engine_config import EngineConfig
from tokenmill.server.app import create_app
from tokenmill.server.serve import Server, address_of, bind
from tokenmill.server.settings import ServerSettings

REAL_MODEL = "story-draft"


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


@pytest.fixture(scope="session")
def real_url() -> Iterator[str]:
    """The smaller built-in model behind the real server: nothing in the way is a fake."""
    with real_server(num_blocks=128, max_context=512) as url:
        yield url


@contextmanager
def real_server(model: str = REAL_MODEL, **options: Any) -> Iterator[str]:
    """A model, by default the smaller built-in one, behind the real server, with these engine options; its address."""
    from tokenmill.launch import build  # imports torch

    config = EngineConfig.from_options(model=model, num_threads=1, **options)
    service = build(config).service()
    settings = ServerSettings(port=0)
    sock = bind(settings)
    ready = threading.Event()
    server = Server(create_app(service, settings), sock, lambda address: ready.set())

    async def main() -> None:
        await service.start()
        await server.run_until_stopped()
        await service.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="real-server")
    thread.start()
    assert ready.wait(20)
    yield address_of(sock)
    server.handle_exit(15, None)
    thread.join(20)
    assert not thread.is_alive()
