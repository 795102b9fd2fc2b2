"""A generator of simple stories, and of conversations about them.

Old books alone teach a tiny model fluent sentences that forget their own beginning.  These stories are made the
other way round: who and what a story is about is fixed first (``plot.bind``) and told in many wordings
(``grammar``), so that names, pronouns and things stay the same from the first sentence to the last, and a model
that reads enough of them learns to keep them so.  The generator is seeded: the same seed gives the same text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from stories import chat, plots_home, plots_world
from stories.plot import document, tell

PLOTS = (*plots_home.PLOTS, *plots_world.PLOTS)


def generate(count: int, seed: int) -> list[str]:
    """``count`` stories as plain documents, some with a title."""
    rng = random.Random(seed)
    return [document(tell(rng.choice(PLOTS), rng), rng) for _ in range(count)]


def conversations(count: int, seed: int) -> Iterator[list[dict[str, str]]]:
    """``count`` conversations as lists of messages with ``role`` and ``content``."""
    rng = random.Random(seed + 1)
    for _ in range(count):
        yield chat.conversation(PLOTS, rng)
