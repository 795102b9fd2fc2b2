"""What a grammar may be before anyone compiles it, and how a refusal reads.

Sizes, nesting and repetition are bounded here by one pass over the text, since they decide what all later stages
cost. What only the compiler can know (is it a schema, is it too complex?) comes back from it as a sentence;
``refusal`` turns that into an error that names the place, the reason and the remedy.
"""

from __future__ import annotations

import json
import re
from typing import Any

from tokenmill.core.errors import InvalidRequest
from tokenmill.core.grammar import Grammar
from tokenmill.engine.grammar.schema import check_references, place_of, walk

MAX_BYTES = {"json_schema": 2**18, "json_object": 0, "regex": 2**13, "choice": 2**17, "lark": 2**18}
MAX_JSON_NESTING = 100
MAX_PATTERN_NESTING = 100
MAX_EXPANSION = 2**16
"""Characters that a pattern stands for with every ``{n}`` written out: text that is forced is worked out at once."""
MAX_CHOICES = 4096
MAX_MESSAGE_CHARS = 300
UNSUPPORTED = "unsupported_schema"
"""Code of a schema that says something that cannot be kept to."""

_JSON_PARTS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', re.DOTALL)
_PATTERN_PARTS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*+\]|\{(\d+)(?:,(\d*))?\}|[()]|.", re.DOTALL)
_ESCAPED_OR_SLASH = re.compile(r"\\.|/", re.DOTALL)
_LARK_PATTERN = re.compile(r"/((?:[^/\\\n]|\\.)++)/")
_TOO_MUCH = (
    "limit",
    "too large",
    "too big",
    "too many",
    "too complex",
    "max is",
    "precomputation failed",
    "deeply nested",
)
_NO_ANSWER = ("NoExtension", "Unsatisfiable")


class Refused(InvalidRequest):
    """A grammar that is not taken. ``path`` is the place inside its source, where one is to blame."""

    def __init__(self, message: str, *, path: str = "", code: str) -> None:
        super().__init__(message, param=path or None, code=code)
        self.path = path

    def at(self, field: str) -> InvalidRequest:
        """For the client: with the field of the request that the grammar came in."""
        dot = "." if self.path and not self.path.startswith("[") else ""
        where = f"{field}{dot}{self.path}"
        return InvalidRequest(f"Invalid '{where}': {self.message}.", param=where, code=self.code)

    def again(self) -> Refused:
        """A fresh one: an exception that is raised twice grows a longer trace each time."""
        return Refused(self.message, path=self.path, code=self.code)


def check(grammar: Grammar) -> None:
    """Raise ``Refused`` for a grammar that is too large, nests too deeply, or is plainly malformed."""
    kind, source = grammar.kind, grammar.source
    try:
        num_bytes = len(source.encode())
    except UnicodeEncodeError:
        raise Refused("it is no valid Unicode (a lone surrogate)", code=_invalid(kind)) from None
    if num_bytes > MAX_BYTES[kind]:
        raise _too_complex(f"it has {num_bytes} bytes; at most {MAX_BYTES[kind]} are compiled")
    if kind == "json_schema":
        _check_schema(source)
    elif kind == "choice":
        read_choices(source)
    elif kind == "regex":
        check_pattern(source)
    elif kind == "lark":
        if not source.strip():
            raise Refused("the grammar is empty; it needs at least a rule 'start: …'", code=_invalid(kind))
        for pattern in _LARK_PATTERN.findall(source):
            check_pattern(pattern)


def read_choices(source: str) -> list[str]:
    """The texts of a ``choice``; raises ``Refused``."""
    try:
        choices = json.loads(source) if _json_nesting(source) <= 1 else None
    except ValueError:
        choices = None
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise Refused("a choice must be a non-empty array of strings", code="invalid_grammar")
    if len(choices) > MAX_CHOICES:
        raise _too_complex(f"it holds {len(choices)} choices; at most {MAX_CHOICES} are taken")
    return choices


def check_pattern(pattern: str, path: str = "") -> None:
    """Raise ``Refused`` for a regular expression that nests or repeats too much."""
    sizes, last = [0], 0
    for part in _PATTERN_PARTS.finditer(pattern):
        text = part[0]
        if text == "(":
            sizes.append(0)
            last = 0
        elif text == ")" and len(sizes) > 1:
            last = sizes.pop()
            sizes[-1] += last
        elif part[1] is not None:
            times = max(_count(part[1]), _count(part[2] or ""))
            sizes[-1] += last * max(times - 1, 0)
            last *= max(times, 1)
        else:
            last = 1
            sizes[-1] += 1
        if len(sizes) > MAX_PATTERN_NESTING:
            raise _too_complex(f"it nests deeper than {MAX_PATTERN_NESTING}", path)
        if sizes[-1] > MAX_EXPANSION:
            raise _too_complex(f"written out, its repetitions stand for more than {MAX_EXPANSION} characters", path)


def unanchored(pattern: str) -> str:
    """A regular expression without the anchors at its ends: the whole answer must match it anyway."""
    pattern = pattern.removeprefix("^")
    if pattern.endswith("$") and (len(pattern) - len(pattern[:-1].rstrip("\\")) - 1) % 2 == 0:
        pattern = pattern[:-1]
    return pattern


def as_lark(pattern: str) -> str:
    """A regular expression as a term of a Lark grammar."""
    escaped = _ESCAPED_OR_SLASH.sub(lambda part: part[0] if len(part[0]) > 1 else rf"\{part[0]}", unanchored(pattern))
    return "/" + escaped.replace("\n", r"\n") + "/"


def refusal(grammar: Grammar, complaint: str) -> Refused:
    """What the compiler said about ``grammar``, in words for the client."""
    reason = " ".join(complaint.replace("<non-verbose/>", "").split())[:MAX_MESSAGE_CHARS]
    is_schema = grammar.kind == "json_schema"
    path = place_of(json.loads(grammar.source), complaint) if is_schema else ""
    if any(word in complaint for word in _NO_ANSWER):
        return Refused(f"no answer can satisfy it ({reason}); loosen it", path=path, code=_invalid(grammar.kind))
    if complaint.startswith("Unimplemented keys"):
        names = complaint.partition(":")[2].strip(' []"')
        return Refused(f"the keyword '{names}' is not supported; leave it out", path=path, code=UNSUPPORTED)
    if complaint.startswith("oneOf constraints"):
        return Refused("a oneOf whose branches can overlap is not supported; use anyOf", path=path, code=UNSUPPORTED)
    if "are not disjoint" in complaint:
        return Refused(f"{reason}: that is not supported; tell them apart", path=path, code=UNSUPPORTED)
    if complaint.startswith("Unknown format"):
        remedy = "leave it out or use a pattern"
        return Refused(f"{reason} is not supported; {remedy}", path=path, code=UNSUPPORTED)
    if any(word in complaint for word in _TOO_MUCH):
        return _too_complex(reason, path)
    return Refused(reason, path=path, code=_invalid(grammar.kind))


def overrun(what: str) -> Refused:
    """A grammar whose compilation was broken off."""
    return _too_complex(f"compiling it takes more {what} than is allowed")


def _check_schema(source: str) -> None:
    depth = _json_nesting(source)
    if depth > MAX_JSON_NESTING:
        raise _too_complex(f"it nests deeper than {MAX_JSON_NESTING} brackets")
    try:
        schema: Any = json.loads(source)
    except ValueError as error:
        raise Refused(f"the schema is no JSON: {error}", code="invalid_schema") from None
    if not isinstance(schema, dict | bool):
        raise Refused("a schema must be an object or a boolean", code="invalid_schema")
    if schema is False:
        raise Refused("no answer can satisfy the schema 'false'; loosen it", code="invalid_schema")
    wrong = check_references(schema)
    if wrong is not None:
        path, what = wrong
        raise Refused(what, path=path, code="invalid_schema")
    for path, part in walk(schema):
        if isinstance(part.get("pattern"), str):
            check_pattern(part["pattern"], path=f"{path}.pattern" if path else "pattern")
        for pattern in part.get("patternProperties") or () if isinstance(part.get("patternProperties"), dict) else ():
            check_pattern(pattern, path=f"{path}.patternProperties" if path else "patternProperties")


def _json_nesting(text: str) -> int:
    """The deepest nesting of brackets outside strings."""
    depth = deepest = 0
    for part in _JSON_PARTS.finditer(text):
        if part[0] in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif part[0] in "]}":
            depth -= 1
    return deepest


def _count(digits: str) -> int:
    return int(digits) if 0 < len(digits) < 10 else 10**9 if digits else 0


def _invalid(kind: str) -> str:
    return "invalid_schema" if kind == "json_schema" else "invalid_grammar"


def _too_complex(reason: str, path: str = "") -> Refused:
    return Refused(f"the grammar is too complex: {reason}; simplify it", path=path, code="grammar_too_complex")
