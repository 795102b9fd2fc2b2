"""``tokenmill bench gpu``: everything that is measured on a GPU, in so many minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenmill.cli.output import note, print_json

VERDICTS = {True: "reached", False: "MISSED", None: "–"}
STAGES = "tests,kernels,step,offline,peers,probe"


@click.command()
@click.option("--stages", default=STAGES, show_default=True, help="Which, in this order; none: only the score-card.")
@click.option("--minutes", default=9.5, show_default=True, type=click.FloatRange(min=0.0), help="For all of them.")
@click.option(
    "--toy", is_flag=True, help="A rehearsal on the CPU at toy sizes: every stage runs, no figure means a thing."
)
@click.option(
    "--output",
    default=Path("results"),
    show_default=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder for a result file of each stage and the score-card.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def gpu(stages: str, minutes: float, toy: bool, output: Path, as_json: bool) -> int:
    """Test and measure on this machine's GPU: kernels, steps, throughput, other engines; then a score-card.

    Exit code 1 if anything failed or was left out for want of time.
    """
    from tokenmill.bench.gpu.run import run

    names = [name.strip() for name in stages.split(",") if name.strip() not in ("", "none")]
    result = run(names, minutes=minutes, output=output, toy=toy, say=note)
    if as_json:
        print_json(result)
    else:
        _print(result)
    return 0 if result["ended_well"] else 1


def _print(result: dict[str, Any]) -> None:
    print(f"\n{result['device'] or 'no device'}")
    for score in result["scores"]:
        print(f"{VERDICTS[score['reached']]:9}{score['figure']}: {score['seen']} (aim: {score['aim']})")
    for stage, found in result["stages"].items():
        for words, names in (("FAILED", found["failed"]), ("no time was left for", found["not_run"])):
            if names:
                print(f"{stage}: {words} {'; '.join(names)}")
