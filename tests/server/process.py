"""``python -m tests.server.process``: a server in a process of its own, for tests that send signals."""

from __future__ import annotations

import argparse
import asyncio
import sys

from tests.server.service import make_service
from tokenmill.server.serve import bind, serve
from tokenmill.server.settings import ServerSettings


async def main(step_s: float, drain_s: float) -> int:
    settings = ServerSettings(port=0, drain_timeout_s=drain_s)
    service, _ = make_service(step_s=step_s)
    sock = bind(settings)
    await service.start()
    code = await serve(service, settings, sock, on_ready=lambda address: print(address, flush=True))
    await service.close()
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-s", type=float, required=True)
    parser.add_argument("--drain-s", type=float, required=True)
    given = parser.parse_args()
    sys.exit(asyncio.run(main(given.step_s, given.drain_s)))
