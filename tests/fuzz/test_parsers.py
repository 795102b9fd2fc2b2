"""MF-05, BI-27: every parser, fed with what is almost right. ``make fuzz SECONDS=3600`` goes on for an hour.

Hypothesis draws from seeds of the operating system: no two runs are the same. What fails is shrunk and printed; put it
into the tests of the parser that it broke. (Coverage-guided fuzzers need a build of their own; there is none here.)
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.targets import TARGETS, Target

SECONDS = float(os.environ.get("TOKENMILL_FUZZ_SECONDS", "15"))
"""Of all targets together."""
ROUND = 50


@pytest.mark.parametrize("name", TARGETS)
def test_mf05_bi27_parsers_refuse_what_they_do_not_take(name: str) -> None:
    """MF-05, BI-27: a refusal of its own or a result, soon, and never anything else."""
    target = TARGETS[name]

    @settings(
        max_examples=ROUND, deadline=None, database=None, derandomize=False, suppress_health_check=list(HealthCheck)
    )
    @given(target.inputs)
    def feed(data: Any) -> None:
        check(target, data)

    ends_s = time.monotonic() + SECONDS / len(TARGETS)
    feed()
    while time.monotonic() < ends_s:
        feed()


def check(target: Target, data: Any) -> None:
    started_s = time.thread_time()
    with contextlib.suppress(*target.refusals):
        target.run(data)
    taken_s = time.thread_time() - started_s
    assert taken_s < target.limit_s, f"took {taken_s:.1f} s"
