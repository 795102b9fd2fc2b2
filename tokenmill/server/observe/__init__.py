"""What is told of a request once it has ended: its line in the log, its spans, its tenant's counters.

All three are made from one ``RequestRecord``, after the last byte has left, so that they agree with one another and
delay no token. Nothing of what a client wrote or was answered is in it.
"""

from tokenmill.server.observe.record import RequestRecord, Work

__all__ = ["RequestRecord", "Work"]
