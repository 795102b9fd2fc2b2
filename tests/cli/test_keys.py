"""``tokenmill keys``: a key is shown once, and the file is only ever whole and private."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.server.test_keys import opens
from tokenmill.cli.app import main
from tokenmill.server.access.door import Door


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["keys", *words])
    printed = capsys.readouterr()
    return int(caught.value.code or 0), printed.out, printed.err


def test_a_key_is_shown_once_and_opens_the_door(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    code, out, err = run(capsys, "create", "--file", str(path), "--tenant", "acme", "--weight", "3", "--expires", "30d")
    key = out.strip()
    assert code == 0
    assert "\n" not in key and key not in err, "it is alone on standard output"
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert opens(Door(keys=path), key)
    _, listed, _ = run(capsys, "list", "--file", str(path))
    assert key.split("-")[1] in listed and "acme" in listed and "active" in listed
    assert key not in listed
    assert run(capsys, "revoke", "--file", str(path), key.split("-")[1])[0] == 0
    assert not opens(Door(keys=path), key)
    assert "disabled" in run(capsys, "list", "--file", str(path))[1]


def test_json_for_programs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = str(tmp_path / "keys.json")
    _, out, _ = run(capsys, "create", "--file", path, "--tenant", "ops", "--admin", "--max-concurrent", "4", "--json")
    made: dict[str, Any] = json.loads(out)
    assert made["key"].split("-")[1] == made["id"]
    run(capsys, "tenant", "--file", path, "ops", "--weight", "2", "--tokens-per-minute", "1000")
    listed: dict[str, Any] = json.loads(run(capsys, "list", "--file", path, "--json")[1])
    (record,) = listed["keys"]
    assert (record["admin"], record["max_concurrent"], record["state"]) == (True, 4, "active")
    assert "sha256" not in record
    assert listed["tenants"]["ops"] == {
        "weight": 2.0, "requests_per_minute": None, "tokens_per_minute": 1000, "max_concurrent": None,
    }  # fmt: skip
    run(capsys, "tenant", "--file", path, "ops", "--tokens-per-minute", "0")
    listed = json.loads(run(capsys, "list", "--file", path, "--json")[1])
    assert listed["tenants"]["ops"]["tokens_per_minute"] is None


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("create", "--tenant", "a/b"), "tenant"),
        (("create", "--tenant", "a", "--weight", "0"), "weight"),
        (("create", "--tenant", "a", "--requests-per-minute", "0"), "requests_per_minute"),
        (("create", "--tenant", "a", "--expires", "soon"), "--expires"),
        (("create", "--tenant", "a", "--note", "x" * 300), "note"),
        (("tenant", "a", "--weight", "-1"), "weight"),
        (("list",), "No such file"),
        (("revoke", "000000000000"), "No such file"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, ...], named: str
) -> None:
    path = tmp_path / "keys.json"
    code, out, err = run(capsys, words[0], "--file", str(path), *words[1:])
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert named in err
    assert not path.exists(), "a refused command leaves nothing behind"


def test_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "create", "--file", str(tmp_path / "none" / "keys.json"), "--tenant", "a")
    assert (code, "cannot write into" in err) == (1, True)
