"""The command line: one command a file; each parses, calls one function, prints.

Reports go to standard output (one JSON object with ``--json``), progress and errors to standard error. Exit
codes: 0 done; 1 it could not be done, the one line on standard error says why and what to do; 2 the command
line itself is wrong; 130 Ctrl-C. Commands are imported when they are called, and what is heavy inside them.
"""

from tokenmill.cli.app import main

__all__ = ["main"]
