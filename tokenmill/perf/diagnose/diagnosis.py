"""``diagnose``: one case in, one ``Diagnosis`` out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from tokenmill.core.errors import SetupError
from tokenmill.engine.telemetry import StepAccount
from tokenmill.perf.calibrate import Calibration
from tokenmill.perf.costs import step_ops
from tokenmill.perf.diagnose.case import Case
from tokenmill.perf.diagnose.changes import Change, Changes, prior_of
from tokenmill.perf.diagnose.pricing import MODEL_PARTS, Observed, Pricer
from tokenmill.perf.diagnose.regime import (
    CAPACITY,
    MIN_SHARE,
    SCHEDULER,
    Relief,
    bound_seconds,
    busy_ratio,
    regime_of,
    reliefs,
)
from tokenmill.perf.roofline import COMPUTE, HOST, LINK_BANDWIDTH, LINK_LATENCY, MEMORY
from tokenmill.perf.terms import BANDWIDTH, LATENCY, NUM_PAIRS, Deployment, compact

PART_NAMES = {"scheduling": "host scheduling", "held": "waiting"}
"""What parts of the account are called in a report; the others keep their names."""

TOO_LOW = (
    "the machine does more than its ceilings say: they were measured while others used it. Start the server on a quiet "
    "machine, or give a file of tokenmill probe (--hardware)"
)

_TERMS_OF = {
    COMPUTE: range(1, 2 * NUM_PAIRS, 2),
    MEMORY: range(0, 2 * NUM_PAIRS, 2),
    LINK_BANDWIDTH: (BANDWIDTH,),
    LINK_LATENCY: (LATENCY,),
}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Where the time went, what holds the engine back, and what would help."""

    regime: str | None
    """One of ``telemetry.REGIMES``; None if nothing ran, or if this source cannot tell."""
    because: str
    wall_s: float
    parts: Mapping[str, float]
    """Seconds by part; they add up to ``wall_s``."""
    watched_s: float | None = None
    """The same span by the clock of whoever watched; None of a file."""
    bounds: Mapping[str, float] = field(default_factory=dict)
    """Busy seconds by what bounds them."""
    steps: float = 0.0
    step_s: float = 0.0
    """Busy seconds per step."""
    tokens_per_s: float = 0.0
    """Generated while busy."""
    rows: float = 0.0
    """Sequences of an average step."""
    mfu: float | None = None
    mbu: float | None = None
    """Shares of the machine's ceilings while busy; None where those are not known."""
    ceilings: Mapping[str, Any] = field(default_factory=dict)
    fit_error: float | None = None
    """Mean relative difference between the fitted model and the measured classes of steps."""
    elasticities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Resource → relative change of ``step_s`` and ``tokens_per_s`` if there were twice of it (latency: half)."""
    changes: tuple[Change, ...] = ()
    slo: tuple[Mapping[str, Any], ...] = ()
    unknown: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        found = asdict(self)
        found["changes"] = [asdict(change) | {"effect": change.effect} for change in self.changes]
        return found


def diagnose(case: Case, prior: Calibration | None = None) -> Diagnosis:
    """Attribute, name the regime, price the changes.

    Args:
        prior: factors to begin the fit with; None: what is known of the engine and the device.

    Raises:
        SetupError: nothing was observed at all.
    """
    account = case.account
    if account.wall_s <= 0.0:
        raise SetupError("nothing was observed: look for longer (--seconds), or while requests are running")
    if account.num_steps == 0 or account.busy_s <= 0.0:
        return _idle(case)
    if case.deployment is None:
        return _without_prices(case)
    pricer = Pricer(case.deployment, account, prior or prior_of(case, case.deployment))
    table = pricer.table(account.parts.get("model", 0.0))
    bounds = bound_seconds(table, account)
    found = reliefs(pricer, account, case.limits)
    changes = Changes(case, pricer, found)
    mfu, mbu = utilisation(case.deployment, account, pricer.classes)
    regime = regime_of(bounds, found)
    parts = dict.fromkeys(MODEL_PARTS, 0.0)
    for (part, _), seconds in table.items():
        parts[part] += seconds
    return Diagnosis(
        regime=regime,
        because=_because(regime, bounds, found, account),
        wall_s=account.wall_s,
        parts=parts | _host_parts(account),
        bounds=bounds,
        steps=account.num_steps,
        step_s=changes.step_s,
        tokens_per_s=changes.tokens_per_s,
        rows=account.mean_rows,
        mfu=mfu,
        mbu=mbu,
        ceilings=_ceilings(case.deployment),
        fit_error=pricer.error,
        elasticities=_elasticities(pricer, account, bounds, found),
        changes=changes.ranked(),
        unknown=(*case.unknown, *([TOO_LOW] if max(mfu, mbu) > 1.0 else [])),
        watched_s=case.watched_s,
    )


def utilisation(deployment: Deployment, account: StepAccount, classes: list[Observed]) -> tuple[float, float]:
    """(MFU, MBU): the time that the needed operations, and bytes, take at the ceilings, over the busy time.

    Bytes are those that must come from memory at least once: weights, keys and values.
    """
    shape, hardware = compact(deployment.shape), deployment.hardware
    compute_s = memory_s = 0.0
    for each in classes:
        for op in step_ops(shape, deployment.formats, deployment.layout, each.work):
            memory_s += each.steps * (op.weight_bytes + op.kv_bytes) / hardware.memory_bytes_per_s
            if op.flops:
                compute_s += each.steps * op.flops / hardware.peak(op.arithmetic)
    return compute_s / account.busy_s, memory_s / account.busy_s


# ---- pieces of a diagnosis -------------------------------------------------------------------------------


def _host_parts(account: StepAccount, *, model: bool = False) -> dict[str, float]:
    """The account's parts by their names in a report; the model's is split further elsewhere."""
    return {PART_NAMES.get(name, name): seconds for name, seconds in account.parts.items() if model or name != "model"}


def _ceilings(deployment: Deployment) -> dict[str, Any]:
    hardware = deployment.hardware
    return {
        "device": hardware.name,
        "bytes_per_s": hardware.memory_bytes_per_s,
        "operations_per_s": dict(hardware.peaks),
        "source": hardware.source,
    }


def _elasticities(
    pricer: Pricer, account: StepAccount, bounds: Mapping[str, float], found: list[Relief]
) -> dict[str, dict[str, float]]:
    """What twice of each resource would change; of resources that change nothing nothing is said.

    Memory and arithmetic hide behind one another, so these are priced; the host's seconds simply halve.
    """
    ratios = {
        name: busy_ratio(account, pricer.with_factors(dict.fromkeys(terms, 0.5))) for name, terms in _TERMS_OF.items()
    }
    ratios[HOST] = 1.0 - 0.5 * bounds[HOST] / account.busy_s
    result = {}
    for name, ratio in ratios.items():
        if ratio < 0.999:
            result[name] = {"step_s": ratio - 1.0, "tokens_per_s": 1.0 / ratio - 1.0}
    for relief in reversed(found):
        result[relief.regime] = {"tokens_per_s": relief.gain - 1.0}
    return result


_BLOCKED = {
    "kv_blocks": "requests wait for KV blocks",
    "max_seqs": "requests wait for a place in the batch (max_seqs)",
    "batch_policy": "requests wait for the running batch to end (static or dynamic batching)",
    "token_budget": "requests wait because a step's tokens are spent on others (max_step_tokens)",
    "held": "nothing runs though requests wait (dynamic batching)",
}


def _because(regime: str | None, bounds: Mapping[str, float], found: list[Relief], account: StepAccount) -> str:
    busy_s = sum(bounds.values())
    largest = max(bounds, key=lambda bound: bounds[bound])
    steps = f"{bounds[largest] / busy_s:.0%} of the busy time is bound by {largest}"
    if found and regime in (CAPACITY, SCHEDULER):
        first = found[0]
        return (
            f"{_BLOCKED[first.cause]} for {first.share:.0%} of the time, and lifting that would bring "
            f"{first.gain - 1:+.0%} throughput; {steps}"
        )
    if found:
        first = found[0]
        steps += (
            f"; {_BLOCKED[first.cause]} for {first.share:.0%} of the time, but lifting that would bring only "
            f"{first.gain - 1:+.0%}"
        )
    return steps


def _idle(case: Case) -> Diagnosis:
    account = case.account
    held_s = account.parts.get("held", 0.0)
    regime, because = None, "nothing ran while this was looked at: send requests and look again"
    if held_s > MIN_SHARE * account.wall_s:
        regime, because = SCHEDULER, _BLOCKED["held"]
    return Diagnosis(
        regime, because, account.wall_s, _host_parts(account, model=True), case.watched_s, unknown=case.unknown
    )


def _without_prices(case: Case) -> Diagnosis:
    """Of an engine of which only the queue is known: a queue that stands for memory, or for a place, can be named."""
    account = case.account
    blocked = {cause: seconds for cause, seconds in account.blocked_s.items() if seconds > MIN_SHARE * account.busy_s}
    cause = max(blocked, key=lambda name: blocked[name], default=None)
    regime = {"kv_blocks": CAPACITY, None: None}.get(cause, SCHEDULER)
    because = "what bounds a step is not known here"
    if cause is not None:
        because = f"{_BLOCKED[cause]} for {min(blocked[cause] / account.busy_s, 1.0):.0%} of the busy time; {because}"
    outputs = sum(each.outputs for each in account.classes.values())
    return Diagnosis(
        regime=regime,
        because=because,
        wall_s=account.wall_s,
        parts=_host_parts(account, model=True),
        steps=account.num_steps,
        step_s=account.busy_s / account.num_steps,
        tokens_per_s=outputs / account.busy_s,
        rows=account.mean_rows,
        unknown=case.unknown,
        watched_s=case.watched_s,
    )


# ---- limits on latency -----------------------------------------------------------------------------------


def with_slo(found: Diagnosis, limits: Mapping[str, float], seen: Mapping[str, float]) -> Diagnosis:
    """``found`` with each limit beside the 99th percentile that was seen, and the first change that would meet it.

    A change makes times between tokens shorter as it makes steps shorter; a first token and a whole answer wait for as
    much, so they are taken to shrink by the same ratio, which is an estimate.

    Args:
        limits: seconds by ``ttft``, ``itl``, ``tpot``, ``e2e``.
        seen: the same, as measured; what is missing is said to be.
    """
    rows: list[Mapping[str, Any]] = []
    for name, limit in limits.items():
        value = seen.get(name)
        row: dict[str, Any] = {"metric": name, "limit_s": limit, "p99_s": value, "met": None, "remedy": None}
        if value is not None:
            row["met"] = value <= limit
            enough = [change.option for change in found.changes if value / change.gain <= limit]
            row["remedy"] = enough[0] if enough and not row["met"] else None
        rows.append(row)
    return replace(found, slo=tuple(rows))
