"""``CompiledModel``: a decoder laid out once as a program of CPU kernels, then run by one call per step.

A layer is seven to nine calls on buffers that all layers share (T tokens, S outputs wanted)::

    x ─ rms_norm ─ linear qkv ─ rope_kv ─ attention ─ linear out (adds to x) ─ rms_norm ─ linear gate-up, SwiGLU
                                                                             ─ linear down (adds to x)

``x``, the residual stream, is float32. What a product reads is bf16, or with 8- and 4-bit weights 8-bit integers with
a scale per group: the norms write these themselves, for attention and SwiGLU ``quantize`` does. Where a layer has
experts, ``compiled_experts`` draws what comes after attention. After the layers the *head* (norm, output matrix) runs
over the tokens whose logits are wanted, and ``choose`` finds the next token of those who want nothing but the likeliest
or a plain draw. Every kernel reduces in one order, so a token's logits do not depend on which tokens share its step.

The program knows no batch size; what changes is in the ``Step`` record. Buffers are as large as the largest step and
are handed out by the system page by page as they are touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenmill.core.model_config import ModelConfig
from tokenmill.core.precision import GROUPS
from tokenmill.kernels.cpu.kv import PagedKV
from tokenmill.kernels.cpu.library import Pool
from tokenmill.kernels.cpu.memory import Buffer
from tokenmill.kernels.cpu.program import Program
from tokenmill.kernels.cpu.records import (
    AttentionArgs,
    ChooseArgs,
    EmbeddingArgs,
    Epilogue,
    LinearArgs,
    QuantizeArgs,
    Quantized,
    RmsNormArgs,
    RopeKvArgs,
    Rows,
    Step,
    Weight,
)
from tokenmill.models.decoder import Decoder, Layer
from tokenmill.models.layers.experts import Experts
from tokenmill.models.layers.norm import RMSNorm
from tokenmill.models.quantization.base import LinearMethod, Unquantized
from tokenmill.models.quantization.packed import Packed
from tokenmill.models.quantization.packed_experts import PackedStack
from tokenmill.runtime.compiled_experts import ExpertBuffers, packed_experts, write_experts
from tokenmill.runtime.step_model import Draws, InPlace
from tokenmill.runtime.table import Row

Ints = NDArray[np.int32]


class CompiledModel(InPlace):
    """A ``StepModel`` over a decoder whose matrices are ``Packed``.

    Args:
        decoder: with its weights loaded.
        kv: the pool; nothing else may write it.
        pool: the threads to run on.
        max_tokens: most tokens of a step.
        max_outputs: most tokens whose logits are wanted at once.
    """

    def __init__(self, decoder: Decoder, kv: PagedKV, pool: Pool, *, max_tokens: int, max_outputs: int) -> None:
        self.decoder = decoder
        self.kv = kv
        self.pool = pool
        self.buffers = StepBuffers(decoder.config, max_tokens, max_outputs)
        self._inputs = _Inputs(max_tokens, max_outputs, kv.block_size)
        self._step = Step()
        self._outputs: list[int] = []
        layout = Layout(decoder, kv, self.buffers)
        self.program = Program(pool.library)
        layout.write_layers(self.program)
        self._head = len(self.program)
        layout.write_head(self.program)
        self.choice = Program(pool.library)
        layout.write_choice(self.choice)

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

    def forward(self, rows: Sequence[Row], outputs: Sequence[int]) -> None:
        self._step = self._inputs.step(rows)
        self._set_outputs(outputs)
        self.program.run(self.pool, self._step, end=None if self._outputs else self._head)

    def logits(self, tokens: Sequence[int]) -> Tensor:
        if list(tokens) != self._outputs:
            self._set_outputs(tokens)
            self.program.run(self.pool, self._step, self._head)
        self._outputs = [-1]  # the caller may write to what it gets
        return torch.from_numpy(self.buffers.logits[: len(tokens)])

    @torch.inference_mode()
    def hidden(self, tokens: Sequence[int]) -> Tensor:
        """From the residual stream, which stays: in float32, not in the form that the output matrix reads."""
        return self.decoder.norm(torch.from_numpy(self.buffers.residual[list(tokens)]))

    def choose(self, draws: Draws | None) -> Sequence[int]:
        self.buffers.set_draws(len(self._outputs), draws)
        self.choice.run(self.pool, self._step)
        chosen: list[int] = self.buffers.chosen[: len(self._outputs)].tolist()
        return chosen

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        self.kv.copy_blocks(pairs, self.pool.library, self.pool)

    def poison(self, block_ids: Iterable[int]) -> None:
        self.kv.poison(block_ids)

    def _set_outputs(self, tokens: Sequence[int]) -> None:
        assert len(tokens) <= self.buffers.max_outputs, f"logits of {len(tokens)} tokens are wanted at once"
        self._outputs = list(tokens)
        self._inputs.set_outputs(self._step, self._outputs)


class StepBuffers:
    """The memory between kernels. Shapes are of the largest step; see the module's drawing."""

    def __init__(self, config: ModelConfig, max_tokens: int, max_outputs: int) -> None:
        self.max_tokens, self.max_outputs = max_tokens, max_outputs
        self._memory: list[Buffer] = []
        dense_size = config.intermediate_size if config.num_dense_layers else 0
        width = max(config.hidden_size, config.q_size, dense_size)
        rows = max(max_tokens, max_outputs)
        self.x = self._take(max_tokens * config.hidden_size * 4)
        self.residual = self._memory[-1].array(np.float32, (max_tokens, config.hidden_size))
        self.normed = self._take(rows * config.hidden_size * 2)
        self.qkv = self._take(max_tokens * (config.q_size + 2 * config.kv_size) * 4)
        self.q = self._take(max_tokens * config.q_size * 2)
        self.attended = self._take(max_tokens * config.q_size * 2)
        self.inner = self._take(max_tokens * dense_size * 2)
        self.quantized = Quantized(
            self._take(rows * width),
            self._take(rows * -(-width // GROUPS[-1]) * 4),
            self._take(rows * -(-width // GROUPS[-1]) * 4),
        )
        experts = config.experts
        self.experts = ExpertBuffers(config, experts, max_tokens, self._take) if experts is not None else None
        self._take(max_outputs * config.vocab_size * 4)
        self.logits = self._memory[-1].array(np.float32, (max_outputs, config.vocab_size))
        self.draws = Draws(
            np.zeros(max_outputs, np.float32),
            np.zeros(max_outputs, np.float64),
            np.zeros(max_outputs, np.int32),
            np.ones(max_outputs, np.float32),
            np.zeros(max_outputs, np.float32),
        )
        self.chosen = np.zeros(max_outputs, np.int32)

    def set_draws(self, count: int, draws: Draws | None) -> None:
        mine = self.draws
        if draws is None:
            mine.temperatures[:count] = 0.0
            return
        mine.temperatures[:count] = draws.temperatures
        mine.uniforms[:count] = draws.uniforms
        mine.top_ks[:count] = draws.top_ks
        mine.top_ps[:count] = draws.top_ps
        mine.min_ps[:count] = draws.min_ps

    def _take(self, num_bytes: int) -> int:
        self._memory.append(Buffer.allocate(num_bytes))
        return self._memory[-1].address

    @property
    def num_bytes(self) -> int:
        return sum(buffer.num_bytes for buffer in self._memory)


class Layout:
    """Writes a decoder as calls of kernels."""

    def __init__(self, decoder: Decoder, kv: PagedKV, buffers: StepBuffers) -> None:
        self.decoder, self.kv, self.buffers = decoder, kv, buffers

    def write_layers(self, program: Program) -> None:
        """Token ids to ``x``."""
        self._embedding(program)
        for index, layer in enumerate(self.decoder.layers):
            self._attention(program, layer, index)
            self._mlp(program, layer)

    def write_head(self, program: Program) -> None:
        """``x`` to logits."""
        output = _packed(self.decoder.lm_head.method)
        self._norm(program, self.decoder.norm, output, Rows.OUTPUTS)
        logits = self.buffers.logits.ctypes.data
        self._linear(program, output, self.buffers.normed, logits, Epilogue.STORE, Rows.OUTPUTS)

    def write_choice(self, program: Program) -> None:
        """Logits to tokens."""
        draws = self.buffers.draws
        filters = (draws.top_ks, draws.top_ps, draws.min_ps)
        arrays = (self.buffers.logits, draws.temperatures, draws.uniforms, *filters, self.buffers.chosen)
        addresses = (array.ctypes.data for array in arrays)
        program.add("choose", ChooseArgs(*addresses, self.decoder.config.vocab_size))

    def _embedding(self, program: Program) -> None:
        method, size = self.decoder.embedding.method, self.decoder.config.hidden_size
        if isinstance(method, Unquantized):
            assert method.weight.dtype == torch.bfloat16
            args = EmbeddingArgs(method.weight.data_ptr(), Weight(), self.buffers.x, size)
        else:
            args = EmbeddingArgs(None, _packed(method).record(), self.buffers.x, size)
        program.add("embedding", args)

    def _attention(self, program: Program, layer: Layer, index: int) -> None:
        attention, buffers, rotary = layer.attention, self.buffers, self.decoder.rotary
        qkv, out = _packed(attention.qkv.method), _packed(attention.out.method)
        self._norm(program, layer.attention_norm, qkv)
        self._linear(program, qkv, buffers.normed, buffers.qkv, Epilogue.STORE)
        cache = self.kv.record(index)
        norms = (attention.q_norm, attention.k_norm)
        program.add(
            "rope_kv",
            RopeKvArgs(
                buffers.qkv,
                *(norm.weight.data_ptr() if norm is not None else None for norm in norms),
                rotary.cos.data_ptr(),
                rotary.sin.data_ptr(),
                buffers.q,
                cache,
                attention.num_heads,
                self.decoder.config.norm_eps,
            ),
        )
        window = attention.window or 0
        attended = AttentionArgs(buffers.q, cache, buffers.attended, attention.num_heads, window, attention.scale)
        program.add("attention", attended)
        self._quantize(program, out, buffers.attended)
        self._linear(program, out, buffers.attended, buffers.x, Epilogue.ADD)

    def _mlp(self, program: Program, layer: Layer) -> None:
        if isinstance(layer.mlp, Experts):
            self._experts(program, layer, layer.mlp)
            return
        gate_up, down = _packed(layer.mlp.gate_up.method), _packed(layer.mlp.down.method)
        self._norm(program, layer.mlp_norm, gate_up)
        self._linear(program, gate_up, self.buffers.normed, self.buffers.inner, Epilogue.SWIGLU)
        self._quantize(program, down, self.buffers.inner)
        self._linear(program, down, self.buffers.inner, self.buffers.x, Epilogue.ADD)

    def _experts(self, program: Program, layer: Layer, mlp: Experts) -> None:
        buffers, routed, router = self.buffers, self.buffers.experts, _packed(mlp.router.method)
        assert routed is not None
        self._norm(program, layer.mlp_norm, router)
        self._linear(program, router, buffers.normed, routed.logits, Epilogue.STORE)
        reader = packed_experts(mlp).gate_up
        if reader.input_group:
            self._norm(program, layer.mlp_norm, reader)
        write_experts(program, mlp, routed, buffers.normed, buffers.quantized, buffers.x)

    def _norm(self, program: Program, norm: RMSNorm, reader: Packed | PackedStack, rows: Rows = Rows.TOKENS) -> None:
        """The norm before ``reader``, in the form that it reads."""
        assert norm.weight.dtype == torch.float32
        buffers, size = self.buffers, norm.weight.shape[0]
        program.add(
            "rms_norm",
            RmsNormArgs(
                buffers.x,
                norm.weight.data_ptr(),
                buffers.normed,
                buffers.quantized,
                size,
                reader.input_group,
                norm.eps,
                rows,
            ),
        )

    def _quantize(self, program: Program, reader: Packed, x: int) -> None:
        """Nothing where ``reader`` reads bf16."""
        if reader.input_group:
            program.add("quantize", QuantizeArgs(x, self.buffers.quantized, reader.in_size, reader.input_group, 1))

    def _linear(
        self, program: Program, method: Packed, x: int, out: int, epilogue: Epilogue, rows: Rows = Rows.TOKENS
    ) -> None:
        args = LinearArgs(method.record(), method.bias_address, x, self.buffers.quantized, out, epilogue, rows)
        program.add(method.kernel, args)


def _packed(method: LinearMethod) -> Packed:
    assert isinstance(method, Packed)
    return method


class _Inputs:
    """The arrays of a ``Step``, kept from step to step."""

    def __init__(self, max_tokens: int, max_outputs: int, block_size: int) -> None:
        self._block_size = block_size
        self._token_ids = np.zeros(max_tokens, np.int32)
        self._positions = np.zeros(max_tokens, np.int32)
        self._slots = np.zeros(max_tokens, np.int32)
        self._row_begin = np.zeros(max_tokens + 1, np.int32)
        self._tables: Ints = np.zeros((0, 0), np.int32)
        self._outputs: Ints = np.zeros(max_outputs, np.int32)
        arrays = (self._token_ids, self._positions, self._slots, self._row_begin)
        self._addresses = tuple(array.ctypes.data for array in arrays)  # asking NumPy takes a microsecond each
        self._tables_address = 0
        self._outputs_address = self._outputs.ctypes.data

    def step(self, rows: Sequence[Row]) -> Step:
        """The record of a step; valid until the next call."""
        stride = max((len(row.entry.block_ids) for row in rows), default=0)
        if self._tables.shape[0] < len(rows) or self._tables.shape[1] < stride:
            # Room for twice as much, so that growing contexts seldom come here.
            self._tables = np.zeros((2 * len(rows), 2 * stride), np.int32)
            self._tables_address = self._tables.ctypes.data
        tables, begin = self._tables, 0
        for index, row in enumerate(rows):
            start, end, blocks = row.start, row.end, row.entry.block_ids
            tables[index, : len(blocks)] = blocks
            self._row_begin[index] = begin
            count = end - start
            if count == 1:
                self._token_ids[begin] = row.entry.token_ids[start]
                self._positions[begin] = start
                self._slots[begin] = blocks[start // self._block_size] * self._block_size + start % self._block_size
            else:
                positions = np.arange(start, end, dtype=np.int32)
                self._token_ids[begin : begin + count] = row.entry.token_ids[start:end]
                self._positions[begin : begin + count] = positions
                in_block = tables[index, positions // self._block_size] * self._block_size
                self._slots[begin : begin + count] = in_block + positions % self._block_size
            begin += count
        self._row_begin[len(rows)] = begin
        return Step(begin, len(rows), 0, tables.shape[1], *self._addresses, self._tables_address, None)

    def set_outputs(self, step: Step, tokens: list[int]) -> None:
        self._outputs[: len(tokens)] = tokens
        step.num_outputs = len(tokens)
        step.outputs = self._outputs_address
