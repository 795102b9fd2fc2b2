"""How JSON comes in and goes out: the only place of this package that parses or writes it.

Incoming text is read strictly: UTF-8 without a byte order mark, no key twice in one object, no lone
surrogates, nothing after the value, nesting as deep as the interpreter's own stack allows at most. Numbers
that no field can hold (``NaN``, ``1e400``, 5000 digits) are let through as what they are, a float that is
not finite, so that the field's own check refuses them by name.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from pydantic import TypeAdapter

from tokenmill.core.errors import InvalidRequest

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


class _DuplicateKey(Exception):
    """Not a ``ValueError``: it must not be taken for a syntax error."""


def loads(body: bytes) -> Any:
    """Parse one JSON value.

    Raises:
        InvalidRequest: code ``invalid_json``, with the position where there is one.
    """
    try:
        text = body.decode("utf-8")
        value = _parse(text)
        if _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        raise _invalid(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise _invalid(f"text that is not UTF-8 ({error.reason})") from None
    except RecursionError:
        raise _invalid("nested too deeply") from None
    except _DuplicateKey as error:
        raise _invalid(str(error)) from None
    return value


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON that any strict parser takes: a float that is not finite becomes null."""
    try:
        return _ANYTHING.dump_json(value)
    except ValueError:  # a lone surrogate, echoed from what a client sent
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "backslashreplace")


_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)  # three times as fast as the standard library's encoder


def _parse(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError:
        raise
    except ValueError:  # the interpreter refuses integers of more than 4300 digits
        return json.loads(text, object_pairs_hook=_unique, parse_int=_bounded_int)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _DuplicateKey(f"the key {_first_repeated(pairs)[:64]!a} stands twice in one object")
    return value


def _first_repeated(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    raise AssertionError("no key is repeated")


def _bounded_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 40 else math.copysign(math.inf, -1.0 if digits[0] == "-" else 1.0)


def _invalid(what: str) -> InvalidRequest:
    return InvalidRequest(f"The request body is not valid JSON: {what}.", code="invalid_json")
