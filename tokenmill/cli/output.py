"""What commands print: tables and JSON on standard output, progress on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

LONG_S = 2.0
"""A task that takes longer says how far it is."""


def print_json(report: Any) -> None:
    """One object on standard output."""
    print(json.dumps(report, indent=2, ensure_ascii=False, default=str))


def print_table(rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()) -> None:
    """Aligned columns, two spaces apart; columns in ``right`` are flush right."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*texts, strict=True)]
    for row in texts:
        cells = (
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join(cells).rstrip())


def note(text: str) -> None:
    """A line on standard error."""
    print(text, file=sys.stderr, flush=True)


class Loading:
    """A ``launch.Progress``: a bar on a terminal, a line per stage elsewhere. Gone when the ``with`` ends."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn())
        self._bar = Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True)
        self._task = self._bar.add_task("starting", total=None)

    def stage(self, text: str) -> None:
        if self._console.is_terminal:
            self._bar.reset(self._task, total=None, description=text)
        else:
            note(f"{text} …")

    def update(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)

    def note(self, text: str) -> None:
        self._console.print(f"note: {text}", markup=False, highlight=False, soft_wrap=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()


class Counting:
    """How many of how many: a bar on a terminal, elsewhere a line every ``LONG_S`` seconds."""

    def __init__(self, what: str, total: int) -> None:
        from time import monotonic

        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._now = monotonic
        self._told_s = monotonic()
        self._what, self._total = what, total
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=self._console, transient=True)
        self._task = self._bar.add_task(what, total=total)

    def update(self, done: int, more: str = "", *, total: int | None = None) -> None:
        """``done`` of the total, which may become known only now; ``more`` is said beside it."""
        self._total = self._total if total is None else total
        if self._console.is_terminal:
            self._bar.update(self._task, completed=done, total=self._total, description=f"{self._what}{more}")
        elif self._now() - self._told_s > LONG_S:
            self._told_s = self._now()
            note(f"{self._what}{more}: {done} of {self._total}")


@contextmanager
def counting(what: str, total: int) -> Iterator[Counting]:
    """A ``Counting`` that is drawn while the ``with`` lasts."""
    found = Counting(what, total)
    with found._bar if found._console.is_terminal else _nothing():
        yield found


@contextmanager
def _nothing() -> Iterator[None]:
    yield
