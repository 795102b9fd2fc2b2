"""``StepModel``: what the worker asks of a model and its KV pool, however a step is carried out.

Three carry it out: ``EagerModel`` calls the decoder's layers one operation at a time (``kernels/ops.py``);
``CompiledModel`` runs a program of fused kernels laid out beforehand (``kernels/cpu``); ``DeviceModel`` launches
kernels on a GPU (``runtime/gpu``). That one need not be waited for: see ``launch``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.core.model_config import ModelConfig
from tokenmill.runtime.table import Row

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Draws:
    """How the token after each of S outputs is chosen; columns of S."""

    temperatures: FloatArray
    """0: the likeliest, the lowest id among equals; above 0: a draw; below 0: none is asked for."""
    uniforms: DoubleArray
    """In [0, 1): what a draw is made with."""
    top_ks: IntArray
    """0: not filtered so."""
    top_ps: FloatArray
    """1: not filtered so."""
    min_ps: FloatArray
    """0: not filtered so."""


class Tokens(Protocol):
    """What a step that was launched draws."""

    def wait(self) -> Sequence[int]:
        """A token for each row that samples, in the order of the rows; -1 where the logits are not finite."""
        ...


class StepModel(Protocol):
    """A model with its weights and its KV pool."""

    @property
    def config(self) -> ModelConfig: ...

    @property
    def block_size(self) -> int: ...

    @property
    def max_context(self) -> int:
        """Positions that a sequence may have."""
        ...

    @property
    def num_blocks(self) -> int: ...

    def can_launch(self, rows: Sequence[Row]) -> bool:
        """Whether ``launch`` may begin this step: tokens that the model draws itself are all that is wanted of it."""
        ...

    def launch(self, rows: Sequence[Row]) -> Tokens:
        """Begin a step, and drawing the tokens after it, without waiting; one after the other they run beside this
        program. Rows may have ``UNKNOWN`` tokens: those that the steps launched before draw."""
        ...

    def forward(self, rows: Sequence[Row], outputs: Sequence[int]) -> None:
        """Compute a step: all rows' tokens, one row after the other, their keys and values into the pool.

        ``outputs``: which of the step's tokens (counted over all rows) will be asked for next.
        """
        ...

    def logits(self, tokens: Sequence[int]) -> Tensor:
        """``[S, vocab_size]`` float32 on the host, of tokens of the last step; valid until the next call, and the
        caller may write to it."""
        ...

    def hidden(self, tokens: Sequence[int]) -> Tensor:
        """``[S, hidden_size]`` float32 on the host: hidden states after the last norm, of tokens of the last step."""
        ...

    def chooses(self, row: Row) -> bool:
        """Whether ``choose`` finds the token after this row, if there is one."""
        ...

    def choose(self, draws: Draws | None) -> Sequence[int] | None:
        """The next token after each of ``outputs``; None where that has to be done from ``logits``.

        Args:
            draws: None: the likeliest of each.

        Returns:
            S token ids; -1 where none was asked for, where the logits are not finite, or where the filters leave more
            tokens than are looked at here.
        """
        ...

    def forget(self, slots: Iterable[int]) -> None:
        """The sequences in these slots (``TableEntry.slot``) are over."""
        ...

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks (source, destination) in every layer; all are read before any is written."""
        ...

    def poison(self, block_ids: Iterable[int]) -> None:
        """Fill blocks with NaN in every layer; for tests."""
        ...


class InPlace:
    """A model that computes in its caller's thread: no step runs beside it."""

    def can_launch(self, rows: Sequence[Row]) -> bool:
        return False

    def chooses(self, row: Row) -> bool:
        return row.entry.sampling.is_plain

    def forget(self, slots: Iterable[int]) -> None:
        """Nothing is kept per sequence."""

    def launch(self, rows: Sequence[Row]) -> Tokens:
        raise AssertionError("steps of this model are not launched")
