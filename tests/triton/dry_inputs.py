"""``take_in`` at real shapes (``dry.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from tokenmill.kernels.triton.inputs import take_in


def launches() -> Iterator[tuple[str, Callable[[], None]]]:
    for name, num_tokens, num_changes in (("decode 1", 1, 1), ("decode 64", 64, 64), ("prefill", 8192, 1024)):
        token_ids, places, blocks = (torch.zeros(n, dtype=torch.int32) for n in (num_tokens, num_changes, num_changes))
        last, tables = torch.zeros(256, dtype=torch.int32), torch.zeros((256, 8192), dtype=torch.int32)
        yield name, lambda args=(token_ids, last, places, blocks, tables): take_in(*args)  # type: ignore[misc]
