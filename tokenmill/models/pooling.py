"""How a checkpoint wants its embeddings made: what sentence-transformers keeps beside the weights.

``modules.json`` lists what a text goes through (the transformer, pooling, perhaps scaling to length 1), and
``1_Pooling/config.json`` says which hidden states are taken. A checkpoint without them takes the last position's, as
decoders trained for embeddings do. What cannot be carried out here is refused when the checkpoint is read: an
embedding made in another way would be wrong without anybody noticing.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenmill.core.errors import CheckpointError, NotSupported
from tokenmill.core.pooling import PoolingKind
from tokenmill.models.weights.json_file import read_json

MAX_BYTES = 2**16
MODULES = ("Transformer", "Pooling", "Normalize")
_FLAGS: dict[str, PoolingKind] = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}


def read_pooling(folder: Path) -> PoolingKind:
    """The kind that requests get which name none; ``last`` if the checkpoint says nothing.

    Raises:
        NotSupported: another kind, several at once, or a further module (a dense layer) after it.
        CheckpointError: a file is damaged.
    """
    _check_modules(folder / "modules.json")
    path = folder / "1_Pooling" / "config.json"
    if not path.exists():
        return "last"
    wanted = [name for name, value in read_json(path, MAX_BYTES).items() if name.startswith("pooling_mode_") and value]
    if len(wanted) != 1 or wanted[0] not in _FLAGS:
        names = ", ".join(wanted) or "no kind of pooling"
        raise NotSupported(
            f"{folder.name}/1_Pooling/config.json asks for {names[:200]}; only {' and '.join(_FLAGS)} are built "
            "(take the folder 1_Pooling away to serve the model all the same)"
        )
    return _FLAGS[wanted[0]]


def _check_modules(path: Path) -> None:
    """Its top level is a list, unlike that of every other file of a checkpoint."""
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            modules = json.loads(file.read(MAX_BYTES))
        types = [module["type"].rpartition(".")[2] for module in modules]
    except (OSError, ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path.name}: cannot be read as a list of modules ({str(error)[:120]})") from error
    if beyond := [name for name in types if name not in MODULES]:
        raise NotSupported(
            f"{path.name} has the text go through {beyond[0][:80]}, which is not built "
            "(take the file away to serve the model without it)"
        )
