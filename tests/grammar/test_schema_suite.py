"""The judge of ``schema_suite`` against groups of our own: the suite itself is not part of this repository."""

from __future__ import annotations

from typing import Any

from tests.grammar.schema_suite import Tally, judge
from tests.grammar.support import new_compiler


def test(data: Any, valid: bool) -> dict[str, Any]:
    return {"description": repr(data), "data": data, "valid": valid}


test.__test__ = False  # type: ignore[attr-defined]


def test_what_is_refused_admitted_and_wrong_is_counted() -> None:
    pair = {
        "description": "a pair",
        "schema": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a"]},
        "tests": [test({"a": 1, "b": None}, True), test({"b": 1, "a": 1}, True), test({"b": 1}, False)],
    }
    mistaken = {"description": "no", "schema": {"type": "boolean"}, "tests": [test(True, False)]}
    refused = {"description": "not", "schema": {"not": {"type": "null"}}, "tests": [test(1, True)]}
    compiler, tally = new_compiler(), Tally()
    try:
        for group in (pair, mistaken, refused):
            judge(compiler, "file.json", group, tally)
    finally:
        compiler.close()
    assert tally.counts == {
        "schemas": 3, "refused": 1, "refused_without_a_place": 0, "valid": 2, "admitted": 1, "invalid": 2,
    }  # fmt: skip
    assert tally.narrow == {"file.json": 1}, "the other order of keys"
    assert tally.wrong == ["file.json: no: True"]
