"""The tokenizer of the built-in models: byte-level byte-pair encoding, and ChatML.

Byte-pair encoding starts from single symbols and merges, again and again, the most frequent adjacent pair in the
training text into a new symbol.  Working on bytes (each shown as one printable character) leaves nothing
unknown: all 256 bytes are in the alphabet, so any UTF-8 text can be encoded and comes back unchanged.  Text is
first cut into words with their leading space, so that no merge crosses a word boundary.

ChatML frames a conversation as ``<|im_start|>role\\n content <|im_end|>\\n`` per turn.  ``<|endoftext|>``
separates documents.  The three special tokens have the first ids; they are never produced from ordinary text
by training, only by the template or by an explicit spelling in the input.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('unknown role: ' ~ message.role) -}}
{%- endif -%}
{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def transformers_config(max_positions: int) -> dict[str, Any]:
    """The contents of ``tokenizer_config.json``."""
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "added_tokens_decoder": {str(i): {"content": t} | special for i, t in enumerate(SPECIAL_TOKENS)},
        "add_prefix_space": False,
        "bos_token": END_OF_TEXT,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }


def render_chat(messages: list[dict[str, str]]) -> str:
    """What ``CHAT_TEMPLATE`` gives for a whole conversation, for the training text."""
    return "".join(f"{IM_START}{m['role']}\n{m['content']}{IM_END}\n" for m in messages)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the tokenizer on a text file of documents.")
    parser.add_argument("--data", type=Path, required=True, help="folder that holds train_simple.txt")
    parser.add_argument("--out", type=Path, required=True, help="where to write tokenizer.json")
    args = parser.parse_args()
    text = (args.data / "train_simple.txt").read_text(encoding="utf-8")
    documents = text.split(f"\n{END_OF_TEXT}\n")
    tokenizer = train_tokenizer(documents)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out))
    sample = "".join(documents[:100])
    print(
        json.dumps(
            {
                "vocab": tokenizer.get_vocab_size(),
                "bytes_per_token": len(sample.encode()) / len(tokenizer.encode(sample).ids),
            }
        )
    )


if __name__ == "__main__":
    main()
