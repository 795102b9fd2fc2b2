"""What a request wants of its functions, whatever endpoint it came by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokenmill.server.dialects import Function


@dataclass(frozen=True, slots=True)
class ToolWishes:
    """The functions of a request, and whether and how they are to be called."""

    functions: tuple[Function, ...] = ()
    choice: Literal["none", "auto", "required"] = "auto"
    allowed: frozenset[str] | None = None
    """Of the functions, only these may be called; None: all. A named choice is ``required`` with one of them."""
    parallel: bool = True
    """Whether one answer may call several times."""

    @property
    def callable(self) -> tuple[Function, ...]:
        if self.choice == "none":
            return ()
        return tuple(f for f in self.functions if self.allowed is None or f.name in self.allowed)

    @property
    def constrained(self) -> bool:
        """Whether more is asked than a model that knows the functions does by itself."""
        return bool(self.callable) and (
            self.choice == "required"
            or self.allowed is not None
            or not self.parallel
            or any(function.strict for function in self.functions)
        )
