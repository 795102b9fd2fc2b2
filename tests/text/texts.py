"""Varied text to tokenise."""

from __future__ import annotations

import random

SAMPLES = (
    "",
    " ",
    "   leading and trailing   ",
    "Hello, world! It's 2024; they'll pay $1,234.56.",
    "def f(x):\n\treturn {k: v for k, v in x.items()}  # done\n\n\n    if x != 1:\n        pass\n",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "Ünïcödé é e\u0301 ﬁ ½ ²  ｆｕｌｌ",
    "😶‍🌫️👩‍👩‍👧‍👦🏴‍☠️ 🦙🚀",
    "नमस्ते दुनिया กำลัง ខ្មែរ العربية עברית",
    "a\u0000b\u0007c\u200bd\ufeffe\u2028f",
    "\n\n\n \n\t\r\n  \n",
    "x" * 300 + "9" * 50 + "!" * 40 + " " * 60,
    "https://example.org/a?b=c&d=%20#e <b>html &amp; tags</b>",
    "I'M WE'LL you're SHE'D ''s 's'T",
    "\U0010fffd\U0001d4d7 𝓗𝓮𝓵𝓵𝓸 \u0301\u0301",
)

_ALPHABETS = (
    "abcdefghijklmnopqrstuvwxyz     ",
    "ABCabc'’-_.,;:!?()[]{}<>|/\\\"#$%&*+=~^`@ \t\n\r",
    "0123456789 .,",
    "äöüßéèñçøåąęłżěščřđıİǅ ",
    "我你他是的不了在有人这上大来到说。，！？ ",
    "あいうえおカキクケコ漢字ー　",
    "😀😁🤖🦙🏳️‍🌈👍🏽❤️‍🔥\u200d\ufe0f",
    "абвгдежзиклмнопрстуфхцчшщъыьэюя ",
    "\u0300\u0301\u0308\u200b\u00a0\u2003\u3000a ",
)


def random_texts(count: int, seed: int = 0) -> list[str]:
    """Short texts that mix scripts, white space and punctuation."""
    rng = random.Random(seed)
    return ["".join(_run(rng) for _ in range(rng.randint(1, 6))) for _ in range(count)]


def _run(rng: random.Random) -> str:
    alphabet = rng.choice(_ALPHABETS)
    return "".join(rng.choice(alphabet) for _ in range(rng.randint(1, 12)))
