"""What sampling on the device must know of each sequence, and how it gets there.

The host keeps a table of parameters by **slot** (a sequence's place as long as it runs). A step sends, for its output
rows, the lines of their slots and the positions, in one asynchronous copy from pinned memory; the copy's buffers take
turns, so that the host may be a step or two ahead. What changes by the token stays on the device and is changed there:
the token chosen last, and for rows with penalties how often each token occurred. Memory for these counts is allocated
when the first such sequence comes.

What the device does not do is left to the host's sampler (``on_device``), as are sequences with penalties beyond the
room for counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.core.params import SamplingParams
from tokenmill.kernels.triton import sample_kernels as kernel
from tokenmill.kernels.triton.sample import DeviceDraws, Scratch
from tokenmill.runtime.sampling.stages import GREEDY_BELOW

MAX_COUNTED = 64
"""Sequences with penalties that the device can choose for at once, unless told otherwise."""
_BUFFERS = 3
_NO_TOKEN = -1.0  # a temperature
_HOST = torch.device("cpu")


def on_device(params: SamplingParams) -> bool:
    """Whether the device can choose this request's tokens; otherwise the host does, from its logits."""
    restricted = params.logit_bias or params.bad_words or params.bad_words_ids or params.min_tokens > 0
    restricted = restricted or params.allowed_token_ids is not None or params.grammar is not None
    reported = params.logprobs is not None or params.prompt_logprobs is not None
    return not (restricted or reported) and (params.temperature < GREEDY_BELOW or params.typical_p == 1.0)


def has_penalties(params: SamplingParams) -> bool:
    return (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)


class DeviceSampling:
    """The state of sampling of all sequences; the device's tensors keep their addresses, but for the counts.

    Args:
        max_rows: outputs of a step, at most.
        num_slots: sequences at a time, at most.
        max_counted: of these, how many may have penalties on the device.
    """

    def __init__(
        self,
        max_rows: int,
        num_slots: int,
        vocab_size: int,
        device: torch.device | str,
        *,
        max_counted: int = MAX_COUNTED,
    ) -> None:
        self._vocab_size = vocab_size
        self._device = torch.device(device)
        self._max_counted = min(max_counted, num_slots)
        table = _Lines(num_slots + 1, _HOST)  # the last is nobody's: slot -1
        self._integers: NDArray[np.int64] = table.integers.numpy()
        self._reals: NDArray[np.float64] = table.reals.numpy()
        for slot in range(num_slots + 1):
            self._clear(slot)
        self._free_counts = list(range(self._max_counted))[::-1]
        self._counts = torch.zeros((self._max_counted, vocab_size), dtype=torch.int32, device=self._device)
        self._scratch = Scratch.allocate(max_rows, vocab_size, self._device)
        self._lines = _Lines(max_rows, self._device)
        self._buffers = [_Buffer(max_rows, self._device) for _ in range(_BUFFERS)]
        self.last_tokens = torch.zeros(num_slots, dtype=torch.int32, device=self._device)
        """``[num_slots]`` int32 on the device: the token chosen last."""

    @property
    def num_bytes(self) -> int:
        """Of device memory."""
        scratch = (getattr(self._scratch, name) for name in Scratch.__slots__)
        held = (*scratch, self._lines.memory, self.last_tokens, self._counts)
        return int(sum(tensor.numel() * tensor.element_size() for tensor in held))

    def add(self, slot: int, params: SamplingParams, seed: int, token_ids: Sequence[int], prompt_len: int) -> bool:
        """A sequence begins (or comes back) in ``slot``, which must be free, with these tokens.

        Returns:
            Whether the device chooses its tokens; if not, its rows come out as -1 and the host must choose.
        """
        if not on_device(params):
            return False
        count_row = -1
        if has_penalties(params):
            if not self._free_counts:
                return False
            count_row = self._free_counts.pop()
            self._count(count_row, token_ids, prompt_len)
        top_k = params.top_k if params.top_k < self._vocab_size else 0
        self._integers[slot] = (_signed(seed), 0, slot, count_row, top_k)
        self._reals[slot] = (
            0.0 if params.temperature < GREEDY_BELOW else params.temperature, params.top_p, params.min_p,
            params.repetition_penalty, params.presence_penalty, params.frequency_penalty,
        )  # fmt: skip
        return True

    def remove(self, slot: int) -> None:
        """The sequence in ``slot`` has ended, or was put off; nothing happens if the slot is free."""
        count_row = int(self._integers[slot, kernel.COUNT_ROW])
        if count_row >= 0:
            self._free_counts.append(count_row)
        self._clear(slot)

    def stage(self, slots: Sequence[int], positions: Sequence[int], num_rows: int) -> DeviceDraws:
        """Send what the next ``sample`` needs; returns what it is called with.

        Args:
            slots: of each output row; -1: no token is asked for.
            positions: of the token to be chosen, in its sequence: the number of tokens before it.
            num_rows: rows of the call, at least as many; those beyond are padding.
        """
        index = np.full(num_rows, -1, dtype=np.int64)
        index[: len(slots)] = slots
        buffer = self._buffers.pop(0)
        self._buffers.append(buffer)
        buffer.wait()
        integers, reals = buffer.integers[:num_rows], buffer.reals[:num_rows]
        np.take(self._integers, index, axis=0, out=integers, mode="wrap")
        np.take(self._reals, index, axis=0, out=reals, mode="wrap")
        integers[: len(slots), kernel.POSITION] = positions
        buffer.send(self._lines)
        drawn = reals[:, kernel.TEMPERATURE] > 0
        narrow = (integers[:, kernel.TOP_K] > 0) | (reals[:, kernel.TOP_P] < 1)
        counted = bool((integers[:, kernel.COUNT_ROW] >= 0).any())
        return DeviceDraws(
            integers=self._lines.integers,
            reals=self._lines.reals,
            last_tokens=self.last_tokens,
            counts=self._counts if counted else None,
            scratch=self._scratch,
            drawn=bool(drawn.any()),
            filtered=bool((drawn & narrow).any()),
        )

    def set_last(self, slots: Sequence[int], token_ids: Sequence[int]) -> None:
        """Tell the device which tokens the host chose."""
        pairs = _pinned(torch.tensor([slots, token_ids], dtype=torch.int64), self._device)
        at, tokens = pairs.to(self._device, non_blocking=True).unbind(0)
        self.last_tokens[at] = tokens.int()

    def _clear(self, slot: int) -> None:
        self._integers[slot] = (0, 0, -1, -1, 0)
        self._reals[slot] = (_NO_TOKEN, 1.0, 0.0, 1.0, 0.0, 0.0)

    def _count(self, count_row: int, token_ids: Sequence[int], prompt_len: int) -> None:
        tokens = np.asarray(token_ids, dtype=np.int64)
        known = tokens < self._vocab_size
        generated = tokens[prompt_len:][known[prompt_len:]]
        counts = 2 * np.bincount(generated, minlength=self._vocab_size).astype(np.int32)
        counts[tokens[:prompt_len][known[:prompt_len]]] |= 1
        self._counts[count_row].copy_(_pinned(torch.from_numpy(counts), self._device), non_blocking=True)


class _Lines:
    """Parameters of rows or of slots, as ``DeviceDraws`` has them, in one stretch of memory."""

    def __init__(self, num_lines: int, device: torch.device, *, pinned: bool = False) -> None:
        integer_bytes, real_bytes = (num_lines * columns * 8 for columns in (kernel.NUM_INTEGERS, kernel.NUM_REALS))
        self.memory = torch.zeros(integer_bytes + real_bytes, dtype=torch.uint8, device=device, pin_memory=pinned)
        self.integers = self.memory[:integer_bytes].view(torch.int64).view(num_lines, -1)
        self.reals = self.memory[integer_bytes:].view(torch.float64).view(num_lines, -1)


class _Buffer:
    """Pinned memory that lines are sent from, and the event after which it may be written again."""

    def __init__(self, max_rows: int, device: torch.device) -> None:
        self._lines = _Lines(max_rows, _HOST, pinned=device.type == "cuda")
        self._sent = torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.integers: NDArray[np.int64] = self._lines.integers.numpy()
        self.reals: NDArray[np.float64] = self._lines.reals.numpy()

    def wait(self) -> None:
        if self._sent is not None:
            self._sent.synchronize()

    def send(self, lines: _Lines) -> None:
        lines.memory.copy_(self._lines.memory, non_blocking=True)
        if self._sent is not None:
            self._sent.record()


def _signed(seed: int) -> int:
    """The int64 with the bits of ``seed`` modulo 2^64."""
    return (seed + 2**63) % 2**64 - 2**63


def _pinned(tensor: Tensor, device: torch.device) -> Tensor:
    """Its memory is kept until the copy is done: torch sees to that for what it pinned itself."""
    return tensor.pin_memory() if device.type == "cuda" else tensor
