"""``python -m tokenmill.cli.engine_process SOCKET PARENT``: the engine's process of ``tokenmill serve --isolate``.

Not for hands: the HTTP process starts it, with its end of a socket pair and its own process id.
"""

from __future__ import annotations

import logging
import os
import socket
import sys

from tokenmill.core.engine_config import EngineConfig
from tokenmill.engine.faults import arm_from_environment
from tokenmill.engine.remote.host import Hosted, LoadingReports, run


def make(config: EngineConfig, progress: LoadingReports) -> Hosted:
    """The engine as ``tokenmill serve`` has it in one process."""
    from tokenmill.launch import build, observe

    launched = build(config, progress)
    checkpoint, engine = launched.checkpoint, launched.engine
    engine.telemetry = observe(launched.config, checkpoint, engine)
    return Hosted(engine, launched.limits, launched.fingerprint, checkpoint.grammars)


def main() -> int:
    logging.basicConfig(format="%(levelname)s %(name)s (engine %(process)d): %(message)s")
    arm_from_environment()
    sock = socket.socket(fileno=int(sys.argv[1]))
    return run(sock, int(sys.argv[2]), make)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of kernels and of grammars have nothing to say any more
