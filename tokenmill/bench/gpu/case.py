"""``Case``: one kernel at one size, how much it must move and compute, and what its outcome should be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from tokenmill.bench.gpu.timing import Call, compare
from tokenmill.bench.gpu.unit import Context, Outcome, Unit
from tokenmill.core.errors import TokenmillError

TOLERANCE = 2e-2
"""Of ‖out − wanted‖ / ‖wanted‖, where numbers are bf16."""

Check = Callable[[], tuple[Tensor, Tensor]]
"""(what came out, what should have), after the first of the calls ran alone."""


class Wrong(TokenmillError):
    """A kernel computed something else than it should."""


@dataclass(frozen=True, slots=True)
class Case:
    """One kernel at one size."""

    calls: Sequence[Call]
    """The same work on different memory."""
    num_bytes: float
    operations: float
    arithmetic: str
    check: Check | None
    """None: where the outcome is chance, or was compared elsewhere."""
    against: Mapping[str, Sequence[Call]] = field(default_factory=dict)
    """Other ways to compute the same, timed in turns with it."""
    tolerance: float = TOLERANCE


def unit(kernel: str, size: str, make: Callable[[Context], Case]) -> Unit:
    """The unit that makes and measures a case."""
    return Unit(f"{kernel}, {size}", partial(_measure, kernel, size, make))


def _measure(kernel: str, size: str, make: Callable[[Context], Case], context: Context) -> Outcome:
    place, case = context.place, make(context)
    error = None if case.check is None else _error(context, case)
    timings = compare(place, {"": case.calls, **case.against})
    mine = timings.pop("")
    seconds = mine.seconds
    floor, bound = context.ceilings.floor_s(case.num_bytes, case.operations, case.arithmetic)
    share = floor / seconds
    others = {name: other.seconds / seconds for name, other in timings.items()}
    figures = {
        "kernel": kernel,
        "size": size,
        "microseconds": seconds * 1e6,
        "launch_microseconds": mine.launch_s * 1e6,
        "gigabytes_per_s": case.num_bytes / seconds / 1e9,
        "gigaops_per_s": case.operations / seconds / 1e9,
        "bound": bound,
        "share": share,
        "spread": mine.spread,
        "captured": mine.captured,
        "why_not_captured": mine.why_not,
        "error": error,
        "against_microseconds": {name: other.seconds * 1e6 for name, other in timings.items()},
        "times_as_quick_as": others,
    }
    told = "".join(f", {ratio:.2f} × {name}" for name, ratio in others.items())
    where = "" if mine.captured or place.toy else ", not captured"
    return Outcome(figures, f"{seconds * 1e6:.1f} µs, {share:.0%} of {bound}{told}{where}")


def _error(context: Context, case: Case) -> float:
    """How far the outcome is from the one wanted.

    Raises:
        Wrong: too far.
    """
    assert case.check is not None
    case.calls[0]()
    context.place.synchronise()
    got, wanted = case.check()
    error = float((got.double() - wanted.double()).norm() / wanted.double().norm())
    if not error <= case.tolerance:  # NaN too
        raise Wrong(f"the outcome is {error:.3g} from the one wanted (at most {case.tolerance:g})")
    return error


def random(context: Context, *shape: int, std: float = 1.0, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Normal numbers on the device."""
    return torch.empty(shape, dtype=dtype, device=context.place.device).normal_(0.0, std)


def blank(context: Context, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Memory full of NaN: what is not written does not stay hidden."""
    return torch.full(shape, float("nan"), dtype=dtype, device=context.place.device)
