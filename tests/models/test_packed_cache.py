"""Packed weights beside a checkpoint: used when they belong to it, written anew when they do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tokenmill.core.precision import Precision
from tokenmill.models.decoder import Decoder
from tokenmill.models.load import load_model
from tokenmill.models.quantization.packed import PackedScheme
from tokenmill.models.weights import packed_cache
from tokenmill.models.weights.checkpoint import Checkpoint
from tokenmill.testing.checkpoints import make_checkpoint

INT8 = Precision("fast", "int8", "int8", "bf16")
INT4 = Precision("fast", "int4", "int8", "bf16")


@pytest.fixture(autouse=True)
def even_small_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_cache, "MIN_BYTES", 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", "qwen2", tokenizer=False, vocab_size=300)


@pytest.mark.parametrize("precision", [INT8, INT4], ids=["int8", "int4"])
def test_experts_are_kept_too(tmp_path: Path, readings: list[Path], precision: Precision) -> None:
    folder = make_checkpoint(tmp_path / "model", "qwen3_moe", tokenizer=False, vocab_size=300, mlp_only_layers=[1])
    first, second = load(folder, precision), load(folder, precision)
    assert len(readings) == 1 and same(first, second) and same(first, load(folder, precision, keep=False))


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Checkpoints whose tensors were read."""
    read: list[Path] = []
    original = Checkpoint.read_into

    def read_into(self: Checkpoint, *args: object) -> None:
        read.append(self.files[0].path)
        original(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpoint, "read_into", read_into)
    return read


def load(folder: Path, precision: Precision = INT8, *, keep: bool = True) -> Decoder:
    return load_model(folder, scheme=PackedScheme(precision), keep_packed=keep)


def same(a: Decoder, b: Decoder) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def kept(folder: Path) -> list[Path]:
    return sorted((folder / ".tokenmill").iterdir())


def test_the_second_load_reads_no_checkpoint_and_gives_the_same(folder: Path, readings: list[Path]) -> None:
    first, second = load(folder), load(folder)
    assert len(readings) == 1 and same(first, second)
    assert [path.name for path in kept(folder)] == ["int8-int8.packed"]


def test_each_precision_has_its_own_file(folder: Path, readings: list[Path]) -> None:
    load(folder), load(folder, INT4), load(folder), load(folder, INT4)
    assert len(readings) == 2 and len(kept(folder)) == 2


def test_it_is_not_kept_if_nobody_wants_it(folder: Path) -> None:
    load(folder, keep=False)
    assert not (folder / ".tokenmill").exists()


def test_another_checkpoint_in_its_place_is_noticed(folder: Path, readings: list[Path]) -> None:
    load(folder)
    make_checkpoint(folder, "qwen2", tokenizer=False, vocab_size=300, seed=1)
    found = load(folder)
    assert len(readings) == 2 and same(found, load(folder, keep=False))


@pytest.mark.parametrize("damage", ["bit", "short", "empty", "no header", "huge header"])
def test_a_damaged_file_is_written_anew(folder: Path, readings: list[Path], damage: str) -> None:
    wanted = load(folder)
    (path,) = kept(folder)
    content = bytearray(path.read_bytes())
    size = len(packed_cache.MAGIC)
    if damage == "bit":
        content[-100] ^= 1
    elif damage == "short":
        del content[-100:]
    elif damage == "empty":
        content.clear()
    elif damage == "no header":
        content[size + 8 : size + 12] = b"????"
    else:
        content[size : size + 8] = b"\xff" * 8
    path.write_bytes(content)
    assert same(load(folder), wanted) and len(readings) == 2
    assert same(load(folder), wanted) and len(readings) == 2, "the damaged file was not replaced"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_where_the_folder_is_read_only_the_users_cache_serves(
    folder: Path, readings: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder.chmod(0o555)
    load(folder), load(folder)
    assert len(readings) == 1 and list((tmp_path / "cache").rglob("*.packed"))


def test_a_full_disk_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed_cache.tempfile, "NamedTemporaryFile", fail)
    load(folder)
    assert not any((folder / ".tokenmill").iterdir())
