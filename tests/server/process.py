"""``python -m tests.server.process``: a server in a process of its own, for tests that signal or measure one."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from tests.server.service import MAX_CONTEXT, make_service
from tokenmill.server.serve import bind, serve
from tokenmill.server.settings import ServerSettings


async def main(given: argparse.Namespace) -> int:
    settings = ServerSettings(
        port=0,
        drain_timeout_s=given.drain_s,
        write_stall_s=given.write_stall_s,
        store_dir=given.store_dir,
        api_key=given.api_key,
        max_held_bytes=given.max_held_bytes,
        max_connections=given.max_connections,
    )
    service, _ = make_service(
        step_s=given.step_s, num_blocks=given.num_blocks, max_seqs=given.max_seqs, max_context=given.max_context
    )
    sock = bind(settings)
    await service.start()
    code = await serve(service, settings, sock, on_ready=lambda address: print(address, flush=True))
    await service.close()
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-s", type=float, default=0.002)
    parser.add_argument("--drain-s", type=float, default=5.0)
    parser.add_argument("--write-stall-s", type=float, default=30.0)
    parser.add_argument("--store-dir", type=Path)
    parser.add_argument("--api-key")
    parser.add_argument("--max-held-bytes", type=int, default=2**30)
    parser.add_argument("--max-connections", type=int, default=10_000)
    parser.add_argument("--num-blocks", type=int, default=512)
    parser.add_argument("--max-seqs", type=int, default=64)
    parser.add_argument("--max-context", type=int, default=MAX_CONTEXT)
    sys.exit(asyncio.run(main(parser.parse_args())))
