"""Training data: batches of windows from token streams on disk.

Each source (books, generated stories, conversations) is one long array of token ids, every document followed by
``<|endoftext|>``; ``prepare.py`` writes them.  Training reads windows of ``length + 1`` tokens: the inputs and,
shifted by one, the targets.  The windows of a source are visited in a shuffled order without replacement, epoch
after epoch; which source the next window comes from is drawn by the weights of the mix.

A window whose start falls soon after the beginning of a document is moved back to that beginning, so that a short
story is mostly seen whole: a model can learn to carry a name through a story only if it has seen the name
introduced.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np


class Stream:
    """The windows of one source, in a shuffled order that depends only on the seed and the epoch."""

    def __init__(self, tokens: np.ndarray, end_id: int, seed: int) -> None:
        self.tokens, self.seed = tokens, seed
        self.starts = np.concatenate(([0], np.flatnonzero(tokens == end_id) + 1))
        self.taken = 0.0  # epochs, as a fraction, so that windows of several lengths can be mixed

    def next(self, length: int) -> np.ndarray:
        windows = (len(self.tokens) - 1) // length
        epoch, place = int(self.taken), int(self.taken % 1.0 * windows)
        self.taken += 1.0 / windows
        rng = np.random.default_rng((self.seed, epoch, length))
        offset = rng.integers(length)
        start = min(int(rng.permutation(windows)[place]) * length + offset, len(self.tokens) - length - 1)
        return self.tokens[self.snap(start, length) :][: length + 1]

    def snap(self, start: int, length: int) -> int:
        """Back to the beginning of the document when that is less than half a window away."""
        beginning = int(self.starts[np.searchsorted(self.starts, start, side="right") - 1])
        return beginning if start - beginning < length // 2 else start


class Mix:
    """Batches drawn from several streams by weight."""

    def __init__(self, folder: Path, weights: dict[str, float], end_id: int, seed: int) -> None:
        self.names = list(weights)
        self.weights = np.array([weights[n] for n in self.names]) / sum(weights.values())
        self.streams = {n: Stream(np.load(folder / f"{n}.npy"), end_id, seed) for n in self.names}
        self.rng = np.random.default_rng(seed)

    def batch(self, rows: int, length: int) -> np.ndarray:
        chosen = self.rng.choice(self.names, size=rows, p=self.weights)
        return np.stack([self.streams[name].next(length) for name in chosen]).astype(np.int64)

    def state(self) -> dict:
        return {"rng": self.rng.bit_generator.state, "taken": {n: s.taken for n, s in self.streams.items()}}

    def restore(self, state: dict) -> None:
        """Continue where ``state`` stopped; a source that was not in the mix then starts at its beginning."""
        self.rng.bit_generator.state = state["rng"]
        for name, stream in self.streams.items():
            stream.taken = state["taken"].get(name, 0.0)


def validation_windows(tokens: np.ndarray, length: int) -> np.ndarray:
    """All non-overlapping windows of a validation stream: (windows, length + 1)."""
    windows = (len(tokens) - 1) // length
    return np.stack([tokens[i * length : (i + 1) * length + 1] for i in range(windows)]).astype(np.int64)
