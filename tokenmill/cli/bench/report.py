"""The end of every measurement: keep the result, print it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenmill.cli.output import note, print_json


def finish(
    kind: str,
    figures: Mapping[str, Any],
    output: Path | None,
    as_json: bool,
    print_text: Callable[[dict[str, Any]], None],
) -> None:
    """Put machine, versions and command to ``figures``; write and print them as was asked for."""
    from tokenmill.bench.machine import make_result, write_result

    result = make_result(kind, figures)
    if output is not None:
        write_result(output, result)
        note(f"kept in {output}")
    if as_json:
        print_json(result)
    else:
        print_text(result)
