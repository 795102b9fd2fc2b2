"""How an engine in a process of its own is watched, and what becomes of requests when it dies. Light to import."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenmill.core.errors import ConfigError
from tokenmill.engine.watchdog import STUCK_AFTER_S

Recovery = Literal["resume", "fail"]


@dataclass(frozen=True, slots=True)
class RemoteSettings:
    """Checked when it is made (``ConfigError``)."""

    recovery: Recovery = "resume"
    """``resume``: requests go on in the next engine; ``fail``: those of which something was seen end with an error."""
    stuck_after_s: float = STUCK_AFTER_S
    """Without progress for this long, the engine's process is killed."""
    max_deaths: int = 3
    """So many deaths within ``death_window_s`` are the end."""
    death_window_s: float = 60.0

    def __post_init__(self) -> None:
        if not self.stuck_after_s > 0:
            raise ConfigError(f"stuck_timeout must be above 0 seconds, not {self.stuck_after_s}")
