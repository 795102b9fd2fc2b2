"""From the rows of a step to the device: one copy out of pinned memory, to addresses that a captured graph knows.

What the host tells of a step is small: token ids (a few of them not known yet), positions, cache slots, which tokens'
logits are wanted, and what changed in the block tables. The tables themselves live on the device, a line per sequence.
The parts lie one after the other, where a step's ``Layout`` says; equal layouts have equal addresses.

Copies run behind the host's back, so the memory that they read is not written again before they are done: there are
several such stagings, taken in turn, each with an event behind its copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.kernels.triton.inputs import take_in
from tokenmill.runtime.gpu.results import new_event
from tokenmill.runtime.table import Row

STAGINGS = 4
MAX_CHANGES = 8192
"""Changed entries of block tables that one copy takes; more come in copies of their own."""
_ALIGN = 4
"""Parts begin at multiples of so many words of 8 bytes, and so at multiples of 16 bytes whatever lies before."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How many of each there are; padding included."""

    num_tokens: int
    num_outputs: int
    num_changes: int

    def offsets(self) -> tuple[int, int, int, int, int, int, int]:
        """Of the parts, in words of 4 bytes: cache slots (two words each), ids, positions, outputs, places, blocks;
        and where they end."""
        return _offsets(self.num_tokens, self.num_outputs, self.num_changes)


@lru_cache(maxsize=1024)
def _offsets(num_tokens: int, num_outputs: int, num_changes: int) -> tuple[int, int, int, int, int, int, int]:
    found, at = [], 0
    for size in (2 * num_tokens, num_tokens, num_tokens, num_outputs, num_changes, num_changes):
        found.append(at)
        at += -(-size // _ALIGN) * _ALIGN
    a, b, c, d, e, f = found
    return a, b, c, d, e, f, at


@dataclass(frozen=True, slots=True)
class Parts:
    """A step's inputs on the device."""

    slots: Tensor
    """int64 ``[T]``; -1: padding."""
    token_ids: Tensor
    """int32 ``[T]``."""
    positions: Tensor
    """int32 ``[T]``."""
    outputs: Tensor
    """int32 ``[S]``: the tokens whose logits are wanted."""
    places: Tensor
    blocks: Tensor
    """int32 ``[U]``: see ``take_in``."""


class DeviceInputs:
    """Block tables on the device, and the way there for what a step brings.

    Args:
        max_tokens, max_outputs: of a step, padding included.
        max_seqs: sequences known at once; their ``slot`` is below.
        max_blocks: of a sequence.
    """

    def __init__(
        self,
        *,
        max_tokens: int,
        max_outputs: int,
        max_seqs: int,
        max_blocks: int,
        block_size: int,
        device: torch.device,
    ) -> None:
        self.block_size = block_size
        self.max_blocks = max_blocks
        self.tables = torch.zeros((max_seqs, max_blocks), dtype=torch.int32, device=device)
        self._host_tables = np.zeros((max_seqs, max_blocks), np.int32)
        self._max_changes = min(MAX_CHANGES, max_seqs * max_blocks)
        most = Layout(max_tokens, max_outputs, self._max_changes).offsets()[-1]
        on_gpu = device.type == "cuda"
        self._device = torch.zeros(most, dtype=torch.int32, device=device)
        self._stagings = [torch.zeros(most, dtype=torch.int32, pin_memory=on_gpu) for _ in range(STAGINGS)]
        self._views = [staging.numpy() for staging in self._stagings]
        self._copied = [new_event(device) for _ in range(STAGINGS)]
        self._turn = 0

    @property
    def num_bytes(self) -> int:
        """Of device memory."""
        return sum(t.numel() * t.element_size() for t in (self.tables, self._device))

    def send(self, rows: Sequence[Row], outputs: Sequence[int], num_tokens: int, num_outputs: int, room: int) -> Layout:
        """Copy what ``rows`` say to the device.

        Args:
            outputs: which tokens' logits are wanted.
            num_tokens, num_outputs: with padding.
            room: for changes of block tables; what is more than that is applied by launches of its own.

        Returns:
            Where it lies; ``parts`` has it.
        """
        places, blocks = self._changes(rows)
        room = min(room, self._max_changes)
        while len(places) > room:
            self._send_changes(places[: self._max_changes], blocks[: self._max_changes])
            places, blocks = places[self._max_changes :], blocks[self._max_changes :]
        layout = Layout(num_tokens, num_outputs, room)
        words = self._begin()
        a, b, c, d, _, _, end = layout.offsets()
        self._fill_tokens(rows, words[a : a + 2 * num_tokens].view(np.int64), words[b:c], words[c:d], num_tokens)
        words[d : d + len(outputs)] = outputs
        words[d + len(outputs) : d + num_outputs] = 0
        self._fill_changes(words, layout, places, blocks)
        self._end(end)
        return layout

    def parts(self, layout: Layout) -> Parts:
        """The device's view; the same memory for the same layout."""
        a, b, c, d, e, f, _ = layout.offsets()
        num_tokens, num_changes = layout.num_tokens, layout.num_changes
        words = self._device
        return Parts(
            slots=words[a : a + 2 * num_tokens].view(torch.int64),
            token_ids=words[b : b + num_tokens],
            positions=words[c : c + num_tokens],
            outputs=words[d : d + layout.num_outputs],
            places=words[e : e + num_changes],
            blocks=words[f : f + num_changes],
        )

    def apply(self, parts: Parts, last_tokens: Tensor) -> None:
        """On the device: look up the token ids that are not known yet, change the block tables."""
        take_in(parts.token_ids, last_tokens, parts.places, parts.blocks, self.tables)

    def _fill_tokens(
        self,
        rows: Sequence[Row],
        slots: NDArray[np.int64],
        token_ids: NDArray[np.int32],
        positions: NDArray[np.int32],
        num_tokens: int,
    ) -> None:
        lines = np.array([row.entry.slot for row in rows], np.int64)
        count = len(rows)
        if sum(row.end - row.start for row in rows) == count:  # one token each: the usual step
            known = np.array([row.entry.token_ids[row.start] for row in rows], np.int64)
            token_ids[:count] = np.where(known < 0, -lines - 1, known)
            positions[:count] = [row.start for row in rows]
        else:
            counts = np.array([row.end - row.start for row in rows], np.int64)
            lines, count = np.repeat(lines, counts), 0
            for row in rows:
                end = count + row.end - row.start
                token_ids[count:end] = row.entry.token_ids[row.start : row.end]
                if token_ids[end - 1] < 0:
                    token_ids[end - 1] = -row.entry.slot - 1
                positions[count:end] = np.arange(row.start, row.end)
                count = end
        block, offset = np.divmod(positions[:count].astype(np.int64), self.block_size)
        slots[:count] = self._host_tables[lines, block].astype(np.int64) * self.block_size + offset
        slots[count:num_tokens] = -1
        token_ids[count:num_tokens] = 0
        positions[count:num_tokens] = 0

    def _changes(self, rows: Sequence[Row]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Entries of block tables that the device has not seen."""
        places, blocks = [], []
        for row in rows:
            entry = row.entry
            shown, known = entry.num_shown, len(entry.block_ids)
            if shown < known:
                first = entry.slot * self.max_blocks
                new = np.array(entry.block_ids[shown:], np.int32)
                self._host_tables[entry.slot, shown:known] = new
                places.append(np.arange(first + shown, first + known, dtype=np.int32))
                blocks.append(new)
                entry.num_shown = known
        if not places:
            return _NONE, _NONE
        return np.concatenate(places), np.concatenate(blocks)

    def _send_changes(self, places: NDArray[np.int32], blocks: NDArray[np.int32]) -> None:
        """A copy and a launch for changes alone."""
        layout = Layout(0, 0, self._max_changes)
        words = self._begin()
        self._fill_changes(words, layout, places, blocks)
        self._end(layout.offsets()[-1])
        parts = self.parts(layout)
        self.apply(parts, parts.blocks)

    def _fill_changes(
        self, words: NDArray[np.int32], layout: Layout, places: NDArray[np.int32], blocks: NDArray[np.int32]
    ) -> None:
        e, f, _ = layout.offsets()[4:]
        words[e : e + len(places)] = places
        words[e + len(places) : e + layout.num_changes] = -1
        words[f : f + len(places)] = blocks

    def _begin(self) -> NDArray[np.int32]:
        """The next staging, free to be written."""
        self._turn = (self._turn + 1) % STAGINGS
        if (event := self._copied[self._turn]) is not None:
            event.synchronize()
        return self._views[self._turn]

    def _end(self, num_words: int) -> None:
        self._device[:num_words].copy_(self._stagings[self._turn][:num_words], non_blocking=True)
        if (event := self._copied[self._turn]) is not None:
            event.record()


_NONE = np.zeros(0, np.int32)
