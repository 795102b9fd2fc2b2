"""``tokenmill probe``: measure this machine, and write it down as a device of the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from tokenmill.cli.hardware import amount
from tokenmill.cli.output import note, print_json, print_table

if TYPE_CHECKING:
    from tokenmill.bench.probe import Probe


@click.command()
@click.option("--device", default="cpu", show_default=True, type=click.Choice(("cpu", "cuda")), help="What to measure.")
@click.option("--num-threads", type=click.IntRange(1), help="One per core if not given.")
@click.option("--quick", is_flag=True, help="Fewer runs and smaller sizes: seconds, and less sure.")
@click.option(
    "--folder",
    default=Path(),
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Whose disk is measured, with a file that is deleted afterwards. [here]",
)
@click.option("--output", type=click.Path(path_type=Path), help="Write the device as TOML to this file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def probe(
    device: Literal["cpu", "cuda"],
    num_threads: int | None,
    quick: bool,
    folder: Path,
    output: Path | None,
    as_json: bool,
) -> None:
    """Measure this machine's bandwidth, peaks, latencies and disk, and compare with the datasheet if it is known.

    The file that --output writes is a device for every command that takes --hardware.
    """
    from tokenmill.bench.machine import make_result
    from tokenmill.bench.probe import run
    from tokenmill.perf.hardware.write import to_toml

    found = run(
        device=device,
        num_threads=num_threads,
        quick=quick,
        folder=folder,
        progress=lambda name: note(f"{name} …"),
    )
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(to_toml(found.hardware), encoding="utf-8")
        note(f"written to {output}")
    if as_json:
        print_json(make_result("probe", found.as_dict()))
    else:
        _print(found)


def _print(found: Probe) -> None:
    from tokenmill.perf.hardware.checks import figures

    hardware, shares = found.hardware, found.shares()
    against = f"datasheet of {found.datasheet.name}" if found.datasheet else "not in the catalogue"
    print(f"{hardware.name}, {hardware.note or hardware.kind} ({against}); {found.seconds:.0f} s\n")
    rows: list[tuple[object, ...]] = [("figure", "best", "median", "datasheet", "share")]
    for name, value in figures(hardware).items():
        median = amount(name, found.samples[name].median) if name in found.samples else ""
        sheet, share = (amount(name, shares[name][1]), f"{shares[name][2]:.0%}") if name in shares else ("", "")
        rows.append((name, amount(name, value), median, sheet, share))
    for name in hardware.observed:
        samples = found.samples[name]
        rows.append((name, amount(name, samples.best), amount(name, samples.median), "", ""))
    print_table(rows, right=(1, 2, 3, 4))
    for reason in found.left_out:
        note(f"left out: {reason}")
