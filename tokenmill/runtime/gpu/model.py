"""``DeviceModel``: a decoder's steps as launches of kernels, on buffers whose addresses never change.

A layer (T tokens, S outputs wanted), all buffers shared by the layers::

    residual ─ rms_norm ─ qkv ─ rope_kv ─ attention ─ out ─ (adds to residual) rms_norm ─ MLP ─ (adds to residual) …

``residual`` is float32; what products read and write is the model's dtype (bf16; float32 in tests). A correction is
added to the residual stream by the norm that comes next, in one pass. After the layers the *head* runs over the tokens
whose logits are wanted, and ``sample`` draws the tokens that follow, which stay on the device for the next step; the
host gets a copy in pinned memory, behind an event.

Two shapes of steps. *Decode steps*, of rows with one token each that all draw, are padded to a bucket of rows
(``buckets.py``) and replayed as a CUDA graph once they recur (``capture.py``). All others run eagerly, their tokens
padded to a multiple of 16. Padding has cache slot -1: it writes nothing, nobody reads it.

**Determinism.** Kernels for matrices are chosen by the number of rows, so a token's last bits depend on its company.
In a step with a row whose request is ``deterministic`` every product has the one tile shape of its matrix, and
attention of that row is cut at absolute positions: what such a row computes depends on its own tokens alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from tokenmill.core.model_config import ModelConfig
from tokenmill.kernels.triton.attention import AttentionBuffers, AttentionPlan, attention
from tokenmill.kernels.triton.embedding import embedding
from tokenmill.kernels.triton.kv import MAX_COPIES, DeviceKV
from tokenmill.kernels.triton.rms_norm import rms_norm
from tokenmill.kernels.triton.rope_kv import rope_kv
from tokenmill.kernels.triton.sample import DeviceDraws, sample
from tokenmill.models.decoder import Decoder
from tokenmill.models.layers.norm import RMSNorm
from tokenmill.models.quantization.device import DeviceMatrix
from tokenmill.runtime.gpu.buckets import bucket_of, round_up, row_buckets, typical_cost
from tokenmill.runtime.gpu.capture import SEEN_BEFORE_CAPTURE, Graphs
from tokenmill.runtime.gpu.inputs import DeviceInputs, Layout
from tokenmill.runtime.gpu.mlp import make_blocks, matrix_of
from tokenmill.runtime.gpu.results import Results
from tokenmill.runtime.gpu.sampling import DeviceSampling, has_penalties
from tokenmill.runtime.step_model import Draws, Tokens
from tokenmill.runtime.table import Row, TableEntry

PROMPT_LOGITS_ROWS = 64
"""Tokens whose logits are asked for at once, at most, beside those of the rows (``runtime/worker.py``)."""
NEVER = -1
EAGER_CHANGES = 1024
"""Room for changed entries of block tables in the one copy of a step that is not captured."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step, its inputs on their way to the device."""

    layout: Layout
    num_outputs: int
    """Without padding."""
    outputs: list[int]
    plans: dict[int | None, AttentionPlan]
    """By sliding window."""
    draws: DeviceDraws | None
    invariant: bool
    is_decode: bool
    """Every token is an output, in order, and so is the padding."""

    @property
    def key(self) -> tuple[int, bool, bool, bool, bool]:
        """All that the launches of a decode step depend on."""
        draws = self.draws
        assert draws is not None
        return (self.layout.num_tokens, self.invariant, draws.drawn, draws.filtered, draws.counts is not None)


class DeviceModel:
    """A ``StepModel`` over a decoder whose matrices are a ``DeviceScheme``'s.

    Args:
        decoder: with its weights loaded, on the device.
        kv: the pool; nothing else may write it.
        max_seqs: sequences known at a time.
        max_step_tokens: tokens of a step.
        cost: of a decode step by its rows, any unit (``buckets.py``).
        capture: whether decode steps become CUDA graphs; only on a CUDA device.
    """

    def __init__(
        self,
        decoder: Decoder,
        kv: DeviceKV,
        *,
        max_seqs: int,
        max_step_tokens: int,
        cost: Callable[[int], float] = typical_cost,
        capture: bool = True,
    ) -> None:
        self.decoder, self.kv = decoder, kv
        config, device = decoder.config, decoder.device
        self.buckets = row_buckets(max_seqs, cost)
        max_tokens = round_up(max(max_step_tokens, 16, self.buckets[-1]))
        max_outputs = max(self.buckets[-1], PROMPT_LOGITS_ROWS)
        self.buffers = StepBuffers(config, max_tokens, max_outputs, decoder.dtype, device)
        max_blocks = -(-decoder.max_context // kv.block_size)
        sizes = {"max_tokens": max_tokens, "max_outputs": max_outputs, "max_seqs": max_seqs}
        self.inputs = DeviceInputs(**sizes, max_blocks=max_blocks, block_size=kv.block_size, device=device)
        self.sampling = DeviceSampling(max_outputs, max_seqs, config.vocab_size, device, max_counted=max_seqs)
        shape = (
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            kv.block_size,
            max_tokens,
            max_seqs,
            max_blocks,
        )
        self.attention = {w: AttentionBuffers(*shape, window=w, device=device) for w in dict.fromkeys(config.windows)}
        self.results = Results(max_outputs, device)
        self._layers = kv.layers
        self._blocks = make_blocks(decoder, max_tokens)
        self._pairs = torch.full((MAX_COPIES, 2), -1, dtype=torch.int32, device=device)
        self._held: list[TableEntry | None] = [None] * max_seqs
        self._drawn: list[bool] = [False] * max_seqs
        self._counted = [NEVER] * max_seqs  # position of the token drawn last, of sequences with penalties
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.graphs = Graphs(self._stream) if capture and self._stream is not None else None
        table = decoder.embedding.method
        assert isinstance(table, DeviceMatrix) and isinstance(table.weight, Tensor), "the token table is plain"
        self._table = table.weight
        assert isinstance(decoder.lm_head.method, DeviceMatrix)
        self._output = decoder.lm_head.method
        rotary = decoder.rotary
        self._angles = torch.cat((rotary.cos, rotary.sin), dim=1)
        if self._stream is not None:
            torch.cuda.synchronize(device)  # weights and buffers were filled on another stream
        self._step: Step | None = None
        self._logits_of: list[int] = []
        self._tokens: Tokens | None = None

    @property
    def config(self) -> ModelConfig:
        return self.decoder.config

    @property
    def block_size(self) -> int:
        return self.kv.block_size

    @property
    def max_context(self) -> int:
        return self.decoder.max_context

    @property
    def num_blocks(self) -> int:
        return self.kv.num_blocks

    @property
    def stream(self) -> torch.cuda.Stream | None:
        """That everything is launched on; None: this is no CUDA device."""
        return self._stream

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Have the kernels of decode steps compiled and loaded, and the likeliest steps captured: of every bucket,
        where all rows take the likeliest token and where some draw. What is run is padding: nothing is written."""
        with self._on_stream():
            for bucket in reversed(self.buckets) if self.graphs is not None else ():
                for drawn in (False, True):
                    for _ in range(1 + SEEN_BEFORE_CAPTURE):
                        self._run(self._nothing(bucket, drawn=drawn))
            self._launch(self._nothing(1, drawn=True, invariant=True))
            if self._stream is not None:
                self._stream.synchronize()

    # ---- steps -------------------------------------------------------------------------------------

    def can_launch(self, rows: Sequence[Row]) -> bool:
        return all(row.entry.pooled is None and self.chooses(row) for row in rows)

    @torch.inference_mode()
    def launch(self, rows: Sequence[Row]) -> Tokens:
        with self._on_stream():
            step = self._send(rows, [row for row in rows if row.samples])
            self._run(step)
            return self.results.send(step.num_outputs)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row], outputs: Sequence[int]) -> None:
        sampling = [row for row in rows if row.samples] if outputs else []
        assert len(sampling) == len(outputs)
        with self._on_stream():
            step = self._step = self._send(rows, sampling)
            self._run(step)
            self._logits_of = step.outputs
            self._tokens = self.results.send(step.num_outputs) if outputs else None

    def chooses(self, row: Row) -> bool:
        return self._draws_for(row.entry)

    def choose(self, draws: Draws | None) -> Sequence[int] | None:
        """By each sequence's own parameters, which the model knows; ``draws`` is for models that do not."""
        return None if self._tokens is None else self._tokens.wait()

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> Tensor:
        step = self._step
        assert step is not None, "no step was computed"
        with self._on_stream():
            if not set(tokens) <= set(self._logits_of):
                self._head(torch.tensor(list(tokens), dtype=torch.int32, device=self.decoder.device), step.invariant)
                self._logits_of = list(tokens)
            where = {token: line for line, token in enumerate(self._logits_of)}
            lines = torch.tensor([where[token] for token in tokens], device=self.decoder.device)
            return self.buffers.logits.index_select(0, lines).cpu()

    @torch.inference_mode()
    def hidden(self, tokens: Sequence[int]) -> Tensor:
        step = self._step
        assert step is not None and not step.is_decode, "no step was computed that keeps them"
        with self._on_stream():
            wanted = torch.tensor(list(tokens), dtype=torch.int32, device=self.decoder.device)
            found = []
            for some in torch.split(wanted, len(self.buffers.head_normed)):
                self._gather(some)
                found.append(self.buffers.head_normed[: len(some)].float().cpu())
            return torch.cat(found)

    def forget(self, slots: Iterable[int]) -> None:
        for slot in slots:
            self._held[slot] = None
            self.sampling.remove(slot)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        on_gpu = self._stream is not None
        with self._on_stream():
            for begin in range(0, len(pairs), MAX_COPIES):
                some = torch.tensor(pairs[begin : begin + MAX_COPIES], dtype=torch.int32, pin_memory=on_gpu)
                there = self._pairs[: len(some)]
                there.copy_(some, non_blocking=True)
                self.kv.copy_blocks(there)

    def poison(self, block_ids: Iterable[int]) -> None:
        with self._on_stream():
            self.kv.poison(block_ids)

    # ---- the host's part of a step -----------------------------------------------------------------

    def _on_stream(self) -> AbstractContextManager[None]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _draws_for(self, entry: TableEntry) -> bool:
        """Whether the device draws this sequence's tokens; it comes to know the sequence here."""
        slot = entry.slot
        if self._held[slot] is not entry:
            self.sampling.remove(slot)
            seq = entry.sampling
            with self._on_stream():
                self._drawn[slot] = self.sampling.add(slot, seq.params, seq.seed, entry.token_ids, seq.prompt_len)
            self._held[slot] = entry
            self._counted[slot] = 0 if has_penalties(seq.params) else NEVER
        return self._drawn[slot]

    def _line_of(self, row: Row) -> int:
        """The slot that the row's token is drawn for; -1: the host draws it."""
        entry = row.entry
        slot = entry.slot
        drawn = self._draws_for(entry)
        if self._counted[slot] != NEVER:
            if row.end <= self._counted[slot]:  # drawn before, in a step that raised: what was counted then is not true
                self._held[slot] = None
                drawn = self._draws_for(entry)
            self._counted[slot] = row.end
        return slot if drawn else -1

    def _send(self, rows: Sequence[Row], sampling: Sequence[Row]) -> Step:
        """Tell the device what the step is about."""
        ends = list(accumulate([row.end - row.start for row in rows]))
        num_tokens, num_outputs = ends[-1], len(sampling)
        is_decode = num_tokens == num_outputs
        if is_decode:
            outputs = list(range(num_tokens))
            padded = padded_outputs = room = bucket_of(num_tokens, self.buckets)
        else:
            outputs = [end - 1 for end, row in zip(ends, rows, strict=True) if row.samples] if sampling else []
            padded, room = -(-num_tokens // 16) * 16, EAGER_CHANGES
            padded_outputs = bucket_of(num_outputs, self.buckets) if outputs else 0
        invariant = [row.entry.sampling.params.deterministic for row in rows]
        draws = None
        if sampling:
            lines = [self._line_of(row) for row in sampling]
            draws = self.sampling.stage(lines, [row.end for row in sampling], padded_outputs)
        layout = self.inputs.send(rows, outputs, padded, padded_outputs, room)
        starts, counts = [row.start for row in rows], [row.end - row.start for row in rows]
        slots = [row.entry.slot for row in rows]
        plans = {
            window: buffers.plan(starts, counts, slots, invariant=invariant)
            for window, buffers in self.attention.items()
        }
        return Step(layout, num_outputs, outputs, plans, draws, any(invariant), is_decode)

    def _nothing(self, bucket: int, *, drawn: bool, invariant: bool = False) -> Step:
        """A decode step of padding."""
        outputs = list(range(bucket))
        draws = replace(self.sampling.stage([], [], bucket), drawn=drawn)
        layout = self.inputs.send([], outputs, bucket, bucket, bucket)
        plans = {
            window: buffers.plan([0] * bucket, [1] * bucket, [0] * bucket, invariant=invariant)
            for window, buffers in self.attention.items()
        }
        return Step(layout, bucket, outputs, plans, draws, invariant, True)

    def _run(self, step: Step) -> None:
        if step.is_decode and self.graphs is not None:
            self.graphs.run(step.key, lambda: self._launch(step))
        else:
            self._launch(step)

    # ---- launches: all that a graph records --------------------------------------------------------

    def _launch(self, step: Step) -> None:
        buffers, decoder = self.buffers, self.decoder
        parts = self.inputs.parts(step.layout)
        self.inputs.apply(parts, self.sampling.last_tokens)
        num_tokens = step.layout.num_tokens
        residual, delta, normed = (each[:num_tokens] for each in (buffers.residual, buffers.delta, buffers.normed))
        embedding(parts.token_ids, self._table, residual)
        added: Tensor | None = None  # what is yet to be added to the residual stream
        for index, layer in enumerate(decoder.layers):
            self._norm(layer.attention_norm, added, residual, normed)
            self._attend(index, step, parts.positions, parts.slots, normed, delta)
            self._norm(layer.mlp_norm, delta, residual, normed)
            self._blocks[index](normed, delta, invariant=step.invariant)
            added = delta
        if not step.layout.num_outputs:
            return
        if step.is_decode:
            self._norm(decoder.norm, delta, residual, normed)
            self._output.apply_into(normed, buffers.logits[:num_tokens], invariant=step.invariant)
        else:
            self._head(parts.outputs, step.invariant)
        if step.draws is not None:
            count = step.layout.num_outputs
            sample(buffers.logits[:count], step.draws, self.results.token_ids[:count])

    def _norm(self, norm: RMSNorm, added: Tensor | None, residual: Tensor, out: Tensor) -> None:
        if added is None:
            rms_norm(residual, norm.weight, norm.eps, out)
        else:
            rms_norm(added, norm.weight, norm.eps, out, residual=residual)

    def _attend(self, index: int, step: Step, positions: Tensor, slots: Tensor, x: Tensor, out: Tensor) -> None:
        buffers, block, layer = self.buffers, self.decoder.layers[index].attention, self._layers[index]
        qkv, q, attended = (each[: len(x)] for each in (buffers.qkv, buffers.q, buffers.attended))
        matrix_of(block.qkv).apply_into(x, qkv, invariant=step.invariant)
        q_norm, k_norm = block.q_norm, block.k_norm
        rope_kv(
            qkv, positions, slots, self._angles, layer, q, num_heads=block.num_heads,
            q_weight=None if q_norm is None else q_norm.weight, k_weight=None if k_norm is None else k_norm.weight,
            eps=self.config.norm_eps,
        )  # fmt: skip
        attention(q, layer, self.inputs.tables, step.plans[block.window], block.scale, attended)
        matrix_of(block.out).apply_into(attended.view(len(x), -1), out, invariant=step.invariant)

    def _head(self, tokens: Tensor, invariant: bool) -> None:
        """Logits of ``tokens`` (int32 on the device), of a step that is no decode step."""
        self._gather(tokens)
        normed, logits = self.buffers.head_normed[: len(tokens)], self.buffers.logits[: len(tokens)]
        self._output.apply_into(normed, logits, invariant=invariant)

    def _gather(self, tokens: Tensor) -> None:
        """The last norm over ``tokens``."""
        buffers, norm = self.buffers, self.decoder.norm
        delta, residual, normed = (
            each[: len(tokens)] for each in (buffers.head_delta, buffers.head_residual, buffers.head_normed)
        )
        torch.index_select(buffers.delta, 0, tokens, out=delta)
        torch.index_select(buffers.residual, 0, tokens, out=residual)
        rms_norm(delta, norm.weight, norm.eps, normed, residual=residual)


class StepBuffers:
    """The memory between kernels. Shapes are of the largest step; see the module's drawing."""

    def __init__(
        self, config: ModelConfig, max_tokens: int, max_outputs: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        def make(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        hidden = config.hidden_size
        self.residual = make(max_tokens, hidden, dtype=torch.float32)
        self.delta = make(max_tokens, hidden)
        self.normed = make(max_tokens, hidden)
        self.qkv = make(max_tokens, config.q_size + 2 * config.kv_size)
        self.q = make(max_tokens, config.num_heads, config.head_dim)
        self.attended = make(max_tokens, config.num_heads, config.head_dim)
        self.head_residual = make(max_outputs, hidden, dtype=torch.float32)
        self.head_delta = make(max_outputs, hidden)
        self.head_normed = make(max_outputs, hidden)
        self.logits = make(max_outputs, config.vocab_size, dtype=torch.float32)
