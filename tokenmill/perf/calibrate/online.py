"""``OnlineFit``: a running engine corrects its own cost model.

Each step tells one number: how long it took. Which part of the prediction was wrong (memory, compute, messages, host)
shows over many steps, because they mix the parts differently. So the factors on the parts are followed by recursive
least squares (a Kalman filter whose state barely moves), in relative terms: x = parts/prediction, y =
measured/prediction.

Three guards: a residual beyond three times the usual one is cut down to that (a page fault is not the model's
mistake); no factor leaves [1/4, 4]; and old steps are forgotten slowly, so that a change of clock or neighbour is
followed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

BOUND = 4.0


class OnlineFit:
    """Factors on the seconds that a prediction is made of.

    Args:
        names: of the parts.
        trust: standard deviation of a factor's logarithm before anything was seen.
        noise: usual relative scatter of a step's time.
        memory: steps after which an observation counts for a third.
    """

    def __init__(
        self, names: Sequence[str], *, trust: float = 0.3, noise: float = 0.05, memory: float = 2000.0
    ) -> None:
        if not names:
            raise ValueError("names must not be empty")
        self.names = tuple(names)
        size = len(self.names)
        self._gains = [1.0] * size
        self._covariance = [[trust * trust if i == j else 0.0 for j in range(size)] for i in range(size)]
        self._prior = trust * trust
        self._noise = noise
        self._drift = trust * trust / memory
        self._scatter = noise
        self.num_steps = 0
        self.error = 0.0
        """Mean of |log(measured / corrected)| over the last hundred steps or so, before each was learnt from."""

    @property
    def factors(self) -> dict[str, float]:
        return dict(zip(self.names, self._gains, strict=True))

    def corrected(self, parts: Mapping[str, float]) -> float:
        """Seconds, with what was learnt."""
        return sum(gain * parts.get(name, 0.0) for name, gain in zip(self.names, self._gains, strict=True))

    def observe(self, parts: Mapping[str, float], measured_s: float) -> None:
        """A step whose uncorrected prediction was made of ``parts`` took ``measured_s``; nonsense is ignored."""
        values = [parts.get(name, 0.0) for name in self.names]
        predicted = sum(values)
        sane = math.isfinite(measured_s) and measured_s > 0.0 and math.isfinite(predicted) and predicted > 0.0
        if not sane or any(value < 0.0 for value in values):
            return
        self.num_steps += 1
        x = [value / predicted for value in values]
        expected = sum(gain * share for gain, share in zip(self._gains, x, strict=True))
        weight = max(0.01, 1.0 / self.num_steps)
        self.error += weight * (abs(math.log(measured_s / predicted / expected)) - self.error)
        residual = measured_s / predicted - expected
        limit = 3.0 * self._scatter
        cut = min(max(residual, -limit), limit)
        # The scatter follows what was cut, a little above: it can grow, but one outlier hardly moves it.
        self._scatter += 0.02 * (min(abs(residual), 2.0 * limit) * 1.25 - self._scatter)
        self._scatter = max(self._scatter, self._noise)
        self._update(x, cut)

    def _update(self, x: Sequence[float], residual: float) -> None:
        size, covariance = len(x), self._covariance
        for i in range(size):
            covariance[i][i] = min(covariance[i][i] + self._drift, self._prior)
        carried = [sum(covariance[i][j] * x[j] for j in range(size)) for i in range(size)]
        total = sum(x[i] * carried[i] for i in range(size)) + self._scatter * self._scatter
        for i in range(size):
            gain = self._gains[i] + carried[i] / total * residual
            self._gains[i] = min(max(gain, 1.0 / BOUND), BOUND)
        for i in range(size):
            for j in range(size):
                covariance[i][j] -= carried[i] * carried[j] / total
