"""The page: one HTML file that needs nothing else. No script, no font, no address outside; light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tokenmill.bench.report.draw import Picture
from tokenmill.bench.report.read import Result

MAX_OPEN_ROWS = 12
"""A longer table is folded."""
STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --muted: #5c6570; --grid: #cdd2d9; --ground: #ffffff;
  --panel: #f5f6f8; --link: #1f6fb2 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e7eaee; --muted: #98a2ae; --grid: #39414b; --ground: #14171b; --panel: #1c2026; --link: #6db3ef }
}
body { margin: 0 auto; max-width: 66rem; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif }
h1 { font-size: 1.7rem; margin: 0 0 .25rem } h2 { font-size: 1.2rem; margin: 0 0 .25rem }
nav ul { padding-left: 1.1rem } a { color: var(--link) }
section { margin-top: 2.75rem }
p { max-width: 46rem; margin: .25rem 0 .9rem } .dim { color: var(--muted) }
figure { margin: 0; padding: .75rem; background: var(--panel); border-radius: .6rem; overflow-x: auto }
figure svg { display: block; width: 100%; min-width: 34rem; height: auto; margin: 0 auto }
.numbers { overflow-x: auto; margin-top: .75rem }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; width: 100% }
th, td { padding: .28rem .5rem; border-bottom: 1px solid var(--grid); text-align: right; white-space: nowrap }
th { font-weight: 600; vertical-align: bottom } td:first-child, th:first-child { text-align: left }
.words td, .words th { text-align: left; white-space: normal; overflow-wrap: anywhere }
summary { cursor: pointer; margin-top: .75rem; color: var(--link) }
@media print { details > * { display: block } section { break-inside: avoid } }
"""


def page(results: Sequence[Result], pictures: Sequence[tuple[Picture, str]]) -> str:
    """All of it. ``pictures``: each with its ``<svg>``."""
    links = "".join(f'<li><a href="#{picture.name}">{escape(picture.title)}</a></li>' for picture, _ in pictures)
    sections = "\n".join(_section(picture, svg) for picture, svg in pictures)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Tokenmill report</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>Tokenmill report</h1>\n"
        f'<nav aria-label="Pictures"><ul>{links}</ul></nav>\n{sections}\n{_sources(results)}\n</body>\n</html>\n'
    )


def _section(picture: Picture, svg: str) -> str:
    numbers = _table(picture.columns, picture.rows)
    if len(picture.rows) > MAX_OPEN_ROWS:
        numbers = f"<details><summary>The {len(picture.rows)} rows of numbers</summary>{numbers}</details>"
    return (
        f'<section id="{picture.name}">\n<h2>{escape(picture.title)}</h2>\n<p class="dim">{escape(picture.text)}</p>\n'
        f"<figure>{svg}</figure>\n{numbers}\n</section>"
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="numbers"><table{style}><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def _sources(results: Sequence[Result]) -> str:
    """Where each figure is from: no figure without machine, versions and command."""
    rows = [_source(result) for result in results]
    table = _table(("file", "what", "model", "machine", "measured", "command"), rows, ' class="words"')
    return f'<section id="sources">\n<h2>Where the figures are from</h2>\n{table}\n</section>'


def _source(result: Result) -> tuple[str, ...]:
    data = result.data
    machine = data.get("machine") or {}
    engine = (data.get("engine") or {}).get("name", "") if isinstance(data.get("engine"), dict) else ""
    where = f"{machine['cpu']}, {machine.get('cores', '?')} cores" if "cpu" in machine else "–"
    version = (machine.get("versions") or {}).get("tokenmill")
    when = " ".join(filter(None, (str(data.get("date", "–")), version, machine.get("commit"))))
    model = str(data.get("model") or data.get("shape") or "–")
    return (result.path.name, f"{result.kind} {engine}".strip(), model, where, when, str(data.get("command", "–")))
