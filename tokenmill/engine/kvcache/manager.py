"""``KVCache``: what a sequence may ask of the cache. The scheduler talks to nothing else here.

::

    block table   [ b7 | b2 | b9 | b4 ]        block_size = 4
    positions      0-3  4-7 8-11 12-15
    tokens         ■■■■ ■■■■ ■■■■ ■■··         num_planned = 14, num_slots = 16
                   |-- published --|

- ``admit`` finds the longest cached prefix and takes room for all known tokens;
- ``extend`` takes room for more, copying a shared tail block before it is written (copy-on-write);
- ``fork`` lets one choice start from the blocks of another of the same prompt;
- ``publish`` makes blocks findable once their KV is computed;
- ``release`` gives all back: published blocks stay findable until they are evicted.

At least one token is always left to compute, since a model answers only where it computes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

from tokenmill.core.sequence import Sequence
from tokenmill.engine.faults import fire
from tokenmill.engine.kvcache.pool import BlockPool
from tokenmill.engine.kvcache.prefix import Prefix, chain_hash, packed, root_hash, root_prefix

log = logging.getLogger(__name__)

BlockUpdate = tuple[int, tuple[int, ...]]
"""(index, block ids): the block table from ``index`` on becomes these."""

_NEVER = 2**62


class KVCache:
    """Paged accounting for ``num_blocks`` blocks of ``block_size`` token positions."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_caching: bool = True) -> None:
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.pool = BlockPool(num_blocks)
        self.num_queried_tokens = 0
        """Tokens of sequences when first admitted: the prefix cache's chances."""
        self.num_hit_tokens = 0
        """Of these, how many were found."""
        self._copies: dict[int, int] = {}  # destination → source

    def num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    # ---- a sequence's life -------------------------------------------------------------------------

    def admit(self, seq: Sequence, now: float) -> bool:
        """Take blocks for every known token, reusing the longest cached prefix; False changes nothing."""
        try:
            found = self._find_prefix(seq)
        except Exception:  # it changes nothing, and nobody depends on it: the prompt is computed
            log.exception("the prefix cache could not be looked up for %s", seq.request_id)
            found = []
        num_new = self.num_blocks_for(seq.num_tokens) - len(found)
        if num_new > self.pool.num_available - self.pool.num_unheld(found):
            return False
        self.pool.share(found)
        self._start(seq, found, len(found) * self.block_size)
        self._append(seq, self.pool.allocate(num_new, now))
        self._count_hits(seq)
        return True

    def fork(self, parent: Sequence, child: Sequence, now: float) -> bool:
        """Start ``child`` from the blocks that ``parent`` computed for the same prompt; False changes nothing.

        The child shares all but the prompt's last token, which it computes itself like any other token: where
        that token's block is shared, the first to write copies it.
        """
        num_shared_tokens = child.prompt_len - 1
        shared = parent.block_ids[: self.num_blocks_for(num_shared_tokens)]
        num_new = self.num_blocks_for(child.num_tokens) - len(shared)
        tail_is_shared = num_shared_tokens % self.block_size != 0
        if num_new + tail_is_shared > self.pool.num_available:
            return False
        self.pool.share(shared)
        self._start(child, shared, num_shared_tokens)
        child.num_published = num_shared_tokens // self.block_size
        child.publish_at = self._publish_at(child)
        child.shared_tail = tail_is_shared
        if tail_is_shared and parent.num_planned // self.block_size == num_shared_tokens // self.block_size:
            parent.shared_tail = True  # the parent has not left that block yet
        self._append(child, self.pool.allocate(num_new, now))
        self._count_hits(child)
        return True

    def extend(self, seq: Sequence, num_tokens: int, now: float) -> BlockUpdate | None:
        """Make positions ``num_planned … num_tokens - 1`` writable by ``seq`` alone.

        Returns what changed in its block table, or None (and changes nothing) if blocks are short. An update
        without ids means that nothing had to change.
        """
        if seq.shared_tail:
            return self._extend_shared(seq, num_tokens, now)
        num_new = self.num_blocks_for(num_tokens) - len(seq.block_ids)
        if num_new > self.pool.num_available:
            return None
        first_changed = len(seq.block_ids)
        block_ids = self.pool.allocate(num_new, now)
        self._append(seq, block_ids)
        return first_changed, tuple(block_ids)

    def grow(self, sequences: Iterable[Sequence], num_tokens: int, now: float) -> None:
        """Make the next ``num_tokens`` positions of each writable; the caller knows that there are blocks enough."""
        size = self.block_size
        needs = []
        for seq in sequences:
            missing = seq.num_planned + num_tokens - seq.num_slots
            if missing > 0:
                needs.append((seq, -(-missing // size)))
        block_ids = self.pool.allocate(sum([count for _, count in needs]), now)
        taken = 0
        for seq, count in needs:
            seq.block_ids += block_ids[taken : taken + count]
            seq.num_slots += count * size
            taken += count

    def publish(self, seq: Sequence, num_computed: int) -> None:
        """The KV of the first ``num_computed`` tokens is in the cache: index the blocks that are now full."""
        while seq.publish_at <= num_computed:
            i = seq.num_published
            request = seq.request
            block_hash = self._hash_of(seq, i)
            self.pool.publish(seq.block_ids[i], block_hash, request.cache, request.tenant, seq.block_prefixes[i])
            seq.num_published = i + 1
            seq.publish_at += self.block_size

    def release(self, seq: Sequence, now: float) -> None:
        """Give all blocks back and start from nothing."""
        self.pool.release(seq.block_ids, now)
        seq.block_ids = []
        seq.num_slots = seq.num_planned = seq.num_published = 0
        seq.shared_tail = False

    def forget(self, seq: Sequence) -> None:
        """Nobody is to find the blocks of ``seq`` again; whoever holds them keeps them."""
        self.pool.unpublish(seq.block_ids)
        seq.publish_at = _NEVER

    def take_copies(self) -> tuple[tuple[int, int], ...]:
        """(source, destination) blocks to copy before the step being planned."""
        if not self._copies:
            return ()
        copies = tuple((source, destination) for destination, source in self._copies.items())
        self._copies.clear()
        return copies

    def check(self, sequences: Iterable[Sequence]) -> None:
        """Assert the cache's invariants, given all sequences that hold blocks."""
        sequences = list(sequences)
        self.pool.check([seq.block_ids for seq in sequences])
        for seq in sequences:
            assert seq.num_slots == len(seq.block_ids) * self.block_size, seq
            assert seq.num_planned <= seq.num_slots, seq
            assert seq.num_published * self.block_size <= seq.num_planned, seq
            tail = seq.num_planned // self.block_size
            for index in range(tail, len(seq.block_ids)):
                shared = self.pool.ref_count(seq.block_ids[index]) > 1
                assert not shared or (index == tail and seq.shared_tail), f"{seq} would write a shared block"

    # ---- parts ------------------------------------------------------------------------------------

    def _find_prefix(self, seq: Sequence) -> list[int]:
        """Blocks of the longest cached prefix, at most all but the last token."""
        if not self.prefix_caching or seq.distrusts_cache or (seq.index == 0 and seq.request.needs_whole_prompt):
            return []
        fire("kv.lookup", seq)
        found: list[int] = []
        for i in range((seq.num_tokens - 1) // self.block_size):
            block_id = self.pool.index.get(self._hash_of(seq, i))
            if block_id is None:
                break
            theirs = self.pool.prefix_of(block_id)
            if not theirs.same_as(seq.block_prefixes[i]):
                break  # another prefix has the same hash
            seq.block_prefixes[i] = theirs
            found.append(block_id)
        return found

    def _hash_of(self, seq: Sequence, block_index: int) -> bytes:
        """Chained hash of a full block of known tokens, computed once."""
        hashes, prefixes, size = seq.block_hashes, seq.block_prefixes, self.block_size
        while (i := len(hashes)) <= block_index:
            salt = seq.request.cache_salt
            parent, before = (hashes[-1], prefixes[-1]) if i else (root_hash(salt), root_prefix(salt))
            tokens = packed(seq.token_ids[i * size : (i + 1) * size])
            hashes.append(chain_hash(parent, tokens))
            prefixes.append(Prefix(before, tokens))
        return hashes[block_index]

    def _start(self, seq: Sequence, block_ids: list[int], num_computed: int) -> None:
        seq.block_ids = list(block_ids)
        seq.num_slots = len(block_ids) * self.block_size
        seq.num_planned = num_computed
        seq.num_published = len(block_ids)
        seq.publish_at = self._publish_at(seq)
        seq.was_given_blocks = bool(block_ids)

    def _publish_at(self, seq: Sequence) -> int:
        return (seq.num_published + 1) * self.block_size if self.prefix_caching else _NEVER

    def _append(self, seq: Sequence, block_ids: list[int]) -> None:
        seq.block_ids += block_ids
        seq.num_slots = len(seq.block_ids) * self.block_size

    def _extend_shared(self, seq: Sequence, num_tokens: int, now: float) -> BlockUpdate | None:
        """``extend`` for a sequence whose tail block may have other holders."""
        tail = seq.num_planned // self.block_size
        copy_tail = self.pool.ref_count(seq.block_ids[tail]) > 1
        num_new = max(0, self.num_blocks_for(num_tokens) - len(seq.block_ids))
        if num_new + copy_tail > self.pool.num_available:
            return None
        first_changed = tail if copy_tail else len(seq.block_ids)
        if copy_tail:
            self._copy_on_write(seq, tail, now)
        seq.shared_tail = False
        self._append(seq, self.pool.allocate(num_new, now))
        return first_changed, tuple(seq.block_ids[first_changed:])

    def _copy_on_write(self, seq: Sequence, index: int, now: float) -> None:
        source = seq.block_ids[index]
        (destination,) = self.pool.allocate(1, now)
        # A block that is itself filled by a copy of this step is copied from where that one comes from, so
        # that the copies of a step can be carried out in any order.
        self._copies[destination] = self._copies.get(source, source)
        self.pool.release([source], now)
        seq.block_ids[index] = destination

    def _count_hits(self, seq: Sequence) -> None:
        if seq.num_preemptions == 0:
            seq.num_cached = seq.num_planned
            self.num_queried_tokens += seq.num_tokens
            self.num_hit_tokens += seq.num_planned
