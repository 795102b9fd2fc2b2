"""``tokenmill score``: predict published measurements and say how far off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenmill.cli.output import note, print_json, print_table


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--calibration", type=click.Path(path_type=Path), help="Add the effects in this file to the shipped ones."
)
@click.option(
    "--physics-only", is_flag=True, help="Without corrections: the roofline and its calibrated factors alone."
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Keep the result, with every row's figures, in this file."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def score(
    files: tuple[Path, ...], calibration: Path | None, physics_only: bool, output: Path | None, as_json: bool
) -> None:
    """Predict every row of FILES (CSV of published measurements) and report the errors."""
    from tokenmill.perf.calibrate import load_effects, shipped_effects
    from tokenmill.perf.score import NO_CORRECTIONS, Predictor, points, score_files, summary

    effects = shipped_effects().and_(load_effects(calibration)) if calibration else None
    board = score_files(files, Predictor(effects, NO_CORRECTIONS if physics_only else None))
    result = summary(board)
    if output is not None:
        from tokenmill.bench.machine import make_result, write_result

        write_result(output, make_result("score", {**result, "points": points(board)}))
        note(f"kept in {output}")
    if as_json:
        print_json(result)
    else:
        _print(result)


def _print(result: dict[str, Any]) -> None:
    coverage = result["interval_coverage"]
    inside = "" if coverage is None else f"; {coverage:.1%} of them inside their 90 % interval"
    print(f"{result['supported_rows']} of {result['rows']} rows predicted ({result['supported']:.1%}){inside}")
    for title, table in {"group": result["groups"], **result["by"]}.items():
        print()
        rows: list[tuple[object, ...]] = [(title.replace("_", " "), "rows", "median", "mean", "p90", "inside")]
        for name, row in table.items():
            shares = (f"{row[figure]:.1%}" for figure in ("median", "mean", "p90", "coverage"))
            rows.append((name, row["n"], *shares))
        print_table(rows, right=range(1, 6))
    _print_choices(result["choices"])
    reasons: dict[str, int] = {}
    for refused in result["unsupported"]:
        reasons[refused["reason"]] = reasons.get(refused["reason"], 0) + 1
    for reason, number in sorted(reasons.items(), key=lambda item: -item[1]):
        print(f"\nnot predicted, {number} rows: {reason}", end="")
    print()


def _print_choices(found: dict[str, dict[str, Any]]) -> None:
    """Regret of choosing by prediction, where the rows answer one question with several options."""
    if not found:
        return
    rows: list[tuple[object, ...]] = [("choosing by prediction", "choices", "best", "mean regret", "p95", "blind")]
    for group, row in found.items():
        rows.append((group, row["n"], *(f"{row[figure]:.1%}" for figure in ("best", "mean", "p95", "blind"))))
    print()
    print_table(rows, right=range(1, 6))
