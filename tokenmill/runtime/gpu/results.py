"""What a step brings to the host: a token a row, copied behind the host's back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PLACES = 10
"""Steps whose tokens may be on their way at once; more than an engine has in flight."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """The tokens of one step, on their way (``Tokens``)."""

    token_ids: Tensor
    copied: torch.cuda.Event | None

    def wait(self) -> Sequence[int]:
        if self.copied is not None:
            self.copied.synchronize()
        found: list[int] = self.token_ids.tolist()
        return found


def new_event(device: torch.device) -> torch.cuda.Event | None:
    """None where nothing runs behind the host's back."""
    return torch.cuda.Event() if device.type == "cuda" else None  # type: ignore[no-untyped-call]


class Results:
    """Where ``sample`` puts its tokens, and the pinned memory that the host reads them from."""

    def __init__(self, max_outputs: int, device: torch.device) -> None:
        on_gpu = device.type == "cuda"
        self.token_ids = torch.zeros(max_outputs, dtype=torch.int32, device=device)
        self._places = [torch.zeros(max_outputs, dtype=torch.int32, pin_memory=on_gpu) for _ in range(PLACES)]
        self._copied = [new_event(device) for _ in range(PLACES)]
        self._turn = 0

    def send(self, count: int) -> Drawn:
        """Copy the first ``count``; they are as the launches before this one leave them."""
        turn = self._turn = (self._turn + 1) % PLACES
        place, event = self._places[turn][:count], self._copied[turn]
        place.copy_(self.token_ids[:count], non_blocking=True)
        if event is not None:
            event.record()
        return Drawn(place, event)
