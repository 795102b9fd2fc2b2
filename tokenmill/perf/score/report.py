"""The scoreboard: errors by group, engine, hardware, class of model and precision; coverage; what was not predicted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenmill.core.errors import ConfigError
from tokenmill.perf.score.choices import choices, regrets
from tokenmill.perf.score.deployed import NotPredicted
from tokenmill.perf.score.predict import Prediction, Predictor
from tokenmill.perf.score.rows import Row, read_rows


@dataclass(slots=True)
class Scoreboard:
    predictions: list[Prediction] = field(default_factory=list)
    refused: list[tuple[Row, str]] = field(default_factory=list)

    @property
    def num_rows(self) -> int:
        return len(self.predictions) + len(self.refused)


BREAKDOWNS: dict[str, Callable[[Prediction], str]] = {
    "engine": lambda p: p.row.engine,
    "hardware": lambda p: p.device,
    "model_class": lambda p: p.model_class,
    "precision": lambda p: p.row.precision or "bf16",
}


def score_files(paths: Sequence[Path], predictor: Predictor | None = None) -> Scoreboard:
    """Predict every row of every file. ``ConfigError`` names file, line and column of a malformed row."""
    board, predictor = Scoreboard(), predictor or Predictor()
    for path in paths:
        for row in read_rows(path, first=board.num_rows):
            try:
                board.predictions.append(predictor.predict(row))
            except NotPredicted as reason:
                board.refused.append((row, str(reason)))
    if not board.num_rows:
        raise ConfigError(f"{', '.join(map(str, paths))}: no rows to predict")
    return board


def summary(board: Scoreboard) -> dict[str, Any]:
    """What ``tokenmill score --json`` prints. Errors are fractions of what was measured."""
    predictions = board.predictions
    found: dict[str, Any] = {
        "rows": board.num_rows,
        "supported": round(len(predictions) / board.num_rows, 4),
        "supported_rows": len(predictions),
        "interval_coverage": coverage(predictions),
        "groups": _by(predictions, lambda p: p.group),
    }
    found["by"] = {name: _by(predictions, key) for name, key in BREAKDOWNS.items()}
    found["choices"] = regrets(choices(predictions))
    found["unsupported"] = [
        {"row": row.index, "line": row.line, "model": row.model, "hardware": row.hardware, "reason": reason}
        for row, reason in board.refused
    ]
    return found


def coverage(predictions: Sequence[Prediction]) -> float | None:
    """Share of measurements inside their interval; None without any."""
    return round(sum(p.covered for p in predictions) / len(predictions), 4) if predictions else None


def points(board: Scoreboard) -> list[str]:
    """``index group predicted measured low high`` of every row, for a picture."""
    return [
        f"{p.row.index} {p.group} {p.value:.4g} {p.row.value:.4g} {p.low:.4g} {p.high:.4g}" for p in board.predictions
    ]


def _by(predictions: Sequence[Prediction], key: Callable[[Prediction], str]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Prediction]] = {}
    for prediction in predictions:
        groups.setdefault(key(prediction), []).append(prediction)
    return {
        name: {**errors(p.error for p in groups[name]), "coverage": coverage(groups[name])} for name in sorted(groups)
    }


def errors(values: Iterable[float]) -> dict[str, Any]:
    """Number, median, mean and 90th percentile (nearest rank, between ranks interpolated)."""
    ordered = sorted(values)
    return {
        "n": len(ordered),
        "median": round(_quantile(ordered, 0.5), 4),
        "mean": round(sum(ordered) / len(ordered), 4),
        "p90": round(_quantile(ordered, 0.9), 4),
    }


def _quantile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
