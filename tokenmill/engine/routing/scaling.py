"""How many replicas there should be, from how much there is to do.

The wish is plain: requests under way over the number that a replica should hold. What makes a policy of it is
patience: load that comes and goes within a moment is not worth a cold start, so the wish must have stood for a
while before it is followed, longer for going down than for going up (the rule of Kubernetes' and Ray Serve's
autoscalers). Going up goes to the *least* that was wished for in that while, going down to the *most*.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from tokenmill.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ScalingConfig:
    """When to start and stop replicas."""

    min_replicas: int = 1
    """0 lets an idle pool go; the next request then waits for a cold start."""
    max_replicas: int = 8
    target_requests: float = 32.0
    """Requests under way that one replica should hold."""
    interval_s: float = 5.0
    """How often to look."""
    up_after_s: float = 10.0
    """A wish for more must have stood for this long."""
    down_after_s: float = 120.0
    """A wish for fewer must have stood for this long."""
    cold_start_s: float = 60.0
    """From the decision to a replica that takes requests."""

    def __post_init__(self) -> None:
        _check(0 <= self.min_replicas <= self.max_replicas, "min", self.min_replicas, "between 0 and max")
        _check(self.max_replicas >= 1, "max", self.max_replicas, "at least 1")
        _check(self.target_requests > 0, "target", self.target_requests, "above 0")
        _check(self.interval_s > 0, "interval", self.interval_s, "above 0")
        for name, seconds in (("up", self.up_after_s), ("down", self.down_after_s), ("cold", self.cold_start_s)):
            _check(seconds >= 0, name, seconds, "at least 0")


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """What the autoscaler is shown."""

    num_replicas: int
    """Ready or starting; those that drain do not count."""
    num_requests: int
    """Under way in the pool: queued, running, and waiting for a replica."""


class Autoscaler:
    """Follows the wish with patience. Asked every ``interval_s``, and when a request finds no replica."""

    def __init__(self, config: ScalingConfig) -> None:
        self.config = config
        self._wishes: deque[tuple[float, int]] = deque()

    def decide(self, load: PoolLoad, now: float) -> int:
        """How many replicas there should be from now on."""
        config = self.config
        wish = math.ceil(load.num_requests / config.target_requests)
        wish = min(max(wish, config.min_replicas), config.max_replicas)
        if load.num_replicas == 0:
            return wish  # nobody is there to wait for
        self._wishes.append((now, wish))
        longest_s = max(config.up_after_s, config.down_after_s)
        while len(self._wishes) > 1 and self._wishes[1][0] <= now - longest_s:
            self._wishes.popleft()
        up, down = self._since(now - config.up_after_s), self._since(now - config.down_after_s)
        if up and min(up) > load.num_replicas:
            return min(up)
        if down and max(down) < load.num_replicas:
            return max(down)
        return load.num_replicas

    def _since(self, since_s: float) -> list[int]:
        """What was wished for from ``since_s`` on; nothing if nobody has looked for that long."""
        before = [wish for moment_s, wish in self._wishes if moment_s <= since_s]
        return before[-1:] + [wish for moment_s, wish in self._wishes if moment_s > since_s] if before else []


def _check(ok: bool, name: str, value: object, wanted: str) -> None:
    if not ok:
        raise ConfigError(f"autoscale {name} must be {wanted}, not {value}")
