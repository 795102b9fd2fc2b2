"""Our engine for a GPU, with random weights at a model's shape. In a rehearsal Triton's interpreter is that GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tokenmill.bench.gpu.unit import Context
from tokenmill.core.engine_config import EngineConfig

BLOCK_SIZE = 16
LEAST_CONTEXT = 16
"""The engine's warm-up is a prompt of so many tokens."""
DEPTH = 2
"""Steps in flight: the next is planned while one runs."""
STEP_TOKENS, TOY_STEP_TOKENS = 8192, 16


@contextmanager
def configured(
    context: Context, name: str, *, num_seqs: int, num_tokens: int, **options: Any
) -> Iterator[EngineConfig]:
    """For the model ``name`` and ``num_seqs`` sequences of ``num_tokens`` at once; its folder lasts as long."""
    blocks = num_seqs * (-(-num_tokens // BLOCK_SIZE) + 1)
    with context.checkpoint(name) as folder:
        yield EngineConfig.from_options(
            model=folder,
            served_name=name,
            random_weights=True,
            max_context=max(num_tokens, LEAST_CONTEXT),
            block_size=BLOCK_SIZE,
            num_blocks=blocks,
            prefix_caching=False,
            max_seqs=num_seqs,
            max_step_tokens=max(num_seqs, TOY_STEP_TOKENS if context.place.toy else STEP_TOKENS),
            depth=DEPTH,
            ceilings="none",
            device="cuda",
            **options,
        )
