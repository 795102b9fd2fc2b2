"""What a fuzzer feeds: valid bytes with a few mutations, and valid JSON with one part put out of order."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

NUMBERS = (b"0", b"-1", b"1e400", b"NaN", b"4294967296", b"9223372036854775808", b"1" * 400, b"0.5", b"-0")
WORDS = (
    b'"',
    b"\\",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\0",
    b"\xff",
    b"\r\n",
    b"\n",
    b"\\ud800",
    b"null",
    b"{%",
    b"}}",
)


@st.composite
def mutated(draw: st.DrawFn, seeds: Sequence[bytes], words: Sequence[bytes] = WORDS) -> bytes:
    """One of ``seeds`` with up to six changes."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 40))
        match draw(st.integers(0, 6)):
            case 0 if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = data[at : at + size] * draw(st.integers(1, 50))
            case 3:
                data[at : at + size] = draw(st.sampled_from((*words, *NUMBERS)))
            case 4:
                data[at:at] = draw(st.binary(max_size=8))
            case 5:
                other = draw(st.sampled_from(seeds))
                data[at:] = other[draw(st.integers(0, len(other))) :]
            case _:
                del data[at:]
    return bytes(data)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=True),
    st.text(max_size=8),
    st.sampled_from(["", "a" * 5000, "\ud800", "../x", "<|im_end|>", "__class__", "\x00"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@st.composite
def disordered(draw: st.DrawFn, seeds: Sequence[Any]) -> Any:
    """One of ``seeds`` (JSON values) with one to three of its parts replaced, removed or added."""
    value = copy.deepcopy(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        value = _changed(draw, value)
    return value


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        return draw(VALUES)
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    match draw(st.integers(0, 4)):
        case 0:
            del value[key]
        case 1 if isinstance(value, dict):
            value[draw(st.text(max_size=5))] = draw(VALUES)
        case 1:
            value.insert(key, draw(VALUES))
        case _:
            value[key] = _changed(draw, value[key])
    return value


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode()
