"""What a plot is, and how it becomes a story.

A plot is data: the cast and the things it needs, the paragraphs that tell it (separated by blank lines, in the
template language of ``grammar.py``), and, for conversations, how someone would ask for it and about it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from stories import words
from stories.grammar import Character, Scope, cast_character, choose_thing, expand, polish
from stories.macros import OPENINGS

SMALL_WORDS = frozenset({"a", "an", "and", "at", "for", "in", "of", "on", "the", "to"})
TITLE_SHARE = 0.3
MORAL_SHARE = 0.6
DENSE_SHARE = 0.35


@dataclass(frozen=True)
class Plot:
    """``cast`` gives roles by group, ``things`` by category, ``pick`` by free text.

    ``about`` completes "a story about ..."; ``asks`` are questions that the story answers.
    """

    about: tuple[str, ...]
    titles: tuple[str, ...]
    text: str
    cast: dict[str, str]
    things: dict[str, str] = field(default_factory=dict)
    pick: dict[str, tuple[str, ...]] = field(default_factory=dict)
    morals: tuple[str, ...] = ()
    asks: tuple[tuple[str, str], ...] = ()
    riddle: bool = False


@dataclass(frozen=True)
class Story:
    plot: Plot
    scope: Scope
    title: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs)


def bind(plot: Plot, rng: random.Random) -> Scope:
    """Choose who and what the story is about."""
    scope: Scope = {}
    for role, groups in plot.cast.items():
        taken = [c for c in scope.values() if isinstance(c, Character)]
        scope[role] = cast_character(rng.choice(groups.split()), taken, rng)
    for role, category in plot.things.items():
        scope[role] = choose_thing(category, rng)
    for role, options in plot.pick.items():
        scope[role] = rng.choice(options)
    if plot.riddle:
        scope["riddle"], scope["answer"] = rng.choice(words.RIDDLES)
    return scope


def tell(plot: Plot, rng: random.Random) -> Story:
    scope = bind(plot, rng)
    hero = scope["h"]
    assert isinstance(hero, Character)
    opening = rng.choice(OPENINGS["named" if hero.name else "unnamed"])
    first, *rest = [p for p in plot.text.split("\n\n") if p.strip()]
    templates = [f"{opening} {first}", *rest]
    if plot.morals and rng.random() < MORAL_SHARE:
        templates.append(rng.choice(plot.morals))
    paragraphs = [polish(expand(t, scope, rng)) for t in templates]
    title = capitalize_title(polish(expand(rng.choice(plot.titles), scope, rng)))
    return Story(plot, scope, title, tuple(layout([p for p in paragraphs if p], rng)))


def capitalize_title(title: str) -> str:
    first, *rest = title.split()
    return " ".join([first, *(w.lower() if w.lower() in SMALL_WORDS else w[:1].upper() + w[1:] for w in rest)])


def layout(paragraphs: Sequence[str], rng: random.Random) -> list[str]:
    """Sometimes run neighbouring paragraphs together, so that their number is not always that of the plot."""
    if rng.random() >= DENSE_SHARE:
        return list(paragraphs)
    joined: list[str] = []
    for paragraph in paragraphs:
        if joined and rng.random() < 0.5:
            joined[-1] += " " + paragraph
        else:
            joined.append(paragraph)
    return joined


def document(story: Story, rng: random.Random) -> str:
    titled = rng.random() < TITLE_SHARE
    return f"{story.title}\n\n{story.text}" if titled else story.text
