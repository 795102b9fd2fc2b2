"""``Unit``: one thing that is measured; ``Context``: what units of one process share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenmill.bench.gpu import ceilings
from tokenmill.bench.gpu.ceilings import Ceilings
from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.shapes import REAL, TOY, write_config
from tokenmill.core.errors import TokenmillError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a unit found."""

    figures: Mapping[str, Any]
    brief: str
    """The same in a line."""


class Failed(TokenmillError):
    """A unit that has figures all the same."""

    def __init__(self, message: str, figures: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.figures = figures


@dataclass
class Context:
    """Of one process."""

    place: Place
    output: Path
    """Where result files go."""
    deadline: float = float("inf")
    """Unix time at which the stage has to be over."""
    kept: dict[Any, Any] = field(default_factory=dict)
    """What is large and made once: keys and values, weights."""

    @cached_property
    def ceilings(self) -> Ceilings:
        return ceilings.find(self.place)

    def shape(self, name: str) -> dict[str, Any]:
        """``config.json`` of a model, at toy size where this is a rehearsal."""
        return (TOY if self.place.toy else REAL)[name]

    def keep(self, key: object, make: Callable[[], Any]) -> Any:
        """The thing under ``key``, made when first asked for."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    @contextmanager
    def checkpoint(self, name: str) -> Iterator[str]:
        """A folder with that model's configuration and a tokenizer, and no weights."""
        with TemporaryDirectory() as folder:
            yield str(write_config(Path(folder) / name, self.shape(name)))


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing that is measured."""

    name: str
    run: Callable[[Context], Outcome]


@dataclass(frozen=True, slots=True)
class Stage:
    """Units that belong together."""

    name: str
    minutes: float
    """Of ten."""
    units: Callable[[Place], list[Unit]]
    apart: bool = False
    """Each unit in a process of its own: it starts with an empty device."""
