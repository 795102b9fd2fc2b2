"""A small text grammar: templates, and the characters and things that fill them.

A template is prose with three marks::

    [one day|one morning]   any one of the alternatives, which may hold marks themselves and may be empty
    {h.his}                 a form of the character or thing bound to the slot h
    <glad h>                the macro "glad" with its role $ replaced by h

What happens is fixed by the slots, bound once per story; how it is said varies with the alternatives.  That is
what makes the text worth learning from: the only way to predict it is to keep track of who has what.

Forms of a character h: ``{h}`` (the name, or "the fox" for one without a name), ``h.the`` ("the little fox"),
``h.a`` ("a little fox"), ``h.both`` ("Pip, a little fox,"), ``h.call`` (how others address it), ``h.kind``, ``h.called`` (" named Pip", or nothing), ``h.home``, and the pronouns ``h.he``,
``h.him``, ``h.his``.  Forms of a thing o: ``{o}`` (its noun), ``o.a``, ``o.the`` and ``o.full`` with its adjective.
A capital in the slot (``{H}``, ``{h.He}``) makes a capital in the text; at the start of a sentence that follows a
full stop the capital comes by itself.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from stories import words
from stories.macros import MACROS

OBJECTIVE = {"he": "him", "she": "her"}
POSSESSIVE = {"he": "his", "she": "her"}
UNNAMED_BEAST_SHARE = 0.12
NAMED_GROWN_SHARE = 0.3


@dataclass(frozen=True)
class Character:
    kind: str
    gender: str
    trait: str
    home: str
    name: str | None

    def form(self, key: str) -> str:
        forms = {
            "": self.name or f"the {self.kind}",
            "the": f"the {self.trait} {self.kind}" if self.kind not in ("girl", "boy") else f"the {self.kind}",
            "a": f"a {self.trait} {self.kind}",
            "both": f"{self.name}, a {self.trait} {self.kind}," if self.name else f"a {self.trait} {self.kind}",
            "call": self.name or self.kind,
            "kind": self.kind,
            "called": f" named {self.name}" if self.name else "",
            "home": self.home,
            "he": self.gender,
            "him": OBJECTIVE[self.gender],
            "his": POSSESSIVE[self.gender],
        }
        return forms[key]


@dataclass(frozen=True)
class Thing:
    adjective: str
    noun: str

    def form(self, key: str) -> str:
        full = f"{self.adjective} {self.noun}"
        return {
            "": self.noun,
            "a": f"a {full}",
            "the": f"the {full}",
            "full": full,
            "adjective": self.adjective,
        }[key]


Scope = dict[str, "Character | Thing | str"]


def cast_character(group: str, taken: Collection[Character], rng: random.Random) -> Character:
    """A character of the group whose kind and name nobody in the story has yet."""
    kinds = [k for k in words.KINDS if group in k.groups and k.noun not in {c.kind for c in taken}]
    kind = rng.choice(kinds)
    gender = rng.choice(("he", "she")) if kind.gender == "either" else kind.gender
    home = rng.choice(kind.homes)
    return Character(kind.noun, gender, rng.choice(kind.traits), home, choose_name(kind, gender, taken, rng))


def choose_name(kind: words.Kind, gender: str, taken: Collection[Character], rng: random.Random) -> str | None:
    grown = not words.UNNAMED_GROUPS.isdisjoint(kind.groups)
    if grown:
        named, names = "worker" in kind.groups and rng.random() < NAMED_GROWN_SHARE, words.GROWN_NAMES
    elif "child" in kind.groups:
        named, names = True, words.CHILD_NAMES
    else:
        named, names = rng.random() >= UNNAMED_BEAST_SHARE, words.BEAST_NAMES
    free = [n for n in names[gender] if n not in {c.name for c in taken}]
    return rng.choice(free) if named else None


def choose_thing(category: str, rng: random.Random) -> Thing:
    adjectives, noun = rng.choice(words.THINGS[category])
    return Thing(rng.choice(adjectives), noun)


@dataclass(frozen=True)
class Slot:
    """A form of what is bound to a role."""

    role: str
    key: str
    capital: bool


@dataclass(frozen=True)
class Choice:
    """Alternatives, each a parsed template: a tuple of text, slots and choices."""

    options: tuple[tuple, ...]


MARK = re.compile(r"[\[\]|{<]")
MACRO = re.compile(r"<(\w+)(?: (\w+))?>")


def expand_macros(template: str) -> str:
    while match := MACRO.search(template):
        body = MACROS[match[1]].replace("$", match[2] or "$")
        template = template[: match.start()] + body + template[match.end() :]
    return template


@lru_cache(maxsize=4096)
def parse(template: str) -> tuple:
    nodes, _ = parse_sequence(expand_macros(SPACE.sub(" ", template)), 0)
    return nodes


def parse_sequence(text: str, at: int) -> tuple[tuple, int]:
    """The nodes from ``at`` up to an unmatched ``|`` or ``]``, or the end, and where that is."""
    nodes: list = []
    while at < len(text):
        match = MARK.search(text, at)
        stop = match.start() if match else len(text)
        if stop > at:
            nodes.append(text[at:stop])
        if match is None or match[0] in "|]":
            return tuple(nodes), stop
        if match[0] == "{":
            close = text.index("}", stop)
            nodes.append(parse_slot(text[stop + 1 : close]))
            at = close + 1
        else:
            choice, at = parse_choice(text, stop + 1)
            nodes.append(choice)
    return tuple(nodes), at


def parse_choice(text: str, at: int) -> tuple[Choice, int]:
    options = []
    while True:
        option, at = parse_sequence(text, at)
        options.append(option)
        if text[at] == "]":
            return Choice(tuple(options)), at + 1
        at += 1


def parse_slot(body: str) -> Slot:
    role, _, key = body.partition(".")
    capital = role[0].isupper() or key[:1].isupper()
    return Slot(role.lower(), key.lower(), capital)


def render(nodes: tuple, scope: Scope, rng: random.Random) -> str:
    parts = []
    for node in nodes:
        if isinstance(node, str):
            parts.append(node)
        elif isinstance(node, Choice):
            parts.append(render(rng.choice(node.options), scope, rng))
        else:
            parts.append(render_slot(node, scope, rng))
    return "".join(parts)


def render_slot(slot: Slot, scope: Scope, rng: random.Random) -> str:
    value = scope[slot.role]
    text = expand(value, scope, rng) if isinstance(value, str) else value.form(slot.key)
    return text[:1].upper() + text[1:] if slot.capital else text


def expand(template: str, scope: Scope, rng: random.Random) -> str:
    return render(parse(template), scope, rng)


SENTENCE_START = re.compile(r'(^|[.!?]\s+|[.]"\s+)("?)([a-z])')
ARTICLE = re.compile(r"\b([Aa]) (?=(?!uni|use|usu|one\b|once)[aeiouAEIOU]|hour|honest)")
SPACE = re.compile(r"\s+")
AFTER_CRY = re.compile(
    r'([!?]"\s+)((?:he|she|it|they|his|her|the \w+) (?!said|asked|cried|called|shouted|thought|whispered|all\b))'
)
DOUBLE_STOP = re.compile(r'([.!?]")[.]')
BEFORE_STOP = re.compile(r"[, ]+([,.;!?])")


def polish(paragraph: str) -> str:
    """One space between words, "an" before vowels, and a capital at the start of every sentence."""
    paragraph = BEFORE_STOP.sub(r"\1", SPACE.sub(" ", paragraph).strip())
    paragraph = DOUBLE_STOP.sub(r"\1", paragraph)
    paragraph = ARTICLE.sub(r"\1n ", paragraph)
    paragraph = AFTER_CRY.sub(lambda m: m[1] + m[2][:1].upper() + m[2][1:], paragraph)
    return SENTENCE_START.sub(lambda m: m[1] + m[2] + m[3].upper(), paragraph)
