"""``Grammar``: what an answer must look like, as plain text that can cross from the server to the worker.

It says what was asked for, not how it is carried out: whoever chooses tokens compiles it for the vocabulary at hand
(``engine/grammar``), once for all requests that ask for the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GrammarKind = Literal["json_schema", "json_object", "regex", "choice", "lark"]


@dataclass(frozen=True, slots=True)
class Grammar:
    """A constraint on a whole answer; equal ones are compiled once."""

    kind: GrammarKind
    source: str = ""
    """By kind: the schema as JSON text; nothing; a regular expression; a JSON array of strings; a Lark grammar."""
