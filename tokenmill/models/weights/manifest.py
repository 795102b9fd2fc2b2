"""``SHA256SUMS`` beside a checkpoint: every file that it lists is what it was when the list was made.

The form is that of ``sha256sum *.safetensors *.json > SHA256SUMS``. A bit that flipped in the data of a tensor makes
another finite number: nothing else finds it. Files are read once for this, a few tenths of a second per GB; weights
that are restored from packed ones carry checksums of their own, and their originals are not read again.
"""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenmill.core.errors import CheckpointError

FILE = "SHA256SUMS"
MAX_BYTES = 2**20

_LINE = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?([^/\\\0]+)")


def check_sums(folder: Path) -> int:
    """Hash every listed file; how many there are, 0 without a list.

    Raises:
        CheckpointError: a line that is none, or a file that is missing or another; names it.
    """
    path = folder / FILE
    if not path.exists():
        return 0
    sums = _read(path)
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(sums, pool.map(lambda name: _sum(folder / name), sums), strict=True))
    for name, wanted in sums.items():
        if found[name] != wanted:
            raise CheckpointError(f"{name}: its content is not what {FILE} says: the file is damaged or another")
    return len(sums)


def _read(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{FILE}: cannot be read ({error})") from error
    if len(data) > MAX_BYTES:
        raise CheckpointError(f"{FILE}: larger than the limit of {MAX_BYTES} bytes")
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = _LINE.fullmatch(line)
        if match is None or match[2] in (".", ".."):
            raise CheckpointError(f"{FILE}, line {number}: must be a SHA-256 and the name of a file of this folder")
        sums[match[2]] = match[1]
    return sums


def _sum(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path.name}: {FILE} lists it, but it cannot be read ({error.strerror})") from error
