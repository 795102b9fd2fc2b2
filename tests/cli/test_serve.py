"""``tokenmill serve`` as a process: readiness, bad starts, signals, exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.conftest import SMALL
from tests.cli.support import call, process
from tokenmill import builtin

MAX_REFUSAL_S = 10.0
MAX_EXIT_S = 5.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def is_free(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def test_from_the_ready_line_to_a_clean_end(tmp_path: Path) -> None:
    """The printed request works as it stands, the key is asked for and never shown, SIGTERM ends with 0."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    key = tmp_path / "key"
    key.write_text("hunter2\n")
    port = free_port()
    with process("serve", *SMALL, "--port", port, "--served-name", "tiny", "--api-key-file", key) as started:
        started.wait_for(f"ready on http://127.0.0.1:{port}")
        curl = started.wait_for(r"try:  (curl .*)\n")[1]
        assert started.children == []
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models")
        assert refused.value.code == 401
        environment = os.environ | {"TOKENMILL_API_KEY": "hunter2"}
        done = subprocess.run(["bash", "-c", curl], env=environment, capture_output=True, text=True, timeout=60)
        answer = json.loads(done.stdout)
        assert answer["model"] == "tiny" and answer["choices"][0]["message"]["content"]
        started.signal(signal.SIGTERM)
        # The interpreter's own end is in this; unloading torch takes a second of processor time.
        assert started.wait(4 * MAX_EXIT_S) == 0
    assert is_free(port)
    assert "POST /v1/chat/completions 200 request_id=req_" in started.text, "the log"
    assert "hunter2" not in started.text


# ---- FT-23: a bad start ----------------------------------------------------------------------------------


def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(builtin.path("story-draft"), folder)
    return folder


def edit(path: Path, **fields: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def missing_shard(folder: Path) -> tuple[list[str], str]:
    names = ["model.embed_tokens.weight"]
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00002.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return [], "model-00001-of-00002.safetensors"


def wrong_shape(folder: Path) -> tuple[list[str], str]:
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", intermediate_size=config["intermediate_size"] + 16)
    return [], "mlp"


def cut_short(folder: Path) -> tuple[list[str], str]:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return [], "model.safetensors"


def vocab_mismatch(folder: Path) -> tuple[list[str], str]:
    config = json.loads((folder / "config.json").read_text())
    edit(folder / "config.json", vocab_size=config["vocab_size"] - 100)
    return [], "rows"


def not_enough_memory(folder: Path) -> tuple[list[str], str]:
    return ["--num-blocks", "1000000000"], "it fits with --num-blocks"


Damage = Callable[[Path], tuple[list[str], str]]


@pytest.mark.parametrize("damage", [missing_shard, wrong_shape, cut_short, vocab_mismatch, not_enough_memory])
def test_ft_23_a_bad_start_ends_at_once_with_one_line(
    damage: Damage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkpoint(tmp_path)
    options, cause = damage(folder)
    began_s = time.process_time()
    done = call(capsys, "serve", folder, "--port", "0", *options)
    # Time on the processor: the machine may be busy with something else.
    assert time.process_time() - began_s < MAX_REFUSAL_S
    assert (done.code, done.out) == (1, "")
    *progress, error = done.err.splitlines()
    assert error.startswith("error: ") and cause in error
    assert all(line.endswith("…") for line in progress)


def test_ft_23_as_a_process(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    _, cause = missing_shard(folder)
    with process("serve", folder, "--port", "0") as started:
        assert started.wait() == 1
    (error,) = [line for line in started.text.splitlines() if not line.endswith("…")]
    assert error.startswith("error: ") and cause in error


def test_ft_23_a_port_in_use_is_told_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with process("serve", "--port", port) as started:
            assert started.wait() == 1
    assert started.text.startswith("error: ") and f"port {port} is in use" in started.text
    assert "loading" not in started.text and started.text.count("\n") == 1


# ---- FT-13, FT-14: signals and exit codes ----------------------------------------------------------------


@pytest.mark.parametrize("stage", ["importing torch", "loading weights"])
def test_ft_13_sigterm_while_loading(stage: str) -> None:
    port = free_port()
    with process("serve", "story", "--port", port) as started:
        started.wait_for(stage)
        began_s = time.monotonic()
        started.signal(signal.SIGTERM)
        code = started.wait(MAX_EXIT_S)
        assert time.monotonic() - began_s < MAX_EXIT_S
    assert code == -signal.SIGTERM
    assert "ready" not in started.text and "Traceback" not in started.text
    assert is_free(port)


BREAK_THE_ENGINE = """
from tokenmill.runtime.executor import LocalExecutor
from tokenmill.cli import main
def broken(self, plan):
    raise RuntimeError("the machine caught fire")
LocalExecutor.submit = broken
main(["serve", "story-draft", "--port", "0", "--num-blocks", "64"])
"""


def test_ft_14_a_dead_engine_ends_the_process_with_a_code() -> None:
    with process(code=BREAK_THE_ENGINE) as started:
        url = started.wait_for(r"ready on (http://[\d.:]+\d)")[1]
        body = json.dumps({"model": "story-draft", "prompt": "Once", "max_tokens": 5}).encode()
        request = urllib.request.Request(f"{url}/v1/completions", body, {"Content-Type": "application/json"})
        with pytest.raises((urllib.error.HTTPError, ConnectionError)):
            urllib.request.urlopen(request, timeout=30)
        assert started.wait(2 * MAX_EXIT_S) not in (0, None)
    assert "the machine caught fire" in started.text


def test_ft_14_a_killed_server_leaves_nothing_behind() -> None:
    port = free_port()
    shared_memory = set(os.listdir("/dev/shm"))
    with process("serve", *SMALL, "--port", port) as started:
        started.wait_for("ready on")
        assert started.children == []
        started.signal(signal.SIGKILL)
        assert started.wait(MAX_EXIT_S) == -signal.SIGKILL
    assert is_free(port)
    assert set(os.listdir("/dev/shm")) <= shared_memory
