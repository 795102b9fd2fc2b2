"""What could be changed, each change priced by the steps that were observed.

A change is a way to make the same tokens in less time. Its price is that of the observed work under the changed
precision, layout or batch; the host's measured seconds stay what they are. If requests waited for KV blocks, room that
a change makes is filled with them. A change that brings less than ``MIN_EFFECT`` is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tokenmill.core.errors import ConfigError
from tokenmill.perf.calibrate import Calibration, calibration_for
from tokenmill.perf.costs import Formats, Layout, format_named, kv_bytes_per_token, own_formats, weight_bytes
from tokenmill.perf.diagnose.case import Case
from tokenmill.perf.diagnose.pricing import Pricer
from tokenmill.perf.diagnose.regime import Relief, busy_ratio
from tokenmill.perf.hardware import Hardware
from tokenmill.perf.shape import GroupedAttention
from tokenmill.perf.terms import LAUNCH, NAMES, Deployment

MIN_EFFECT = 0.02

STEP, THROUGHPUT = "step_s", "tokens_per_s"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing to do, and what it is predicted to bring."""

    option: str
    """As it is given to the engine: ``--weights int4``."""
    metric: str
    """``step_s``: busy seconds per step; ``tokens_per_s``: generated while busy."""
    before: float
    after: float
    gain: float
    """How many times as fast the same tokens are made; what changes are ordered by."""
    why: str

    @property
    def effect(self) -> float:
        """Relative change of the metric."""
        return self.after / self.before - 1.0


class Changes:
    """Finds and prices the changes of one case."""

    def __init__(self, case: Case, pricer: Pricer, reliefs: Sequence[Relief]) -> None:
        self.case, self.pricer, self.account = case, pricer, case.account
        self.reliefs = {relief.cause: relief for relief in reliefs}
        self.step_s = self.account.busy_s / self.account.num_steps
        outputs = sum(each.outputs for each in self.account.classes.values())
        self.tokens_per_s = outputs / self.account.busy_s

    def ranked(self) -> tuple[Change, ...]:
        """Best first."""
        found = [*self._precisions(), *self._layouts(), *self._limits(), *self._host()]
        worth = [change for change in found if change.gain >= 1.0 + MIN_EFFECT]
        return tuple(sorted(worth, key=lambda change: -change.gain))

    # ---- kinds of change -----------------------------------------------------------------------------------

    def _precisions(self) -> Iterator[Change]:
        now = self.pricer.deployment
        for option, formats, what in self._formats(now.formats):
            there = replace(now, formats=formats)
            yield self._elsewhere(option, there, f"{what} take {_less(now, there, what)}")

    def _formats(self, now: Formats) -> Iterator[tuple[str, Formats, str]]:
        """(option, formats, tensors that shrink)."""
        precision, hardware = self.case.precision, self.pricer.deployment.hardware
        if precision is not None:
            if precision.kernels != "fast":
                return
            on_gpu = precision.device == "cuda"
            int4_head = precision.lm_head if precision.lm_head != "bf16" else "int8"
            heads = {"int8": "int8", "int4": int4_head}
            for name in ("fp8", "int8", "int4") if on_gpu else ("int8", "int4"):
                head = precision.lm_head if on_gpu else heads[name]
                found = own_formats(replace(precision, weights=name, lm_head=head), self._head_dim)
                if found.weights.bits < now.weights.bits:
                    yield f"--weights {name}", found, "weights"
            if precision.kv == "bf16":
                kv = "fp8" if on_gpu else "int8"
                yield f"--kv {kv}", own_formats(replace(precision, kv=kv), self._head_dim), "keys and values"
            return
        for name in ("fp8", "int4", "nvfp4"):
            form = format_named(name)
            if form.bits < now.weights.bits and (form.arithmetic == "bf16" or form.arithmetic in hardware.peaks):
                yield f"weights in {name}", replace(now, weights=form, experts=now.experts and form), "weights"
        if now.kv.bits > 8:
            yield "--kv-cache-dtype fp8", now.with_(kv="fp8"), "keys and values"

    @property
    def _head_dim(self) -> int:
        mixers = (run.mixer for run in self.pricer.deployment.shape.layers)
        return next(mixer.head_dim for mixer in mixers if isinstance(mixer, GroupedAttention))

    def _layouts(self) -> Iterator[Change]:
        now = self.pricer.deployment
        link = now.hardware.link
        most = max(link.domain if link else 1, now.hardware.devices_per_node)
        for times, word in ((2.0, "halves"), (0.5, "doubles")):
            tp = int(now.layout.tp * times)
            if tp < 1 or (times > 1 and now.layout.num_devices * times > most):
                continue
            layout = replace(now.layout, tp=tp)
            if self._possible(layout):
                why = f"{word} each device's share of weights and products; messages among {tp}"
                yield self._elsewhere(f"--tensor-parallel-size {tp}", replace(now, layout=layout), why)

    def _possible(self, layout: Layout) -> bool:
        now = self.pricer.deployment
        try:
            layout.check(now.shape)
        except ConfigError:
            return False
        return weight_bytes(now.shape, now.formats, layout) < now.hardware.memory_bytes

    def _limits(self) -> Iterator[Change]:
        limits, delayed, requests = self.case.limits, self.account.delayed, self.account.requests
        for cause, relief in self.reliefs.items():
            option = {
                "kv_blocks": f"--num-blocks {2 * limits.num_blocks}" if limits.num_blocks else "twice the KV memory",
                "max_seqs": f"--max-seqs {2 * limits.max_seqs}" if limits.max_seqs else "--max-num-seqs doubled",
                "batch_policy": "--batching continuous",
                "token_budget": f"--max-step-tokens {2 * (limits.max_step_tokens or 0)}",
                "held": "--batching continuous",
            }[cause]
            waited = sum(count for name, count in delayed.items() if name.endswith(f":{cause}"))
            who = f"{waited / requests:.0%} of requests waited for it; " if requests and waited else ""
            extra = f", {self.account.preemptions:.0f} preemptions" if cause == "kv_blocks" else ""
            why = f"{who}it blocked the queue for {relief.share:.0%} of the busy time{extra}"
            yield self._change(option, THROUGHPUT, relief.gain, why)

    def _host(self) -> Iterator[Change]:
        if self.case.limits.eager:
            ratio = self.pricer.with_factors({LAUNCH: min(1.0, 1.0 / self.pricer.factors[LAUNCH])})
            why = "launches from a captured graph instead of one by one from the host"
            yield self._change("capture steps (enforce_eager off)", STEP, 1 / busy_ratio(self.account, ratio), why)

    # ---- prices --------------------------------------------------------------------------------------------

    def _elsewhere(self, option: str, there: Deployment, why: str) -> Change:
        """The same work under another precision or layout; its room for KV filled, if requests wait for it."""
        pricer, now = self.pricer, self.pricer.deployment
        factors = format_factors(now, there, pricer.factors)
        gain = 1.0 / busy_ratio(self.account, pricer.with_deployment(there, factors))
        waits = self.reliefs.get("kv_blocks")
        room = self._room(there) / max(self._room(now), 1e-9)
        if waits is None or room <= 1.0:
            return self._change(option, STEP, gain, why)
        filled = 1.0 / busy_ratio(self.account, pricer.with_rows(min(room, waits.times), there))
        both = 1.0 / ((1 - waits.share) / gain + waits.share / filled)
        return self._change(option, THROUGHPUT, both, f"{why}, and leave room for {room:.1f} times the sequences")

    def _room(self, deployment: Deployment) -> float:
        """Tokens whose KV there is room for: beside the weights, or, here, in a pool of so many bytes."""
        if self.case.precision is None:
            return kv_room(deployment)
        return 1.0 / kv_bytes_per_token(deployment.shape, deployment.formats, deployment.layout)

    def _change(self, option: str, metric: str, gain: float, why: str) -> Change:
        before = self.step_s if metric == STEP else self.tokens_per_s
        after = before / gain if metric == STEP else before * gain
        return Change(option, metric, before, after, gain, why)


def kv_room(deployment: Deployment, share: float = 0.9) -> float:
    """Tokens whose KV fits beside the weights in ``share`` of a device's memory."""
    each = kv_bytes_per_token(deployment.shape, deployment.formats, deployment.layout)
    weights = weight_bytes(deployment.shape, deployment.formats, deployment.layout)
    return max(0.0, share * deployment.hardware.memory_bytes - weights) / each if each else 0.0


def format_factors(now: Deployment, there: Deployment, factors: Sequence[float]) -> tuple[float, ...]:
    """``factors`` for products in another format, by the shares of the ceilings that were measured for either."""
    found = list(factors)
    for term, kind in (("linear.memory", "bandwidth"), ("linear.compute", "peak")):
        share = _share(now.hardware, kind, now.formats.weights.name)
        other = _share(there.hardware, kind, there.formats.weights.name)
        if share and other:
            found[NAMES.index(term)] *= share / other
    return tuple(found)


def _share(hardware: Hardware, kind: str, name: str) -> float | None:
    found = hardware.observed.get(f"gemm_{kind}_share_{name}")
    return found.value if found else None


def _less(now: Deployment, there: Deployment, what: str) -> str:
    if what == "weights":
        before, after = (weight_bytes(each.shape, each.formats, each.layout) for each in (now, there))
        return f"{after / 1e6:,.0f} instead of {before / 1e6:,.0f} MB"
    before, after = (kv_bytes_per_token(each.shape, each.formats, each.layout) for each in (now, there))
    return f"{after / 1e3:,.0f} instead of {before / 1e3:,.0f} kB a token"


def prior_of(case: Case, deployment: Deployment) -> Calibration:
    """Factors before any step was seen: an engine's on a family's devices; of our own the ceilings were measured."""
    if case.precision is not None:
        return Calibration()
    return calibration_for(deployment.hardware, case.engine, shape=deployment.shape, formats=deployment.formats)
