"""Writes tokenmill/perf/models/catalogue.json: the architecture facts of every model that is known by name.

Usage: python tools/calibration/make_models.py ../shared/data/configs

Facts come from ``config.json`` files (a folder of them, with PROVENANCE.tsv) and, for models that are older than that
habit or missing there, from the tables below, each with its source. Only numbers and words that decide shapes are kept.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tokenmill.perf.models import normalise

TARGET = Path("tokenmill/perf/models/catalogue.json")

DROPPED = (
    "token_id", "rope_", "rotary", "norm_eps", "epsilon", "initializer", "dropout", "_pdrop", "auto_map", "version", "architectures",
    "vision", "summary", "use_cache", "bad_words", "begin_suppress", "beam", "penalty", "do_sample", "label", "output_", "return_dict",
    "router_aux", "aux_loss", "task_specific", "temperature", "top_p", "top_k_", "torchscript", "chunk_size_feed", "diversity",
    "early_stopping", "encoder_no", "finetuning", "forced_", "length_penalty", "min_length", "max_length", "ngram", "prefix", "problem",
    "pruned", "pretraining", "tokenizer", "is_decoder", "is_encoder", "cross_attention", "suppress", "mamba_dt", "time_step",
    "routed_scaling", "scoring_func", "topk_method", "_name_or_path", "dtype", "quantization_config", "image", "video", "audio", "attn_implementation",
    "tie_encoder", "tf_legacy", "use_bfloat16", "rescale", "residual_in", "seq_aux", "norm_topk", "logits_to_keep", "prefill_chunk", "context_window",
    "attention_sink", "transformers", "bos", "eos", "pad_token", "unk", "sep_token", "processor", "projector",
)  # fmt: skip

KEPT = ("qk_rope_head_dim", "num_hidden_layers", "top_k_experts")

# Our name → (file in the folder, further names). Names are compared without case, punctuation and the words
# instruct, chat, hf, it (`tokenmill/perf/models`).
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "Llama-2-7b": ("mlc-llama2_7b", ("llama2-7b", "Llama-2 6.74B", "LLaMA 7B", "Llama 6.74B", "llama-7b")),
    "Llama-2-13b": ("mlc-llama2_13b", ("llama2-13b", "LLaMA 13B")),
    "Llama-2-70b": ("mlc-llama2_70b", ("llama2-70b", "Llama-2 69B", "LLaMA 70B", "Llama-2 70B")),
    "Llama-3.1-8B": ("Meta-Llama-3.1-8B", ("Llama-3-8B", "Meta-Llama-3-8B", "LLaMA v3 8B", "Llama-3.1-8B-FP8", "Llama-3.1-8B-NVFP4", "Llama-3.1-8B-FP4", "llama3.1-8b-edge")),
    "Llama-3.1-70B": (
        "Meta-Llama-3.1-70B",
        ("Llama-3-70B", "Meta-Llama-3-70B", "Llama-3.3-70B", "LLaMA v3 70B", "Llama-3.1-70B-FP8", "Llama-3.3-70B-FP8", "Llama-3.3-70B-NVFP4", "Llama-3.3-70B-FP4", "Llama-3.1-Nemotron-70B"),
    ),
    "Llama-3.1-405B": ("Meta-Llama-3.1-405B", ("Llama-3.1-405B-FP8", "Llama-3.1-405B-NVFP4", "Llama-3.1-405B-FP4")),
    "Llama-3.2-1B": ("mlc-llama3_2_1b", ()),
    "Llama-3.2-3B": ("mlc-llama3_2_3b", ()),
    "CodeLlama-7b": ("mlc-codellama_7b", ()),
    "CodeLlama-13b": ("mlc-codellama_13b", ()),
    "CodeLlama-34b": ("mlc-codellama_34b", ("CodeLlama 33.7B",)),
    "GPT-J-6B": ("mlc-gpt_j", ("gptj", "GPT-J", "GPT J 6B")),
    "Mistral-7B-v0.1": ("mlc-mistral_7b", ("Mistral 7B",)),
    "Mistral-7B-v0.2": ("mlc-mistral_7b_v03", ("Mistral-7B-v0.3",)),
    "Mixtral-8x7B": ("Mixtral-8x7B-v0.1", ("Mixtral-8x7B-v0.1",)),
    "Mixtral-8x22B": ("Mixtral-8x22B-v0.1", ("Mixtral-8x22B-v0.1",)),
    "TinyLlama-1.1B": ("mlc-tinyllama_1b_chat_v1.0", ("TinyLlama",)),
    "Qwen2.5-7B": ("isim-qwen2.5-7b-instruct", ("Qwen2-7B",)),
    "Qwen2.5-0.5B": ("mlc-qwen2_0_5b", ("Qwen2-0.5B",)),
    "Qwen2.5-1.5B": ("mlc-qwen2_1_5b", ("Qwen2-1.5B",)),
    "Qwen2.5-3B": ("mlc-qwen2.5_3b", ()),
    "Qwen3-14B": ("isim-qwen3-14b", ()),
    "Qwen3-32B": ("Qwen3-32B", ("Qwen3-32B-FP8", "Qwen3-32B-NVFP4")),
    "Yi-34B": ("isim-yi-34b", ()),
    "Mistral-Nemo-12B": ("isim-mistral-nemo-instruct-2407", ("Mistral-Nemo-2407",)),
    "Qwen3-30B-A3B": ("Qwen3-30B-A3B", ("Qwen3-30B-A3B-2507", "Qwen3-30B-A3B-FP8", "Qwen3-30B-A3B-NVFP4", "Qwen3-30B")),
    "Qwen3-235B-A22B": ("Qwen3-235B-A22B", ("Qwen3-235B-A22B-FP8", "Qwen3-235B-A22B-NVFP4", "Qwen3-235B", "Qwen3-235B-A22B-2507")),
    "Qwen3-Coder-480B-A35B": ("Qwen3-Coder-480B-A35B-Instruct", ("Qwen3-Coder-480B",)),
    "Qwen3.5-397B-A17B": ("Qwen3.5-397B-A17B", ("Qwen3.5-397B", "Qwen3.5-397B-A17B-FP8", "Qwen3.5-397B-A17B-NVFP4")),
    "DeepSeek-V3": ("DeepSeek-V3", ("DeepSeek-V3-0324", "DeepSeek-V3.1", "DeepSeek-V3.1-NVFP4")),
    "DeepSeek-R1": ("DeepSeek-R1", ("DeepSeek-R1-0528", "DeepSeek-R1-NVFP4", "DeepSeek-R1-FP4", "DeepSeek-R1-0528-FP4", "DeepSeek-R1-0528-NVFP4", "DeepSeek-R1-0528-FP4-v2")),
    "DeepSeek-V2-Lite": ("isim-deepseek-v2-lite", ()),
    "Kimi-K2.5": ("Kimi-K2.5", ("Kimi-K2.5-NVFP4", "Kimi-K2.5-FP4")),
    "Kimi-K2": ("Kimi-K2-Instruct", ("Kimi-K2-Thinking",)),
    "MiniMax-M2.5": ("MiniMax-M2.5", ("MiniMax-M2.1", "MiniMax-M2", "MiniMax-M2.7", "MiniMax-M2.5-NVFP4")),
    "GLM-5": ("GLM-5", ("GLM-5-FP8", "GLM-5-NVFP4")),
    "Llama-4-Scout": ("Llama-4-Scout-17B-16E-Instruct", ("Llama 4 Scout", "Llama-4-Scout-17B-16E", "Llama-4-Scout-109B")),
    "Llama-4-Maverick": ("Llama-4-Maverick-17B-128E-Instruct", ("Llama 4 Maverick", "Llama-4-Maverick-17B-128E", "Llama-4-Maverick-400B")),
    "gpt-oss-120b": ("gpt-oss-120b", ()),
    "gpt-oss-20b": ("gpt-oss-20b", ()),
    "Nemotron-3-Nano-30B-A3B": ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", ("NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", "Nemotron-3-Nano-30B-A3B-FP8", "Nemotron-3-Nano")),
    "Nemotron-3-Super-120B-A12B": (
        "NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4",
        ("Nemotron-3-Super-120B-A12B-NVFP4", "NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4", "Nemotron-3-Super-120B-A12B-FP8", "Nemotron-3-Super"),
    ),
    "Qwen3-VL-235B-A22B": ("Qwen3-VL-235B-A22B-Instruct", ("Qwen3-VL-235B",)),
}  # fmt: skip

LLAMA = {"model_type": "llama", "hidden_act": "silu", "tie_word_embeddings": False}
WRITTEN: dict[str, tuple[dict[str, Any], tuple[str, ...], str]] = {
    "LLaMA-30B": (
        LLAMA | {"hidden_size": 6656, "intermediate_size": 17920, "num_hidden_layers": 60, "num_attention_heads": 52,
                 "num_key_value_heads": 52, "vocab_size": 32000, "max_position_embeddings": 2048},
        ("Llama 32.5B", "LLaMA 33B"),
        "Touvron et al. 2023, table 2",
    ),
    "LLaMA-65B": (
        LLAMA | {"hidden_size": 8192, "intermediate_size": 22016, "num_hidden_layers": 80, "num_attention_heads": 64,
                 "num_key_value_heads": 64, "vocab_size": 32000, "max_position_embeddings": 2048},
        ("Llama 65.2B", "LLaMA 65B"),
        "Touvron et al. 2023, table 2",
    ),
    "OpenLlama-3B": (
        LLAMA | {"hidden_size": 3200, "intermediate_size": 8640, "num_hidden_layers": 26, "num_attention_heads": 32,
                 "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 2048},
        ("OpenLlama 3.4B", "open_llama_3b", "OpenLlama 3B"),
        "model card of open_llama_3b",
    ),
    "InternLM-20B": (
        LLAMA | {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 60, "num_attention_heads": 40,
                 "num_key_value_heads": 40, "vocab_size": 103168, "max_position_embeddings": 4096},
        ("internlm-20b",),
        "model card of internlm-20b",
    ),
    "Qwen2.5-32B": (
        LLAMA | {"model_type": "qwen2", "hidden_size": 5120, "intermediate_size": 27648, "num_hidden_layers": 64, "num_attention_heads": 40,
                 "num_key_value_heads": 8, "vocab_size": 152064, "max_position_embeddings": 32768},
        (),
        "Qwen2.5 technical report, table 1",
    ),
    "Qwen2.5-72B": (
        LLAMA | {"model_type": "qwen2", "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80, "num_attention_heads": 64,
                 "num_key_value_heads": 8, "vocab_size": 152064, "max_position_embeddings": 32768},
        ("Qwen2-72B",),
        "Qwen2.5 technical report, table 1",
    ),
    "Falcon-180B": (
        {"model_type": "falcon", "hidden_size": 14848, "num_hidden_layers": 80, "num_attention_heads": 232, "num_kv_heads": 8,
         "num_key_value_heads": 8, "new_decoder_architecture": True, "ffn_hidden_size": 59392, "intermediate_size": 59392,
         "vocab_size": 65024, "max_position_embeddings": 2048, "tie_word_embeddings": True},
        ("Falcon 180B",),
        "Almazrouei et al. 2023",
    ),
    "Falcon-40B": (
        {"model_type": "falcon", "hidden_size": 8192, "num_hidden_layers": 60, "num_attention_heads": 128, "num_kv_heads": 8,
         "num_key_value_heads": 8, "new_decoder_architecture": True, "ffn_hidden_size": 32768, "intermediate_size": 32768,
         "vocab_size": 65024, "max_position_embeddings": 2048, "tie_word_embeddings": True},
        ("Falcon 40B",),
        "Almazrouei et al. 2023",
    ),
    "BLOOM-176B": (
        {"model_type": "bloom", "hidden_size": 14336, "num_hidden_layers": 70, "num_attention_heads": 112, "num_key_value_heads": 112,
         "intermediate_size": 57344, "vocab_size": 250880, "max_position_embeddings": 2048, "tie_word_embeddings": True},
        ("bloom", "BLOOM 176B"),
        "Le Scao et al. 2022, table 3",
    ),
    "Hy3": (
        {"model_type": "hy_v3", "hidden_size": 4096, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
         "head_dim": 128, "intermediate_size": 13312, "moe_intermediate_size": 1536, "num_experts": 192, "num_experts_per_tok": 8,
         "n_shared_experts": 1, "first_k_dense_replace": 1, "vocab_size": 120832, "max_position_embeddings": 262144, "tie_word_embeddings": False,
         "hidden_act": "silu"},
        ("Hy3-preview", "Hunyuan-3"),
        "Hy3-preview's model card and documentation (295B in total, 21B active)",
    ),
}  # fmt: skip


def reduced(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that decide shapes."""
    kept = {}
    for key, value in config.items():
        if any(word in key for word in DROPPED) and key not in KEPT:
            continue
        if isinstance(value, dict):
            if key in ("text_config", "llm_config", "language_config"):
                kept[key] = reduced(value)
        elif value is not None:
            kept[key] = value
    return kept


def main(folder: Path) -> None:
    provenance = {}
    for line in (folder / "PROVENANCE.tsv").read_text().splitlines()[1:]:
        fields = line.split("\t")
        provenance[fields[0]] = f"config.json in {fields[11]} @{fields[12][:8]}"
    models: dict[str, Any] = {}
    used = set()
    for name, (file, aliases) in FILES.items():
        used.add(file)
        config = reduced(json.loads((folder / f"{file}.json").read_text()))
        models[name] = {"aliases": list(aliases), "source": provenance.get(file, ""), "config": config}
    for name, (config, aliases, source) in WRITTEN.items():
        models[name] = {"aliases": list(aliases), "source": source, "config": config}
    taken = {normalise(text) for name, entry in models.items() for text in (name, *entry["aliases"])}
    for path in sorted(folder.glob("*.json")):
        stem = path.stem
        if stem in used or "reduced" in stem or "bert" in stem or "arctic-embed" in stem or "rwkv" in stem:
            continue
        name = stem.removeprefix("mlc-").removeprefix("isim-").removeprefix("lss-").removeprefix("frontier-")
        if normalise(name) in taken:
            continue
        taken.add(normalise(name))
        models[name] = {
            "aliases": [],
            "source": provenance.get(stem, ""),
            "config": reduced(json.loads(path.read_text())),
        }
    lines = [f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}" for name, entry in models.items()]
    TARGET.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{len(models)} models, {TARGET.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
