"""Running the command line: in this process, and as a process of its own."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tokenmill.cli import main

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Done:
    code: int
    out: str
    err: str


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Run a command line in this process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return Done(ended.value.code, captured.out, captured.err)


class Process:
    """``tokenmill …`` as a process; what it prints can be waited for."""

    def __init__(self, *arguments: object, code: str | None = None) -> None:
        start = ["-c", code] if code else ["-m", "tokenmill"]
        self.popen = subprocess.Popen(
            [sys.executable, *start, *map(str, arguments)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        self.text = ""
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        while piece := self.popen.stdout.read(1):
            with self._news:
                self.text += piece
                self._news.notify_all()

    def wait_for(self, pattern: str, timeout_s: float = 60.0) -> re.Match[str]:
        """Wait until the output holds ``pattern``."""
        with self._news:
            found = self._news.wait_for(
                lambda: re.search(pattern, self.text) or self.popen.poll() is not None, timeout_s
            )
        match = re.search(pattern, self.text)
        assert found and match, f"no {pattern!r} in:\n{self.text}"
        return match

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for the end; the exit code (negative: the signal that ended it)."""
        code = self.popen.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    @property
    def children(self) -> list[str]:
        """Processes that have this one as their parent."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                if int(stat.read_text().rpartition(")")[2].split()[1]) == self.popen.pid:
                    found.append(stat.parent.name)
        return found


@contextlib.contextmanager
def process(*arguments: object, code: str | None = None) -> Iterator[Process]:
    """A process that is gone when the ``with`` ends."""
    started = Process(*arguments, code=code)
    try:
        yield started
    finally:
        if started.popen.poll() is None:
            started.popen.kill()
        started.wait()
        for pipe in (started.popen.stdin, started.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
