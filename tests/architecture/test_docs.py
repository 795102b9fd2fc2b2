"""The documentation says what is there: its links lead somewhere, its names exist, its reference pages are complete."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(p for folder in ("docs", "tokenmill", "tools") for p in (ROOT / folder).rglob("*.md"))]
)

MISSION_ROWS = {
    "D": 10, "E": 15, "K": 5, "Q": 6, "S": 3, "V": 7, "C": 5, "P": 8,
}  # fmt: skip
RELIABILITY_CASES = {
    "BI": range(1, 28), "HT": range(1, 11), "OV": range(1, 13), "ST": range(1, 10), "FT": range(1, 29),
    "CC": range(1, 19), "NU": range(1, 10), "SE": range(1, 27), "MF": range(1, 11), "AC": range(1, 16),
    "FA": range(1, 7), "SK": (1, 2, 4, 5, 6, 7, 8),
}  # fmt: skip


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def links() -> Iterator[tuple[Path, str]]:
    for path in PAGES:
        prose = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", prose):
            if not target.startswith(("http://", "https://", "#")):
                yield path, target.partition("#")[0]


def test_links_between_pages_lead_somewhere() -> None:
    broken = [f"{p.relative_to(ROOT)}: {target}" for p, target in links() if not (p.parent / target).exists()]
    assert not broken, "\n".join(broken)


def test_no_page_is_unfinished() -> None:
    left = re.compile(r"@[A-Z_]+@|\bTODO\b|\bFIXME\b|\bXXX\b")
    found = [f"{p.relative_to(ROOT)}: {mark}" for p in PAGES for mark in left.findall(p.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


def test_every_page_is_linked_from_another() -> None:
    linked = {(path.parent / target).resolve() for path, target in links()}
    lonely = [p.relative_to(ROOT).as_posix() for p in PAGES if p not in linked and p != ROOT / "README.md"]
    assert not lonely


def test_files_named_in_the_docs_exist() -> None:
    named = re.compile(r"`((?:tokenmill|tests|tools|docs|results)/[\w./-]+)`")
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in PAGES
        for name in named.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    ]
    assert not missing, "\n".join(missing)


def test_tests_named_in_the_status_page_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)`::(\w+)", page("docs/status.md"))
    missing = [f"{p}::{t}" for p, t in named if not (ROOT / p).exists() or f"def {t}(" not in (ROOT / p).read_text()]
    assert named
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("group", MISSION_ROWS)
def test_status_names_every_row_of_the_mission(group: str) -> None:
    listed = re.findall(rf"^\| ({group}\d+) \| (\w[\w ]*) \|", page("docs/status.md"), re.MULTILINE)
    assert [name for name, _ in listed] == [f"{group}{i}" for i in range(1, MISSION_ROWS[group] + 1)]
    assert {state for _, state in listed} <= {"done", "partly", "not yet"}


@pytest.mark.parametrize("area", RELIABILITY_CASES)
def test_status_names_every_reliability_case_taken_on(area: str) -> None:
    text = page("docs/status.md")
    missing = [case for i in RELIABILITY_CASES[area] if f"| {(case := f'{area}-{i:02d}')} |" not in text]
    assert not missing


def test_readme_shows_every_part_of_the_package() -> None:
    package = ROOT / "tokenmill"
    parts = [f"{p.name}/" for p in package.iterdir() if (p / "__init__.py").exists()]
    parts += [p.name for p in package.glob("*.py") if not p.name.startswith("__")]
    missing = [part for part in parts if part not in page("README.md")]
    assert not missing
