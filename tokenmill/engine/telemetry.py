"""Where the engine's time goes, step by step, as sums that another thread may read at any moment.

The wall time of the engine's thread is cut into parts that add up to it exactly::

    ── ended ──┬── text ──┬──── scheduling ────┬── model ──┬ sampling ┬── ended ──┬── idle / held ──┬──
               │ events handed out, requests   │ the executor's own   │           │ nobody is there / somebody
               │ taken in, the interpreter     │ seconds              │           │ waits and may not start
               │ awaited                       │                      │

The executor says how long it worked (``StepResult.seconds``); what is left of a step's period is the host's. With
several steps in flight an executor may work while the host plans: only what it does *not* hide is counted.

Steps of about the same size are kept together as a *class*: how many, how long, and the sums over their rows from which
``perf/costs`` finds operations and bytes. A few dozen classes hold weeks of serving, and a step costs a handful of
additions. The clock's readings come in as values; a simulated engine is observed in the same way.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple, Protocol

from tokenmill.core.events import PreemptedForBlocks, StepEvents
from tokenmill.core.step import StepPlan, StepResult
from tokenmill.engine.contracts import PredictedCost

PARTS = ("model", "sampling", "scheduling", "text", "held", "idle")

ERROR_BOUNDS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0)
"""Of the histogram of |predicted / measured - 1|."""
ERROR_WEIGHT = 0.02
"""Of the newest step in the moving average of that error: about the last 50 count."""
PREDICT_EVERY_S = 0.02
"""Of steps quicker than this only some are predicted: to foresee one and learn from it takes tens of microseconds."""

WINDOW_S = 30.0
MARK_S = 5.0
"""What ``recent`` looks back to: marks are set this far apart."""


class StepClass(NamedTuple):
    """Steps of about the same size: their number, and sums over them."""

    steps: float
    seconds: float
    """Of the executor."""
    decode_rows: float
    decode_positions: float
    """Positions that rows of one token read, their own included."""
    prefill_rows: float
    prefill_tokens: float
    prefill_starts: float
    """Positions before the tokens of rows with more than one."""
    outputs: float
    """Rows that drew tokens."""

    @property
    def rows(self) -> float:
        return self.decode_rows + self.prefill_rows

    @property
    def tokens(self) -> float:
        return self.decode_rows + self.prefill_tokens


@dataclass(frozen=True, slots=True)
class StepAccount:
    """What an engine did in a span of time. All sums, so that the difference of two is an account as well."""

    parts: Mapping[str, float] = field(default_factory=dict)
    """Seconds by ``PARTS``."""
    classes: Mapping[int, StepClass] = field(default_factory=dict)
    blocked_s: Mapping[str, float] = field(default_factory=dict)
    """Seconds during which requests waited, by what kept the head of the queue (``core/events.py: Cause``)."""
    waiting_s: float = 0.0
    """Sequences in the queue, summed up over time."""
    requests: float = 0.0
    """Ended ones."""
    delayed: Mapping[str, float] = field(default_factory=dict)
    """How many of them lost time to each cause of their accounts."""
    preemptions: float = 0.0
    lost_tokens: float = 0.0
    """Computed tokens that preempted sequences gave up, and that were computed again."""
    kernels: Mapping[str, float] = field(default_factory=dict)
    """Measured seconds by kernel, where the executor takes them; part of ``model`` and ``sampling``."""

    @property
    def wall_s(self) -> float:
        return sum(self.parts.values())

    @property
    def busy_s(self) -> float:
        return self.wall_s - self.parts.get("idle", 0.0) - self.parts.get("held", 0.0)

    @property
    def num_steps(self) -> float:
        return sum(each.steps for each in self.classes.values())

    @property
    def mean_rows(self) -> float:
        """Sequences of an average step."""
        return sum(each.rows for each in self.classes.values()) / max(self.num_steps, 1.0)

    def minus(self, earlier: StepAccount) -> StepAccount:
        """What happened since ``earlier``."""
        found: dict[str, Any] = {}
        for each in fields(self):
            now, then = getattr(self, each.name), getattr(earlier, each.name)
            found[each.name] = _difference(now, then) if isinstance(now, Mapping) else now - then
        return StepAccount(**found)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"classes": {key: list(each) for key, each in self.classes.items()}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StepAccount:
        """The inverse of ``as_dict``, also after JSON; raises ``KeyError``, ``TypeError`` or ``ValueError``."""
        classes = {int(key): StepClass(*map(float, row)) for key, row in data["classes"].items()}
        return cls(**(dict(data) | {"classes": classes}))


def _difference(now: Mapping[Any, Any], then: Mapping[Any, Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in now.items():
        earlier = then.get(key)
        if earlier is None:
            found[key] = value
        elif isinstance(value, StepClass):
            if value.steps > earlier.steps:
                found[key] = StepClass(*(a - b for a, b in zip(value, earlier, strict=True)))
        else:
            found[key] = value - earlier
    return found


class LearningCost(Protocol):
    """A ``StepCost`` that follows what it is shown."""

    def predict(self, plan: StepPlan) -> PredictedCost: ...

    def observe(self, plan: StepPlan, seconds: float) -> None:
        """``plan`` took so long."""
        ...


class LiveFigures(NamedTuple):
    """How near to the machine's ceilings the engine runs, and what holds it back."""

    mfu: float
    """Operations that the steps needed over what the machine could have done meanwhile."""
    mbu: float
    """The same for bytes."""
    regime: str
    """One of ``REGIMES``; empty if nothing ran."""


class Observation(NamedTuple):
    """Everything that is known at one moment."""

    about: Mapping[str, Any]
    account: StepAccount
    """Since the start, up to the last step that ended."""
    under_way_s: float
    """How long the step that runs at this moment has been running; 0 if none does."""
    live: LiveFigures | None
    """Of the last ``WINDOW_S`` seconds; None where the machine's ceilings are not known."""
    error: float
    """Moving average of |predicted / measured - 1| of a step's time."""
    error_sum: float
    error_counts: tuple[int, ...]
    """How many predictions, by ``ERROR_BOUNDS`` and beyond the last."""


REGIMES = (
    "compute",
    "memory bandwidth",
    "interconnect bandwidth",
    "interconnect latency",
    "host overhead",
    "memory capacity",
    "scheduler",
)


class Telemetry:
    """Observes an engine's steps. The engine's thread writes, any thread reads; there is no lock.

    Args:
        cost: predicts steps and learns from them; None: nothing is predicted.
        judge: turns an account into live figures, if it is known what the machine can do.
        kernels: measured seconds by kernel so far, if the executor takes them.
        about: what a diagnosis must know of model, precision, machine and limits; JSON.
    """

    def __init__(
        self,
        cost: LearningCost | None = None,
        judge: Callable[[StepAccount], LiveFigures] | None = None,
        kernels: Callable[[], Mapping[str, float]] | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.about = dict(about or {})
        self._error = self._error_sum = 0.0
        self._error_counts = [0] * (len(ERROR_BOUNDS) + 1)
        self._cost, self._judge, self._kernels = cost, judge, kernels
        self._parts = dict.fromkeys(PARTS, 0.0)
        self._classes: dict[int, list[float]] = {}
        self._blocked: dict[str, float] = {}
        self._delayed: dict[str, float] = {}
        self._blocked_by: str | None = None
        self._num_waiting = 0
        self._waiting_s = 0.0
        self._requests = self._preemptions = self._lost_tokens = 0
        self._next_prediction_s = 0.0
        self._due = True
        self._ended_s: float | None = None
        self._gap_s = 0.0
        self._before = "idle"
        """What the time until the next step will count as; ``text`` also while one runs."""
        self._marks: deque[tuple[float, StepAccount]] = deque()
        self._next_mark_s = 0.0

    # ---- the engine's thread -----------------------------------------------------------------------

    def began(self, now: float) -> None:
        """The engine turns to its next step."""
        if self._ended_s is None:
            self._ended_s = self._next_mark_s = now
        if self._before == "text":
            self._gap_s = now - self._ended_s
            return
        self._parts[self._before] += now - self._ended_s
        self._gap_s = 0.0
        self._ended_s, self._before = now, "text"

    def planned(self, blocked_by: str | None, num_waiting: int) -> None:
        """The scheduler has decided; ``blocked_by``: what the head of the queue waits for, None if nobody waits."""
        self._blocked_by, self._num_waiting = blocked_by, num_waiting

    def nothing(self, now: float) -> None:
        """There was nothing to plan."""
        assert self._ended_s is not None, "it began"
        part = "idle" if self._blocked_by is None else "held"
        self._parts[part] += now - self._ended_s
        self._ended_s, self._before = now, part
        if now >= self._next_mark_s:
            self._mark(now)

    def ended(
        self, plan: StepPlan, result: StepResult, events: StepEvents, now: float, num_preemptions: int, *, more: bool
    ) -> None:
        """A step was committed.

        Args:
            num_preemptions: of the scheduler, so far.
            more: the engine has work left.
        """
        assert self._ended_s is not None, "it began"
        period = now - self._ended_s
        seconds = result.seconds
        model = seconds if seconds < period else period
        sampling = result.sampling_seconds if result.sampling_seconds < model else model
        exposed = period - model
        text = self._gap_s if self._gap_s < exposed else exposed
        parts = self._parts
        parts["model"] += model - sampling
        parts["sampling"] += sampling
        parts["text"] += text
        parts["scheduling"] += exposed - text
        self._add(plan, seconds, len(result.seq_ids) - len(result.embeddings))
        blocked_by = self._blocked_by
        if blocked_by is not None:
            self._blocked[blocked_by] = self._blocked.get(blocked_by, 0.0) + period
            self._waiting_s += self._num_waiting * period
        for decision in events.decisions:
            if isinstance(decision, PreemptedForBlocks):
                self._lost_tokens += decision.lost_tokens
        for record in events.finished:
            self._requests += 1
            for cause in record.account.causes:
                self._delayed[cause] = self._delayed.get(cause, 0.0) + 1
        self._preemptions = num_preemptions
        if self._due and self._cost is not None and seconds > 0.0:
            self._next_prediction_s = now + PREDICT_EVERY_S
            self._compare(self._cost, plan, seconds)
        # The next one, not this one: the moment that passes during a step most likely passes during a long one.
        self._due = now >= self._next_prediction_s
        self._ended_s = now
        self._before = "text" if more else "idle"
        if now >= self._next_mark_s:
            self._mark(now)

    def _add(self, plan: StepPlan, seconds: float, outputs: int) -> None:
        counts, starts = plan.counts, plan.starts
        rows = len(counts)
        tokens = sum(counts)
        if tokens == rows:
            decode, positions, prefill, prefill_starts = rows, sum(starts) + rows, 0, 0
        else:
            behind = [start for start, count in zip(starts, counts, strict=True) if count > 1]
            decode, prefill, prefill_starts = rows - len(behind), len(behind), sum(behind)
            positions = sum(starts) - prefill_starts + decode
        key = _rounded(decode) << 24 | _rounded(tokens - decode)
        sums = self._classes.get(key)
        if sums is None:
            sums = self._classes[key] = [0.0] * 8
        sums[0] += 1
        sums[1] += seconds
        sums[2] += decode
        sums[3] += positions
        sums[7] += outputs
        if prefill:
            sums[4] += prefill
            sums[5] += tokens - decode
            sums[6] += prefill_starts

    def _compare(self, cost: LearningCost, plan: StepPlan, seconds: float) -> None:
        error = abs(cost.predict(plan).seconds / seconds - 1.0)
        self._error += ERROR_WEIGHT * (error - self._error)
        self._error_sum += error
        self._error_counts[bisect_left(ERROR_BOUNDS, error)] += 1
        cost.observe(plan, seconds)

    def _mark(self, now: float) -> None:
        self._next_mark_s = now + MARK_S
        self._marks.append((now, self.account(now)))
        while len(self._marks) > WINDOW_S / MARK_S + 1:
            self._marks.popleft()

    # ---- any thread --------------------------------------------------------------------------------

    def expected_s(self, plan: StepPlan) -> float:
        """How long ``plan`` is foreseen to take; 0: nothing is predicted."""
        return self._cost.predict(plan).seconds if self._cost is not None else 0.0

    def account(self, now: float) -> StepAccount:
        """Everything since the start; time without work is counted up to ``now``."""
        parts = dict(self._parts)
        if self._ended_s is not None and self._before != "text":
            parts[self._before] += max(0.0, now - self._ended_s)
        return StepAccount(
            parts,
            {key: StepClass(*sums) for key, sums in list(self._classes.items())},
            dict(self._blocked),
            self._waiting_s,
            self._requests,
            dict(self._delayed),
            self._preemptions,
            self._lost_tokens,
            dict(self._kernels()) if self._kernels else {},
        )

    def recent(self, now: float) -> StepAccount:
        """The last ``WINDOW_S`` seconds or so."""
        whole, marks = self.account(now), list(self._marks)
        return whole.minus(marks[0][1]) if marks else whole

    def observation(self, now: float) -> Observation:
        """Everything that is known at this moment."""
        live = self._judge(self.recent(now)) if self._judge else None
        began_s = self._ended_s if self._before == "text" else None
        under_way_s = 0.0 if began_s is None else max(0.0, now - began_s)
        return Observation(
            self.about, self.account(now), under_way_s, live, self._error, self._error_sum, tuple(self._error_counts)
        )


def _rounded(number: int) -> int:
    """Down to four significant bits: classes whose sizes differ by less than an eighth are one."""
    shift = number.bit_length() - 4
    return number if shift <= 0 else number >> shift << shift
