"""``Checkpoint``: the tensors of a folder by name, in one safetensors file or in shards with an index.

Opening reads headers alone. Which tensors there must be is said by the model (``Destinations``): what is
missing, left over or of another shape is named before anything is loaded. Loading goes file by file, tensor
by tensor, each copied straight to its destination; a weight that is not finite is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor

from tokenmill.core.errors import CheckpointError
from tokenmill.models.layers.destination import Destinations
from tokenmill.models.weights.json_file import read_json
from tokenmill.models.weights.safetensors_file import SafetensorsFile

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 2**24
MAX_INDEX_ENTRIES = 2**18
MAX_SHARDS = 2**12

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Checkpoint:
    """The weight files of a folder, headers read and checked."""

    def __init__(self, folder: Path) -> None:
        """Raises ``CheckpointError`` naming the file."""
        self.files: list[SafetensorsFile] = []
        if (folder / INDEX_FILE).exists():
            weight_map = _read_index(folder)
            self.files = [SafetensorsFile(_inside(folder, shard)) for shard in sorted(set(weight_map.values()))]
            self._check_index(weight_map)
        elif (folder / SINGLE_FILE).exists() or (folder / SINGLE_FILE).is_symlink():
            self.files = [SafetensorsFile(_inside(folder, SINGLE_FILE))]
        else:
            raise _no_weights(folder)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.end - entry.begin for file in self.files for entry in file.entries.values())

    def _check_index(self, weight_map: dict[str, str]) -> None:
        holder: dict[str, str] = {}
        for file in self.files:
            for name in file.entries:
                if name in holder:
                    raise CheckpointError(f"tensor {name[:120]!r} is in both {holder[name]} and {file.path.name}")
                holder[name] = file.path.name
        for name, shard in weight_map.items():
            if holder.get(name) != shard:
                raise CheckpointError(f"{INDEX_FILE}: tensor {name[:120]!r} is not in {shard}")
        for name in holder.keys() - weight_map.keys():
            raise CheckpointError(f"{holder[name]}: tensor {name[:120]!r} is not in {INDEX_FILE}")

    def check_matches(self, destinations: Destinations, ignored_suffixes: Iterable[str] = ()) -> None:
        """Compare names and shapes with what the model wants; raises ``CheckpointError`` naming tensors."""
        entries = {name: entry for file in self.files for name, entry in file.entries.items()}
        if missing := [name for name in destinations if name not in entries]:
            raise CheckpointError(f"the checkpoint lacks {_some(missing)}, which config.json asks for")
        suffixes = tuple(ignored_suffixes)
        if left := [name for name in entries if name not in destinations and not name.endswith(suffixes)]:
            raise CheckpointError(f"the checkpoint holds {_some(left)}, which config.json does not ask for")
        for name, destination in destinations.items():
            entry = entries[name]
            if entry.shape != destination.shape:
                raise CheckpointError(
                    f"tensor {name} has shape {list(entry.shape)}, config.json asks for {list(destination.shape)}"
                )
            if not entry.dtype.is_floating_point or entry.dtype.itemsize == 1:
                raise CheckpointError(f"tensor {name} is {str(entry.dtype)[6:]}: quantised weights need their scheme")

    def read_into(
        self, destinations: Destinations, dtype: torch.dtype, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Copy every wanted tensor to its destination, checked to be finite in ``dtype``."""
        total, done = self.num_bytes, 0
        for file in self.files:
            for name, entry in sorted(file.entries.items(), key=lambda item: item[1].begin):
                if name in destinations:
                    tensor = file.tensor(name)
                    _check_finite(tensor, dtype, file.path.name, name)
                    destinations[name].take(tensor)
                done += entry.end - entry.begin
                if progress is not None:
                    progress(done, total)


def _read_index(folder: Path) -> dict[str, str]:
    weight_map = read_json(folder / INDEX_FILE, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{INDEX_FILE}: weight_map must be an object of tensor names and files")
    if len(weight_map) > MAX_INDEX_ENTRIES:
        raise CheckpointError(f"{INDEX_FILE}: more than {MAX_INDEX_ENTRIES} tensors")
    if not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{INDEX_FILE}: weight_map must name a file for every tensor")
    if len(set(weight_map.values())) > MAX_SHARDS:
        raise CheckpointError(f"{INDEX_FILE}: more than {MAX_SHARDS} files")
    return weight_map


def _inside(folder: Path, name: str) -> Path:
    """The file ``name`` of the folder, refused if it is not one: a path, a link to elsewhere, another format."""
    if name != Path(name).name or "\\" in name or "\0" in name or name in ("", ".", ".."):
        raise CheckpointError(f"{name[:120]!r} is not a plain file name in the checkpoint's folder")
    if not name.endswith(".safetensors"):
        raise _not_safetensors(name)
    try:
        target = (folder / name).resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise CheckpointError(f"{name}: the file is missing, or a link that leads nowhere") from error
    home = folder.resolve()
    blobs = home.parent.parent / "blobs"  # a hub cache keeps snapshots/<revision>/ as links to blobs/ beside
    if target.parent != home and not (home.parent.name == "snapshots" and target.parent == blobs):
        raise CheckpointError(f"{name}: a link that leads out of the checkpoint's folder")
    return folder / name


def _no_weights(folder: Path) -> CheckpointError:
    if not folder.is_dir():
        return CheckpointError(f"{folder.name}: not a folder")
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in _PICKLE_SUFFIXES)
    if pickles:
        return _not_safetensors(pickles[0])
    return CheckpointError(f"{folder.name}: neither {SINGLE_FILE} nor {INDEX_FILE} is there")


def _not_safetensors(name: str) -> CheckpointError:
    if name.endswith(_PICKLE_SUFFIXES):
        return CheckpointError(
            f"{name[:120]}: a pickle file can run code when opened and is refused; convert it to safetensors"
        )
    return CheckpointError(f"{name[:120]!r}: weights must be .safetensors files")


def _check_finite(tensor: Tensor, dtype: torch.dtype, file_name: str, name: str) -> None:
    lowest, highest = torch.aminmax(tensor)
    limit = torch.finfo(dtype).max
    if not (-limit <= lowest.item() and highest.item() <= limit):  # false for NaN too
        raise CheckpointError(f"{file_name}: tensor {name} holds values that are not finite in {str(dtype)[6:]}")


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:120] for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"
