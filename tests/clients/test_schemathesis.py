"""schemathesis: requests made from ``/openapi.json``; no server error, and every answer as it is described there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
CONFIG = '[checks]\nnot_a_server_error.expected-statuses = ["2xx", "4xx", "504"]\n'
"""A request whose own deadline has passed is a 504, and the fuzzer asks for next to nothing."""
SECONDS = int(os.environ.get("SCHEMATHESIS_SECONDS", "60"))


def test_bi26_the_server_does_what_its_description_says(server: str, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "run", f"{server}/openapi.json", "--url", server,
        "--checks", CHECKS, "--phases", "examples,fuzzing", "--max-examples", "6",
        "--request-timeout", "30", "--max-time", str(SECONDS), "--seed", "7", "--workers", "2",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS * 3 + 60, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
