"""The repository as a whole: what its files must not say, and what its package must hold."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Folders of one person's machine. Put together from pieces, so that this file does not contain them itself.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:" + "|".join(("work", "root", r"home/\w+", r"Users/\w+", "opt")) + r")/")


def tracked_files() -> list[Path]:
    """Files under version control or about to be."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    return [path for line in listed.splitlines() if (path := ROOT / line).is_file()]


def text_of(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def test_no_file_names_a_folder_of_somebodys_machine() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}"
        for path in tracked_files()
        if (text := text_of(path)) is not None and MACHINE_PATH.search(text)
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE_PATH.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_file_is_larger_than_a_clone_should_be() -> None:
    large = {p.relative_to(ROOT).as_posix(): p.stat().st_size for p in tracked_files() if p.stat().st_size > 31e6}
    assert not large


@pytest.mark.slow
def test_the_wheel_holds_the_code_the_types_and_the_built_in_models(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    # A copy is built: setuptools leaves its build folder in the tree it builds.
    copy = tmp_path / "tree"
    for path in tracked_files():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(path)
    done = subprocess.run([*command, str(copy)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    (wheel,) = tmp_path.glob("tokenmill-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    package = {p.relative_to(ROOT).as_posix() for p in tracked_files() if p.is_relative_to(ROOT / "tokenmill")}
    assert package <= held, f"missing from the wheel: {sorted(package - held)}"
    assert not [name for name in held if name.startswith(("tests/", "tools/"))]
