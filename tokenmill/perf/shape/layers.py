"""What a layer consists of: matrices, and how its mixer reads the past.

A layer is a *mixer* (it moves information between positions) and a *feed-forward* part (it works on each position
alone). Each says which matrices it multiplies by, what it keeps per position or per sequence, and what one (query, key)
pair costs. All counts are of elements and operations; bytes follow from formats in ``perf/costs``.

* ``GroupedAttention``: multi-head, grouped and multi-query attention (Ainslie et al., arXiv 2305.13245), with a sliding
  window or not. Keeps a key and a value per KV head and position.
* ``LatentAttention``: DeepSeek-V2's MLA (arXiv 2405.04434). Keeps one compressed vector and one rotary key per
  position, shared by all heads. While a prompt is computed keys and values are expanded; in decoding the expansion is
  absorbed into query and output, and attention runs over the compressed vectors. With an index (DeepSeek-V3.2) only
  the ``top_k`` positions that a small, cheap attention finds are read.
* ``RecurrentMixer``: gated delta rule (arXiv 2412.06464) and Mamba-2 (arXiv 2405.21060). Keeps a state of fixed size
  per sequence, however long it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Split = Literal["column", "row", "none"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A weight matrix of ``inputs`` × ``outputs``. Matrices of one ``op`` are multiplied in one launch."""

    op: str
    inputs: int
    outputs: int
    split: Split = "column"
    """How tensor parallelism cuts it: by outputs, by inputs (then results must be summed), or not at all."""
    max_ranks: int | None = None
    """It cannot be cut among more ranks than this (KV heads); further ranks hold copies."""
    biased: bool = False

    @property
    def size(self) -> int:
        return self.inputs * self.outputs

    @property
    def num_parameters(self) -> int:
        return self.size + self.outputs * self.biased

    def ranks(self, tp: int) -> int:
        """Among how many of ``tp`` ranks it is cut."""
        if self.split == "none":
            return 1
        return min(tp, self.max_ranks or tp)


@dataclass(frozen=True, slots=True)
class GroupedAttention:
    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Of queries and keys."""
    value_dim: int
    window: int | None = None
    """How many positions back a token sees, itself included; None: all."""
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["none", "head", "width"] = "none"
    """A norm's weights over one head's width, or over all heads' together."""
    gated: bool = False
    """The output is multiplied by a gate that is projected beside the queries."""
    keys_are_values: bool = False
    """There is no value projection (both are cached all the same: keys are rotated)."""
    sinks: bool = False
    """A learned sink per head."""

    def matrices(self, hidden: int) -> tuple[Matrix, ...]:
        heads, kv = self.num_heads, self.num_kv_heads
        width = heads * self.head_dim * (2 if self.gated else 1)
        kv_width = kv * (self.head_dim + (0 if self.keys_are_values else self.value_dim))
        return (
            Matrix("qkv", hidden, width, max_ranks=heads, biased=self.qkv_bias),
            Matrix("qkv", hidden, kv_width, max_ranks=kv, biased=self.qkv_bias),
            Matrix("attention out", heads * self.value_dim, hidden, "row", heads, self.out_bias),
        )

    @property
    def small_parameters(self) -> int:
        norms = {"none": 0, "head": 2 * self.head_dim, "width": (self.num_heads + self.num_kv_heads) * self.head_dim}
        return norms[self.qk_norm] + self.num_heads * self.sinks

    @property
    def kv_elements(self) -> int:
        """Per position."""
        return self.num_kv_heads * (self.head_dim + self.value_dim)

    @property
    def state_elements(self) -> int:
        """Per sequence."""
        return 0

    def pair_flops(self, *, decode: bool) -> int:
        """Of one (query, key) pair over all heads: the score, and adding the value."""
        return 2 * self.num_heads * (self.head_dim + self.value_dim)

    @property
    def query_elements(self) -> int:
        """Read and written per query, over all heads."""
        return self.num_heads * (self.head_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class Index:
    """The small attention that chooses the positions worth reading: one key per position, several queries."""

    num_heads: int
    head_dim: int
    top_k: int


@dataclass(frozen=True, slots=True)
class LatentAttention:
    num_heads: int
    kv_rank: int
    """Width of the compressed vector."""
    nope_dim: int
    rope_dim: int
    value_dim: int
    q_rank: int | None = None
    """Queries are compressed to this width first; None: projected directly."""
    gated: bool = False
    index: Index | None = None

    @property
    def window(self) -> int | None:
        return None

    def matrices(self, hidden: int) -> tuple[Matrix, ...]:
        heads = self.num_heads
        q_width = heads * (self.nope_dim + self.rope_dim)
        down = Matrix("latent down", hidden, self.kv_rank + self.rope_dim, "none")
        queries: tuple[Matrix, ...]
        if self.q_rank is None:
            queries = (Matrix("query up", hidden, q_width, max_ranks=heads),)
        else:
            queries = (
                Matrix("latent down", hidden, self.q_rank, "none"),
                Matrix("query up", self.q_rank, q_width, max_ranks=heads),
            )
        gate = (Matrix("gate", hidden, heads * self.value_dim, max_ranks=heads),) if self.gated else ()
        return (
            down,
            *queries,
            *gate,
            Matrix("latent up", self.kv_rank, heads * (self.nope_dim + self.value_dim), max_ranks=heads),
            *self._index_matrices(hidden),
            Matrix("attention out", heads * self.value_dim, hidden, "row", heads),
        )

    def _index_matrices(self, hidden: int) -> tuple[Matrix, ...]:
        if self.index is None:
            return ()
        width = self.index.num_heads * self.index.head_dim
        return (
            Matrix("index", self.q_rank or hidden, width, "none"),
            Matrix("index", hidden, self.index.head_dim + self.index.num_heads, "none"),
        )

    @property
    def small_parameters(self) -> int:
        index = 2 * self.index.head_dim if self.index else 0
        return self.kv_rank + (self.q_rank or 0) + index

    @property
    def kv_elements(self) -> int:
        return self.kv_rank + self.rope_dim + (self.index.head_dim if self.index else 0)

    @property
    def state_elements(self) -> int:
        return 0

    def pair_flops(self, *, decode: bool) -> int:
        """Absorbed in decoding: every head works on the compressed vectors themselves."""
        if decode:
            return 2 * self.num_heads * (2 * self.kv_rank + self.rope_dim)
        return 2 * self.num_heads * (self.nope_dim + self.rope_dim + self.value_dim)

    @property
    def query_elements(self) -> int:
        return self.num_heads * (self.kv_rank + self.rope_dim + self.kv_rank)


@dataclass(frozen=True, slots=True)
class RecurrentMixer:
    """A state per sequence, updated by every token."""

    kind: Literal["delta", "mamba"]
    key_heads: int
    key_dim: int
    """Per key head; for Mamba the size of the state space, and heads are its groups."""
    value_heads: int
    value_dim: int
    conv: int = 4

    @property
    def window(self) -> int | None:
        return None

    @property
    def _keys(self) -> int:
        return self.key_heads * self.key_dim

    @property
    def _values(self) -> int:
        return self.value_heads * self.value_dim

    def matrices(self, hidden: int) -> tuple[Matrix, ...]:
        gates = 2 if self.kind == "delta" else 1
        width = 2 * self._keys + 2 * self._values + gates * self.value_heads
        return (
            Matrix("mixer in", hidden, width, max_ranks=self.value_heads),
            Matrix("mixer out", self._values, hidden, "row", self.value_heads),
        )

    @property
    def small_parameters(self) -> int:
        channels = 2 * self._keys + self._values
        if self.kind == "delta":
            return channels * self.conv + 2 * self.value_heads + self.value_dim
        return channels * (self.conv + 1) + 3 * self.value_heads + self._values

    @property
    def kv_elements(self) -> int:
        return 0

    @property
    def state_elements(self) -> int:
        return self.value_heads * self.value_dim * self.key_dim + (2 * self._keys + self._values) * (self.conv - 1)

    def pair_flops(self, *, decode: bool) -> int:
        return 0

    @property
    def token_flops(self) -> int:
        """Decay, look-up, correction, output: eight operations per element of the state."""
        return 8 * self.value_heads * self.value_dim * self.key_dim

    @property
    def query_elements(self) -> int:
        return 2 * self._keys + 2 * self._values


Mixer = GroupedAttention | LatentAttention | RecurrentMixer


@dataclass(frozen=True, slots=True)
class FeedForward:
    """Up, an activation, down; gated: twice up, one half gates the other."""

    intermediate_size: int
    gated: bool = True
    biased: bool = False

    def matrices(self, hidden: int) -> tuple[Matrix, ...]:
        up = self.intermediate_size * (2 if self.gated else 1)
        return (
            Matrix("up", hidden, up, biased=self.biased),
            Matrix("down", self.intermediate_size, hidden, "row", biased=self.biased),
        )

    @property
    def small_parameters(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Experts:
    """A router sends each token to ``top_k`` of ``num_experts``; a shared expert sees all."""

    num_experts: int
    top_k: int
    intermediate_size: int
    shared_size: int = 0
    shared_gate: bool = False
    """The shared expert's output is weighted by a gate of its own."""
    gated: bool = True
    biased: bool = False
    router_bias: bool = False
    latent: int | None = None
    """Experts work on vectors of this width, projected down and up around them."""
    dense: FeedForward | None = None
    """A feed-forward part that runs beside the experts (Gemma 4)."""

    def matrices(self, hidden: int) -> tuple[Matrix, ...]:
        """All but the routed experts' own."""
        found = [Matrix("router", hidden, self.num_experts, "none", biased=self.router_bias)]
        if self.latent:
            found += [
                Matrix("latent in", hidden, self.latent, "none"),
                Matrix("latent out", self.latent, hidden, "none"),
            ]
        if self.shared_size:
            found += FeedForward(self.shared_size, self.gated).matrices(hidden)
        if self.shared_gate:
            found.append(Matrix("router", hidden, 1, "none"))
        if self.dense:
            found += self.dense.matrices(hidden)
        return tuple(found)

    def expert_matrices(self, hidden: int) -> tuple[Matrix, ...]:
        """Of one expert."""
        return FeedForward(self.intermediate_size, self.gated, self.biased).matrices(self.latent or hidden)

    @property
    def small_parameters(self) -> int:
        return 0

    def distinct(self, num_tokens: float, num_experts: float | None = None) -> float:
        """Expected number of ``num_experts`` (all, if not given) that at least one of ``num_tokens`` is sent to.

        Tokens choose independently and evenly: E · (1 − (1 − k/E)^T).
        """
        here = self.num_experts if num_experts is None else num_experts
        return float(here * (1 - (1 - min(1.0, self.top_k / self.num_experts)) ** num_tokens))


Feed = FeedForward | Experts
