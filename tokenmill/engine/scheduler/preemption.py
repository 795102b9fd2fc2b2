"""What becomes of a sequence that has to give its KV blocks up.

``recompute`` puts it back into the queue: its tokens are kept, their KV is computed again (as far as the
prefix cache has lost it). ``refuse`` ends its request with an error, for operators who prefer a clear no to
a long wait. Swapping to host memory is a third choice of the same kind; it needs KV tiers (docs/status.md).
"""

from __future__ import annotations

from typing import Literal, Protocol

from tokenmill.core.engine_config import SchedulerConfig
from tokenmill.core.sequence import Sequence

Remedy = Literal["recompute", "refuse"]


class PreemptionPolicy(Protocol):
    def choose(self, victim: Sequence) -> Remedy: ...


class AlwaysRecompute:
    def choose(self, victim: Sequence) -> Remedy:
        return "recompute"


class AlwaysRefuse:
    def choose(self, victim: Sequence) -> Remedy:
        return "refuse"


def make_preemption(config: SchedulerConfig) -> PreemptionPolicy:
    """The preemption policy that ``config`` names."""
    return AlwaysRecompute() if config.preemption == "recompute" else AlwaysRefuse()
