"""What a search amounts to, as one object ready for JSON: ``docs/howto/plan.md`` shows one.

Nothing is NaN: what there is none of is null or absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenmill.perf.metrics import cost_per_million
from tokenmill.perf.plan import explain
from tokenmill.perf.plan.candidates import ACCEPTANCE, DRAFT_COST, DRAFT_LENGTH
from tokenmill.perf.plan.check import simulate
from tokenmill.perf.plan.command import command_of
from tokenmill.perf.plan.predict import Case, Load, Split, seen
from tokenmill.perf.plan.search import Found, Plan, Problem, search
from tokenmill.perf.plan.slo import METRICS, Limits, breaches, show, spell
from tokenmill.perf.plan.workload import STATISTICS

NUM_SIMULATED = 3
NUM_REJECTED = 20
_ENDS: tuple[tuple[Case, str], ...] = (("mean", ""), ("low", "_low"), ("high", "_high"))


def make_report(problem: Problem, model: str, *, simulated: bool = True) -> dict[str, Any]:
    """Search, simulate the best few, explain.

    Args:
        model: what a launch command calls the model.
    """
    found = search(problem)
    plans = [record_of(plan, problem, model) for plan in found.plans[: problem.top]]
    if simulated:
        for plan, record in zip(found.plans, plans[:NUM_SIMULATED], strict=False):
            record["simulated"] = _simulated(plan, problem)
    reason, remedies = "", list[dict[str, Any]]()
    if plans:
        reason = f"{found.plans[0]} keeps {_spell(problem.limits)} at the pessimistic end of the interval"
    else:
        reason, remedies = explain.infeasible(problem, found)
    return {
        "feasible": bool(plans),
        "reason": reason,
        "model": model,
        "workload": _workload(problem),
        "slo": {limit.name: limit.seconds for limit in problem.limits},
        "objective": problem.objective,
        "ranked_by": _ranked_by(problem),
        "assumptions": _assumptions(found, problem),
        "plans": plans,
        "rejected": _rejected(found, problem),
        "remedies": remedies,
        "candidates": found.num_candidates,
    }


def _workload(problem: Problem) -> dict[str, Any]:
    load = problem.workload
    return {
        "input_tokens": load.inputs.mean,
        "input_tokens_p99": load.inputs.statistic("p99"),
        "output_tokens": load.outputs.mean,
        "output_tokens_p99": load.outputs.statistic("p99"),
        "rate_per_s": load.rate,
        "cached_share": load.cached,
        "burst": load.burst,
    }


def record_of(plan: Plan, problem: Problem, model: str) -> dict[str, Any]:
    """One plan."""
    candidate, layout = plan.candidate, plan.candidate.layout
    instance, load = plan.pools[-1].instance, plan.under(problem.workload.rate)
    assert load is not None
    command = command_of(plan, model, problem.workload, problem.limits)
    tokens_per_s = problem.workload.rate * problem.workload.outputs.mean
    price = plan.cost if problem.prices.are_money else None
    return {
        "hardware": candidate.hardware.name,
        "devices": plan.num_devices,
        "layout": {"tp": layout.tp, "pp": layout.pp, "dp": layout.dp, "ep": layout.ep},
        "precision": candidate.precision,
        "replicas": plan.pools[-1].replicas,
        "mode": "disaggregated" if len(plan.pools) > 1 else "aggregated",
        "pools": _pools(plan) if len(plan.pools) > 1 else None,
        "speculation": {"length": candidate.drafts} if candidate.drafts else None,
        "max_seqs": plan.max_seqs(plan.pools[-1], problem.workload.rate),
        "max_step_tokens": instance.step_tokens,
        "sequences_that_fit": instance.memory_places,
        "batch": _generating(load).batch,
        "predicted": predicted(plan, problem),
        "throughput": {"requests_per_s": problem.workload.rate, "output_tokens_per_s": tokens_per_s},
        "utilization": plan.used,
        "cost_per_hour": price,
        "cost_per_million_tokens": cost_per_million(price, tokens_per_s) if price is not None else None,
        "power_w": None if problem.prices.are_money else plan.cost,
        "bottleneck": explain.bottleneck(load),
        "held_by": plan.held_by,
        "relief": explain.relief(plan, load),
        "engine": command.engine,
        "command": command.text,
        "command_note": command.note,
    }


def _generating(load: Load | Split) -> Load:
    return load.decode if isinstance(load, Split) else load


def _pools(plan: Plan) -> dict[str, Any]:
    found = {}
    for name, pool in zip(("prefill", "decode"), plan.pools, strict=True):
        layout = pool.instance.layout
        found[name] = {
            "replicas": pool.replicas,
            "devices": pool.num_devices,
            "layout": {"tp": layout.tp, "pp": layout.pp, "dp": layout.dp, "ep": layout.ep},
            "max_step_tokens": pool.instance.step_tokens,
        }
    return found


def predicted(plan: Plan, problem: Problem) -> dict[str, float]:
    """``ttft_p99_s``, ``ttft_p99_s_low``, ``ttft_p99_s_high`` … of all metrics and percentiles."""
    found: dict[str, float] = {}
    for case, ending in _ENDS:
        load = plan.under(problem.workload.rate, case)
        assert load is not None, "a plan carries its load at the pessimistic end, so at the others"
        for metric in METRICS:
            for statistic in STATISTICS:
                found[f"{metric}_{statistic}_s{ending}"] = seen(load, metric, statistic)
    return found


def _simulated(plan: Plan, problem: Problem) -> dict[str, Any]:
    found = simulate(plan, problem.workload)
    if isinstance(found, str):
        return {"not_simulated": found}
    record: dict[str, Any] = {
        f"{metric}_{statistic}_s": found[f"{metric}_s"][statistic]
        for metric in METRICS
        for statistic in STATISTICS
        if statistic in found[f"{metric}_s"]
    }
    missed = breaches(problem.limits, lambda m, s: found[f"{m}_s"].get(s, 0.0))
    record["breaks"] = [f"{spell(limit.name)} {show(s)} > {show(limit.seconds)}" for limit, s in missed]
    return record


def _rejected(found: Found, problem: Problem) -> list[dict[str, Any]]:
    """What came after the best, then the nearest of each hardware."""
    records = [
        {
            "what": str(plan),
            "hardware": plan.candidate.hardware.name,
            "reason": explain.why_not(plan, found.plans[0], problem),
        }
        for plan in found.plans[1 : problem.top + 4]
    ]
    known = {record["hardware"] for record in records} | {plan.candidate.hardware.name for plan in found.plans[:1]}
    for one in sorted(found.rejected, key=lambda one: (not one.is_open, one.excess)):
        if one.hardware not in known and len(records) < NUM_REJECTED:
            known.add(one.hardware)
            records.append({"what": one.what, "hardware": one.hardware, "reason": one.reason})
    return records


def _ranked_by(problem: Problem) -> str:
    if problem.objective == "speed":
        return "E2E p99 at the pessimistic end"
    if not problem.prices.are_money:
        return "watts of all devices, for no price is known (--price H100=2.5)"
    if all(problem.prices.is_known(device) for device in problem.hardware):
        return "price per hour"
    return "price per hour; devices without one at the others' mean price per watt"


def _assumptions(found: Found, problem: Problem) -> list[str]:
    said = []
    if any(plan.candidate.drafts for plan in found.plans[: problem.top]):
        said.append(
            f"speculation: {DRAFT_LENGTH} drafts, each accepted with probability {ACCEPTANCE['mean']} "
            f"({ACCEPTANCE['low']} at the pessimistic end), a draft step at {DRAFT_COST:.0%} of the model's"
        )
    widths: Mapping[str, int] = {plan.candidate.precision: 1 for plan in found.plans[: problem.top]}
    if any(name not in ("bf16", "fp32") for name in widths) and problem.precisions is None:
        said.append("narrow precisions change answers; --precision bf16 rules them out")
    if problem.workload.trace is None and problem.workload.burst == 1:
        said.append("requests are of equal length and arrive independently of each other")
    return said


def _spell(limits: Limits) -> str:
    return ", ".join(map(str, limits)) if limits else "the load"
