"""``tokenmill report``: result files, drawn."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tokenmill.cli.output import print_json

FILE = click.Path(path_type=Path)


@click.command()
@click.argument("files", nargs=-1, required=True, type=FILE, metavar="FILE…")
@click.option("--output", type=FILE, default=Path("report.html"), show_default=True, help="The page.")
@click.option("--png", type=FILE, metavar="FOLDER", help="Each picture as PNG too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def report(files: tuple[Path, ...], output: Path, png: Path | None, as_json: bool) -> None:
    """Draw FILEs, results of the bench commands, of simulate and of score, as one page with pictures and numbers."""
    from tokenmill.bench.report import make_report

    pictures = make_report(files, output, png)
    if as_json:
        drawn = [{"name": p.name, "title": p.title, "columns": p.columns, "rows": p.rows} for p in pictures]
        print_json({"output": os.fspath(output), "png": png and os.fspath(png), "pictures": drawn})
        return
    for picture in pictures:
        print(f"{picture.title}: {len(picture.rows)} rows")
    print(f"\n{output}" + (f", and as PNG in {png}" if png else ""))
