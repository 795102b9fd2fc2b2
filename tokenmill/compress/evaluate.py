"""How far a changed model moves from the one it was made from: perplexity, and the distance of distributions.

Both read the same windows of a text. At every position both give a distribution over the next token; reported are

    perplexity    exp of the mean negative log-likelihood of the token that really comes
    KL            mean over positions of sum p log(p / q), in nats, p the reference's: 0 where nothing changed
    agreement     share of positions where both have the same likeliest token

KL is the finer measure: it sees every token of the distribution, and does not mix harm with luck as perplexity does.
Its standard error comes from the windows' means.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenmill.core.params import SamplingParams
from tokenmill.runtime.sampling import SampledSequence
from tokenmill.runtime.step_model import StepModel
from tokenmill.runtime.table import Row, TableEntry
from tokenmill.runtime.worker import PROMPT_LOGITS_ROWS


@dataclass(slots=True)
class Sums:
    """One setting's totals over positions, and each window's mean KL."""

    positions: int = 0
    nats: float = 0.0
    kl: float = 0.0
    same: int = 0
    window_kl: tuple[float, ...] = ()

    def add(self, reference: Tensor, log_probs: Tensor, following: Tensor) -> None:
        """Take in a window: log-probabilities ``[N, V]`` of both, and the tokens that came ``[N]``."""
        kl = (reference.exp() * (reference - log_probs)).sum(1)
        self.positions += len(following)
        self.nats -= log_probs.gather(1, following[:, None]).sum().item()
        self.kl += kl.sum().item()
        self.same += int((reference.argmax(1) == log_probs.argmax(1)).sum())
        self.window_kl += (kl.mean().item(),)

    def figures(self) -> dict[str, float]:
        count, mean = len(self.window_kl), self.kl / self.positions
        variance = sum((kl - mean) ** 2 for kl in self.window_kl) / max(1, count - 1)
        return {
            "perplexity": math.exp(self.nats / self.positions),
            "nats_per_token": self.nats / self.positions,
            "kl_nats": mean,
            "kl_standard_error": math.sqrt(variance / count),
            "agreement": self.same / self.positions,
        }


def compare(
    reference: StepModel,
    models: Mapping[str, StepModel],
    windows: Sequence[Sequence[int]],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, dict[str, float]]:
    """Each model's figures, and under ``reference`` its own.

    Args:
        windows: token ids; each begins a sequence. Every model's pool holds the longest.
    """
    sums = {name: Sums() for name in ("reference", *models)}
    for done, tokens in enumerate(windows):
        progress(done, len(windows))
        following = torch.tensor(tokens[1:])
        truth = log_probabilities(reference, tokens[:-1])
        sums["reference"].add(truth, truth, following)
        for name, model in models.items():
            sums[name].add(truth, log_probabilities(model, tokens[:-1]), following)
    return {name: total.figures() for name, total in sums.items()}


def log_probabilities(model: StepModel, token_ids: Sequence[int]) -> Tensor:
    """What ``model`` expects after each of the tokens, which begin a sequence: ``[N, vocab_size]`` float32."""
    ids = list(token_ids)
    sampling = SampledSequence(ids, len(ids), SamplingParams(), 0, frozenset(), model.config.vocab_size)
    blocks = array("i", range(-(-len(ids) // model.block_size)))
    model.forward([Row(0, TableEntry(ids, blocks, sampling), 0, len(ids))], [])
    return torch.cat([model.logits(part).log_softmax(1) for part in _parts(len(ids))])


def _parts(count: int) -> Iterator[range]:
    for begin in range(0, count, PROMPT_LOGITS_ROWS):
        yield range(begin, min(begin + PROMPT_LOGITS_ROWS, count))
