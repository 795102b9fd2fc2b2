"""Fits what ships: effects on the roofline's terms, corrections on what is left, and how wide intervals must be.

Usage: python tools/calibration/fit.py rows.pkl... [--ship] [--tune KIND]

Two stages, both maximum a posteriori with Gaussian priors around zero and Student-t noise:

1. effects: log seconds is smooth in the logarithms of the factors, so Gauss-Newton; general keys have wide priors around
   what kernel tables say, particular keys narrow ones;
2. corrections: linear in the features of ``score/features``; solved in the dual (as many unknowns as rows).

Held-out figures: five folds by a hash of (model, hardware, tp, pp, engine, version), both stages refitted for each; and one
accelerator left out at a time, with the features of its name left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tokenmill.perf.score.choices import choices, regrets
from tokenmill.perf.score.rows import Row
from tokenmill.perf.terms import NAMES, NUM_PAIRS

FOLDS = 5
P = 4.0

BASE = {
    "linear.memory": 0.22, "linear.compute": 0.35, "experts.memory": 0.4, "experts.compute": 0.6, "prefill.memory": 0.3,
    "prefill.compute": 0.45, "decode.memory": 0.25, "decode.compute": 0.7, "other.memory": 0.4, "other.compute": 0.7,
    "message.latency": 0.1, "message.bandwidth": 0.35, "launch": 0.7, "host.step": -1.2, "host.row": 1.0,
    "host.request": 1.5,
}  # fmt: skip
"""Logarithms of factors before anything is fitted: measured kernels (docs/explanation/roofline.md)."""

PRIOR = {"": 0.1, "family": 0.06, "arithmetic": 0.1, "class": 0.06, "engine": 0.12}
"""How far effects may move, by what they belong to: little, for what rows say of single terms they say through others."""
LOOSE = {"launch": 1.5, "host.step": 1.5, "host.row": 1.5, "host.request": 8.0}
"""These terms are the engine's own: their priors are so many times wider."""

MACHINE = {name for name in NAMES if name.endswith((".memory", ".compute"))} | {"message.latency", "message.bandwidth"}
MAIN = {"linear.memory", "linear.compute", "experts.memory", "experts.compute"}
TERMS_OF: dict[str, set[str]] = {
    "": set(NAMES),
    "family": MACHINE,
    "arithmetic": MAIN,
    "class": MACHINE,
    "engine": set(NAMES),
    "engine,version": {"host.request"},
}
"""Which terms an effect of each kind may have: few enough to be told apart."""


def kind_of_key(key: str) -> str:
    return ",".join(part.split(":")[0] for part in key.split(",")) if key else ""


def fold_of(row) -> int:
    return int(hashlib.sha1("|".join(row.group).encode()).hexdigest(), 16) % FOLDS


def _clean(key: str) -> str:
    head, separator, version = key.partition(",version:")
    return head + separator + version.replace(",", ";")


class Data:
    """Rows as arrays."""

    def __init__(self, found: list[dict]) -> None:
        self.found = found
        self.n = len(found)
        steps = [(i, w, t) for i, one in enumerate(found) for w, t in one["steps"] if w > 0]
        self.owner = np.array([i for i, _, _ in steps])
        self.weight = np.array([w for _, w, _ in steps])
        self.terms = np.array([t for _, _, t in steps])
        self.y = np.log([
            one["amount"] / one["row"].value if one["amount"] is not None else one["row"].value / 1e3 for one in found
        ])  # fmt: skip
        self.sign = np.array([-1.0 if one["amount"] is not None else 1.0 for one in found])
        self.group = np.array([one["group"] for one in found])
        self.fold = np.array([fold_of(one["row"]) for one in found])
        self.keys = [tuple(map(_clean, one["keys"])) for one in found]

    def seconds(self, log_factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(seconds by row, share of each term by row) for the logarithms of factors by row and term."""
        f = np.exp(log_factors)[self.owner] * self.terms
        part = np.zeros_like(f)
        total = np.zeros(len(f))
        for g in range(NUM_PAIRS):
            m, c = f[:, 2 * g], f[:, 2 * g + 1]
            big = np.maximum(np.maximum(m, c), 1e-30)
            s = ((m / big) ** P + (c / big) ** P) ** (1 / P) * big
            s[np.maximum(m, c) <= 0] = 0
            with np.errstate(invalid="ignore", divide="ignore"):
                part[:, 2 * g] = np.where(s > 0, s * (m / np.maximum(s, 1e-30)) ** P, 0)
                part[:, 2 * g + 1] = np.where(s > 0, s * (c / np.maximum(s, 1e-30)) ** P, 0)
            total += s
        part[:, 2 * NUM_PAIRS :] = f[:, 2 * NUM_PAIRS :]
        total += f[:, 2 * NUM_PAIRS :].sum(1)
        y = np.bincount(self.owner, self.weight * total, self.n)
        shares = np.stack([np.bincount(self.owner, self.weight * part[:, t], self.n) for t in range(part.shape[1])], 1)
        return y, shares / np.maximum(y, 1e-30)[:, None]


class Physics:
    """Effects by (term, key)."""

    def __init__(self, data: Data) -> None:
        self.index: dict[tuple[int, str], int] = {}
        for keys in data.keys:
            for key in keys:
                for t in range(len(NAMES)):
                    if NAMES[t] in TERMS_OF.get(kind_of_key(key), ()):
                        self.index.setdefault((t, key), len(self.index))
        self.prior = np.array([
            PRIOR.get(kind_of_key(key), 0.05) * LOOSE.get(NAMES[t], 1.0) for t, key in self.index
        ])  # fmt: skip
        self.theta = np.zeros(len(self.index))
        self.columns = np.full((data.n, len(NAMES), max(map(len, data.keys))), len(self.index))
        for i, keys in enumerate(data.keys):
            for t in range(len(NAMES)):
                for j, key in enumerate(keys):
                    self.columns[i, t, j] = self.index.get((t, key), len(self.index))
        self.base = np.array([BASE[name] for name in NAMES])

    def log_factors(self) -> np.ndarray:
        padded = np.append(self.theta, 0.0)
        return self.base + padded[self.columns].sum(2)

    def fit(self, data: Data, use: np.ndarray, noise: float = 0.3, steps: int = 5, only: str | None = None) -> None:
        """Gauss-Newton on rows ``use`` with Student-t weights; ``only`` the effects on one term."""
        size = len(self.theta)
        prior = self.prior.copy()
        if only is not None:
            prior[[NAMES[t] != only for t, _ in self.index]] = 1e-4
        centre = np.zeros(size) if only is None else np.where(prior < 1e-3, self.theta, 0.0)
        for _ in range(steps):
            y, shares = data.seconds(self.log_factors())
            rest = np.clip(data.y - np.log(y), -1.5, 1.5)
            jacobian = np.zeros((len(use), size + 1))
            rows = np.arange(len(use))[:, None]
            for t in range(len(NAMES)):
                columns = self.columns[use, t]
                np.add.at(jacobian, (np.broadcast_to(rows, columns.shape), columns), shares[use, t][:, None])
            jacobian = jacobian[:, :size]
            r = rest[use]
            w = 1.0 / (noise**2 + r**2 / 4)
            hessian = jacobian.T @ (jacobian * w[:, None]) + np.diag(1 / prior**2)
            gradient = jacobian.T @ (w * r) - (self.theta - centre) / prior**2
            self.theta = self.theta + np.clip(np.linalg.solve(hessian, gradient), -0.7, 0.7)


def used_for_physics(data: Data) -> np.ndarray:
    return np.array([not g.startswith(("ttft", "tpot_disaggregated", "tpot_flagged")) for g in data.group])


def fit_physics(physics: Physics, data: Data, where: np.ndarray) -> None:
    """Steps first, then what a request adds."""
    physics.fit(data, np.flatnonzero(used_for_physics(data) & where))
    first = np.array([g.startswith("ttft") for g in data.group])
    physics.fit(data, np.flatnonzero(first & where), noise=0.4, only="host.request")


def residuals(data: Data, physics: Physics) -> np.ndarray:
    return data.y - np.log(data.seconds(physics.log_factors())[0])


def stats(errors: np.ndarray) -> str:
    e = np.abs(np.expm1(errors))
    return f"n {len(e):5d}  median {np.median(e):6.1%}  mean {e.mean():6.1%}  p90 {np.quantile(e, 0.9):6.1%}"


# ---- corrections -------------------------------------------------------------------------------------------

NOISE = 0.08
KEPT_FEW, KEPT_MANY, FEW = 2.0, 0.6, 500
"""Coefficients per row, at most; of kinds with few rows and with many."""
SPREADS: dict[str, dict[str, float]] = {
    "": {"plain": 0.15, "1": 0.04, "2": 0.02, "3": 0.03, "slope": 0.06, "slope 1": 0.03, "slope 2": 0.02},
    "token": {"plain": 0.3, "1": 0.01, "3": 0.05, "slope": 0.03, "slope 1": 0.02, "slope 2": 0.04},
    "first": {"plain": 0.08, "1": 0.04, "3": 0.05, "slope": 0.06, "slope 1": 0.06, "slope 2": 0.04},
    "token-open": {"plain": 0.15, "1": 0.04, "2": 0.02, "3": 0.02, "slope": 0.12, "slope 1": 0.03, "slope 2": 0.01},
    "max_throughput_dense": {"plain": 0.1, "1": 0.12, "slope": 0.06, "slope 1": 0.06},
    "max_throughput_moe": {
        "plain": 0.15,
        "1": 0.2,
        "2": 0.04,
        "3": 0.04,
        "slope": 0.06,
        "slope 1": 0.04,
        "slope 2": 0.02,
    },
    "first-split": {"plain": 0.3, "slope": 0.1},
    "token-split": {"plain": 0.3, "1": 0.05, "2": 0.05, "slope": 0.06, "slope 1": 0.03},
    "static_throughput": {"plain": 0.3, "1": 0.1, "slope": 0.06, "slope 1": 0.04},
    "decode_batch": {"plain": 0.3, "1": 0.03, "2": 0.03, "3": 0.06, "slope": 0.06, "slope 1": 0.04, "slope 2": 0.02},
    "decode_batch1": {"plain": 0.3, "1": 0.03, "2": 0.03, "3": 0.06, "slope": 0.06, "slope 1": 0.04, "slope 2": 0.02},
    "mlperf_offline": {"plain": 0.3, "1": 0.05, "2": 0.05, "slope": 0.06, "slope 1": 0.03},
    "mlperf_server": {"plain": 0.3, "1": 0.05, "2": 0.05, "slope": 0.06, "slope 1": 0.03},
    "prefill": {"plain": 0.15, "1": 0.04, "slope": 0.2, "slope 1": 0.04, "slope 2": 0.02},
}
"""Prior standard deviation of a coefficient, by kind of row and by how many facts its name joins; chosen by cross-validation.

What is not listed has none.
"""


def class_of_feature(name: str) -> str:
    joined = min(name.count("|"), 3)
    if "*" in name:
        return f"slope {min(joined, 2)}" if joined else "slope"
    return str(joined) if joined else "plain"


class Corrections:
    """Ridge regression of residuals on features, in the dual, with Student-t weights."""

    def __init__(self, found: list[dict], kind: str) -> None:
        self.spreads, self.noise = SPREADS.get(kind, SPREADS[""]), NOISE
        names: dict[str, int] = {}
        rows, columns, values = [], [], []
        for i, one in enumerate(found):
            for name, value in one["features"].items():
                if value and class_of_feature(name) in self.spreads:
                    rows.append(i)
                    columns.append(names.setdefault(name, len(names)))
                    values.append(value)
        self.names = list(names)
        self.x = np.zeros((len(found), len(names)), np.float32)
        self.x[rows, columns] = values
        self.classes = [class_of_feature(name) for name in self.names]
        self.beta = np.zeros(len(names))

    def kernel(self) -> np.ndarray:
        variance = np.array([self.spreads[c] ** 2 for c in self.classes])
        self.variance = variance
        scaled = self.x * np.sqrt(variance, dtype=np.float64).astype(np.float32)
        return (scaled @ scaled.T).astype(np.float64)

    def fit(self, kernel: np.ndarray, y: np.ndarray, use: np.ndarray, rounds: int = 4) -> None:
        k = kernel[np.ix_(use, use)]
        w = np.full(len(use), self.noise**2)
        for _ in range(rounds):
            alpha = np.linalg.solve(k + np.diag(w), y[use])
            left = w * alpha  # y - K alpha
            # Student t with four degrees of freedom
            w = (4 * self.noise**2 + left**2) / 5
        self.beta = self.variance * (self.x[use].T @ alpha)
        # Few are enough: those that move predictions most are kept, and fitted again without the others.
        weight = np.abs(self.beta) * np.sqrt((self.x[use] ** 2).sum(0))
        kept = (
            weight
            >= np.sort(weight)[
                -min(len(weight), max(30, int((KEPT_FEW if len(self.x) < FEW else KEPT_MANY) * len(use))))
            ]
        )
        scaled = self.x[np.ix_(use, kept)] * np.sqrt(self.variance[kept]).astype(np.float32)
        alpha = np.linalg.solve((scaled @ scaled.T).astype(np.float64) + np.diag(w), y[use])
        self.beta = np.zeros(len(kept))
        self.beta[kept] = self.variance[kept] * (self.x[np.ix_(use, kept)].T @ alpha)

    def predict(self) -> np.ndarray:
        return self.x @ self.beta


def relative(data: Data, rest: np.ndarray) -> np.ndarray:
    """|predicted / measured - 1|."""
    return np.abs(np.expm1(-data.sign * rest))


def table(data: Data, rest: np.ndarray, where: np.ndarray | None = None) -> None:
    e = relative(data, rest)
    for group in sorted(set(data.group)):
        chosen = data.group == group
        if where is not None:
            chosen &= where
        if chosen.any():
            part = e[chosen]
            print(
                f"  {group:40s} n {len(part):5d}  median {np.median(part):6.1%}  mean {part.mean():6.1%}  p90 {np.quantile(part, 0.9):6.1%}  bias {np.median(rest[chosen]):+.2f}"
            )


def load(paths: list[Path]) -> Data:
    found: list[dict] = []
    for path in paths:
        found += pickle.loads(path.read_bytes())[0]
    return Data(found)


def kinds_of(data: Data) -> dict[str, np.ndarray]:
    kinds = defaultdict(list)
    for i, one in enumerate(data.found):
        kinds[next(iter(one["features"]))].append(i)
    return {kind: np.array(rows) for kind, rows in kinds.items()}


def cross_validate(data: Data, physics_rest: list[np.ndarray]) -> np.ndarray:
    """What is left for each row when its fold was held out."""
    out = np.full(data.n, np.nan)
    kinds = kinds_of(data)
    made = {}
    for kind, rows in kinds.items():
        c = Corrections([data.found[i] for i in rows], kind)
        made[kind] = (c, c.kernel())
    for fold in range(FOLDS):
        rest = physics_rest[fold]
        for kind, (c, kernel) in made.items():
            rows = kinds[kind]
            train = np.flatnonzero(data.fold[rows] != fold)
            test = np.flatnonzero(data.fold[rows] == fold)
            if not len(test):
                continue
            if not len(train):
                out[rows[test]] = rest[rows[test]]
                continue
            c.fit(kernel, rest[rows], train)
            out[rows[test]] = (rest[rows] - c.predict())[test]
    return out


def physics_by_fold(data: Data, verbose: bool = True) -> list[np.ndarray]:
    rests = []
    for fold in range(FOLDS):
        physics = Physics(data)
        fit_physics(physics, data, data.fold != fold)
        rests.append(residuals(data, physics))
    if verbose:
        held = np.choose(data.fold, rests)
        print("physics, held out")
        table(data, held)
    return rests


def effects_of(physics: Physics, spread: dict[str, float]) -> dict:
    effects: dict[str, dict[str, float]] = {name: {"": BASE[name]} for name in NAMES}
    for (t, key), i in physics.index.items():
        value = physics.theta[i] + (BASE[NAMES[t]] if key == "" else 0.0)
        if abs(value) >= 0.01 or key == "":
            effects[NAMES[t]][key] = round(float(value), 3)
    return {"kind": "tokenmill calibration", "note": NOTE, "effects": effects, "spread": spread}


NOTE = "fitted by tools/calibration to kernel tables and published measurements; docs/explanation/roofline.md"
FOLDER = Path("tokenmill/perf/calibration")


def spreads_of(data: Data, rest: np.ndarray) -> dict[str, float]:
    """How far physics alone is off, by engine: of token, prefill and flow rows that were held out."""
    fine = used_for_physics(data) & np.isfinite(rest)
    found = {"": round(float(np.quantile(np.abs(rest[fine]), 0.9) / 1.645), 3)}
    for engine in sorted({one["engine"] for one in data.found}):
        own = fine & np.array([one["engine"] == engine for one in data.found])
        if own.sum() >= 30:
            found[f"engine:{engine}"] = round(float(np.quantile(np.abs(rest[own]), 0.9) / 1.645), 3)
    return found


def intervals_of(data: Data, rest: np.ndarray) -> dict[str, list[float]]:
    """Measured over predicted: the 5th and 95th percentile of held-out rows, a little wider for what is not in them."""
    found = {}
    for group in sorted(set(data.group)):
        values = (data.sign * rest)[(data.group == group) & np.isfinite(rest)]
        if len(values) >= 10:
            low, high = np.quantile(values, [0.045, 0.955])
            found[group] = [round(float(np.exp(low)), 3), round(float(np.exp(high)), 3)]
    return found


def devices_of(data: Data) -> dict[str, list[str]]:
    """By group, what rows were measured on."""
    found: dict[str, set[str]] = {}
    for group, keys in zip(data.group, data.keys, strict=True):
        found.setdefault(str(group), set()).update(key[7:] for key in keys if key.startswith("device:"))
    return {group: sorted(names) for group, names in sorted(found.items())}


def ship(data: Data, held: np.ndarray, physics_held: np.ndarray) -> None:
    physics = Physics(data)
    fit_physics(physics, data, np.ones(data.n, bool))
    FOLDER.joinpath("effects.json").write_text(
        json.dumps(effects_of(physics, spreads_of(data, physics_held)), indent=1) + "\n"
    )
    rest, coefficients = residuals(data, physics), {}
    for kind, rows in kinds_of(data).items():
        c = Corrections([data.found[i] for i in rows], kind)
        c.fit(c.kernel(), rest[rows], np.arange(len(rows)))
        for name, value in zip(c.names, c.beta, strict=True):
            if abs(value) >= 0.0015:
                coefficients[name] = round(float(value), 4)
    text = {
        "kind": "tokenmill corrections",
        "note": NOTE,
        "devices": devices_of(data),
        "intervals": intervals_of(data, held),
        "coefficients": coefficients,
    }
    path = FOLDER / "corrections.json"
    path.write_text(json.dumps(text, indent=0) + "\n")
    print(len(coefficients), "coefficients,", path.stat().st_size, "bytes")


# ---- held out ----------------------------------------------------------------------------------------------

KINDS_UNSEEN = ("max_throughput_dense", "max_throughput_moe", "token")
RESULT = Path("results/score-held-out.json")


def figures(data: Data, rest: np.ndarray, chosen: np.ndarray, intervals: dict | None = None) -> dict:
    e = relative(data, rest)[chosen]
    found = {"n": len(e), "median": np.median(e), "mean": e.mean(), "p90": np.quantile(e, 0.9)}
    found = {name: round(float(value), 4) if name != "n" else value for name, value in found.items()}
    if intervals:
        inside = [
            low <= np.exp(data.sign[i] * rest[i]) <= high
            for i in np.flatnonzero(chosen)
            for low, high in [intervals.get(data.group[i], (0.6, 1.7))]
        ]
        found["coverage"] = round(float(np.mean(inside)), 4)
    return found


def unseen_hardware(data: Data, intervals: dict) -> dict:
    """One accelerator left out at a time, from both stages, and every feature that names it."""
    device = np.array([device_of(one) for one in data.found])
    kinds = {kind: rows for kind, rows in kinds_of(data).items() if kind in KINDS_UNSEEN}
    report: dict[str, dict] = {}
    collected = np.full(data.n, np.nan)
    for name in sorted({device[i] for rows in kinds.values() for i in rows}):
        out = device == name
        if sum(out[rows].sum() for rows in kinds.values()) < 5:
            continue
        physics = Physics(data)
        fit_physics(physics, data, ~out)
        rest = residuals(data, physics)
        for kind, rows in kinds.items():
            train, test = np.flatnonzero(~out[rows]), np.flatnonzero(out[rows])
            if len(test) < 5 or not len(train):
                continue
            found = [data.found[i] | {"features": without_device(data.found[i]["features"])} for i in rows]
            c = Corrections(found, kind)
            c.fit(c.kernel(), rest[rows], train)
            collected[rows[test]] = (rest[rows] - c.predict())[test]
            group = "tpot" if kind == "token" else kind
            chosen = np.isin(np.arange(data.n), rows[test]) & (data.group == group)
            if chosen.sum() >= 5:
                report.setdefault(group, {})[name] = figures(data, collected, chosen, intervals)
    for group in report:
        everything = (data.group == group) & np.isfinite(collected)
        report[group]["all"] = figures(data, collected, everything, intervals)
        print("unseen", group, report[group]["all"], {k: v["median"] for k, v in report[group].items()})
    return report


class Held(NamedTuple):
    """A row with its held-out prediction."""

    row: Row
    group: str
    model: str
    device: str
    value: float


def choices_of(data: Data, rest: np.ndarray) -> dict:
    """Regret of choosing by held-out predictions: with corrections a row's own group was never seen, its rivals' were."""
    held = [
        Held(one["row"], str(data.group[i]), one["model"], device_of(one), one["row"].value * ratio)
        for i, (one, ratio) in enumerate(zip(data.found, np.exp(-data.sign * rest), strict=True))
        if np.isfinite(ratio)
    ]
    return dict(regrets(choices(held)))


def device_of(one: dict) -> str:
    return next(key for key in one["keys"] if key.startswith("device:"))[7:]


def without_device(features: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in features.items() if "|device=" not in name}


def report(data: Data, held: np.ndarray, physics_held: np.ndarray) -> None:
    intervals = intervals_of(data, held)
    supported = np.isfinite(held)
    groups = sorted(set(data.group))
    result = {
        "bench": "score held out",
        "method": "five folds by a hash of (model, hardware, tp, pp, engine, version), both stages refitted for each",
        "rows": data.n,
        "groups": {g: figures(data, held, (data.group == g) & supported, intervals) for g in groups},
        "physics_only": {g: figures(data, physics_held, (data.group == g) & supported) for g in groups},
        "coverage": figures(data, held, supported, intervals)["coverage"],
        "choices": choices_of(data, held),
        "choices_physics_only": choices_of(data, physics_held),
        "by": {},
        "unseen_hardware": unseen_hardware(data, intervals),
    }
    facts = {
        "engine": lambda one: one["engine"],
        "hardware": device_of,
        "model_class": lambda one: next(k for k in one["keys"] if k.startswith("class:"))[6:],
        "precision": lambda one: one["row"].precision or "bf16",
    }
    for group in ("max_throughput_dense", "max_throughput_moe", "tpot"):
        for fact, of in facts.items():
            values = np.array([of(one) for one in data.found])
            result["by"][f"{group} by {fact}"] = {
                str(v): figures(data, held, (data.group == group) & (values == v), intervals)
                for v in sorted(set(values[data.group == group]))
            }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--ship", action="store_true")
    arguments = parser.parse_args()
    data = load(arguments.files)
    rests = physics_by_fold(data)
    physics_held = np.choose(data.fold, rests)
    held = cross_validate(data, rests)
    print("with corrections, held out")
    table(data, held)
    if arguments.ship:
        ship(data, held, physics_held)
        report(data, held, physics_held)


if __name__ == "__main__":
    main()
