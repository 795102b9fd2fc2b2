"""Who may come in, as whom, and how much of the engine they may take."""

from tokenmill.server.access.identity import OPEN, Access, Limits

__all__ = ["OPEN", "Access", "Limits"]
