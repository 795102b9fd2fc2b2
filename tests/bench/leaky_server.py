"""``python -m tests.bench.leaky_server serve …``: the real server, but one that leaks. SK-08.

For every request that ends it keeps a mebibyte, for every tenth a descriptor, and of every hundredth KV block that is
given back it forgets to tell the pool.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from tokenmill.cli import main
from tokenmill.engine.kvcache.pool import BlockPool
from tokenmill.server.observe.observer import Observer

KEPT: list[bytes] = []
FORGOTTEN = 100


def leak() -> None:
    tell, release = Observer._tell, BlockPool.release
    given_back = 0

    def tell_and_keep(self: Observer, *args: Any, **named: Any) -> None:
        KEPT.append(b"x" * 2**20)
        if len(KEPT) % 10 == 0:
            os.dup(0)
        tell(self, *args, **named)

    def release_most(self: BlockPool, block_ids: Sequence[int], now: float) -> None:
        nonlocal given_back
        kept = []
        for block_id in block_ids:
            given_back += 1
            if given_back % FORGOTTEN:
                kept.append(block_id)
        release(self, kept, now)

    Observer._tell = tell_and_keep  # type: ignore[method-assign]
    BlockPool.release = release_most  # type: ignore[method-assign]


if __name__ == "__main__":
    leak()
    main()
