"""Who runs next, with how many tokens, and who gives way."""

from tokenmill.engine.scheduler.scheduler import Scheduler

__all__ = ["Scheduler"]
