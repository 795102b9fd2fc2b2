"""Sampling over real vocabularies, of float32 and bf16 logits, with and without penalties."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from tokenmill.core.params import SamplingParams
from tokenmill.kernels.triton.sample import sample
from tokenmill.runtime.gpu.sampling import DeviceSampling

NUM_ROWS = 4


def launches() -> Iterator[tuple[str, Callable[[], None]]]:
    for vocab_size in (128256, 151936, 300):
        state = DeviceSampling(NUM_ROWS, NUM_ROWS, vocab_size, "cpu", max_counted=1)
        wishes = (
            SamplingParams(temperature=0),
            SamplingParams(),
            SamplingParams(top_k=20, top_p=0.9, frequency_penalty=1),
        )
        for slot, params in enumerate(wishes):
            assert state.add(slot, params, slot, [1, 2, 3], 2)
        out = torch.zeros(NUM_ROWS, dtype=torch.int32)
        for dtype in (torch.float32, torch.bfloat16):
            logits = torch.zeros(NUM_ROWS, vocab_size, dtype=dtype)
            for slots in ((0,), (0, 1), (0, 1, 2)):
                draws = state.stage(slots, [3] * len(slots), NUM_ROWS)
                yield f"sample {vocab_size} {dtype} {len(slots)} kinds", partial(sample, logits, draws, out)
