"""A server for the tests that need one: the installed command, the smallest built-in model, a free port."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cli.support import process

SMALL = ("story-draft", "--num-blocks", "512", "--num-threads", "1")


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    with process("serve", *SMALL, "--port", "0") as started:
        yield started.wait_for(r"ready on (http://[\d.:]+\d)")[1]
