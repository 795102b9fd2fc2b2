"""The search: for every way to run the model, how many instances carry the load within the limits, and what that costs.

One instance of a candidate carries λ requests a second within the limits (its *goodput*), judged at the pessimistic
end of the interval; the load then takes ⌈rate/λ⌉ of them. λ is found on a fixed grid of loads, the same whatever rate
and limits are, so that more load never comes out cheaper and a looser limit never dearer.

Best first: without any limit an instance does at most λ₀ requests a second, so a candidate costs at least ⌈rate/λ₀⌉
instances. Candidates are taken up in the order of that bound, and the search ends when no bound is below the worst plan
worth keeping: what was not looked at is then known to be dearer.

Disaggregated, prompts and answers have instances of their own, each as many as its part of the load takes (rate
matching). What of a limit on the whole request is left for the answer depends on how loaded the prompts' instances
are; a few loads are tried.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import count

from tokenmill.perf.calibrate import Effects
from tokenmill.perf.costs import Layout
from tokenmill.perf.hardware import Hardware
from tokenmill.perf.plan.candidates import Candidate, Family, families
from tokenmill.perf.plan.goodput import RATIO, TooLittle, idle_load, largest
from tokenmill.perf.plan.predict import MAX_SEQS, STABLE, Case, Instance, Load, Role, Split, seen, transfer_s
from tokenmill.perf.plan.prices import Prices
from tokenmill.perf.plan.slo import Limits, breaches, keeps, show, spell
from tokenmill.perf.plan.workload import Workload
from tokenmill.perf.shape import ModelShape

CHUNKS = (512, 2048, 8192)
"""Limits of tokens per step that are tried."""
PREFILL_CHUNK = 8192
"""Of instances that compute prompts only."""
PREFILL_LOADS = (1.0, 0.75, 0.5, 0.25)
"""Shares of what the prompts' instances could carry, where the whole request has a limit."""
MAX_PREFILLS = 6
"""Of the cheapest of them, so many are paired."""
KEPT_BEYOND = 4
"""Plans that are kept beyond those asked for: what comes next, and why it is not better."""
LIKELY_DEVIATIONS, EIGHT = 4, 8
"""Of a Poisson number of sequences, what hardly ever happens; limits are multiples of eight."""
SPEED_DEVICES = 64
"""With the objective speed and no ``max_devices``."""
SPEED_GAIN = 1.02
"""Twice as many instances must bring this much to be worth it, with the objective speed."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is asked."""

    shape: ModelShape
    workload: Workload
    limits: Limits
    hardware: tuple[Hardware, ...]
    precisions: tuple[str, ...] | None = None
    layout: Layout | None = None
    max_devices: int | None = None
    objective: str = "cost"
    prices: Prices = field(default_factory=Prices)
    effects: Effects | None = None
    top: int = 5


@dataclass(frozen=True, slots=True)
class Pool:
    """Equal instances that do the same part of the work."""

    instance: Instance
    replicas: int

    @property
    def num_devices(self) -> int:
        return self.replicas * self.instance.candidate.num_devices


@dataclass(frozen=True, slots=True)
class Plan:
    """A deployment that carries the load within the limits, as far as it is foreseen."""

    pools: tuple[Pool, ...]
    """One, or those of prompts and of answers."""
    cost: float
    """Per hour, in the unit of ``Prices``."""
    score: float
    """What is ranked by, less is better: the cost, or seconds."""
    held_by: str
    """What keeps an instance from carrying more."""
    used: float
    """Of what the instances could carry within the limits, pessimistically, the share that they do."""

    @property
    def candidate(self) -> Candidate:
        """Of the last pool: the one that generates."""
        return self.pools[-1].instance.candidate

    @property
    def num_devices(self) -> int:
        return sum(pool.num_devices for pool in self.pools)

    def __str__(self) -> str:
        pools = [f"{pool.replicas} × ({pool.instance.candidate})" for pool in self.pools]
        return " for prompts and ".join(pools) + (" for answers" if len(pools) > 1 else "")

    def max_seqs(self, pool: Pool, rate: float) -> int:
        """The limit of sequences for an instance: all that chance brings together pessimistically, or fit in memory."""
        load = pool.instance.at_rate(rate / pool.replicas, "high")
        assert load is not None
        most = load.batch + LIKELY_DEVIATIONS * math.sqrt(load.batch) + load.rate * load.step
        return min(math.ceil(most / EIGHT) * EIGHT, pool.instance.places)

    def under(self, rate: float, case: Case = "mean") -> Load | Split | None:
        """The plan's instances under their share of ``rate``; None if they cannot carry it."""
        loads = [pool.instance.at_rate(rate / pool.replicas, case) for pool in self.pools]
        if len(loads) == 1 or loads[0] is None or loads[1] is None:
            return loads[0] if len(loads) == 1 else None
        prefill, decode = self.pools[0].instance.candidate, self.pools[1].instance.candidate
        tokens = self.pools[0].instance.workload.inputs.mean
        return Split(loads[0], loads[1], transfer_s(prefill, decode, tokens))


@dataclass(frozen=True, slots=True)
class Rejected:
    """A candidate, or all of one hardware and precision, that is no plan or none of the best."""

    what: str
    hardware: str
    reason: str
    excess: float
    """By what factor it misses: of a limit, of the best's cost; infinite where it does not fit at all."""
    candidate: Candidate | None = None
    num_devices: int | None = None
    """It keeps the limits on so many devices, which are not allowed."""
    is_open: bool = False
    """It was not looked at to the end, for it cannot be better: ``excess`` is what it costs at least."""


@dataclass(slots=True)
class Found:
    plans: list[Plan]
    """Best first."""
    rejected: list[Rejected]
    """Nearest first."""
    num_candidates: int = 0
    num_examined: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """Something to be looked at, and what a plan of it would score at least."""

    bound: float
    what: str
    candidate: Candidate
    look: Callable[[float], Plan | Rejected | Node]
    """A plan that scores less than so much, or why there is none; or a narrower bound, and more to look at."""


def search(problem: Problem) -> Found:
    """The best plans, and why not the others."""
    found = Found([], [])
    queue: list[tuple[float, int, Node]] = []
    order = count()
    need = (problem.workload.tokens, CHUNKS[0])
    for family in families(problem.shape, problem.hardware, problem.precisions, problem.effects, need, problem.layout):
        found.num_candidates += len(family.candidates) + len(family.refused)
        found.rejected += _refused(family)
        queue += [(node.bound, next(order), node) for node in _nodes(problem, family)]
    heapq.heapify(queue)
    keep = problem.top + KEPT_BEYOND
    while queue:
        bound, _, node = heapq.heappop(queue)
        if len(found.plans) >= keep and bound >= found.plans[keep - 1].score:
            found.rejected += [_left_open(one) for one in (node, *(left for _, _, left in queue))]
            break
        result = node.look(found.plans[keep - 1].score if len(found.plans) >= keep else math.inf)
        if isinstance(result, Node):
            heapq.heappush(queue, (result.bound, next(order), result))
            continue
        found.num_examined += 1
        if isinstance(result, Rejected):
            found.rejected.append(result)
        else:
            found.plans.append(result)
            found.plans.sort(key=_order)
    _compare(found, "costs" if problem.objective == "cost" else "takes")
    return found


def _compare(found: Found, does: str) -> None:
    """What was left open is said in terms of the best; nearest first."""
    best = found.plans[0].score if found.plans else 1.0
    for index, one in enumerate(found.rejected):
        if one.is_open:
            times = one.excess / best
            reason = f"{does} at least {times:.3g} × the best" if times > 1.01 else f"{does} no less than the best"
            found.rejected[index] = replace(one, reason=reason, excess=times)
    found.rejected.sort(key=lambda one: one.excess)


def _order(plan: Plan) -> tuple[float, float, int, int, int, float]:
    """Ties: less cost, fewer devices, then one pool, then without speculation, then more to spare."""
    return (plan.score, plan.cost, plan.num_devices, len(plan.pools), plan.candidate.drafts, round(plan.used, 1))


def _refused(family: Family) -> Iterator[Rejected]:
    for layout, reason in family.refused:
        what = f"{layout.num_devices} × {family.hardware.name}, {layout}, {family.precision}"
        yield Rejected(what, family.hardware.name, reason, math.inf)


def _left_open(node: Node) -> Rejected:
    return Rejected(node.what, node.candidate.hardware.name, "", node.bound, node.candidate, is_open=True)


def _nodes(problem: Problem, family: Family) -> Iterator[Node]:
    """What can be said without pricing a step: one instance at least, or two."""
    price = problem.prices.of(family.hardware) if problem.objective == "cost" else 0.0
    for candidate in family.candidates:
        bound = price * candidate.num_devices
        yield Node(bound, str(candidate), candidate, lambda beat, one=candidate: _bounded(problem, one))  # type: ignore[misc]
    plain = [candidate for candidate in family.candidates if not candidate.drafts]
    if plain and problem.workload.outputs.mean > 1 and problem.objective == "cost":
        name = f"{family.hardware.name}, {family.precision}, disaggregated"
        bound = 2 * price * min(candidate.num_devices for candidate in plain)
        yield Node(bound, name, plain[0], lambda beat: _bounded_split(problem, plain, name))


def _bounded(problem: Problem, candidate: Candidate) -> Rejected | Node:
    """By a step over one row, and by an instance without limits."""
    too_slow = _too_slow(problem, candidate)
    if too_slow:
        return too_slow
    devices = math.ceil(_share(problem, candidate)) * candidate.num_devices
    if problem.max_devices is not None and devices > problem.max_devices:
        return _too_many(problem, str(candidate), candidate, devices)
    bound = _quickest_answer(problem, candidate)
    if problem.objective == "cost":
        bound = devices * problem.prices.of(candidate.hardware)
    return Node(bound, str(candidate), candidate, lambda beat: _aggregated(problem, candidate, beat))


def _bounded_split(problem: Problem, candidates: list[Candidate], name: str) -> Rejected | Node:
    quick = [candidate for candidate in candidates if not _too_slow(problem, candidate)]
    if not quick:
        return Rejected(name, candidates[0].hardware.name, "no instance is quick enough for the answers", math.inf)
    roles: tuple[Role, ...] = ("prefill", "decode")
    devices = sum(min(math.ceil(_share(problem, one, role)) * one.num_devices for one in quick) for role in roles)
    if problem.max_devices is not None and devices > problem.max_devices:
        return _too_many(problem, name, quick[0], devices)
    bound = devices * problem.prices.of(quick[0].hardware)
    return Node(bound, name, quick[0], lambda beat: _disaggregated(problem, quick, name, beat))


def _too_dear(problem: Problem, candidate: Candidate, devices: int) -> Rejected:
    if problem.max_devices is not None and devices > problem.max_devices:
        return _too_many(problem, str(candidate), candidate, devices)
    cost = devices * problem.prices.of(candidate.hardware)
    return Rejected(str(candidate), candidate.hardware.name, "", cost, candidate, is_open=True)


def _too_many(problem: Problem, what: str, candidate: Candidate, devices: int) -> Rejected:
    assert problem.max_devices is not None
    reason = f"needs {devices} devices, {problem.max_devices} are allowed"
    return Rejected(what, candidate.hardware.name, reason, devices / problem.max_devices, candidate, devices)


def _too_slow(problem: Problem, candidate: Candidate) -> Rejected | None:
    """A step over one row is a lower bound of every gap; an answer is that many times its tokens."""
    if problem.workload.outputs.mean <= 1:
        return None
    instance = Instance(candidate, problem.workload, CHUNKS[-1])
    step = instance.step_s(1.0, 0.0, "high")
    each = step / instance.yield_per_step("high")
    outputs = problem.workload.outputs

    def least(metric: str, statistic: str) -> float:
        return {"ttft": 0.0, "itl": step, "tpot": each}.get(metric, (outputs.statistic(statistic) - 1) * each)

    return _broken(problem, candidate, str(candidate), least, "at least ")


def _broken(
    problem: Problem, candidate: Candidate, what: str, of: Callable[[str, str], float], least: str = ""
) -> Rejected | None:
    """Why the limits do not hold, by the one that is missed most; None if they hold."""
    missed = breaches(problem.limits, of)
    if not missed:
        return None
    limit, seconds = max(missed, key=lambda pair: pair[1] / pair[0].seconds)
    reason = f"{spell(limit.name)} {least}{show(seconds)} > {show(limit.seconds)}"
    return Rejected(what, candidate.hardware.name, reason, seconds / limit.seconds, candidate)


# ---- bounds ------------------------------------------------------------------------------------------------


def _quickest_answer(problem: Problem, candidate: Candidate) -> float:
    """Seconds of a long answer at one row a step: what no load can better."""
    instance = Instance(candidate, problem.workload, CHUNKS[-1])
    each = instance.step_s(1.0, 0.0, "high") / instance.yield_per_step("high")
    return max(problem.workload.outputs.statistic("p99") - 1, 0.0) * each


def _share(problem: Problem, candidate: Candidate, role: Role = "both") -> float:
    """How many instances at least: at full load and without limits."""
    # Most room for sequences comes with the smallest step, most tokens a step with the largest.
    instance = Instance(candidate, problem.workload, CHUNKS[-1], role)
    fitting = candidate.places(problem.workload.tokens, CHUNKS[0])
    instance.places = max(instance.places, min(fitting, MAX_SEQS * candidate.layout.dp))
    return problem.workload.rate / (STABLE * instance.at(instance.most("high"), "high").rate)


# ---- aggregated --------------------------------------------------------------------------------------------


def _aggregated(problem: Problem, candidate: Candidate, beat: float) -> Plan | Rejected:
    """The best chunk limit; Rejected where it cannot score less than ``beat``."""
    best: Plan | Rejected | None = None
    worth = _worth(problem, candidate, beat)
    for chunk in CHUNKS:
        if candidate.places(problem.workload.tokens, chunk) < 1:
            continue
        instance = Instance(candidate, problem.workload, chunk)
        if problem.objective == "speed" and (least := idle_load(instance).e2e("p99")) >= beat:
            result: Plan | Rejected = Rejected(
                str(candidate), candidate.hardware.name, "", least, candidate, is_open=True
            )
        else:
            result = _of_instance(problem, instance, worth)
        if best is None or _better(result, best):
            best = result
        if isinstance(result, Plan) and problem.objective == "cost":
            worth = max(worth, problem.workload.rate / result.pools[0].replicas)
    assert best is not None
    return best


def _worth(problem: Problem, candidate: Candidate, beat: float) -> float:
    """What an instance must carry for its plan to cost less than ``beat``."""
    each = problem.prices.of(candidate.hardware) * candidate.num_devices
    if problem.objective != "cost" or not math.isfinite(beat):
        return 0.0
    return problem.workload.rate / max(math.ceil(beat / each - 1e-9) - 1, 1)


def _better(one: Plan | Rejected, other: Plan | Rejected) -> bool:
    if isinstance(one, Rejected):
        return isinstance(other, Rejected) and one.excess < other.excess
    return isinstance(other, Rejected) or _order(one) < _order(other)


def _of_instance(problem: Problem, instance: Instance, worth: float) -> Plan | Rejected:
    limits, candidate = problem.limits, instance.candidate

    def holds(load: Load) -> bool:
        return keeps(limits, lambda metric, statistic: seen(load, metric, statistic))

    found = largest(instance, holds, worth)
    if isinstance(found, TooLittle):
        replicas = math.ceil(problem.workload.rate / found.rate)
        return _too_dear(problem, candidate, replicas * candidate.num_devices)
    if found is None:
        idle = idle_load(instance)
        broken = _broken(problem, candidate, str(candidate), lambda m, s: seen(idle, m, s), "even idle ")
        return broken or Rejected(str(candidate), candidate.hardware.name, "cannot carry any load", math.inf, candidate)
    load, full = found
    replicas = math.ceil(problem.workload.rate / load.rate)
    held_by = _what_holds(problem, instance, load, full)
    used = problem.workload.rate / (replicas * load.rate)
    return _priced(problem, (Pool(instance, replicas),), held_by, used)


def _what_holds(problem: Problem, instance: Instance, load: Load, full: bool) -> str:
    """What keeps an instance from a larger load."""
    if full:
        if instance.places == instance.memory_places and instance.most("high") * instance.steps("high") >= 1:
            by_places = instance.places / (instance.layout.pp * max(instance.steps("high"), 1.0))
            if by_places <= instance.most("high") * 1.0001:
                return f"KV memory ({instance.places} sequences)"
        return "the step's own throughput"
    more = instance.at(load.per_step * RATIO, "high")
    missed = breaches(problem.limits, lambda m, s: seen(more, m, s))
    return " and ".join(spell(limit.name) for limit, _ in missed) or "the step's own throughput"


def _priced(problem: Problem, pools: tuple[Pool, ...], held_by: str, used: float) -> Plan | Rejected:
    candidate = pools[-1].instance.candidate
    devices = sum(pool.num_devices for pool in pools)
    most = problem.max_devices
    if most is not None and devices > most:
        return _too_many(problem, _name(pools), candidate, devices)
    price = problem.prices.of(candidate.hardware)
    plan = Plan(pools, price * devices, price * devices, held_by, used)
    return plan if problem.objective == "cost" else _quickest(problem, plan)


def _name(pools: tuple[Pool, ...]) -> str:
    return str(pools[-1].instance.candidate) + (", disaggregated" if len(pools) > 1 else "")


def _quickest(problem: Problem, plan: Plan) -> Plan:
    """With as many instances as are allowed and still bring something; scored by pessimistic E2E p99."""
    pool = plan.pools[0]
    each = pool.instance.candidate.num_devices
    most = max((problem.max_devices or SPEED_DEVICES) // each, pool.replicas)
    counts = [pool.replicas]
    while counts[-1] < most:
        counts.append(min(2 * counts[-1], most))
    price = problem.prices.of(pool.instance.candidate.hardware)
    best = plan
    for replicas in counts:
        used = plan.used * pool.replicas / replicas
        more = replace(plan, pools=(Pool(pool.instance, replicas),), cost=price * each * replicas, used=used)
        load = more.under(problem.workload.rate, "high")
        assert load is not None
        score = seen(load, "e2e", "p99")
        if replicas > pool.replicas and score * SPEED_GAIN >= best.score:
            break
        best = replace(more, score=score)
    # Scores within a grid's width are equal, so that fewer devices come first among them.
    return replace(best, score=SPEED_GAIN ** math.ceil(math.log(best.score) / math.log(SPEED_GAIN)))


# ---- disaggregated -----------------------------------------------------------------------------------------


def _disaggregated(problem: Problem, candidates: list[Candidate], name: str, beat: float) -> Plan | Rejected:
    """The cheapest pair of pools on one hardware in one precision; Rejected where it costs no less than ``beat``."""
    first = tuple(limit for limit in problem.limits if limit.metric == "ttft")
    whole = [limit for limit in problem.limits if limit.metric in ("e2e", "itl", "tpot")]
    prefills = []
    for candidate in candidates:
        instance = Instance(candidate, problem.workload, PREFILL_CHUNK, "prefill")
        if instance.places < 1:
            continue
        found = largest(instance, lambda load: keeps(first, lambda m, s: seen(load, m, s)))
        if not isinstance(found, tuple):
            continue
        for share in PREFILL_LOADS if whole else PREFILL_LOADS[:1]:
            load = instance.at(found[0].per_step * share, "high")
            replicas = math.ceil(problem.workload.rate / load.rate)
            prefills.append((replicas * candidate.num_devices, Pool(instance, replicas), load))
    prefills.sort(key=lambda one: one[0])
    best: Plan | Rejected = Rejected(name, candidates[0].hardware.name, "no pair of pools keeps the limits", math.inf)
    price = problem.prices.of(candidates[0].hardware)
    most = min(problem.max_devices or math.inf, math.ceil(beat / price) - 1 if math.isfinite(beat) else math.inf)
    decodes = [
        (
            math.ceil(_share(problem, one, "decode")) * one.num_devices,
            Instance(one, problem.workload, CHUNKS[0], "decode"),
        )
        for one in candidates
    ]
    for devices, prefill, load in prefills[:MAX_PREFILLS]:
        for fewest, decode in decodes:
            least = devices + fewest
            if least > most or (isinstance(best, Plan) and least >= best.num_devices):
                continue
            plan = _with_decode(problem, prefill, load, decode)
            if plan is not None and _better(plan, best):
                best = plan
    return best


def _with_decode(problem: Problem, prefill: Pool, load: Load, decode: Instance) -> Plan | Rejected | None:
    transfer = transfer_s(prefill.instance.candidate, decode.candidate, problem.workload.inputs.mean)
    if decode.places < 1 or not math.isfinite(transfer):
        return None

    def holds(other: Load) -> bool:
        both = Split(load, other, transfer)
        return keeps(problem.limits, lambda m, s: seen(both, m, s))

    found = largest(decode, holds)
    if not isinstance(found, tuple):
        return None
    replicas = math.ceil(problem.workload.rate / found[0].rate)
    held_by = _what_holds(replace(problem, limits=()), decode, *found) if found[1] else "limits on the answer"
    used = problem.workload.rate / (replicas * found[0].rate)
    return _priced(problem, (prefill, Pool(decode, replicas)), held_by, used)
