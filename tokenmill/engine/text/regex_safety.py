"""Whether a pre-tokenizer's regular expression is safe to run on text that a stranger sends.

A pattern comes with the checkpoint; the text comes with a request. A backtracking matcher can need time that
grows exponentially or with a high power of the text. Two tests, both before any request:

- by form: an unbounded repetition inside an unbounded repetition, ``(a+)+``, is refused;
- by trial: the pattern runs over growing texts of one repeated character, and is refused when the time is far
  beyond linear.

The matcher itself gives up after ten million steps back at one place, so a trial cannot hang.
"""

from __future__ import annotations

import re
import time

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from tokenmill.core.errors import CheckpointError

_TRIAL_LENGTHS = [2**power for power in range(5, 15)]
_MAX_TRIAL_S = 0.005
_MAX_S_PER_CHAR = 50e-6  # a linear pattern takes about 1e-6; a quadratic one passes this below 16384 characters
_TRIAL_CHARS = " \n\t\raA1!_é字"
_MAX_PATTERN_CHARS = 8192

_ATOM = re.compile(r"\\[pPx]\{[^}]*\}|\\.|\(\?[a-zA-Z-]*[:=!>]|\(\?<[=!]|\(\?[a-zA-Z-]*\)|.", re.DOTALL)
_UNBOUNDED = re.compile(r"(?:[*+]|\{\d*,\})(?P<more>[?+]?)")


def check_pattern(pattern: str) -> None:
    """Raises ``CheckpointError`` if ``pattern`` is no regular expression or not safe to run."""
    shown = repr(pattern if len(pattern) <= 60 else pattern[:57] + "...")
    if len(pattern) > _MAX_PATTERN_CHARS:
        raise CheckpointError(f"tokenizer.json: a regular expression of {len(pattern)} characters: {shown}")
    if _nests_repetition(pattern):
        raise CheckpointError(f"tokenizer.json: regular expression with nested repetition, refused: {shown}")
    try:
        split = Split(Regex(pattern), "isolated")
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"tokenizer.json: no regular expression: {shown}") from error
    chars = sorted({*_TRIAL_CHARS, *(char for char in pattern if char.isalnum())})
    ending = "\x00" + "".join(chars)  # holds what the pattern may ask for, lest the matcher give up early
    if any(_takes_too_long(split, char, ending) for char in chars):
        raise CheckpointError(f"tokenizer.json: regular expression takes more than linear time, refused: {shown}")


def _takes_too_long(split: Split, char: str, ending: str) -> bool:
    for length in _TRIAL_LENGTHS:
        limit_s = max(_MAX_TRIAL_S, length * _MAX_S_PER_CHAR)
        if all(_seconds(split, char * length + ending) > limit_s for _ in range(3)):  # once may be bad luck
            return True
    return False


def _seconds(split: Split, text: str) -> float:
    """This thread's processor time for ``text``; infinite if the matcher gives up."""
    start = time.thread_time()
    try:
        split.pre_tokenize_str(text)
    except BaseException as error:
        if not gave_up(error):
            raise
        return float("inf")
    return time.thread_time() - start


def gave_up(error: BaseException) -> bool:
    """Whether ``error`` is the ``tokenizers`` library's own failure (a Rust panic, which no name exports)."""
    return type(error).__name__ == "PanicException"


def _nests_repetition(pattern: str) -> bool:
    """Whether an unbounded repetition stands inside another. Character classes count as one character."""
    repeats = [False]  # per open group: does it hold an unbounded repetition?
    position = 0
    while position < len(pattern):
        if pattern[position] == "[":
            position, closed = _class_end(pattern, position), False
        else:
            atom = _ATOM.match(pattern, position)
            assert atom is not None
            position = atom.end()
            if atom[0].startswith("(") and not atom[0].endswith(")"):
                repeats.append(False)
                continue
            closed = atom[0] == ")" and len(repeats) > 1
        inner = repeats.pop() if closed else False
        again = _UNBOUNDED.match(pattern, position)
        if again is not None:
            position = again.end()
            if inner and again["more"] != "+":
                return True
        repeats[-1] |= inner or (again is not None and again["more"] != "+")
    return False


def _class_end(pattern: str, start: int) -> int:
    """The position after the character class that opens at ``start``; classes nest."""
    depth, position = 0, start
    while position < len(pattern):
        char = pattern[position]
        position += 2 if char == "\\" else 1
        depth += (char == "[") - (char == "]")
        if depth == 0:
            break
        if char == "[" and pattern[position : position + 1] == "^":
            position += 1
    return position
