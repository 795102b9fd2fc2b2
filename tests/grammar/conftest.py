from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.grammar.support import new_compiler
from tokenmill.engine.grammar.compiler import GrammarCompiler


@pytest.fixture(scope="session")
def compiler() -> Iterator[GrammarCompiler]:
    compiler = new_compiler()
    yield compiler
    compiler.close()
