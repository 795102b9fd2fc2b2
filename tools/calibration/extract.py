"""Terms of every row's steps, as arrays: what the fits work on.

Usage: python tools/calibration/extract.py FILE.csv... --output rows.pkl [--part 0/1]
"""

from __future__ import annotations

import argparse
import pickle
import time
from pathlib import Path

from tokenmill.perf.calibrate import keys_of
from tokenmill.perf.score.deployed import NotPredicted
from tokenmill.perf.score.features import features_of
from tokenmill.perf.score.rows import read_rows
from tokenmill.perf.score.scenario import scenario_of
from tokenmill.perf.terms import REQUEST, REQUEST_S

known: dict = {}


def terms_of(deployment, work):
    hardware = deployment.hardware
    key = (
        deployment.shape.name,
        deployment.formats,
        deployment.layout,
        hardware.name,
        hardware.memory_bytes_per_s,
        work,
    )
    if key not in known:
        known[key] = deployment.terms(work)
    return known[key]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--part", default="0/1")
    arguments = parser.parse_args()
    part, parts = (int(text) for text in arguments.part.split("/"))
    rows = [row for path in arguments.files for row in read_rows(path)]
    begin, found, refused = time.time(), [], []
    for index, row in enumerate(rows):
        if index * parts // len(rows) != part:
            continue
        try:
            scenario = scenario_of(row)
        except NotPredicted as error:
            refused.append((index, str(error)))
            continue
        d = scenario.deployment
        steps = [(weight, terms_of(d, work)) for weight, work in scenario.steps]
        if scenario.requests:
            steps.append((scenario.requests, (0.0,) * REQUEST + (REQUEST_S,)))
        keys = keys_of(d.hardware, scenario.engine, row.release or None, d.shape, d.formats)
        found.append({"index": index, "row": row, "group": scenario.group, "engine": scenario.engine, "steps": steps,
                      "amount": scenario.amount, "model": d.shape.name, "keys": keys,
                      "features": features_of(row, scenario)})  # fmt: skip
    arguments.output.write_bytes(pickle.dumps((found, refused)))
    print(len(found), len(refused), f"{time.time() - begin:.1f} s")


if __name__ == "__main__":
    main()
