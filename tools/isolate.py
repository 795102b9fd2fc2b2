"""What an engine in a process of its own costs, and how soon it is back: ``python tools/isolate.py [--rounds N]``.

Servers with and without ``--isolate`` take turns on this machine, each under the same closed-loop load from another
process; the median of the turns' ratios is the overhead. On a machine that does other things too, trust the processor
time. Then the engine's process is killed, and the time until ``/health/ready`` is 200 again is taken. The result goes
to ``results/isolate.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tokenmill.bench.machine import make_result, write_result

RESULT = Path(__file__).resolve().parents[1] / "results" / "isolate.json"
MODEL = "story-draft"
LOAD = ("--num-requests", "40", "--prompt-tokens", "32", "--output-tokens", "64", "--warmup", "4")


class Server:
    """``tokenmill serve`` until the ``with`` ends."""

    def __init__(self, port: int, *, isolate: bool) -> None:
        flags = ["--isolate"] if isolate else []
        command = [sys.executable, "-m", "tokenmill", "serve", MODEL, "--port", str(port), *flags]
        self.url = f"http://127.0.0.1:{port}"
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> Server:
        self.wait_ready()
        return self

    def __exit__(self, *error: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)

    @property
    def children(self) -> list[int]:
        return [int(pid) for path in Path(f"/proc/{self._process.pid}/task").glob("*/children")
                for pid in path.read_text().split()]  # fmt: skip

    def processor_s(self) -> float:
        """Processor time of the server's processes so far: what it costs whoever else runs on the machine."""
        fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                  for pid in (self._process.pid, *self.children)]  # fmt: skip
        return sum(int(each[11]) + int(each[12]) for each in fields) / os.sysconf("SC_CLK_TCK")

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, within_s: float = 60) -> float:
        began_s = time.monotonic()
        while not self.ready():
            assert time.monotonic() - began_s < within_s, "not ready in time"
            time.sleep(0.02)
        return time.monotonic() - began_s


def load(url: str, concurrency: int) -> dict[str, Any]:
    """One run of ``tokenmill bench serve``."""
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "tokenmill", "bench", "serve", "--url", url, *LOAD, "--seed", "1",
                   "--concurrency", str(concurrency), "--output", file.name]  # fmt: skip
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(Path(file.name).read_text())
    return found


def restarts(port: int, times: int) -> list[float]:
    """Seconds from the engine's death to ready, with nothing under way."""
    taken = []
    with Server(port, isolate=True) as server:
        for _ in range(times):
            os.kill(server.children[0], signal.SIGKILL)
            began_s = time.monotonic()
            while server.ready():
                time.sleep(0.01)
            server.wait_ready()
            taken.append(round(time.monotonic() - began_s, 2))
            time.sleep(31)  # two deaths within a minute are restarted at once, three are given up
    return taken


def turns(rounds: int, port: int, concurrencies: list[int]) -> dict[str, list[dict[str, float]]]:
    """Both servers at once, loaded in turns: whatever else the machine does, it does to both."""
    runs: dict[str, list[dict[str, float]]] = {}
    with Server(port, isolate=False) as together, Server(port + 1, isolate=True) as isolated:
        for turn in range(rounds + 1):
            for concurrency in concurrencies:
                for name, server in (("together", together), ("isolated", isolated)):
                    before_s = server.processor_s()
                    found = load(server.url, concurrency)
                    figures = figures_of(found)
                    used_s = server.processor_s() - before_s
                    figures["processor_ms_per_token"] = 1e3 * used_s / found["tokens"]["output"]
                    if turn:  # the first is for warming up
                        runs.setdefault(f"{name}@{concurrency}", []).append(figures)
                        print(name, concurrency, figures, flush=True)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--port", type=int, default=18080)
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--restarts", type=int, default=2)
    given = parser.parse_args()
    runs = turns(given.rounds, given.port, given.concurrency)
    ratios = {
        f"@{c}": {
            key: round(statistics.median(b[key] / a[key] for a, b in zip(*_pair(runs, c), strict=True)), 3)
            for key in runs[f"together@{c}"][0]
        }
        for c in given.concurrency
    }
    medians = {
        name: {key: statistics.median(run[key] for run in found) for key in found[0]} for name, found in runs.items()
    }
    result = make_result("isolate", {
        "model": MODEL, "load": list(LOAD), "rounds": given.rounds, "medians": medians,
        "isolated_over_together": ratios, "runs": runs,
        "seconds_from_death_to_ready": restarts(given.port + 50, given.restarts),
    })  # fmt: skip
    result["command"] = "python tools/isolate.py " + " ".join(sys.argv[1:])
    write_result(RESULT, result)
    print(json.dumps({"ratios": ratios, "restarts": result["seconds_from_death_to_ready"]}, indent=2))


def _pair(runs: dict[str, list[dict[str, float]]], concurrency: int) -> tuple[list[dict[str, float]], ...]:
    return runs[f"together@{concurrency}"], runs[f"isolated@{concurrency}"]


def figures_of(result: dict[str, Any]) -> dict[str, float]:
    """The few figures that are compared."""
    latency = result["latency"]
    return {
        "output_tokens_per_s": result["throughput"]["output_tokens_per_s"],
        "ttft_p50_s": latency["ttft_s"]["p50"],
        "itl_p50_s": latency["itl_s"]["p50"],
        "itl_p99_s": latency["itl_s"]["p99"],
    }


if __name__ == "__main__":
    main()
