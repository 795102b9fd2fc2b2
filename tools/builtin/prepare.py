"""Text to token streams: trains the tokenizer, if there is none yet, and encodes every source of the mix.

Sources: the books and storybooks, generated stories, and conversations (human and generated) in ChatML, on which
the loss will cover every token, the user's turns too.  Documents are held apart by ``<|endoftext|>``.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import stories
from tokenizer import END_OF_TEXT, load_tokenizer, render_chat, train_tokenizer
from tokenizers import Tokenizer

SEPARATOR = f"\n{END_OF_TEXT}\n"
SMALL_TALK = ("chatterbot-corpus/greetings", "chatterbot-corpus/conversations")
STORY_REQUESTS = ("story-request/storybooks", "story-request/classics")
PASSAGE_LIMIT = 1200  # characters of a FairytaleQA passage: longer ones are mostly prompt and little answer
ENCODE_BATCH = 2000
VALID_SEED_OFFSET = 1_000_003


def split_documents(text: str) -> list[str]:
    return [d.strip() for d in text.split(SEPARATOR) if d.strip()]


def encode_documents(tokenizer: Tokenizer, documents: Iterable[str]) -> np.ndarray:
    """One stream of ids with ``<|endoftext|>`` after every document."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    documents = list(documents)
    parts: list[np.ndarray] = []
    for first in range(0, len(documents), ENCODE_BATCH):
        for encoding in tokenizer.encode_batch(documents[first : first + ENCODE_BATCH]):
            parts.append(np.array([*encoding.ids, end], dtype=np.uint16))
    return np.concatenate(parts)


def human_conversations(path: Path) -> Iterator[list[dict[str, str]]]:
    """The conversations of ``chat.jsonl`` that suit a teller of tales."""
    with path.open(encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            messages = row["messages"]
            short_passage = row["source"] == "FairytaleQA" and len(messages[0]["content"]) <= PASSAGE_LIMIT
            wanted = row["source"] in STORY_REQUESTS or row["source"] in SMALL_TALK or short_passage
            if wanted and row["split"] == "train":
                yield messages


def chat_documents(path: Path, generated: int, seed: int) -> list[str]:
    """Human and generated conversations together, shuffled, as ChatML text."""
    conversations = [*human_conversations(path), *stories.conversations(generated, seed)]
    random.Random(seed).shuffle(conversations)
    return [render_chat(c) for c in conversations]


def prepare(text: Path, out: Path, generated_stories: int, generated_chats: int, seed: int) -> None:
    """Write the tokenizer, if there is none yet, and the token stream of every source."""
    out.mkdir(parents=True, exist_ok=True)
    books = split_documents((text / "train_simple.txt").read_text(encoding="utf-8"))
    tokenizer_file = out / "tokenizer.json"
    if not tokenizer_file.exists():
        train_tokenizer(books).save(str(tokenizer_file))
    tokenizer = load_tokenizer(tokenizer_file)
    valid = split_documents((text / "valid_simple.txt").read_text(encoding="utf-8"))
    sources = {
        "books": books,
        "valid": valid,
        "stories": stories.generate(generated_stories, seed),
        "valid_stories": stories.generate(1000, seed + VALID_SEED_OFFSET),
        "chat": chat_documents(text / "chat.jsonl", generated_chats, seed),
    }
    for name, documents in sources.items():
        stream = encode_documents(tokenizer, documents)
        np.save(out / f"{name}.npy", stream)
        print(f"{name}: {len(stream):,} tokens")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokenise the training text.")
    parser.add_argument(
        "--text", type=Path, required=True, help="folder with train_simple.txt, valid_simple.txt and chat.jsonl"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json and *.npy")
    parser.add_argument("--stories", type=int, default=40_000, help="how many stories to generate")
    parser.add_argument("--chats", type=int, default=20_000, help="how many conversations to generate")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    prepare(args.text, args.out, args.stories, args.chats, args.seed)


if __name__ == "__main__":
    main()
