"""The watchdog: an engine is judged by its progress. FT-24."""

from __future__ import annotations

import pytest

from tokenmill.core.clock import VirtualClock
from tokenmill.core.errors import ConfigError
from tokenmill.engine.watchdog import MARGIN, SLOW_AFTER_S, Watchdog


def test_slow_then_stuck_then_back() -> None:
    clock = VirtualClock()
    dog = Watchdog(clock, stuck_after_s=60)
    clock.advance(SLOW_AFTER_S)
    assert dog.judge() == "moving"
    clock.advance(0.1)
    assert dog.judge() == "slow"
    clock.advance(60)
    assert dog.judge() == "stuck"
    dog.turn()
    assert dog.judge() == "moving"


def test_a_step_foreseen_to_be_long_has_its_time() -> None:
    clock = VirtualClock()
    dog = Watchdog(clock, stuck_after_s=20, expected=lambda: 5.0)
    clock.advance(MARGIN * 5)
    assert dog.judge() == "moving"
    clock.advance(0.1)
    assert dog.judge() == "stuck"


def test_a_short_limit_is_not_called_slow_first() -> None:
    clock = VirtualClock()
    dog = Watchdog(clock, stuck_after_s=2)
    clock.advance(1.9)
    assert dog.judge() == "moving"
    clock.advance(0.2)
    assert dog.judge() == "stuck"


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_limits_that_make_no_sense(seconds: float) -> None:
    with pytest.raises(ConfigError, match="stuck_timeout"):
        Watchdog(VirtualClock(), stuck_after_s=seconds)
