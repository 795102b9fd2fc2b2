"""What a running server says of itself: predictions that follow its steps, and figures at every scrape."""

from __future__ import annotations

from collections.abc import Callable

from tokenmill.core.step import StepPlan
from tokenmill.engine.contracts import PredictedCost
from tokenmill.engine.telemetry import LiveFigures, StepAccount
from tokenmill.perf.calibrate import Calibration, OnlineFit
from tokenmill.perf.diagnose.case import Limits
from tokenmill.perf.diagnose.diagnosis import utilisation
from tokenmill.perf.diagnose.pricing import PART_OF_GROUP, Pricer, joining, prior_factors, split
from tokenmill.perf.diagnose.regime import bound_seconds, regime_of, reliefs
from tokenmill.perf.profile import Profile
from tokenmill.perf.roofline import COMPUTE, HOST, LINK_BANDWIDTH, LINK_LATENCY, MEMORY
from tokenmill.perf.terms import Deployment

UNTRIED = 0.7
"""How far a factor may lie from the ceilings before a step was seen (standard deviation of its logarithm)."""


class LiveCost:
    """A ``LearningCost``: the roofline under a prior, its parts corrected by every step that it is shown."""

    def __init__(self, deployment: Deployment, prior: Calibration) -> None:
        self._factors, _ = prior_factors(deployment, prior, host_apart=True)
        self._profile = Profile(deployment)
        self._join = joining(deployment.hardware)
        kernels = [(part, bound) for part in dict.fromkeys(PART_OF_GROUP.values()) for bound in (MEMORY, COMPUTE)]
        messages = [("collectives", bound) for bound in (LINK_LATENCY, LINK_BANDWIDTH)]
        parts = [*kernels, *(messages if deployment.layout.num_devices > 1 else []), ("launch gaps", HOST)]
        self.fit = OnlineFit([": ".join(part) for part in parts], trust=UNTRIED)
        self._plan: StepPlan | None = None
        self._parts: dict[str, float] = {}

    def predict(self, plan: StepPlan) -> PredictedCost:
        """The step's seconds and what takes most of them."""
        table = split(self._profile.of_plan(plan.starts, plan.counts), self._factors, self._join)
        self._plan, self._parts = plan, {": ".join(key): seconds for key, seconds in table.items()}
        _, bound = max(table, key=lambda key: table[key])
        return PredictedCost(self.fit.corrected(self._parts), bound)

    def observe(self, plan: StepPlan, seconds: float) -> None:
        """``plan`` took ``seconds``."""
        if plan is not self._plan:
            self.predict(plan)
        self.fit.observe(self._parts, seconds)


def make_judge(deployment: Deployment, prior: Calibration, limits: Limits) -> Callable[[StepAccount], LiveFigures]:
    """Figures of an account, quick enough for every scrape: nothing is fitted, measured seconds are split."""

    def judge(account: StepAccount) -> LiveFigures:
        if account.num_steps == 0 or account.busy_s <= 0.0:
            return LiveFigures(0.0, 0.0, "")
        pricer = Pricer(deployment, account, prior, fit=False)
        bounds = bound_seconds(pricer.table(account.parts.get("model", 0.0)), account)
        mfu, mbu = utilisation(deployment, account, pricer.classes)
        return LiveFigures(mfu, mbu, regime_of(bounds, reliefs(pricer, account, limits)) or "")

    return judge
