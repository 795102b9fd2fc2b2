"""What hardware can do: a catalogue of datasheets and of what was observed, checked for the usual mistakes."""

from tokenmill.perf.hardware.catalogue import catalogue, find, load
from tokenmill.perf.hardware.checks import Finding, check
from tokenmill.perf.hardware.spec import ARITHMETIC, Figure, Hardware, Link

__all__ = ["ARITHMETIC", "Figure", "Finding", "Hardware", "Link", "catalogue", "check", "find", "load"]
