"""What every test may use. Imports nothing heavy, so that the architecture tests stay quick."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"

# No test may wait for a network that is not there.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads that wait for one another sleep instead of spinning: on a machine that does other work too, spinning
# made a step six times slower (docs/log.md). Read once, when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the project; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("needs the shared data folder beside the project (../shared)")
    return SHARED
