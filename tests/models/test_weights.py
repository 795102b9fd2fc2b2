"""Checkpoint files that are wrong, by accident or on purpose: MF-01, MF-02, MF-06, MF-07, MF-09, FT-23."""

from __future__ import annotations

import json
import pickle
import resource
import struct
import sys
import time
import zipfile
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenmill.core.errors import CheckpointError, ConfigError, NotSupported
from tokenmill.models.load import load_model, read_config
from tokenmill.models.weights.checkpoint import Checkpoint
from tokenmill.models.weights.safetensors_file import SafetensorsFile
from tokenmill.testing.checkpoints import make_checkpoint, write_safetensors

SIZES: dict[str, Any] = {"hidden_size": 32, "head_dim": 8, "intermediate_size": 64, "vocab_size": 128}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", tokenizer=False, **SIZES)


@contextmanager
def refused(*words: str) -> Iterator[None]:
    """Refused in a second, in one line that has these words, without unpickling or much memory."""
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    _unpickled.clear()
    with pytest.raises(CheckpointError) as caught:
        yield
    message = caught.value.message
    assert all(word in message for word in words), message
    assert "\n" not in message
    assert len(message) < 500
    assert time.perf_counter() - started < 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024
    assert not _unpickled


_unpickled: list[str] = []
sys.addaudithook(lambda event, _: _unpickled.append(event) if event.startswith("pickle.") else None)


def entry(begin: int, end: int, shape: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def raw_file(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def with_header(tensors: Any, data: bytes = bytes(16)) -> bytes:
    return raw_file(json.dumps(tensors).encode(), data)


def test_a_good_file_opens(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(with_header({"__metadata__": {"format": "pt"}, "a": entry(0, 8, [2]), "b": entry(8, 16, [1, 2])}))
    opened = SafetensorsFile(file)
    assert list(opened.entries) == ["a", "b"]
    assert opened.tensor("b").shape == (1, 2)


DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
A, B = entry(0, 8, [2]), entry(8, 16, [2])
CRAFTED: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty": (b"", ("too few",)),
    "seven bytes": (b"1234567", ("too few",)),
    "header of 2^63": (raw_file(b"{}", length=2**63), ("header",)),
    "header of 101 MiB": (raw_file(b"{}", length=101 * 2**20), ("header",)),
    "header beyond the file": (raw_file(b"{}", length=3), ("header", "longer")),
    "header truncated": (with_header({"a": A, "b": B})[:40], ("header",)),
    "not an object": (raw_file(b"[]"), ("'{'",)),
    "bad utf-8": (raw_file(b'{"\xff": 1}'), ("JSON",)),
    "nested 100,000 deep": (raw_file(DEEP), ("nested",)),
    "negative offset": (with_header({"a": entry(-8, 8, [4])}), ("'a'",)),
    "reversed offsets": (with_header({"a": entry(8, 0, [2]), "b": B}), ("'a'",)),
    "overlap": (with_header({"a": entry(0, 12, [3]), "b": B}), ("'b'", "overlaps")),
    "gap": (with_header({"a": entry(0, 4, [1]), "b": B}), ("'b'", "gap")),
    "shape product overflow": (with_header({"a": entry(0, 16, [2**32, 2**32])}), ("'a'",)),
    "shape of floats": (with_header({"a": entry(0, 16, [4.0])}), ("'a'",)),
    "shape of another size": (with_header({"a": entry(0, 16, [5])}), ("'a'", "16 bytes")),
    "dtype of another size": (with_header({"a": entry(0, 16, [4], "F16")}), ("'a'",)),
    "unknown dtype": (with_header({"a": entry(0, 16, [4], "F33")}), ("'a'", "F33")),
    "dtype no string": (with_header({"a": entry(0, 16, [4], ["F32"])}), ("'a'",)),
    "no offsets": (with_header({"a": {"dtype": "F32", "shape": [4]}}), ("'a'",)),
    "entry no object": (with_header({"a": 3}), ("'a'",)),
    "data truncated": (with_header({"a": A, "b": B})[:-1], ("'b'",)),
    "trailing bytes": (with_header({"a": A, "b": B}) + b"x", ("end",)),
    # MF-02: what the safetensors library itself accepts
    "duplicate name": (
        raw_file(f'{{"a": {json.dumps(A)}, "a": {json.dumps(B)}}}'.encode(), bytes(16)),
        ("'a'", "twice"),
    ),
    "empty tensor": (with_header({"a": entry(0, 16, [4]), "b": entry(16, 16, [0])}), ("'b'", "empty")),
    "100,000 empty tensors": (with_header({f"t{i}": entry(0, 0, [0]) for i in range(100_000)}, b""), ("tensor",)),
    # MF-09: pickle under this name
    "zip": (b"PK\x03\x04" + bytes(60), ("pickle",)),
    "pickle": (pickle.dumps({"a": [1.0] * 50}, protocol=2), ("pickle",)),
}


@pytest.mark.parametrize("kind", CRAFTED)
def test_mf_01_mf_02_mf_09_crafted_files(kind: str, folder: Path) -> None:
    content, words = CRAFTED[kind]
    (folder / "model.safetensors").write_bytes(content)
    with refused(*words):
        load_model(folder)


def rewrite(folder: Path, change: Any) -> None:
    """Load the folder's tensors as (shape, values), let ``change`` edit them, write them back."""
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {name: (e.shape, array("f", file.tensor(name).flatten().tolist())) for name, e in file.entries.items()}
    change(tensors)
    write_safetensors(folder / "model.safetensors", tensors)


def test_mf_02_names_are_never_paths(folder: Path) -> None:
    rewrite(folder, lambda tensors: tensors.update({"../../escaped": ((1,), array("f", [0.0]))}))
    with refused("../../escaped", "does not ask for"):
        load_model(folder)
    assert not (folder.parent.parent / "escaped").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_mf_02_weights_that_are_not_finite(folder: Path, value: float) -> None:
    def poison(tensors: dict[str, Any]) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"][1][77] = value

    rewrite(folder, poison)
    with refused("model.layers.1.mlp.up_proj.weight", "finite"):
        load_model(folder)


def test_ft_23_missing_unexpected_and_misshapen_tensors(folder: Path) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    rewrite(folder, lambda tensors: tensors.pop(name))
    with refused("lacks", name):
        load_model(folder)

    make_checkpoint(folder, tokenizer=False, **SIZES)
    rewrite(folder, lambda tensors: tensors.update({"extra.weight": ((1,), array("f", [0.0]))}))
    with refused("extra.weight", "does not ask for"):
        load_model(folder)

    make_checkpoint(folder, tokenizer=False, **SIZES)
    rewrite(folder, lambda tensors: tensors.update({name: ((32, 16), tensors[name][1])}))
    with refused(name, "[32, 16]", "[16, 32]"):
        load_model(folder)


def test_mf_06_a_configuration_larger_than_its_file_allocates_nothing(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"hidden_size": 2**17, "head_dim": 128, "intermediate_size": 2**19, "vocab_size": 2**20}
    (folder / "config.json").write_text(json.dumps(config))
    with refused("has shape"):
        load_model(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1, "a": 2}', b"\xff\xfe{}", DEEP, b" " * (2**20 + 1)])
def test_mf_06_configuration_files(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    with refused("config.json"):
        read_config(folder)


def shard(folder: Path) -> dict[str, str]:
    """Split the folder's file in two with an index; returns the weight map."""
    file = SafetensorsFile(folder / "model.safetensors")
    tensors = {n: (e.shape, array("f", file.tensor(n).flatten().tolist())) for n, e in file.entries.items()}
    names = list(tensors)
    halves = {"one.safetensors": names[: len(names) // 2], "two.safetensors": names[len(names) // 2 :]}
    for shard_name, members in halves.items():
        write_safetensors(folder / shard_name, {name: tensors[name] for name in members})
    (folder / "model.safetensors").unlink()
    weight_map = {name: shard_name for shard_name, members in halves.items() for name in members}
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_load_as_the_single_file(folder: Path) -> None:
    single = load_model(folder)
    shard(folder)
    for ours, theirs in zip(load_model(folder).parameters(), single.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", "", "a\0b.safetensors", "sub/one.safetensors", "..\\x.safetensors"],
)
def test_mf_07_shard_names_stay_in_the_folder(folder: Path, name: str) -> None:
    weight_map = shard(folder)
    write_index(folder, {**weight_map, "model.norm.weight": name})
    with refused("not a plain file name"):
        Checkpoint(folder)


def test_mf_07_links_and_missing_shards(folder: Path, tmp_path: Path) -> None:
    shard(folder)
    outside = tmp_path / "outside.safetensors"
    (folder / "two.safetensors").rename(outside)
    with refused("two.safetensors", "missing"):
        load_model(folder)
    (folder / "two.safetensors").symlink_to(outside)
    with refused("two.safetensors", "out of"):
        load_model(folder)
    (folder / "two.safetensors").unlink()
    (folder / "two.safetensors").symlink_to(folder / "two.safetensors")
    with refused("two.safetensors", "nowhere"):
        load_model(folder)


def test_mf_07_an_index_of_a_million_entries(folder: Path) -> None:
    entries = b",".join(b'"t%d":"one.safetensors"' % i for i in range(10**6))
    (folder / "model.safetensors.index.json").write_bytes(b'{"weight_map": {' + entries + b"}}")
    with refused("larger than the limit"):
        load_model(folder)


def test_mf_07_index_and_shards_disagree(folder: Path) -> None:
    weight_map = shard(folder)
    write_index(folder, {**weight_map, "model.norm.weight": "one.safetensors"})
    with refused("model.norm.weight", "not in one.safetensors"):
        load_model(folder)
    write_index(folder, {name: where for name, where in weight_map.items() if name != "model.norm.weight"})
    with refused("model.norm.weight", "index"):
        load_model(folder)
    (folder / "one.safetensors").write_bytes((folder / "two.safetensors").read_bytes())
    write_index(folder, weight_map)
    with refused("both"):
        load_model(folder)


def test_a_hub_cache_of_links_is_a_folder_too(folder: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "hub" / "snapshots" / "abc", tmp_path / "hub" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).rename(blobs / f"hash-of-{name}")
        (snapshot / name).symlink_to(Path("..", "..", "blobs", f"hash-of-{name}"))
    assert load_model(snapshot).config.hidden_size == 32


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "adapter_model.bin"])
def test_mf_09_pickle_by_extension(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": torch.zeros(2)}, folder / name)
    with refused(name, "pickle"):
        load_model(folder)
    write_index(folder, {"a": name})
    with refused(name, "pickle"):
        load_model(folder)


def test_mf_09_zip_with_a_pickle_inside(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.safetensors", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1, 2, 3]))
    with refused("model.safetensors", "pickle"):
        load_model(folder)


def test_no_weights_and_no_folder(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with refused("model.safetensors"):
        load_model(folder)
    with refused("config.json"):
        load_model(folder / "nowhere")


def test_options_and_quantised_weights(folder: Path) -> None:
    with pytest.raises(ConfigError, match="max_context"):
        load_model(folder, max_context=10**6)
    assert load_model(folder, max_context=10).max_context == 10
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    with pytest.raises(NotSupported, match="gptq"):
        load_model(folder)


def test_progress_and_ends(folder: Path) -> None:
    calls: list[tuple[int, int]] = []
    model = load_model(folder, progress=lambda done, total: calls.append((done, total)))
    assert calls == sorted(calls)
    assert calls[-1] == (4 * model.config.num_parameters, 4 * model.config.num_parameters)
    assert read_config(folder).eos_token_ids == (2,)
    (folder / "generation_config.json").write_text('{"eos_token_id": [5, 2]}')
    assert read_config(folder).eos_token_ids == (2, 5)


def test_tied_embeddings_share_storage(folder: Path) -> None:
    make_checkpoint(folder, "qwen3", tokenizer=False, tie_word_embeddings=True, **SIZES)
    model = load_model(folder)
    assert model.lm_head.parameters()[0].data_ptr() == model.embedding.parameters()[0].data_ptr()
    assert sum(tensor.numel() for tensor in model.parameters()) == model.config.num_parameters
