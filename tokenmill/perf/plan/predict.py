"""How one instance serves a steady load of requests that come by chance: percentiles in closed form.

Let x requests arrive per step. In flow a step then holds x prompts and x·D decoding rows, where D = O − 1 steps
follow the first token (fewer with speculation), and takes S(x) seconds by the roofline, so the instance serves λ =
x/S(x) requests a second. Taking x and not λ as the unknown saves solving for the batch: λ grows with x, up to the x
that memory (x·D rows have a place) or the step's token limit (x·(D + prompt) tokens) allow. With p pipeline stages p
such steps are under way at once.

* **ITL.** The number of prompt chunks in a step is Poisson, and so is the number of rows: the q-th percentile is a step
  with the q-th percentile of both. Its mean is S.
* **TTFT** is the rest of the step in progress, the wait for the prompts before, the wait for a place, and the
  prompt's own chunks. The wait for prompts is that of a queue with one server (Kingman: ρ/(1 − ρ) · (cₐ² + cₛ²)/2
  services on average; it is exact for M/M/1 and M/D/1), the wait for a place that of one with as many servers as
  places (Halfin and Whitt 1981); both have exponential tails. Deviations of independent parts are added as squares.
* **E2E** is TTFT and D steps with the q-th percentiles of rows and of the prompts that come meanwhile.
* **Speculation.** A verification has k more tokens per row, which read no cache of their own, and yields
  ``expected_tokens``; drafting costs a share of a decoding step for each draft.

All times are proportional to the calibration's uncertainty: the pessimistic end is the same load with all steps
slower, and so with larger batches and longer queues. The simulator (``plan/check``) knows none of these approximations.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, wraps
from statistics import NormalDist
from typing import Literal

from tokenmill.perf.costs import Rows, Work, kv_bytes_per_token
from tokenmill.perf.costs.speculation import expected_tokens
from tokenmill.perf.plan.candidates import ACCEPTANCE, DRAFT_COST, Candidate
from tokenmill.perf.plan.workload import Workload
from tokenmill.perf.roofline import StepTime, seconds_of, step_time
from tokenmill.perf.terms import INTERNODE_STEP_S

Role = Literal["both", "prefill", "decode"]
Case = Literal["low", "mean", "high"]
"""Ends and middle of the 90 % interval of a step's time: ``high`` is the pessimist's."""
CASES: tuple[Case, ...] = ("low", "mean", "high")
_ACCEPTED = {"low": "high", "mean": "mean", "high": "low"}

MAX_SEQS = 1024
"""Most sequences in a step of one instance's data-parallel group."""
STABLE = 0.9
"""Of what an instance could do at most, the share that it is loaded with at most."""
_SHARES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


class Instance:
    """One instance with limits on its steps, doing all of the work or one part of it.

    Args:
        step_tokens: the chunk limit, per data-parallel group.
    """

    def __init__(self, candidate: Candidate, workload: Workload, step_tokens: int, role: Role = "both") -> None:
        self.candidate, self.workload, self.step_tokens = candidate, workload, step_tokens
        self.role: Role = "prefill" if role == "both" and workload.outputs.mean <= 1 else role
        self.layout = candidate.layout
        self.prompt = workload.new_tokens if role != "decode" else 0.0
        fitting = candidate.places(workload.tokens, step_tokens)
        self.memory_places = fitting
        self.places = min(fitting, MAX_SEQS * self.layout.dp)
        answer = workload.outputs.mean - 1 if self.role != "prefill" else 0.0
        self._steps = {case: max(answer, 0.0) / self.yield_per_step(case) for case in CASES}
        self._loads: dict[tuple[float, Case], Load] = {}
        self._slower = dict(zip(("low", "high"), candidate.calibration.interval(1.0), strict=True)) | {"mean": 1.0}

    def yield_per_step(self, case: Case = "mean") -> float:
        """Tokens that a row gets per step."""
        return expected_tokens(ACCEPTANCE[_ACCEPTED[case]], self.candidate.drafts)

    def most(self, case: Case) -> float:
        """Requests per step at which places or tokens run out."""
        rows = self._steps[case]
        tokens = rows * (1 + self.candidate.drafts) + self.prompt
        by_places = self.places / (self.layout.pp * max(rows, 1.0))
        return min(by_places, self.step_tokens * self.layout.dp / tokens)

    def at(self, per_step: float, case: Case = "mean") -> Load:
        """The instance under ``per_step`` requests a step."""
        key = (per_step, case)
        if key not in self._loads:
            self._loads[key] = Load(self, per_step, case)
        return self._loads[key]

    def at_rate(self, rate: float, case: Case = "mean") -> Load | None:
        """The instance under ``rate`` requests a second; None if that is more than it can do."""
        most = self.most(case)
        if self.at(most, case).rate < rate:
            return None
        # x = rate · S(x)/stages: S is nearly straight, so a few secants find x; where they leave the range, halve it.
        low, high = 0.0, most
        before, missed = 0.0, self._brought(0.0, rate, case)
        found = min(missed, most)
        for _ in range(60):
            short = self._brought(found, rate, case) - found
            if abs(short) <= 1e-6 * found:
                break
            low, high = (found, high) if short > 0 else (low, found)
            slope = (short - missed) / (found - before) if found != before else 0.0
            before, missed = found, short
            found = found - short / slope if slope else (low + high) / 2
            if not low <= found <= high:
                found = (low + high) / 2
        return self.at(found, case)

    def _brought(self, per_step: float, rate: float, case: Case) -> float:
        """Requests that arrive during a step over ``per_step`` of them."""
        return rate * self.at(per_step, case).step / self.layout.pp

    def step_s(self, rows: float, prompts: float, case: Case, length: float | None = None) -> float:
        """Seconds of a step over ``rows`` decoding rows and ``prompts`` prompts (or chunks of ``length`` tokens)."""
        deployment, factors = self.candidate.deployment, self.candidate.calibration.factors
        seconds = seconds_of(deployment.terms(self.work(rows, prompts, length)), factors)
        if self.candidate.drafts and rows:
            plain = seconds_of(deployment.terms(Work.decode(rows, self.workload.context)), factors)
            seconds += self.candidate.drafts * DRAFT_COST * plain
        return seconds * self._slower[case]

    def work(self, rows: float, prompts: float, length: float | None = None) -> Work:
        drafts = self.candidate.drafts
        work = Work((), 0.0)
        if rows:
            work += Work.decode(rows, self.workload.context)
            if drafts:
                work += Work((Rows(1, 0, rows * drafts),), rows * drafts)
        if prompts:
            tokens = self.prompt if length is None else length
            before = self.workload.inputs.mean - self.prompt + max(self.prompt - tokens, 0.0) / 2
            work += Work((Rows(tokens, before, prompts),), 0.0)
        return work

    def steps(self, case: Case) -> float:
        """Steps of an average answer after its first token."""
        return self._steps[case]


Percentile = Callable[["Load", str], float]


def _once(method: Percentile) -> Percentile:
    """Searches ask for the same percentile of the same load again and again."""

    @wraps(method)
    def asked(self: Load, statistic: str) -> float:
        key = (method.__name__, statistic)
        if key not in self.known:
            self.known[key] = method(self, statistic)
        return self.known[key]

    return asked


class Load:
    """An instance in flow, with x requests arriving per step. Seconds throughout."""

    def __init__(self, instance: Instance, per_step: float, case: Case) -> None:
        self.instance, self.per_step, self.case = instance, per_step, case
        self.known: dict[tuple[str, str], float] = {}
        self.stages, self.groups = instance.layout.pp, instance.layout.dp
        self.decode_rows = per_step * instance.steps(case)
        self.rows = max(self.decode_rows, 1.0) if instance.role != "prefill" else 0.0
        """Of a step that a request sees: its own at least."""
        self.prompts = per_step if instance.prompt else 0.0
        if instance.role == "prefill":  # no step without a prompt, or as much of one as a step takes
            self.prompts = max(per_step, min(1.0, instance.step_tokens * self.groups / instance.prompt))
        self.room = max(instance.step_tokens - self.decode_rows * (1 + instance.candidate.drafts) / self.groups, 1.0)
        """Tokens of prompts that a data-parallel group's step has room for."""
        self.chunk = min(max(instance.prompt, 1.0), self.room)
        self.step = self._mean_step(self.rows)
        self.rate = self.stages * per_step / self.step
        self.batch = self.stages * self.decode_rows

    def _mean_step(self, rows: float) -> float:
        """Some steps have no prompt, at no cost beyond the rows': the others have all the more of them.

        Taking the mean number of tokens instead would hide prompts under the reading of the weights.
        """
        instance, chunks = self.instance, self.prompts * self.instance.prompt / self.chunk
        if not chunks or not rows:
            return instance.step_s(rows, chunks, self.case, self.chunk)
        without = math.exp(-chunks)
        together = instance.step_s(rows, chunks / (1 - without), self.case, self.chunk)
        return without * instance.step_s(rows, 0.0, self.case) + (1 - without) * together

    def account(self) -> StepTime:
        """The mean step, taken apart."""
        candidate = self.instance.candidate
        return step_time(candidate.deployment.terms(self.instance.work(self.rows, self.prompts)), candidate.calibration)

    def rows_at(self, statistic: str) -> float:
        """Rows of a step; their number over all stages is Poisson."""
        if statistic == "mean" or not self.decode_rows:
            return self.rows
        more = _deviations(statistic) * math.sqrt(self.decode_rows / self.stages)
        return min(max(self.decode_rows + more, 1.0), max(self.instance.places / self.stages, 1.0))

    @_once
    def itl(self, statistic: str) -> float:
        """Gap between two arrivals of tokens."""
        if not self.rows:
            return 0.0
        if statistic == "mean":
            return self.step
        instance, chunk = self.instance, self.chunk
        if not self.prompts:
            return instance.step_s(self.rows_at(statistic), 0.0, self.case)
        chunks = _poisson_at(self.per_step * instance.prompt / chunk, _SHARES[statistic])
        most = max(self.room / chunk, 1.0)
        per_group = min(math.ceil(chunks / self.groups), most)
        return instance.step_s(self.rows_at(statistic), per_group * self.groups, self.case, chunk)

    def tpot(self, statistic: str) -> float:
        """Of a request's answer, seconds per token."""
        if not self.rows:
            return 0.0
        return self._row_step(statistic) / self.instance.yield_per_step(self.case)

    @_once
    def _row_step(self, statistic: str) -> float:
        if statistic == "mean":
            return self.step
        rows, met = self.rows_at(statistic), self.decode_rows
        whole = self._mean_step(rows)
        if not self.prompts:
            return whole
        # As many prompts arrive during an answer as there are rows; few of them vary much.
        quiet = self.instance.step_s(rows, 0.0, self.case)
        return quiet + (whole - quiet) * _poisson_at(met, _SHARES[statistic]) / met

    @_once
    def ttft(self, statistic: str) -> float:
        """Until the first token."""
        return self._own_prompt(statistic) + add_waits(self.waits, statistic)

    def answer(self, statistic: str) -> float:
        """From the first token to the last."""
        tokens = max(self.instance.workload.outputs.statistic(statistic) - 1, 0.0)
        return tokens * self.tpot(statistic)

    def e2e(self, statistic: str) -> float:
        return self.ttft(statistic) + self.answer(statistic)

    def entry(self, statistic: str) -> float:
        """At a decoding instance: until a request whose prompt was computed elsewhere takes part in steps."""
        return add_waits(self.waits, statistic)

    @property
    def is_stable(self) -> bool:
        """Queues come to an end."""
        return all(math.isfinite(wait.mean) for wait in self.waits)

    @cached_property
    def waits(self) -> list[Wait]:
        """Before a request's own work begins."""
        prompts = [self._for_prompts()] if self.instance.prompt else []
        return [self._in_progress(), *prompts, self._for_a_place()]

    # ---- parts of the first token's time -------------------------------------------------------------------

    def _own_prompt(self, statistic: str) -> float:
        """A prompt of that percentile alone in its chunks, beside the rows; every data-parallel group has one."""
        instance = self.instance
        tokens = max(instance.workload.inputs.statistic(statistic) * (1 - instance.workload.cached), 1.0)
        full, rest = divmod(tokens, self.room)
        last = instance.step_s(self.rows, float(self.groups), self.case, max(rest, 1.0))
        if not full:
            return last
        first = instance.step_s(self.rows, float(self.groups), self.case, self.room)
        return first + ((full - 1) * first + last) / self.stages

    def _in_progress(self) -> Wait:
        if self.instance.role == "prefill":
            return Wait("rest of a step", 0.0, 0.0)  # Kingman's queue has it
        return Wait("rest of a step", self.step / self.stages / 2, 0.0, self.step / self.stages)

    def _for_prompts(self) -> Wait:
        instance = self.instance
        together = self.room * self.groups / instance.prompt
        full = instance.step_s(self.rows, together * instance.prompt / self.chunk, self.case, self.chunk)
        service = full / together / self.stages
        busy = self.rate * service
        if busy >= 1:
            return Wait("prompts before", math.inf, 1.0)
        varied = (instance.workload.burst + instance.workload.inputs.cv2) / 2
        return Wait("prompts before", busy / (1 - busy) * service * varied, busy)

    def _for_a_place(self) -> Wait:
        held = self.batch + self.rate * self.step
        free = self.instance.places - held
        if free <= 0:
            return Wait("a place", math.inf, 1.0)
        waiting = _waiting_share(held, self.instance.places)
        residence = held / self.rate
        return Wait("a place", waiting * residence / free * (self.instance.workload.burst + 1) / 2, waiting)


@dataclass(frozen=True, slots=True)
class Wait:
    """A part of a wait: exponential where it is not 0 (``share``), or uniform up to ``most``."""

    what: str
    mean: float
    share: float
    most: float | None = None

    def at(self, statistic: str) -> float:
        if statistic == "mean" or self.mean == 0.0:
            return self.mean
        q = _SHARES[statistic]
        if self.most is not None:
            return self.most * q
        return self.mean / self.share * math.log(self.share / (1 - q)) if self.share > 1 - q else 0.0


def add_waits(waits: list[Wait], statistic: str) -> float:
    """A percentile of the sum of independent waits: means, and the root of the squares of what is beyond them."""
    mean = sum(wait.mean for wait in waits)
    if not math.isfinite(mean):
        return math.inf
    beyond = [wait.at(statistic) - wait.mean for wait in waits]
    above = math.sqrt(sum(max(one, 0.0) ** 2 for one in beyond))
    # What is below its mean only counts where all are: else a wait that grows from nothing would shorten the sum.
    return mean + above if above else mean - math.sqrt(sum(one**2 for one in beyond))


@cache
def _deviations(statistic: str) -> float:
    return max(NormalDist().inv_cdf(_SHARES[statistic]), 0.0)


def _poisson_at(mean: float, share: float) -> int:
    """The smallest count that a Poisson variable stays within with probability ``share``."""
    if mean > 200:
        return math.ceil(mean + NormalDist().inv_cdf(share) * math.sqrt(mean))
    term = total = math.exp(-mean)
    count = 0
    while total < share:
        count += 1
        term *= mean / count
        total += term
    return count


def _waiting_share(offered: float, servers: float) -> float:
    """Who finds all of many servers busy: Halfin and Whitt's limit of Erlang's C."""
    beta = (servers - offered) / math.sqrt(offered)
    if beta > 8:
        return 0.0
    normal = NormalDist()
    return 1 / (1 + beta * normal.cdf(beta) / normal.pdf(beta))


def transfer_s(prefill: Candidate, decode: Candidate, tokens: float) -> float:
    """Moving a prompt's keys and values between instances: every device of the narrower side sends its share."""
    deployment = prefill.deployment
    devices = min(prefill.layout.tp, decode.layout.tp)
    held = kv_bytes_per_token(deployment.shape, deployment.formats) * tokens
    device = prefill.hardware
    speed = device.internode_bytes_per_s or device.host_link_bytes_per_s
    if speed is None:
        return math.inf
    return held / (devices * speed) + INTERNODE_STEP_S


class Split:
    """Prompts at one pool of instances, answers at another, keys and values over the network between them."""

    def __init__(self, prefill: Load, decode: Load, transfer: float) -> None:
        self.prefill, self.decode, self.transfer = prefill, decode, transfer

    def ttft(self, statistic: str) -> float:
        return self.prefill.ttft(statistic)

    def itl(self, statistic: str) -> float:
        """The first gap holds the transfer; it counts where answers are short enough for it to."""
        gap = self.decode.itl(statistic)
        gaps = max(self.decode.instance.workload.outputs.mean - 1, 1.0)
        if statistic == "mean":
            return gap + (self.transfer + self.decode.entry("mean")) / gaps
        if gaps * (1 - _SHARES[statistic]) < 1:
            return max(gap, self.transfer + self.decode.entry(statistic) + self.decode.step)
        return gap

    def tpot(self, statistic: str) -> float:
        tokens = max(self.decode.instance.workload.outputs.statistic(statistic) - 1, 1.0)
        return (self.transfer + self.decode.entry(statistic)) / tokens + self.decode.tpot(statistic)

    def e2e(self, statistic: str) -> float:
        handed_over = self.transfer + self.decode.entry(statistic)
        return self.prefill.ttft(statistic) + handed_over + self.decode.answer(statistic)


def seen(load: Load | Split, metric: str, statistic: str) -> float:
    """What clients see: one of ``slo.METRICS``, in seconds."""
    found: float = getattr(load, metric)(statistic)
    return found
