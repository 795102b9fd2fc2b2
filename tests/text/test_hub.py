"""Finding a model by name: built in, a folder, the hub; and what is said where there is no network."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tokenmill import builtin
from tokenmill.core.errors import CheckpointError
from tokenmill.models import hub

huggingface_hub = pytest.importorskip("huggingface_hub")


def test_built_in_names() -> None:
    for name in builtin.NAMES:
        assert (hub.resolve(name) / "config.json").is_file()


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert hub.resolve(str(tmp_path)) == tmp_path
    assert hub.resolve("org/name") == Path("org/name"), "a folder of that name wins over the hub"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nothing", "there is no folder ./nothing"),
        ("/no/such/folder", "there is no folder /no/such/folder"),
        ("~/nothing", "there is no folder"),
        ("a/b/c", "there is no folder a/b/c"),
        ("storry", "did you mean 'story'"),
        ("nothing", "built in: story, story-draft"),
    ],
)
def test_names_that_are_nowhere(name: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        hub.resolve(name)
    assert "\n" not in caught.value.message


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match="is a file"):
        hub.resolve(str(tmp_path / "model.safetensors"))


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'tokenmill\[hub\]'"):
        hub.resolve("org/name")


def test_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real library, offline: one line that says what to do."""
    with pytest.raises(CheckpointError, match=r"download its folder elsewhere.*serve /path/to/FOLDER") as caught:
        hub.resolve("no-such-org/no-such-model")
    assert "\n" not in caught.value.message


@dataclass
class File:
    rfilename: str
    size: int


class FakeHub:
    """A repository in memory; ``hf_hub_download`` writes its files and moves the bar it is given."""

    def __init__(self, folder: Path, files: dict[str, int]) -> None:
        self.folder = folder
        self.files = files
        self.downloaded: list[str] = []

    def model_info(self, name: str, **_: Any) -> Any:
        info = type("Info", (), {})()
        info.sha = "c0ffee"
        info.siblings = [File(filename, size) for filename, size in self.files.items()]
        return info

    def download(self, name: str, filename: str, *, revision: str, tqdm_class: Any) -> str:
        assert revision == "c0ffee", "one commit for all files"
        path = self.folder / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        size = self.files[filename]
        with tqdm_class(total=size, disable=False) as bar:
            bar.update(size // 2)
            bar.update(size - size // 2)
        path.touch()
        self.downloaded.append(filename)
        return str(path)


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    files = {
        "config.json": 10,
        "tokenizer.json": 100,
        "tokenizer.model": 50,
        "model-00001-of-00002.safetensors": 1000,
        "model-00002-of-00002.safetensors": 900,
        "model.safetensors.index.json": 20,
        "chat_template.jinja": 5,
        "additional_chat_templates/tool_use.jinja": 6,
        "pytorch_model.bin": 2000,
        "modeling_evil.py": 30,
        "original/consolidated.00.pth": 2000,
        "original/params.json": 3,
        "consolidated.safetensors": 1900,
        "onnx/model.safetensors": 1900,
        "README.md": 40,
    }
    fake = FakeHub(tmp_path / "snapshot", files)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fake.download)
    return fake


def test_only_what_is_read_is_downloaded(fake_hub: FakeHub) -> None:
    seen: list[tuple[int, int]] = []
    path = hub.resolve("org/name", progress=lambda done, total: seen.append((done, total)))
    assert path == fake_hub.folder
    assert sorted(fake_hub.downloaded) == [
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
    ]
    total = sum(fake_hub.files[name] for name in fake_hub.downloaded)
    assert seen[0] == (0, total) and seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert any(1000 <= done - 1091 < 2000 for done, _ in seen) and len(seen) > 2 * len(fake_hub.downloaded)


@pytest.mark.parametrize(
    ("missing", "message"), [("config.json", "no config.json"), (".safetensors", "no safetensors")]
)
def test_repositories_that_cannot_be_served(missing: str, message: str, fake_hub: FakeHub) -> None:
    fake_hub.files = {name: size for name, size in fake_hub.files.items() if not name.endswith(missing)}
    with pytest.raises(CheckpointError, match=message):
        hub.resolve("org/name")
    assert not fake_hub.downloaded


def test_what_the_hub_refuses(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import errors

    httpx = pytest.importorskip(errors.HfHubHTTPError.__mro__[1].__module__.split(".")[0])
    response = httpx.Response(403, request=httpx.Request("GET", "https://hub.invalid"))
    cases = {errors.GatedRepoError: "licence", errors.RepositoryNotFoundError: "check the name"}
    for kind, message in {**cases, errors.HfHubHTTPError: "did not hand out"}.items():

        def refuse(name: str, kind: Any = kind, **_: Any) -> Any:
            raise kind("No.\nReally.", response=response)

        monkeypatch.setattr(fake_hub, "model_info", refuse)
        with pytest.raises(CheckpointError, match=message) as caught:
            hub.resolve("org/name")
        assert "\n" not in caught.value.message


def test_an_earlier_download_serves_without_a_network(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(name: str, **_: Any) -> Any:
        raise ConnectionError

    monkeypatch.setattr(fake_hub, "model_info", unreachable)
    cache = tmp_path / "cached"
    cache.mkdir()
    (cache / "config.json").touch()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(cache))
    with pytest.raises(CheckpointError, match="cannot reach the hub"):
        hub.resolve("org/name")  # no weights there
    (cache / "model.safetensors").touch()
    assert hub.resolve("org/name") == cache
