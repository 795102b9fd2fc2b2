"""Why is this engine not faster, and what would make it so?

::

    steps observed (engine/telemetry) ─┐
    model, precision, layout, machine ─┼─ Case ─ fit ─ price ─┬─ attribution: where each second went
    limits of the scheduler           ─┘                      ├─ regime: which of seven resources holds it back
                                                              ├─ elasticities: what twice of each would bring
                                                              └─ changes with their predicted effect, best first

The formulas are those of ``perf/costs``; a factor on each term is fitted to the steps that were measured, and every
effect is the ratio of two prices, with the change and without. Inputs are sums, so a simulated engine is diagnosed like
a real one.
"""

from tokenmill.perf.diagnose.case import Case, Limits, case_from_json, deployment_of, describe
from tokenmill.perf.diagnose.changes import Change
from tokenmill.perf.diagnose.diagnosis import Diagnosis, diagnose, with_slo
from tokenmill.perf.diagnose.live import LiveCost, make_judge
from tokenmill.perf.diagnose.sources import case_of_journal, case_of_step_result

__all__ = [
    "Case",
    "Change",
    "Diagnosis",
    "Limits",
    "LiveCost",
    "case_from_json",
    "case_of_journal",
    "case_of_step_result",
    "deployment_of",
    "describe",
    "diagnose",
    "make_judge",
    "with_slo",
]
