"""Keeping score: predict published measurements, row by row, and say how far off.

::

    CSV ── rows ── scenario ── predict ── report
                   (what ran,  (physics,  (errors by group,
                   which load)  rest)      coverage, choices)

docs/explanation/scoreboard.md has the method, the splits and what held-out rows say.
"""

from tokenmill.perf.score.deployed import NotPredicted
from tokenmill.perf.score.predict import NO_CORRECTIONS, Corrections, Prediction, Predictor
from tokenmill.perf.score.report import Scoreboard, points, score_files, summary
from tokenmill.perf.score.rows import Row, read_rows
from tokenmill.perf.score.scenario import Scenario, scenario_of

__all__ = [
    "NO_CORRECTIONS",
    "Corrections",
    "NotPredicted",
    "Prediction",
    "Predictor",
    "Row",
    "Scenario",
    "Scoreboard",
    "points",
    "read_rows",
    "scenario_of",
    "score_files",
    "summary",
]
