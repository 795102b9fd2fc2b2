"""The JSON Schema Test Suite (github.com/json-schema-org/JSON-Schema-Test-Suite) against the grammars made of schemas.

::

    python -m tests.grammar.schema_suite PATH/tests/draft2020-12 …  [--output results/json-schema-suite.json]

Each group is a schema with instances that are valid and instances that are not. A schema is either refused, with an
error that names the place in it, or compiled; then no invalid instance may be admitted. Of the valid ones a grammar
admits those that are written as it writes: it may know fewer ways to write an answer than there are (the order of keys,
``1.0`` for an integer), since whoever answers has the choice. So there are three figures: how much is refused, how much
of what is valid is admitted, and what is admitted and must not be, which is named one by one. What the suite calls
optional (formats above all) is counted by itself.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.grammar.support import codec, new_compiler, schema_grammar
from tokenmill.bench.machine import make_result, write_result
from tokenmill.core.errors import InvalidRequest
from tokenmill.engine.grammar.compiler import GrammarCompiler

SPACINGS: tuple[tuple[str, str], ...] = ((",", ":"), (", ", ": "))


@dataclass
class Tally:
    """Of one draft."""

    counts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    """Why schemas were refused."""
    wrong: list[str] = field(default_factory=list)
    """Invalid and admitted."""
    narrow: Counter[str] = field(default_factory=Counter)
    """Valid and not admitted, by file."""


def judge(compiler: GrammarCompiler, name: str, group: dict[str, Any], tally: Tally) -> None:
    """Take one group into ``tally``."""
    tally.counts["schemas"] += 1
    grammar = schema_grammar(group["schema"])
    try:
        compiler.compile(grammar, param="schema")
    except InvalidRequest as error:
        tally.counts["refused"] += 1
        tally.counts["refused_without_a_place"] += not (error.param or "").startswith("schema")
        tally.reasons[error.message.partition(":")[0][:80]] += 1
        return
    for test in group["tests"]:
        wanted, found = test["valid"], admits(compiler, grammar, test["data"])
        tally.counts["valid" if wanted else "invalid"] += 1
        tally.counts["admitted"] += wanted and found
        if found and not wanted:
            tally.wrong.append(f"{name}: {group['description']}: {test['description']}")
        if wanted and not found:
            tally.narrow[name] += 1


def admits(compiler: GrammarCompiler, grammar: Any, instance: Any) -> bool:
    """Whether the grammar lets ``instance`` be written, in one of the usual ways."""
    return any(
        _accepts(compiler, grammar, json.dumps(instance, ensure_ascii=False, separators=each)) for each in SPACINGS
    )


def _accepts(compiler: GrammarCompiler, grammar: Any, text: str) -> bool:
    token_ids = codec().encode(text, add_special_tokens=False)
    matcher = compiler.matcher(grammar)._matcher
    return bool(matcher.validate_tokens(token_ids) == len(token_ids)) and bool(
        matcher.consume_tokens(token_ids) and matcher.is_accepting()
    )


def run(folders: Iterable[Path]) -> dict[str, Any]:
    """The figures of each draft."""
    compiler, found = new_compiler(), {}
    try:
        for folder in folders:
            files = sorted(folder.rglob("*.json"))
            for part, optional in (("required", False), ("optional", True)):
                tally = Tally()
                for file in (file for file in files if ("optional" in file.parts) == optional):
                    for group in json.loads(file.read_text()):
                        judge(compiler, str(file.relative_to(folder)), group, tally)
                found[f"{folder.name}, {part}"] = {
                    **tally.counts,
                    "wrongly_admitted": tally.wrong,
                    "refused_for": dict(tally.reasons.most_common(20)),
                    "valid_not_admitted": dict(tally.narrow.most_common()),
                }
    finally:
        compiler.close()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--suite-commit", help="Of the suite, for the result.")
    wishes = parser.parse_args()
    figures = run(wishes.folders)
    for name, each in figures.items():
        told = {key: value for key, value in each.items() if isinstance(value, int)}
        print(name, told, f"wrongly admitted: {len(each['wrongly_admitted'])}")
    if wishes.output:
        named = " ".join("/".join(folder.parts[-3:]) for folder in wishes.folders)
        command = f"python -m tests.grammar.schema_suite {named} --output {wishes.output}"
        result = make_result("json-schema-suite", {"suite_commit": wishes.suite_commit, "drafts": figures})
        write_result(wishes.output, {**result, "command": command})
