"""The built-in language models: small enough to ship, real enough to run every part of the engine.

``story`` tells simple stories and answers in ChatML; ``story-draft`` is a far smaller model with the same
tokenizer that drafts for it in speculative decoding.  Each is an ordinary Hugging Face folder, so the engine
opens them the way it opens any other model.  Their model cards (``README.md``) say what they were trained on; the
two ``ATTRIBUTION`` tables credit every storybook.
"""

from __future__ import annotations

from pathlib import Path

NAMES = ("story", "story-draft")


def path(name: str = "story") -> Path:
    """The folder of the built-in model ``name``."""
    if name not in NAMES:
        raise ValueError(f"no built-in model named {name!r}; there are {', '.join(NAMES)}")
    return Path(__file__).parent / name
