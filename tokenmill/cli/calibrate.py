"""``tokenmill calibrate``: learn an engine's factors from measurements."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenmill.cli.output import note, print_json, print_table


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--engine", help="Use only rows of this engine.")
@click.option("--version", "engine_version", help="Use only rows of this version of the engine.")
@click.option("--hardware", help="Use only rows measured on this device.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The calibration file to write.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def calibrate(
    files: tuple[Path, ...],
    engine: str | None,
    engine_version: str | None,
    hardware: str | None,
    output: Path,
    as_json: bool,
) -> None:
    """Fit factors to the rows of FILES (CSV of measurements) and write them for other commands' --calibration."""
    from tokenmill.perf.calibrate import save_effects
    from tokenmill.perf.score.fitting import fit_files

    fitted = fit_files(files, engine=engine, version=engine_version, hardware=hardware)
    save_effects(fitted.effects, output)
    note(f"kept in {output}")
    report: dict[str, Any] = {
        "rows": fitted.num_rows,
        "error_before": round(fitted.error_before, 4),
        "error_after": round(fitted.error_after, 4),
        "factors": {term: round(factor, 4) for term, factor in fitted.factors.items()},
        "output": output.as_posix(),
    }
    if as_json:
        print_json(report)
        return
    print(f"{fitted.num_rows} rows; median error {fitted.error_before:.1%} before, {fitted.error_after:.1%} after")
    print_table([("term", "factor"), *((term, f"{factor:.2f}") for term, factor in fitted.factors.items())], right=(1,))
