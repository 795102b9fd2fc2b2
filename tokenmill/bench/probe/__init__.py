"""What this machine can do, measured in under a minute and written as the catalogue writes a device.

A ceiling is the *best* of several runs, and so is a latency: what nobody disturbed. What programs reach of a ceiling is
a *median*. Each figure says how it was measured; what could not be measured is left out, and said.
"""

from tokenmill.bench.probe.machine import Probe, run

__all__ = ["Probe", "run"]
