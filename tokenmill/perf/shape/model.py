"""``ModelShape``: layers, vocabulary, and what follows from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokenmill.core.model_config import ModelConfig
from tokenmill.perf.shape.layers import Experts, Feed, FeedForward, GroupedAttention, Matrix, Mixer


@dataclass(frozen=True, slots=True)
class Layers:
    """A number of equal layers. Either part may be missing (Nemotron-H alternates them)."""

    count: int
    mixer: Mixer | None
    feed: Feed | None
    norms: int = 2
    """Vectors of the model's width among the norms' weights (a layer norm has two: weight and bias)."""

    def matrices(self, hidden: int) -> tuple[Matrix, ...]:
        """All but the routed experts' own."""
        parts = (self.mixer, self.feed)
        return tuple(matrix for part in parts if part is not None for matrix in part.matrices(hidden))

    @property
    def experts(self) -> Experts | None:
        return self.feed if isinstance(self.feed, Experts) else None

    def num_parameters(self, hidden: int, *, active: bool = False) -> int:
        """Of one layer; ``active``: of the experts only those that a token meets."""
        total = self.norms * hidden + sum(matrix.num_parameters for matrix in self.matrices(hidden))
        total += sum(part.small_parameters for part in (self.mixer, self.feed) if part is not None)
        if self.experts:
            one = sum(matrix.num_parameters for matrix in self.experts.expert_matrices(hidden))
            total += one * (self.experts.top_k if active else self.experts.num_experts)
        return total


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A decoder. Sizes in elements."""

    name: str
    hidden_size: int
    vocab_size: int
    layers: tuple[Layers, ...]
    tie_embeddings: bool = False
    max_context: int = 0
    """0: the configuration does not say."""
    final_norms: int = 1
    learned_positions: int = 0
    head_bias: bool = False
    quantization: str | None = None
    """How the checkpoint's weights are stored, if not as plain floats: ``fp8``, ``nvfp4`` …"""

    @property
    def num_layers(self) -> int:
        return sum(run.count for run in self.layers)

    @property
    def head_dim(self) -> int:
        """Of the first attention layer's queries and keys; 128 where there is none of the usual kind."""
        dims = (getattr(run.mixer, "head_dim", None) for run in self.layers)
        return next(filter(None, dims), 128)

    @property
    def num_parameters(self) -> int:
        return self._parameters(active=False)

    @property
    def active_parameters(self) -> int:
        """That one token meets: of the routed experts only its own."""
        return self._parameters(active=True)

    def _parameters(self, *, active: bool) -> int:
        body = sum(run.count * run.num_parameters(self.hidden_size, active=active) for run in self.layers)
        head = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        positions = self.learned_positions * self.hidden_size
        return (
            body
            + self.vocab_size * self.hidden_size
            + head
            + self.vocab_size * self.head_bias
            + positions
            + self.final_norms * self.hidden_size
        )

    @property
    def has_experts(self) -> bool:
        return any(run.experts for run in self.layers)

    @property
    def kv_elements_per_token(self) -> int:
        """Cached per position over all layers, as if no window bounded them."""
        return sum(run.count * run.mixer.kv_elements for run in self.layers if run.mixer)

    @property
    def state_elements(self) -> int:
        """Kept per sequence, whatever its length."""
        return sum(run.count * run.mixer.state_elements for run in self.layers if run.mixer)

    def kv_elements(self, context: int) -> int:
        """Cached of a sequence of ``context`` tokens; a windowed layer keeps no more than its window."""
        total = 0
        for run in self.layers:
            if run.mixer:
                kept = context if run.mixer.window is None else min(context, run.mixer.window)
                total += run.count * run.mixer.kv_elements * kept
        return total

    @property
    def attention_heads(self) -> Iterator[tuple[int, int]]:
        """(query heads, KV heads) of each run of softmax attention; latent attention has no KV heads to split."""
        for run in self.layers:
            if isinstance(run.mixer, GroupedAttention):
                yield run.mixer.num_heads, run.mixer.num_kv_heads


def shape_of(config: ModelConfig, name: str = "") -> ModelShape:
    """The shape of a model that the engine runs."""
    runs: list[Layers] = []
    for index, window in enumerate(config.windows):
        mixer = GroupedAttention(
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.head_dim,
            window,
            config.qkv_bias,
            config.out_bias,
            "head" if config.qk_norm else "none",
        )
        append_layer(runs, mixer, _feed_of(config, index))
    return ModelShape(
        name or config.architecture,
        config.hidden_size,
        config.vocab_size,
        tuple(runs),
        config.tie_embeddings,
        config.max_context,
        quantization=config.quantization,
    )


def _feed_of(config: ModelConfig, index: int) -> Feed:
    experts = config.experts_of(index)
    if experts is None:
        return FeedForward(config.intermediate_size, biased=config.mlp_bias)
    return Experts(experts.num_experts, experts.num_active, experts.intermediate_size)


def append_layer(runs: list[Layers], mixer: Mixer | None, feed: Feed | None, norms: int = 2) -> None:
    """One layer more; equal neighbours are one run."""
    count = 1
    if runs and (runs[-1].mixer, runs[-1].feed, runs[-1].norms) == (mixer, feed, norms):
        count += runs.pop().count
    runs.append(Layers(count, mixer, feed, norms))
