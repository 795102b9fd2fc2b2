"""Where a model's files are: built in, in a folder, or on the Hugging Face hub.

A name is tried in that order. From the hub only what this engine reads is fetched: safetensors weights, JSON,
chat templates, tokenizer files. Never pickled weights, never code. Files land in the hub's own cache, so a
second start needs no network, and neither does a name that was fetched before.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenmill import builtin
from tokenmill.core.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all)."""

WANTED = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "merges.txt",
    "tokenizer.model",
)
_UNWANTED = ("consolidated*.safetensors",)  # the same weights again, under other names

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_TIMEOUT_S = 10.0


def resolve(name: str, *, progress: Progress | None = None) -> Path:
    """The folder of model ``name``; downloads it if need be.

    Args:
        name: a built-in model, a folder, or ``org/name`` on the hub.
        progress: told how far a download is.

    Raises:
        CheckpointError: nothing there, or the hub cannot be reached; says what to do instead.
    """
    if name in builtin.NAMES:
        return builtin.path(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{name} is a file: give the folder that holds config.json and the weights")
    if not _HUB_NAME.fullmatch(name) or name.startswith("."):
        raise CheckpointError(_not_found(name))
    return _from_hub(name, progress or (lambda done, total: None))


def _not_found(name: str) -> str:
    if "/" in name or name.startswith((".", "~")):
        return f"there is no folder {name}: check the path (a hub model is named org/name)"
    near = difflib.get_close_matches(name, builtin.NAMES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"built in: {', '.join(builtin.NAMES)}"
    return f"no built-in model and no folder {name!r}; {hint}; a hub model is named org/name"


def _from_hub(name: str, progress: Progress) -> Path:
    try:
        import huggingface_hub as hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise CheckpointError(
            f"there is no folder {name}, and downloading needs an extra package: pip install 'tokenmill[hub]'"
        ) from error
    try:
        info = hub.HfApi().model_info(name, files_metadata=True, timeout=_TIMEOUT_S)
        return _fetch(info, name, progress)
    except HfHubHTTPError as error:
        raise CheckpointError(_refused(name, error)) from error
    except CheckpointError:
        raise
    except Exception as error:  # whatever the hub's HTTP library raises when there is no network
        cached = _cached(name)
        if cached is None:
            raise CheckpointError(
                f"cannot reach the hub for {name} ({type(error).__name__}): download its folder elsewhere "
                f"(hf download {name} --local-dir FOLDER), copy it here, and serve /path/to/FOLDER"
            ) from error
        return cached


def _fetch(info: ModelInfo, name: str, progress: Progress) -> Path:
    """Fetch every wanted file of one commit; the folder that holds them."""
    from huggingface_hub import hf_hub_download

    sizes = {file.rfilename: file.size or 0 for file in info.siblings or () if _is_wanted(file.rfilename)}
    _check_complete(name, list(sizes))
    done, total = 0, sum(sizes.values())
    progress(0, total)
    for filename, size in sorted(sizes.items(), key=lambda item: item[1]):

        def report(fetched: int, before: int = done) -> None:
            progress(min(before + fetched, total), total)

        path = Path(hf_hub_download(name, filename, revision=info.sha, tqdm_class=_silent_bar(report)))
        done += size
        progress(done, total)
    return path.parents[filename.count("/")]


def _is_wanted(filename: str) -> bool:
    top = "/" not in filename
    wanted = any(fnmatch(filename, pattern) and (top or "/" in pattern) for pattern in WANTED)
    return wanted and not any(fnmatch(filename, pattern) for pattern in _UNWANTED)


def _check_complete(name: str, filenames: Sequence[str]) -> None:
    if "config.json" not in filenames:
        raise CheckpointError(f"{name} on the hub has no config.json: it is no model that can be served")
    if not any(filename.endswith(".safetensors") for filename in filenames):
        raise CheckpointError(f"{name} on the hub has no safetensors weights: choose a repository that has, or convert")


def _cached(name: str) -> Path | None:
    """The folder of an earlier download, if it is whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, local_files_only=True, allow_patterns=list(WANTED)))
        _check_complete(name, [file.name for file in path.iterdir()])
    except (LocalEntryNotFoundError, CheckpointError):
        return None
    return path


def _refused(name: str, error: Exception) -> str:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return f"{name} on the hub asks you to accept its licence: do so on its page, then log in with: hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return f"there is no folder and no hub model {name}: check the name (a private model needs: hf auth login)"
    return f"the hub did not hand out {name}: {' '.join(str(error).split())[:200]}"


def _silent_bar(report: Callable[[int], None]) -> Any:
    """A progress bar class for the hub's library that draws nothing and reports the bytes of one file so far."""
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        fetched = 0

        def display(self, *args: Any, **kwargs: Any) -> None:
            pass

        def update(self, n: float | None = 1) -> bool | None:
            self.fetched += int(n or 0)
            report(self.fetched)
            shown: bool | None = super().update(n)
            return shown

    return Bar
