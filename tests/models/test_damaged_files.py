"""MF-08: a checkpoint of which bits have flipped, or whose end is missing: refused by name, or loaded and finite."""

from __future__ import annotations

import contextlib
import hashlib
import random
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.text.test_hostile_files import spec
from tokenmill.core.errors import CheckpointError, ConfigError, NotSupported
from tokenmill.core.precision import Precision
from tokenmill.engine.text import TextCodec
from tokenmill.models.load import load_model
from tokenmill.models.quantization.packed import PackedScheme
from tokenmill.models.weights import manifest, packed_cache
from tokenmill.models.weights.checkpoint import Checkpoint
from tokenmill.models.weights.safetensors_file import SafetensorsFile
from tokenmill.testing.checkpoints import make_checkpoint

REFUSALS = (CheckpointError, ConfigError, NotSupported)
WEIGHTS = "model.safetensors"
SIZES: dict[str, Any] = {"hidden_size": 32, "head_dim": 8, "intermediate_size": 64, "vocab_size": 128, "num_layers": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", tokenizer=False, max_context=64, **SIZES)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def loads_or_refuses(folder: Path) -> bool:
    """Whether it loaded; if so, with finite weights, and either way soon and without much memory."""
    started_s, before = time.thread_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        decoder = load_model(folder)
    except REFUSALS:
        return False
    finally:
        assert time.thread_time() - started_s < 5
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 * 1024
    assert all(tensor.isfinite().all() for tensor in decoder.parameters())
    return True


def header_bytes(data: bytes) -> int:
    return 8 + int.from_bytes(data[:8], "little")


def test_mf08_every_byte_of_the_header(folder: Path) -> None:
    """MF-08: a flipped bit in each byte of the header is refused, or changes nothing that counts."""
    chance, path = random.Random(0), folder / WEIGHTS
    data, names = path.read_bytes(), set(SafetensorsFile(path).entries)
    refused = 0
    for index in range(header_bytes(data)):
        path.write_bytes(flipped(data, 8 * index + chance.randrange(8)))
        try:
            entries = SafetensorsFile(path).entries
        except CheckpointError:
            refused += 1
            continue
        changed = entries.keys() ^ names
        assert len(changed) <= 2, "a name may have changed: the model's list finds that"
    assert refused > header_bytes(data) / 4


def test_mf08_bits_of_the_whole_checkpoint(folder: Path) -> None:
    """MF-08: at random places of the weights and of the configuration."""
    chance = random.Random(1)
    outcomes = []
    for name in (WEIGHTS, "config.json"):
        path, data = folder / name, (folder / name).read_bytes()
        for _ in range(60):
            path.write_bytes(flipped(data, chance.randrange(8 * len(data))))
            outcomes.append(loads_or_refuses(folder))
        path.write_bytes(data)
    assert True in outcomes and False in outcomes
    assert loads_or_refuses(folder)


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_mf08_cut_off_anywhere(folder: Path, name: str) -> None:
    """MF-08: at every 4 KiB and around each end; what is cut off never loads."""
    path, data = folder / name, (folder / name).read_bytes()
    cuts = {*range(0, len(data), 4096), *range(9), header_bytes(data) % len(data), len(data) - 2, len(data) // 2}
    for cut in sorted(cuts):
        path.write_bytes(data[:cut])
        assert not loads_or_refuses(folder), cut


def test_mf08_every_damage_is_found_with_a_list_of_sums(folder: Path) -> None:
    """MF-08: with ``SHA256SUMS``, each of many flips and cuts of the data is refused by the file's name."""
    names = (WEIGHTS, "config.json")
    lines = [f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (folder / manifest.FILE).write_text("".join(lines))
    assert loads_or_refuses(folder)
    chance, path = random.Random(2), folder / WEIGHTS
    data = path.read_bytes()
    begin = 8 * header_bytes(data)
    for _ in range(100):
        path.write_bytes(flipped(data, chance.randrange(begin, 8 * len(data))))
        with pytest.raises(CheckpointError, match=f"{WEIGHTS}.*{manifest.FILE}"):
            manifest.check_sums(folder)
    with pytest.raises(CheckpointError, match=manifest.FILE):
        load_model(folder)


@pytest.mark.parametrize(
    "line",
    [
        "x",
        "0" * 64,
        f"{'0' * 64}  ../config.json",
        f"{'0' * 64}  ..",
        f"{'g' * 64}  config.json",
        f"{'0' * 64}  absent",
    ],
)
def test_a_list_that_is_none_is_refused(folder: Path, line: str) -> None:
    (folder / manifest.FILE).write_text(line + "\n")
    with pytest.raises(CheckpointError, match=manifest.FILE):
        manifest.check_sums(folder)


def test_mf08_bits_of_the_tokenizer(tmp_path: Path) -> None:
    """MF-08: a codec that works, or a refusal that names the file."""
    import json

    chance = random.Random(3)
    files = {
        "tokenizer.json": json.dumps(spec()).encode(),
        "tokenizer_config.json": b'{"eos_token": "<end>", "chat_template": "{{ messages[0].content }}"}',
        "generation_config.json": b'{"eos_token_id": [256, 7]}',
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name, data in files.items():
        damaged = [flipped(data, chance.randrange(8 * len(data))) for _ in range(60)]
        for content in (*damaged, *(data[: chance.randrange(len(data))] for _ in range(20))):
            (tmp_path / name).write_bytes(content)
            try:
                codec = TextCodec.load(tmp_path)
            except REFUSALS:
                continue
            assert codec.encode("a b") is not None
        (tmp_path / name).write_bytes(data)


def test_mf08_bits_of_the_packed_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MF-08: packed weights that are damaged are made anew: the model is always the same."""
    monkeypatch.setattr(packed_cache, "MIN_BYTES", 0)
    scheme = PackedScheme(Precision("fast", "int8", "int8", "bf16"))
    wanted = load_model(folder, scheme=scheme).parameters()
    (path,) = (folder / packed_cache.FOLDER).iterdir()
    data, chance = path.read_bytes(), random.Random(4)
    kept = packed_cache.PackedCache.of(folder, Checkpoint(folder), scheme.precision)
    scratch = [torch.empty_like(tensor) for tensor in wanted]
    size = len(packed_cache.MAGIC)
    header_end = size + 8 + int.from_bytes(data[size : size + 8], "little")
    bits = [8 * index + chance.randrange(8) for index in range(0, header_end, 3)]
    bits += [chance.randrange(8 * header_end, 8 * len(data)) for _ in range(60)]
    cuts = [data[: chance.randrange(len(data))] for _ in range(30)]
    deep = packed_cache.MAGIC + (100_000).to_bytes(8, "little") + b"[" * 100_000
    for content in (*(flipped(data, bit) for bit in bits), *cuts, b"", deep):
        path.write_bytes(content)
        if kept.restore(scratch):  # a bit that means nothing: a letter of the header that is written in two ways
            assert all(torch.equal(one, other) for one, other in zip(scratch, wanted, strict=True))
    path.write_bytes(flipped(data, 8 * len(data) - 800))
    made = load_model(folder, scheme=scheme).parameters()
    assert all(torch.equal(one, other) for one, other in zip(made, wanted, strict=True))


def test_mf08_a_folder_of_nothing_but_garbage(tmp_path: Path) -> None:
    """MF-08."""
    chance = random.Random(5)
    made = make_checkpoint(tmp_path / "model", tokenizer=False, max_context=64, **SIZES)
    for path in made.iterdir():
        path.write_bytes(chance.randbytes(5000))
    assert not loads_or_refuses(made)
    shutil.rmtree(made)
    with pytest.raises(CheckpointError):
        load_model(made)


def test_se12_nothing_is_imported_from_a_checkpoint(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SE-12: ``auto_map`` and Python files are left alone, whatever the configuration says of them."""
    import json
    import sys

    fields = json.loads((folder / "config.json").read_text())
    trap = "raise SystemExit('imported')\n"
    for name in (
        "modeling_trap.py",
        "configuration_trap.py",
        "__init__.py",
        "sitecustomize.py",
        "tokenization_trap.py",
    ):
        (folder / name).write_text(trap)
    auto_map = {"AutoConfig": "configuration_trap.Config", "AutoModelForCausalLM": "modeling_trap.Model"}
    (folder / "config.json").write_text(
        json.dumps({**fields, "auto_map": auto_map, "text_config": {"auto_map": auto_map}})
    )
    (folder / "tokenizer.json").write_text(json.dumps(spec()))
    config = {
        "auto_map": {"AutoTokenizer": ["tokenization_trap.T", None]},
        "tokenizer_class": "trap.T",
        "trust_remote_code": True,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    opened: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("open", "import", "exec", "compile"):
            opened.append(f"{event} {arguments[0] if event != 'exec' else arguments[0].co_filename}")

    sys.addaudithook(watch)
    with contextlib.suppress(*REFUSALS):  # a configuration inside the configuration may be refused
        load_model(folder)
    (folder / "config.json").write_text(json.dumps({**fields, "auto_map": auto_map}))
    load_model(folder)
    TextCodec.load(folder)
    watching = False
    assert "auto_map" in caplog.text and "never run" in caplog.text
    assert opened
    assert not [what for what in opened if "trap" in what or (str(folder) in what and what.endswith(".py"))]
