"""The process in which a stage's units run: ``python -m tokenmill.bench.gpu.worker STAGE ROWS [--toy] …``.

It appends JSON lines to the file ROWS: what the device is, the name of each unit as it begins, and what came of it. A
unit whose name is there already is not run again, so a process that takes over from one that died goes on after it.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.stages import STAGES
from tokenmill.bench.gpu.unit import Context, Failed, Unit
from tokenmill.core.errors import TokenmillError

DONE, FAILED, GO_ON, OUT_OF_TIME = 0, 1, 3, 4
"""How it ends: all units were run; nothing could be begun; another process is to go on; the stage's time is over."""

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The lines written so far; a last one that was cut is left out."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def append(path: Path, row: Mapping[str, Any]) -> None:
    text = json.dumps(row, allow_nan=False)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{text}\n")  # a line of its own, even after one that was cut


def work(stage_name: str, rows: Path, context: Context) -> int:
    """Run what is left of a stage; returns how it ends."""
    stage, place = STAGES[stage_name], context.place
    before = read_rows(rows)
    units = stage.units(place)
    if not any("device" in row for row in before):
        append(rows, {"device": place.describe(), "units": [unit.name for unit in units]})
    names = {row["begin"] for row in before if "begin" in row}
    left = [unit for unit in units if unit.name not in names]
    told = any("ceilings" in row for row in before)
    for index, unit in enumerate(left):
        if time.time() > context.deadline:
            return OUT_OF_TIME
        append(rows, {"begin": unit.name})
        append(rows, _row(unit, context))
        if "ceilings" in vars(context) and not told:  # it asked for them: they were measured
            append(rows, {"ceilings": context.ceilings.as_dict()})
            told = True
        if index + 1 < len(left) and (stage.apart or not _is_well(place)):
            return GO_ON
    return DONE


def _row(unit: Unit, context: Context) -> Row:
    began = time.perf_counter()
    row: Row = {"name": unit.name}
    try:
        outcome = unit.run(context)
        context.place.synchronise()
        row |= {"brief": outcome.brief, "figures": dict(outcome.figures)}
        json.dumps(row, allow_nan=False)
    except Exception as error:  # noqa: BLE001 (whatever it is: it costs one unit, and is told)
        text = error.message if isinstance(error, TokenmillError) else traceback.format_exc(limit=-6)
        row = {"name": unit.name, "error": text}
        if isinstance(error, Failed):
            row["figures"] = dict(error.figures)
    gc.collect()
    return row | {"seconds": time.perf_counter() - began}


def _is_well(place: Place) -> bool:
    """Whether the device still does what it is told: after an access out of bounds it does nothing any more."""
    try:
        place.synchronise()
        return float(torch.ones(1, device=place.device).sum()) == 1.0
    except RuntimeError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("stage")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--deadline", type=float, required=True)
    given = parser.parse_args()
    try:
        place = Place.find(toy=given.toy)
    except TokenmillError as error:
        print(error.message, file=sys.stderr)
        return FAILED
    return work(given.stage, given.rows, Context(place, given.output, given.deadline))


if __name__ == "__main__":
    sys.exit(main())
