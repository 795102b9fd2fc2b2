"""The score-card: each aim, what was seen, whether it was reached. Made of the stages' results alone.

``reached`` is None where nothing was measured: that is not the same as missed.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenmill.bench.gpu.published import best

Figures = Mapping[str, Any]
Results = Mapping[str, Figures]
"""Stage → what its result file holds."""

DECODE_SHARE, PREFILL_SHARE, INT4_RATIO = 0.85, 0.6, 3.5
STEP_SHARE, PUBLISHED_RATIO = 0.85, 1.1
HOST_SHARE, MEMORY_ERROR = 0.05, 0.02
FEW_ROWS = (1, 2, 4, 8, 16)


@dataclass(frozen=True, slots=True)
class Score:
    """One line."""

    figure: str
    aim: str
    seen: str
    reached: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        return {"figure": self.figure, "aim": self.aim, "seen": self.seen, "reached": self.reached}


NOTHING = "not measured"


def read_results(folder: Path, device: str) -> dict[str, Figures]:
    """The results that lie in ``folder`` for a device (``h200``), by stage."""
    found = {}
    for path in sorted(folder.glob(f"gpu-*-{device}.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        kind = str(result.get("bench", ""))
        if kind.startswith("gpu-"):
            found[kind.removeprefix("gpu-")] = result
    return found


def scorecard(results: Results, device: str) -> list[Score]:
    """Every aim. ``device``: as in the names of files, ``h200``."""
    return [
        _tests(results),
        _decode_attention(results),
        _prefill_attention(results),
        _int4(results),
        _step(results),
        _host(results),
        _published(results, device),
        *_peers(results),
        _memory(results),
        _deterministic(results),
        _graphs(results),
        _foreseen(results),
    ]


def ended_well(results: Results) -> bool:
    """No unit of any stage failed or was left out."""
    return not any(_errors(figures) or figures["not_run"] for figures in results.values())


# ---- from units' figures ---------------------------------------------------------------------------------


def _units(results: Results, stage: str, wanted: Callable[[Figures], bool] = lambda figures: True) -> list[Figures]:
    """Figures of a stage's units that did not fail."""
    units = results.get(stage, {}).get("units", [])
    return [unit["figures"] for unit in units if "error" not in unit and wanted(unit["figures"])]


def _errors(figures: Figures) -> list[str]:
    return [unit["name"] for unit in figures["units"] if "error" in unit]


def _range(values: Iterable[float]) -> str:
    values = sorted(values)
    return f"{values[0]:.0%} to {values[-1]:.0%}, median {statistics.median(values):.0%}"


def _of_kernel(name: str) -> Callable[[Figures], bool]:
    return lambda figures: figures["kernel"] == name


def _tests(results: Results) -> Score:
    figure, aim = "kernels' and engine's tests on the device", "all pass"
    units = results.get("tests", {}).get("units", [])
    if not units:
        return Score(figure, aim, NOTHING)
    counts = [unit.get("figures", {}).get("counts", {}) for unit in units]
    passed, failed = (sum(each.get(name, 0) for each in counts) for name in ("passed", "failed"))
    return Score(figure, aim, f"{passed} passed, {failed} failed", not any("error" in unit for unit in units))


def _decode_attention(results: Results) -> Score:
    figure, aim = "paged decode attention, batch 1–256, 1K–32K, bf16", f"≥ {DECODE_SHARE:.0%} of the copy bandwidth"
    found = _units(results, "kernels", _of_kernel("attention decode bf16"))
    if not found:
        return Score(figure, aim, NOTHING)
    shares = [each["share"] for each in found]
    good = sum(share >= DECODE_SHARE for share in shares)
    worst = min(found, key=lambda each: float(each["share"]))
    seen = f"{_range(shares)}; {good} of {len(shares)} sizes reach it; the worst is {worst['size']}"
    return Score(figure, aim, seen, good == len(shares))


def _prefill_attention(results: Results) -> Score:
    figure, aim = "prefill attention, causal, 8K–32K, bf16", f"≥ {PREFILL_SHARE:.0%} of the product peak"
    found = _units(results, "kernels", _of_kernel("attention prefill bf16"))
    found = [each for each in found if int(each["size"].split()[0]) >= 8192 and each["size"].endswith("after 0")]
    if not found:
        return Score(figure, aim, NOTHING)
    shares = [each["share"] for each in found]
    return Score(figure, aim, _range(shares), min(shares) >= PREFILL_SHARE)


def _int4(results: Results) -> Score:
    """A layer's four matrices together: their times in either form summed."""
    figure, aim = "INT4 weight-only product, 1–16 rows, a layer's matrices", f"≥ {INT4_RATIO} × bf16 of the library"
    found = _units(results, "kernels", lambda each: each["kernel"].startswith("linear int4"))
    ratios = {}
    for rows in FEW_ROWS:
        mine = [each for each in found if each["size"] == f"{rows} rows"]
        if len(mine) == 4:
            library = sum(next(iter(each["against_microseconds"].values())) for each in mine)
            ratios[rows] = library / sum(each["microseconds"] for each in mine)
    if not ratios:
        return Score(figure, aim, NOTHING)
    seen = ", ".join(f"{ratio:.2f} × at {rows}" for rows, ratio in ratios.items())
    whole = len(ratios) == len(FEW_ROWS)
    return Score(figure, aim, seen, min(ratios.values()) >= INT4_RATIO if whole else None)


def _steps(results: Results, **wanted: Any) -> list[Figures]:
    return _units(results, "step", lambda each: all(each.get(name) == value for name, value in wanted.items()))


def _step(results: Results) -> Score:
    figure, aim = "decode step, Llama-3.1-8B shape, bf16, batch 1", f"≥ {STEP_SHARE:.0%} of the copy bandwidth"
    found = _steps(results, batch=1, weights="bf16", mode="graphs")
    if not found:
        return Score(figure, aim, NOTHING)
    seen = f"{found[0]['bandwidth_share']:.0%}, {found[0]['milliseconds']:.2f} ms a step"
    return Score(figure, aim, seen, found[0]["bandwidth_share"] >= STEP_SHARE)


def _host(results: Results) -> Score:
    figure, aim = "host time that a step waits for, 8B, batch 64", f"< {HOST_SHARE:.0%} of the step"
    found = _steps(results, batch=64, weights="bf16", mode="graphs")
    if not found:
        return Score(figure, aim, NOTHING)
    one = found[0]
    seen = f"{one['idle_share']:.1%}; the host works {one['host_microseconds']:.0f} µs a step beside the device"
    return Score(figure, aim, seen, one["idle_share"] < HOST_SHARE)


def _offline(results: Results, **wanted: Any) -> list[Figures]:
    return _units(results, "offline", lambda each: all(each.get(name) == value for name, value in wanted.items()))


def _published(results: Results, device: str) -> Score:
    """FP8, because nobody published BF16 for the chip; what BF16 does stands beside it."""
    figure = "throughput, 8B, 256 requests of 1,024 in and 256 out"
    aim = f"≥ {PUBLISHED_RATIO} × the best published for chip and precision"
    found = _offline(results, load="256 × 1024 + 256", model="llama-3.1-8b")
    rates = {each["precision"]: each["output_tokens_per_s"] for each in found}
    rates = {name: rate for name, rate in rates.items() if name in ("bf16", "fp8")}
    if not rates:
        return Score(figure, aim, NOTHING)
    seen, ratios = [], []
    for precision, rate in rates.items():
        other = best(device, precision)
        if other is None:
            seen.append(f"{precision}: {rate:,.0f} output tokens/s, nothing published to compare with")
            continue
        ratios.append(rate / other.output_tokens_per_s)
        seen.append(f"{precision}: {rate:,.0f}, {ratios[-1]:.2f} × {other.output_tokens_per_s:,.0f} ({other.source})")
    return Score(figure, aim, "; ".join(seen), min(ratios) >= PUBLISHED_RATIO if ratios else None)


def _peers(results: Results) -> list[Score]:
    found = _units(results, "peers")
    if not found:
        return [Score("against transformers, eager and compiled", "a table", NOTHING)]
    scores = []
    for each in found:
        told = ", ".join(f"{name} {rate:,.0f}" for name, rate in each["tokens_per_s"].items())
        ratios = ", ".join(f"{ratio:.1f} × {name}" for name, ratio in each["ratios"].items())
        scores.append(Score(f"{each['task']}, tokens/s", "a table", f"{told}: ours is {ratios or 'alone'}"))
    return scores


def _memory(results: Results) -> Score:
    figure, aim = "memory foreseen against the allocator's peak", f"within {MEMORY_ERROR:.0%}"
    found = {each["name"]: each["memory"]["measured_to_foreseen"] for each in _offline(results)}
    if not found:
        return Score(figure, aim, NOTHING)
    seen = ", ".join(f"{name} {ratio:.3f}" for name, ratio in found.items())
    return Score(figure, aim, seen, all(abs(ratio - 1) <= MEMORY_ERROR for ratio in found.values()))


def _ratios(results: Results, mode: str) -> dict[int, float]:
    """Batch → a step's time in ``mode`` over its time with graphs."""
    plain = {each["batch"]: each["milliseconds"] for each in _steps(results, weights="bf16", mode="graphs")}
    other = {each["batch"]: each["milliseconds"] for each in _steps(results, weights="bf16", mode=mode)}
    return {batch: other[batch] / plain[batch] for batch in sorted(plain.keys() & other.keys())}


def _deterministic(results: Results) -> Score:
    ratios = _ratios(results, "deterministic")
    seen = ", ".join(f"{ratio - 1:+.1%} at batch {batch}" for batch, ratio in ratios.items())
    return Score("what `deterministic` costs a decode step", "measured", seen or NOTHING)


def _graphs(results: Results) -> Score:
    ratios = _ratios(results, "eager")
    seen = ", ".join(f"{ratio:.2f} × at batch {batch}" for batch, ratio in ratios.items())
    return Score("a step without captured graphs", "measured", seen or NOTHING)


def _foreseen(results: Results) -> Score:
    found = {each["name"]: each["measured_to_foreseen"] for each in _offline(results) if each["measured_to_foreseen"]}
    seen = "; ".join(f"{name} {ratios['output_tokens_per_s']:.2f}" for name, ratios in found.items())
    return Score("throughput measured over foreseen", "measured", seen or NOTHING)
