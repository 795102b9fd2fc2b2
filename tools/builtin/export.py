"""Export a checkpoint as an ordinary Hugging Face folder, and check that folder against the training model.

The weights are stored in bfloat16, whose eight significant bits are enough for inference, under the names that
``transformers.Qwen3ForCausalLM`` expects.  The tied output matrix is stored once, as the embedding.

Every file is written beside the folder first and then moved into place, so that a reader never sees half a file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from model import ModelConfig, Qwen3
from safetensors.torch import save_file
from tokenizer import END_OF_TEXT, IM_END, load_tokenizer, render_chat, transformers_config
from transformers import AutoModelForCausalLM, AutoTokenizer

LOGIT_TOLERANCE = 1e-4
ROUND_TRIPS = 200


def model_config(config: ModelConfig, end_of_text: int, im_end: int) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": end_of_text,
        "eos_token_id": im_end,
        "pad_token_id": end_of_text,
    }


def generation_config(end_of_text: int, im_end: int) -> dict[str, Any]:
    return {
        "do_sample": True,
        "temperature": 0.7,
        "top_p": 0.95,
        "bos_token_id": end_of_text,
        "eos_token_id": [im_end, end_of_text],
        "pad_token_id": end_of_text,
    }


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_checkpoint(path: Path) -> Qwen3:
    state = torch.load(path, map_location="cpu", weights_only=False)
    model = Qwen3(ModelConfig(**state["preset"]["model"]))
    model.load_state_dict(state["model"])
    return model.eval()


def write_folder(model: Qwen3, tokenizer_file: Path, folder: Path) -> None:
    """All files but the model card, which is written by hand."""
    tokenizer = load_tokenizer(tokenizer_file)
    end_of_text, im_end = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(IM_END)
    weights = {name: p.detach().to(torch.bfloat16).contiguous() for name, p in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", model_config(model.config, end_of_text, im_end))
    write_json(folder / "generation_config.json", generation_config(end_of_text, im_end))
    write_json(folder / "tokenizer_config.json", transformers_config(model.config.max_positions))
    shutil.copyfile(tokenizer_file, folder / "tokenizer.json")


def check_logits(model: Qwen3, folder: Path) -> float:
    """The largest difference in float32 logits between the training model and transformers, same weights."""
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = Qwen3(model.config).eval()
    ours.load_state_dict({name: p.to(torch.bfloat16).float() for name, p in model.state_dict().items()})
    tokens = torch.randint(model.config.vocab, (2, 256), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (ours(tokens) - theirs(tokens).logits).abs().max().item()
    if difference >= LOGIT_TOLERANCE:
        raise AssertionError(f"logits differ by {difference}")
    return difference


def check_tokenizer(folder: Path) -> None:
    """Any text survives encoding and decoding, and the template renders what the model was trained on."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rng = random.Random(0)
    for _ in range(ROUND_TRIPS):
        points = [rng.randrange(0x20, rng.choice((0x7F, 0x800, 0xD800, 0x11_0000))) for _ in range(40)]
        text = "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
        back = tokenizer.decode(tokenizer.encode(text, add_special_tokens=False))
        if back != text:
            raise AssertionError(f"{text!r} came back as {back!r}")
    messages = [{"role": r, "content": f"the {r}'s turn"} for r in ("system", "user", "assistant")]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    prompted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if rendered != render_chat(messages) or prompted != rendered + "<|im_start|>assistant\n":
        raise AssertionError(f"the chat template renders {prompted!r}")
    try:
        tokenizer.apply_chat_template([{"role": "wizard", "content": ""}], tokenize=False)
    except Exception as error:
        if "unknown role" not in str(error):
            raise
    else:
        raise AssertionError("the chat template accepts an unknown role")


def export(checkpoint: Path, tokenizer_file: Path, out: Path) -> None:
    model = load_checkpoint(checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as temporary:
        folder = Path(temporary)
        write_folder(model, tokenizer_file, folder)
        difference = check_logits(model, folder)
        check_tokenizer(folder)
        for file in sorted(folder.iterdir()):
            file.chmod(0o644)
            os.replace(file, out / file.name)
    total, inner = model.parameter_counts()
    print(f"{out}: {total:,} parameters, {inner:,} outside the embedding; logits within {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Export a checkpoint as a Hugging Face model folder.")
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    export(args.checkpoint, args.tokenizer, args.out)


if __name__ == "__main__":
    main()
