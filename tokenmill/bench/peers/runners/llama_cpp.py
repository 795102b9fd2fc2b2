"""llama.cpp through its C interface: batches of tokens in, logits out, a small continuous batching around it.

Settings are those of its own ``llama-batched-bench``: batches of 2,048 tokens computed 512 at a time, a stream of the
KV cache per sequence, a context just long enough. Its argmax is numpy's, and nothing is turned to text, so the Python
around each step costs microseconds. At most ``SLOTS`` sequences run at once, as on its server; the next takes the place
of one that has ended.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenmill.bench.peers.protocol import Events, Prompts, Setup, serve

BATCH_TOKENS = 2048
MICRO_BATCH_TOKENS = 512
SLOTS = 32
CELLS = 256
"""A stream of the KV cache is a multiple of this."""
QUANTISED = {"int8": "LLAMA_FTYPE_MOSTLY_Q8_0", "int4": "LLAMA_FTYPE_MOSTLY_Q4_0"}
TENSORS = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


class LlamaCpp:
    packages = ("llama-cpp-python", "gguf")

    def __init__(self) -> None:
        self._lib: Any = import_module("llama_cpp")
        self._numpy: Any = import_module("numpy")
        self._lib.llama_backend_init()

    # ---- making the file ---------------------------------------------------------------------------

    def prepare(self, model: Path, precision: str, folder: Path) -> None:
        """A GGUF file in bf16, and for other precisions the library's own quantisation of it, embedding included."""
        full = folder / "bf16.gguf"
        write_gguf(model, full)
        if precision == "bf16":
            full.rename(folder / "model.gguf")
            return
        params = self._lib.llama_model_quantize_default_params()
        params.ftype = getattr(self._lib, QUANTISED[precision])
        params.pure = True
        code = self._lib.llama_model_quantize(str(full).encode(), str(folder / "model.gguf").encode(), params)
        full.unlink()
        if code != 0:
            raise RuntimeError(f"llama_model_quantize answered {code}")

    # ---- running -----------------------------------------------------------------------------------

    def load(self, setup: Setup) -> None:
        path = Path(setup.folder) / "model.gguf"
        self._threads = setup.threads
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"{path} could not be loaded")
        self._vocab_size = self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(self._model))

    def generate(self, prompts: Prompts, outputs: Sequence[int]) -> Events:
        slots = min(SLOTS, len(prompts))
        longest = max(len(prompt) + output for prompt, output in zip(prompts, outputs, strict=True))
        context = self._context(slots, -(-longest // CELLS) * CELLS)
        batch = self._lib.llama_batch_init(BATCH_TOKENS, 0, 1)
        try:
            return self._serve(context, batch, prompts, outputs, slots)
        finally:
            self._lib.llama_batch_free(batch)
            self._lib.llama_free(context)

    def _context(self, slots: int, length: int) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = slots * length
        params.n_seq_max = slots
        params.n_batch = BATCH_TOKENS
        params.n_ubatch = MICRO_BATCH_TOKENS
        params.n_threads = params.n_threads_batch = self._threads
        params.kv_unified = False
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            raise RuntimeError("llama.cpp could not make a context")
        return context

    def _serve(self, context: Any, batch: Any, prompts: Prompts, outputs: Sequence[int], slots: int) -> Events:
        memory = self._lib.llama_get_memory(context)
        waiting = list(range(len(prompts)))[::-1]
        running: dict[int, _Sequence] = {}
        free = list(range(slots))[::-1]
        events = Events()
        while waiting or running:
            while waiting and free:
                index, slot = waiting.pop(), free.pop()
                self._lib.llama_memory_seq_rm(memory, slot, -1, -1)
                running[slot] = _Sequence(list(prompts[index]), outputs[index])
            rows = self._fill(batch, running)
            code = self._lib.llama_decode(context, batch)
            if code != 0:
                raise RuntimeError(f"llama_decode answered {code}")
            for slot, row in rows.items():
                logits = self._lib.llama_get_logits_ith(context, row)
                token = int(self._numpy.ctypeslib.as_array(logits, (self._vocab_size,)).argmax())
                if running[slot].push(token):
                    del running[slot]
                    free.append(slot)
            events.add(len(rows))
        return events

    def _fill(self, batch: Any, running: dict[int, _Sequence]) -> dict[int, int]:
        """Put what is still to be computed into the batch, as far as it holds; slot → row whose logits are wanted."""
        rows, size = {}, 0
        for slot, sequence in sorted(running.items(), key=lambda item: item[1].remaining):
            for _ in range(min(sequence.remaining, BATCH_TOKENS - size)):
                batch.token[size] = sequence.tokens[sequence.computed]
                batch.pos[size] = sequence.computed
                batch.n_seq_id[size] = 1
                batch.seq_id[size][0] = slot
                sequence.computed += 1
                batch.logits[size] = sequence.remaining == 0
                size += 1
            if sequence.remaining == 0:
                rows[slot] = size - 1
        batch.n_tokens = size
        return rows


class _Sequence:
    """One request in a slot."""

    def __init__(self, tokens: list[int], num_wanted: int) -> None:
        self.tokens = tokens
        self.computed = 0
        self._length = len(tokens) + num_wanted

    @property
    def remaining(self) -> int:
        """Tokens still to be computed."""
        return len(self.tokens) - self.computed

    def push(self, token: int) -> bool:
        """Append a new token; True when it was the last."""
        self.tokens.append(token)
        return len(self.tokens) == self._length


def write_gguf(model: Path, path: Path) -> None:
    """The checkpoint as a GGUF file: bf16 matrices, float32 norms, no vocabulary."""
    gguf: Any = import_module("gguf")
    numpy: Any = import_module("numpy")
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, config["model_type"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    for name, (shape, words) in read_bfloat16(model / "model.safetensors", numpy).items():
        if len(shape) == 1:
            values = (words.astype(numpy.uint32) << 16).view(numpy.float32)
            writer.add_tensor(gguf_name(name), values)
            continue
        words = words.reshape(shape)
        if config["model_type"] == "llama" and ("q_proj" in name or "k_proj" in name):
            words = interleave_halves(words, config["head_dim"])
        data = numpy.ascontiguousarray(words).view(numpy.uint8)
        writer.add_tensor(gguf_name(name), data, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(name: str) -> str:
    """``model.layers.3.mlp.up_proj.weight`` → ``blk.3.ffn_up.weight``."""
    parts = name.removeprefix("model.").removesuffix(".weight").split(".")
    if parts[0] == "layers":
        return f"blk.{parts[1]}.{TENSORS['.'.join(parts[2:])]}.weight"
    return {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}[parts[0]] + ".weight"


def interleave_halves(weight: Any, head_dim: int) -> Any:
    """Rows of each head from (first halves, second halves) to pairs: rotary embedding turns neighbours here."""
    rows, columns = weight.shape
    return weight.reshape(rows // head_dim, 2, head_dim // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def read_bfloat16(path: Path, numpy: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Name → (shape, 16-bit words), mapped from a safetensors file that holds bfloat16 alone."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    words = numpy.memmap(path, dtype=numpy.uint16, mode="r", offset=8 + size)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = (tuple(entry["shape"]), words[begin // 2 : end // 2])
    return found


if __name__ == "__main__":
    serve(LlamaCpp())
