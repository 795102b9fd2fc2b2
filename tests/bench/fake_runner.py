"""A runner whose engine makes tokens at a set pace, or fails as it is told: the protocol without a peer.

``python fake_runner.py STEP_S [MOOD]``; moods: ``no-load``, ``no-prepare``, ``dies``, ``hangs``, ``short`` (a token
less than asked), ``chatty`` (prints on standard output).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tokenmill.bench.peers.protocol import Events, Prompts, Setup, serve


class Fake:
    packages = ("pytest", "no-such-package")

    def __init__(self, step_s: float, mood: str) -> None:
        self.step_s = step_s
        self.mood = mood

    def prepare(self, model: Path, precision: str, folder: Path) -> None:
        if self.mood == "no-prepare":
            raise RuntimeError("no such\nformat at /somewhere/private/file.bin")
        (folder / "weights").write_text(f"{model.name} {precision}")

    def load(self, setup: Setup) -> None:
        if self.mood == "no-load":
            raise MemoryError("too large")
        assert (Path(setup.folder) / "weights").exists()
        self.ready = False

    def generate(self, prompts: Prompts, outputs: Sequence[int]) -> Events:
        warm_up, self.ready = not self.ready, True
        if self.mood == "chatty":
            print("a library greets the world", flush=True)
        if self.mood == "dies" and not warm_up:
            print("Error: the last words", file=sys.stderr, flush=True)
            os._exit(3)
        if self.mood == "hangs" and not warm_up:
            time.sleep(600)
        events = Events()
        time.sleep(self.step_s)
        for step in range(max(outputs)):
            time.sleep(self.step_s)
            events.add(sum(output > step for output in outputs) - (self.mood == "short" and step == 0))
        return events


if __name__ == "__main__":
    serve(Fake(float(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""))
