"""Which hardware, layout and precision carry a load within its limits, at what cost, and why not otherwise.

::

    workload ─┐
    limits   ─┼─ search ── candidates (fit in memory) ── predict (closed forms) ── plans, best first
    hardware ─┘                                              │
                                    report ── explain (why, why not, what if), check (simulate), command (launch)
"""

from tokenmill.perf.plan.prices import Prices, parse_price
from tokenmill.perf.plan.report import make_report
from tokenmill.perf.plan.search import Plan, Problem, search
from tokenmill.perf.plan.slo import Limit, parse_slo
from tokenmill.perf.plan.workload import Lengths, Workload, parse_workload, workload_of

__all__ = [
    "Lengths",
    "Limit",
    "Plan",
    "Prices",
    "Problem",
    "Workload",
    "make_report",
    "parse_price",
    "parse_slo",
    "parse_workload",
    "search",
    "workload_of",
]
