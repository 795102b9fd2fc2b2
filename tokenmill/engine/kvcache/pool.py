"""The pool of KV blocks: reference counts, and who gives way when a block is wanted.

A block is in exactly one of three states::

    free     nobody holds it, its content means nothing
    cached   nobody holds it, the prefix index knows its content: given up when a block is wanted
    held     by one or more sequences (the index may know it too)

``num_available`` counts the first two: what can be allocated now. It is kept rather than added up, because every
sequence asks for it once per block.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tokenmill.core.request import CacheHints
from tokenmill.engine.faults import fire
from tokenmill.engine.kvcache.eviction import PINNED, FairEviction
from tokenmill.engine.kvcache.prefix import Prefix


class BlockPool:
    """Block ids ``0 … num_blocks - 1``. Pure accounting: the tensors live in the executor."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_available = num_blocks
        """Blocks that can be allocated now: free and cached."""
        self.num_evicted = 0
        """Cached blocks given up so far."""
        self.index: dict[bytes, int] = {}
        """Content hash → block, one block per hash: a second block with the same content is not indexed."""
        self._free = list(range(num_blocks - 1, -1, -1))
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._hints: list[CacheHints | None] = [None] * num_blocks
        self._tenants = [""] * num_blocks
        self._cached = FairEviction(self._tenants)
        self._prefixes: list[Prefix | None] = [None] * num_blocks

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_cached(self) -> int:
        return self.num_available - len(self._free)

    @property
    def num_held(self) -> int:
        return self.num_blocks - self.num_available

    def ref_count(self, block_id: int) -> int:
        return self._ref_counts[block_id]

    def allocate(self, count: int, now: float) -> list[int]:
        """Take ``count`` blocks, evicting cached ones if it must. The caller has looked at ``num_available``."""
        free, ref_counts = self._free, self._ref_counts
        if count <= 0:
            return []
        fire("kv.alloc", count)
        block_ids = free[: -count - 1 : -1]
        del free[-count:]
        block_ids += [self._evict(now) for _ in range(count - len(block_ids))]
        for block_id in block_ids:
            ref_counts[block_id] = 1
        self.num_available -= count
        return block_ids

    def share(self, block_ids: Iterable[int]) -> None:
        """One more holder for each of these (cached ones come back to life)."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                assert self._hints[block_id] is not None, "a free block is shared"
                self._cached.remove(block_id)
                self.num_available -= 1
            self._ref_counts[block_id] += 1

    def release(self, block_ids: Sequence[int], now: float) -> None:
        """One holder fewer. The last blocks are let go first, so that a prefix outlives its continuations."""
        ref_counts, all_hints = self._ref_counts, self._hints
        if not self.index:  # nothing is cached: all that nobody else holds is free
            freed = [block_id for block_id in reversed(block_ids) if ref_counts[block_id] == 1]
            for block_id in block_ids:
                ref_counts[block_id] -= 1
            self._free += freed
            self.num_available += len(freed)
            return
        for block_id in reversed(block_ids):
            num_holders = ref_counts[block_id] = ref_counts[block_id] - 1
            if num_holders:
                continue
            self.num_available += 1
            hints = all_hints[block_id]
            if hints is None:
                self._free.append(block_id)
            else:
                expires_s = None if hints.ttl_s is None or hints.pin else now + hints.ttl_s
                self._cached.add(block_id, _level(hints), expires_s)

    def publish(self, block_id: int, block_hash: bytes, hints: CacheHints, tenant: str, prefix: Prefix) -> None:
        """The (held, full) block's content is computed and may be found by others of ``tenant`` from now on."""
        if self._hashes[block_id] is None and self.index.setdefault(block_hash, block_id) == block_id:
            self._hashes[block_id] = block_hash
            self._hints[block_id] = hints
            self._tenants[block_id] = tenant
            self._prefixes[block_id] = prefix

    def prefix_of(self, block_id: int) -> Prefix:
        """What an indexed block was computed from."""
        prefix = self._prefixes[block_id]
        assert prefix is not None, "the index does not know this block"
        return prefix

    def unpublish(self, block_ids: Iterable[int]) -> None:
        """The index no longer knows these (held) blocks: once let go they are free, and not cached."""
        for block_id in block_ids:
            block_hash = self._hashes[block_id]
            if block_hash is not None:
                del self.index[block_hash]
                self._hashes[block_id] = self._hints[block_id] = self._prefixes[block_id] = None

    def num_unheld(self, block_ids: Iterable[int]) -> int:
        """How many of these are cached with no holder: sharing them uses up availability."""
        return sum(1 for block_id in block_ids if self._ref_counts[block_id] == 0)

    def clear_cached(self) -> int:
        """Forget every cached block that nobody holds; returns how many."""
        num_cleared = self.num_cached
        for _ in range(num_cleared):
            self._free.append(self._evict(0.0))
        return num_cleared

    def _evict(self, now: float) -> int:
        block_id = self._cached.pop(now)
        block_hash = self._hashes[block_id]
        assert block_hash is not None
        del self.index[block_hash]
        self._hashes[block_id] = self._hints[block_id] = self._prefixes[block_id] = None
        self.num_evicted += 1
        return block_id

    def check(self, holders: Sequence[Sequence[int]]) -> None:
        """Assert every invariant against ``holders``: the block tables of all who hold blocks."""
        counts = [0] * self.num_blocks
        for block_ids in holders:
            assert len(set(block_ids)) == len(block_ids), "a sequence holds a block twice"
            for block_id in block_ids:
                counts[block_id] += 1
        assert counts == self._ref_counts, "reference counts differ from the holders"
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        assert self.num_available == len(free) + len(cached), "available blocks are counted wrong"
        for block_id in range(self.num_blocks):
            states = (block_id in free, block_id in cached, counts[block_id] > 0)
            assert sum(states) == 1, f"block {block_id} is in states (free, cached, held) = {states}"
            block_hash = self._hashes[block_id]
            assert (block_hash is None) == (self._hints[block_id] is None) == (self._prefixes[block_id] is None)
            assert block_hash is not None or block_id not in cached, "a cached block without a hash"
            assert block_hash is None or self.index.get(block_hash) == block_id, "the index points elsewhere"
        assert len(self.index) == sum(h is not None for h in self._hashes), "the index knows a block too many"


def _level(hints: CacheHints) -> int:
    return PINNED if hints.pin else hints.priority
