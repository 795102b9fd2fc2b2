"""Results say where they come from."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tokenmill import __version__
from tokenmill.bench.machine import make_result, write_result


def test_a_result_is_kept_with_machine_versions_and_command(tmp_path: Path) -> None:
    path = tmp_path / "results" / "x.json"
    write_result(path, make_result("serve", {"results": {"failed": 0}}))
    kept = json.loads(path.read_text())
    assert kept["bench"] == "serve" and kept["results"] == {"failed": 0}
    assert kept["command"].startswith("tokenmill ")
    machine = kept["machine"]
    assert machine["versions"]["tokenmill"] == __version__ and "torch" in machine["versions"]
    assert machine["cpu"] and machine["cores"] >= 1 and machine["memory_bytes"] > 1e8


def test_a_result_names_no_person_and_no_host() -> None:
    text = json.dumps(make_result("serve", {})["machine"])
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text
