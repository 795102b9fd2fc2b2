"""``tokenmill calibrate``: learn an engine's factors from measurements."""

from __future__ import annotations

import json
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
    """Fit factors to FILES (CSV of measurements, or results of bench offline) and write them for --calibration."""
    from tokenmill.core.errors import ConfigError
    from tokenmill.perf.calibrate import save_effects
    from tokenmill.perf.score.fitting import fit_files
    from tokenmill.perf.score.turns import fit_results, merged

    if all(path.suffix == ".json" for path in files):
        if engine or engine_version or hardware:
            raise ConfigError("--engine, --version and --hardware choose rows of a CSV; results are of this engine")
        fitted = fit_results({path.as_posix(): _read(path) for path in files})
        effects = merged(fitted)
    else:
        fitted = [fit_files(files, engine=engine, version=engine_version, hardware=hardware)]
        effects = fitted[0].effects
    save_effects(effects, output)
    note(f"kept in {output}")
    reports: list[dict[str, Any]] = [
        {
            "key": each.key,
            "rows": each.num_rows,
            "error_before": round(each.error_before, 4),
            "error_after": round(each.error_after, 4),
            "factors": {term: round(factor, 4) for term, factor in each.factors.items()},
        }
        for each in fitted
    ]
    if as_json:
        print_json({**reports[0], "fits": reports, "output": output.as_posix()})
        return
    for each in fitted:
        print(
            f"{each.key or 'everything'}: {each.num_rows} rows; "
            f"median error {each.error_before:.1%} before, {each.error_after:.1%} after"
        )
        print_table(
            [("term", "factor"), *((term, f"{factor:.2f}") for term, factor in each.factors.items())], right=(1,)
        )


def _read(path: Path) -> dict[str, Any]:
    from tokenmill.core.errors import ConfigError

    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(found, dict) or found.get("bench") != "offline":
        raise ConfigError(f"{path}: not a result of bench offline")
    return found
