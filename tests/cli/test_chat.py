"""``tokenmill chat``: piped, and on a real (pseudo) terminal."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest

from tests.cli.conftest import SMALL
from tests.cli.support import ROOT, call

Capsys = pytest.CaptureFixture[str]
OPTIONS = (*SMALL, "--max-tokens", "8", "--seed", "1", "--ignore-eos")


def test_piped_input_is_one_turn_a_line(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(text: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        done = call(capsys, "chat", *OPTIONS)
        assert done.code == 0
        return done.out.splitlines()

    once = answers("Hello there.\n")
    twice = answers("Hello there.\nHello there.\n")
    assert twice[0] == once[0] and once[0]
    assert twice != once * 2  # the second turn knew the first
    assert answers("Hello there.\n/reset\nHello there.\n") == once * 2
    assert answers("Hello there.\n/quit\nHello there.\n") == once
    assert answers("\n  \n/nonsense\n") == []


def test_a_conversation_that_grows_too_long_says_what_to_do(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello. " * 100 + "\nHello there.\n"))
    done = call(capsys, "chat", *SMALL, "--max-context", "100", "--max-tokens", "8", "--seed", "1", "--ignore-eos")
    assert done.code == 0
    assert "maximum context length is 100" in done.err and "/reset" in done.err
    assert len(done.out.splitlines()) == 1  # the turn that was too long is forgotten, the next is answered


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tokenmill", *arguments], cwd=ROOT, stdin=slave, stdout=slave, stderr=slave,
            start_new_session=True, preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )  # fmt: skip
        os.close(slave)
        self.text = ""

    def wait_for(self, pattern: str, timeout_s: float = 60.0) -> None:
        """Wait until what was printed since the last call holds ``pattern``; forget it."""
        deadline_s = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.text)):
            ready, _, _ = select.select([self.master], [], [], max(0.0, deadline_s - time.monotonic()))
            assert ready, f"no {pattern!r} in {self.text!r}"
            self.text += os.read(self.master, 65536).decode(errors="replace")
        self.text = self.text[found.end() :]

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def insist(self, key: str, pattern: str) -> None:
        """Press ``key`` until it is answered: a signal between prompt and wait is seen with the next key only."""
        for _ in range(60):
            self.type(key)
            with contextlib.suppress(AssertionError):
                return self.wait_for(pattern, timeout_s=1.0)
        raise AssertionError(f"{key!r} was not answered by {pattern!r}: {self.text!r}")


def test_ctrl_c_stops_the_answer_only() -> None:
    terminal = Terminal("chat", *SMALL, "--max-tokens", "1800", "--ignore-eos", "--seed", "1")
    try:
        terminal.wait_for("> ")
        terminal.type("Tell me a long story.\r")
        terminal.wait_for(r"story\.\s+\S+ \S+ \S+")  # the answer has begun
        terminal.type("\x03")
        terminal.wait_for("> ", timeout_s=20)
        terminal.insist("\x03", "/quit")  # at the prompt it only explains
        terminal.wait_for("> ")
        terminal.type("/quit\r")
        assert terminal.popen.wait(30) == 0
    finally:
        terminal.popen.kill()
        terminal.popen.wait()
        os.close(terminal.master)
