"""Measure an exported model: loss on the validation texts, agreement with its draft, and samples to read.

The loss is the mean negative log-likelihood of the next token in nats, over windows of 512 tokens without overlap
(so the average context is 256 tokens).  Nats per token depend on the tokenizer; bits per byte,

    total nats / (ln 2 * bytes of the text),

do not, and can be compared across models.  For the draft, agreement is the share of positions at which its most
likely token is also that of the larger model: roughly what greedy speculative decoding will accept.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from data import validation_windows
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

TEXTS = ("valid", "valid_stories")
LENGTH = 512
ROWS = 8
STARTS = ("Once upon a time", "The king", "One day a little fox")
REQUESTS = (
    "Hello!",
    "Tell me a story about a fox who lost her hat.",
    "Please write a short story with a king, a lantern and a kind mouse.",
)


def load_model(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def batches(windows: np.ndarray) -> list[torch.Tensor]:
    return [torch.from_numpy(windows[i : i + ROWS]) for i in range(0, len(windows), ROWS)]


@torch.no_grad()
def mean_loss(model: PreTrainedModel, windows: np.ndarray) -> float:
    """Nats per token."""
    total = 0.0
    for batch in batches(windows):
        logits = model(batch[:, :-1]).logits
        total += F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
    return total / (windows.shape[0] * (windows.shape[1] - 1))


@torch.no_grad()
def agreement(model: PreTrainedModel, draft: PreTrainedModel, windows: np.ndarray) -> float:
    same = [
        (model(b[:, :-1]).logits.argmax(-1) == draft(b[:, :-1]).logits.argmax(-1)).float().mean().item()
        for b in batches(windows)
    ]
    return float(np.mean(same))


def bytes_per_token(tokenizer: PreTrainedTokenizerBase, tokens: np.ndarray) -> float:
    text = tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False)
    return len(text.encode("utf-8")) / len(tokens)


@torch.no_grad()
def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, seed: int) -> str:
    torch.manual_seed(seed)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    out = model.generate(ids, max_new_tokens=400, do_sample=True, temperature=0.7, top_p=0.95)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def chat_prompt(tokenizer: PreTrainedTokenizerBase, request: str) -> str:
    messages = [{"role": "user", "content": request}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure an exported model.")
    parser.add_argument("--model", type=Path, required=True, help="exported folder")
    parser.add_argument("--data", type=Path, required=True, help="folder written by prepare.py")
    parser.add_argument("--draft", type=Path, help="exported folder of the draft model")
    parser.add_argument("--samples", type=int, default=1, help="samples per prompt")
    args = parser.parse_args()
    model, tokenizer = load_model(args.model), AutoTokenizer.from_pretrained(args.model)
    for name in TEXTS:
        tokens = np.load(args.data / f"{name}.npy")
        windows = validation_windows(tokens, LENGTH)
        loss = mean_loss(model, windows)
        row = {
            "text": name,
            "tokens": len(tokens),
            "nats_per_token": round(loss, 4),
            "bits_per_byte": round(loss / math.log(2) / bytes_per_token(tokenizer, tokens), 4),
        }
        if args.draft:
            row["draft_agreement"] = round(agreement(model, load_model(args.draft), windows[: 8 * ROWS]), 4)
        print(json.dumps(row), flush=True)
    prompts = [*STARTS, *(chat_prompt(tokenizer, r) for r in REQUESTS)]
    for prompt in prompts:
        for seed in range(args.samples):
            print(f"\n=== {prompt}\n{sample(model, tokenizer, prompt, seed)}", flush=True)


if __name__ == "__main__":
    main()
