"""A server for the tests that need one: the real command, the smallest built-in model, a free port."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.cli.support import process

SMALL = ("story-draft", "--num-blocks", "512", "--num-threads", "1")


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    with process("serve", *SMALL, "--port", "0") as started:
        yield started.wait_for(r"ready on (http://[\d.:]+\d)")[1]


@pytest.fixture(autouse=True)
def _same_threads_afterwards() -> Iterator[None]:
    """``--num-threads`` holds for the process, and here that is everybody's."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else None
    yield
    if torch:
        torch.set_num_threads(before)
