"""The operations of one step on one device, layer by layer.

A product of T tokens with a matrix of k × n takes 2·T·k·n operations, reads the matrix once however many tokens there
are, and moves T·(k + n) activations. Attention takes ``pair_flops`` per causal (query, key) pair and reads every
cached position that a row sees once. Norms, rotations and activations move bytes and compute next to nothing. So
decoding is bound by the matrices it reads, prompts by the operations, and where one turns into the other is the
roofline's matter.

Experts: each token meets k of E. T tokens touch E·(1 − (1 − k/E)^T) of them on average, whose weights must be read;
with ``imbalance`` the busiest device has that many times its fair share of tokens.

Ops are those of one pass through *all* layers, as one device of each pipeline stage sees them (so their sum is what a
token waits for); of ``pp`` stages each holds 1/pp of it. Counts may be fractional: work that is split evenly over
data-parallel groups is an average.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tokenmill.perf.costs.collectives import Collective, Message
from tokenmill.perf.costs.formats import Format, Formats
from tokenmill.perf.costs.layout import Layout
from tokenmill.perf.costs.storage import STATE_BYTES
from tokenmill.perf.costs.work import Work, total_pairs, total_positions
from tokenmill.perf.shape import (
    Experts,
    LatentAttention,
    Layers,
    Matrix,
    ModelShape,
    RecurrentMixer,
)
from tokenmill.perf.shape.layers import Mixer

Kind = Literal["linear", "experts", "prefill attention", "decode attention", "memory", "collective", "sampling"]

LOGIT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Op:
    """``count`` calls of one operation on one device; sums over all calls."""

    name: str
    kind: Kind
    count: float
    """Launches."""
    flops: float = 0.0
    arithmetic: str = "bf16"
    """Whose peak bounds it."""
    weight_bytes: float = 0.0
    kv_bytes: float = 0.0
    activation_bytes: float = 0.0
    rows: float = 0.0
    """Rows of one call: tokens of a product, (query, key) sequences of attention. Efficiency depends on them."""
    message: Message | None = None
    """Of one call of a collective."""

    @property
    def num_bytes(self) -> float:
        """To and from the device's memory."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.num_bytes if self.num_bytes else 0.0


def step_ops(
    shape: ModelShape, formats: Formats, layout: Layout, work: Work, *, imbalance: float = 1.0
) -> tuple[Op, ...]:
    """Everything that ``work`` costs on one device.

    Args:
        work: of the whole engine; each of the layout's ``dp`` groups gets an equal share.
        imbalance: tokens of the busiest device's experts over the average's.
    """
    return tuple(_Step(shape, formats, layout, work, imbalance).ops())


class _Step:
    def __init__(self, shape: ModelShape, formats: Formats, layout: Layout, work: Work, imbalance: float) -> None:
        self.shape, self.formats, self.layout, self.imbalance = shape, formats, layout, imbalance
        self.all_tokens = work.tokens
        self.work = work.scaled(1 / layout.dp) if layout.dp > 1 else work
        self.tokens = self.work.tokens / layout.cp
        self.size = formats.activations.num_bytes
        self.stream_bytes = self.tokens * shape.hidden_size * self.size
        """The residual stream."""

    def ops(self) -> Iterator[Op]:
        if not self.tokens:
            return
        yield Op("embedding", "memory", 1, activation_bytes=2 * self.stream_bytes, rows=self.tokens)
        for run in self.shape.layers:
            yield from self._mixer(run)
            yield from self._feed(run)
        yield from self._hand_over()
        yield from self._head()

    # ---- a run of layers -----------------------------------------------------------------------------------

    def _mixer(self, run: Layers) -> Iterator[Op]:
        mixer, layout = run.mixer, self.layout
        if mixer is None:
            return
        yield self._norm(run)
        yield from self._linears(run, mixer.matrices(self.shape.hidden_size))
        if isinstance(mixer, RecurrentMixer):
            yield self._recurrence(run, mixer)
        else:
            new = self.tokens * mixer.kv_elements * self.formats.kv.num_bytes / self._kv_ranks(mixer)
            moved = 2 * self.tokens * mixer.query_elements * self.size / layout.tp
            yield Op(
                "rotate and write KV",
                "memory",
                run.count,
                0,
                "fp32",
                0,
                run.count * new,
                run.count * moved,
                self.tokens,
            )
            for decode in (False, True):
                yield from self._attention(run, mixer, decode=decode)
        yield from self._all_reduce("attention all-reduce", run.count)
        if layout.cp > 1:
            yield from self._ring(run, mixer)

    def _feed(self, run: Layers) -> Iterator[Op]:
        feed = run.feed
        if feed is None:
            return
        yield self._norm(run)
        yield from self._linears(run, feed.matrices(self.shape.hidden_size))
        if isinstance(feed, Experts):
            yield from self._experts(run, feed)
        if not isinstance(feed, Experts) or feed.shared_size or self.layout.dp == 1:
            yield from self._all_reduce("feed-forward all-reduce", run.count)

    def _norm(self, run: Layers) -> Op:
        """Reads the stream and what is added to it, writes both."""
        share = self.layout.tp if self.layout.sequence_parallel else 1
        return Op(
            "norm", "memory", run.count, activation_bytes=run.count * 4 * self.stream_bytes / share, rows=self.tokens
        )

    def _linears(self, run: Layers, matrices: tuple[Matrix, ...]) -> Iterator[Op]:
        """One op per launch."""
        for name in dict.fromkeys(matrix.op for matrix in matrices):
            weight = flops = moved = 0.0
            for matrix in (one for one in matrices if one.op == name):
                ranks = matrix.ranks(self.layout.tp)
                stored = self.formats.activations if name == "router" else self.formats.weights
                weight += matrix.size * stored.num_bytes / ranks
                flops += 2 * self.tokens * matrix.size / ranks
                moved += self._moved(matrix, ranks)
            arithmetic = self.formats.activations if name == "router" else self.formats.weights
            yield self._linear(name, run.count, flops, arithmetic, weight, moved)

    def _moved(self, matrix: Matrix, ranks: int) -> float:
        cut_inputs = matrix.inputs / (ranks if matrix.split == "row" else 1)
        cut_outputs = matrix.outputs / (ranks if matrix.split == "column" else 1)
        return self.tokens * (cut_inputs + cut_outputs) * self.size

    def _linear(self, name: str, count: int, flops: float, stored: Format, weight: float, moved: float) -> Op:
        return Op(
            name, "linear", count, count * flops, stored.arithmetic, count * weight, 0, count * moved, self.tokens
        )

    def _experts(self, run: Layers, experts: Experts) -> Iterator[Op]:
        layout, hidden = self.layout, self.shape.hidden_size
        stored = self.formats.of_experts
        tokens = self.all_tokens / layout.cp
        local = experts.num_experts / layout.ep
        touched = experts.distinct(tokens, local)
        routed = tokens * experts.top_k / layout.ep * (self.imbalance if layout.ep > 1 else 1.0)
        matrices = experts.expert_matrices(hidden)
        each = sum(matrix.size for matrix in matrices) / layout.expert_tp
        width = sum(matrix.inputs + matrix.outputs / layout.expert_tp for matrix in matrices)
        yield Op(
            "experts",
            "experts",
            run.count * 2,
            run.count * 2 * routed * each,
            stored.arithmetic,
            run.count * touched * each * stored.num_bytes,
            0,
            run.count * routed * width * self.size,
            routed / max(touched, 1.0),
        )
        if layout.ep > 1 and layout.dp > 1:
            # Each token's vector goes to the devices of its experts, and comes back once from each.
            targets = layout.ep * (1 - (1 - 1 / layout.ep) ** experts.top_k)
            sent = self.tokens / layout.tp * targets * (experts.latent or hidden) * self.size
            message = Message("all_to_all", layout.ep, sent)
            yield Op("expert dispatch", "collective", run.count, message=message, rows=self.tokens)
            yield Op("expert combine", "collective", run.count, message=message, rows=self.tokens)
        elif layout.dp > 1:
            gathered = self.all_tokens / layout.cp * hidden * self.size
            yield Op("expert gather", "collective", run.count, message=Message("all_gather", layout.dp, gathered))
            yield Op("expert scatter", "collective", run.count, message=Message("reduce_scatter", layout.dp, gathered))

    # ---- attention -----------------------------------------------------------------------------------------

    def _kv_ranks(self, mixer: Mixer) -> int:
        """Among how many tensor-parallel ranks keys and values are split; beyond, they are copies."""
        return min(self.layout.tp, getattr(mixer, "num_kv_heads", 1))

    def _attention(self, run: Layers, mixer: Mixer, *, decode: bool) -> Iterator[Op]:
        rows = self.work.only(decode=decode)
        if not rows:
            return
        layout = self.layout
        num_rows, num_tokens = sum(row.times for row in rows), sum(row.tokens * row.times for row in rows)
        pairs, positions = total_pairs(rows, mixer.window), total_positions(rows, mixer.window)
        index = mixer.index if isinstance(mixer, LatentAttention) else None
        if index:
            yield self._index(run, index.num_heads * index.head_dim, index.head_dim, pairs, positions, num_tokens)
            pairs, positions = min(pairs, num_tokens * index.top_k), min(positions, num_tokens * index.top_k)
        elements = mixer.kv_elements - (index.head_dim if index else 0)
        read = positions * elements * self.formats.kv.num_bytes / self._kv_ranks(mixer) / layout.cp
        flops = pairs * mixer.pair_flops(decode=decode) / layout.tp / layout.cp
        moved = num_tokens * mixer.query_elements * self.size / layout.tp / layout.cp
        yield Op(
            "decode attention" if decode else "prefill attention",
            "decode attention" if decode else "prefill attention",
            run.count,
            run.count * flops,
            "bf16",
            0,
            run.count * read,
            run.count * moved,
            positions / num_rows if decode else num_tokens / num_rows,
        )

    def _index(self, run: Layers, width: int, key: int, pairs: float, positions: float, tokens: float) -> Op:
        """Scores of the index: every pair, whole on every rank."""
        read = positions * key * self.formats.kv.num_bytes / self.layout.cp
        flops = 2 * width * pairs / self.layout.cp
        return Op("index", "linear", run.count, run.count * flops, "fp8", 0, run.count * read, 0, tokens)

    def _recurrence(self, run: Layers, mixer: RecurrentMixer) -> Op:
        """The state is read and written once per row, whatever its length."""
        tp = self.layout.tp
        state = 2 * self.work.num_rows * mixer.state_elements * STATE_BYTES / tp
        moved = self.tokens * mixer.query_elements * self.size / tp
        flops = self.tokens * mixer.token_flops / tp
        return Op(
            "recurrence",
            "memory",
            run.count,
            run.count * flops,
            "bf16",
            0,
            run.count * state,
            run.count * moved,
            self.tokens,
        )

    # ---- messages ------------------------------------------------------------------------------------------

    def _all_reduce(self, name: str, count: int) -> Iterator[Op]:
        if self.layout.tp == 1:
            return
        if not self.layout.sequence_parallel:
            message = Message("all_reduce", self.layout.tp, self.stream_bytes)
            yield Op(name, "collective", count, message=message, rows=self.tokens)
            return
        halves: tuple[Collective, ...] = ("reduce_scatter", "all_gather")
        for collective in halves:
            message = Message(collective, self.layout.tp, self.stream_bytes)
            yield Op(f"{name} ({collective})", "collective", count, message=message, rows=self.tokens)

    def _ring(self, run: Layers, mixer: Mixer) -> Iterator[Op]:
        """Context parallelism: prompts pass their keys and values round; single tokens gather partial results."""
        cp, prompts = self.layout.cp, self.work.only(decode=False)
        if prompts:
            passed = total_positions(prompts) * mixer.kv_elements * self.formats.kv.num_bytes / self._kv_ranks(mixer)
            yield Op("ring attention", "collective", run.count, message=Message("all_gather", cp, passed))
        tokens = sum(row.times for row in self.work.only(decode=True))
        if tokens:
            partial = tokens * mixer.query_elements * self.size / self.layout.tp
            yield Op("merge attention", "collective", run.count, message=Message("all_reduce", cp, partial))

    def _hand_over(self) -> Iterator[Op]:
        if self.layout.pp > 1:
            message = Message("send", 2, self.stream_bytes / self.layout.tp)
            yield Op("pipeline hand-over", "collective", self.layout.pp - 1, message=message, rows=self.tokens)

    def _head(self) -> Iterator[Op]:
        outputs, tp = self.work.outputs, self.layout.tp
        if not outputs:
            return
        hidden, vocab, stored = self.shape.hidden_size, self.shape.vocab_size, self.formats.lm_head
        logits = outputs * vocab * LOGIT_BYTES / tp
        yield Op("final norm", "memory", 1, activation_bytes=2 * outputs * hidden * self.size, rows=outputs)
        yield Op(
            "output matrix",
            "linear",
            1,
            2 * outputs * hidden * vocab / tp,
            stored.arithmetic,
            vocab * hidden * stored.num_bytes / tp,
            0,
            outputs * hidden * self.size + logits,
            outputs,
        )
        if tp > 1:
            gathered = outputs * vocab * self.size
            yield Op("logits gather", "collective", 1, message=Message("all_gather", tp, gathered), rows=outputs)
        yield Op("sampling", "sampling", 1, activation_bytes=2 * outputs * vocab * LOGIT_BYTES, rows=outputs)
