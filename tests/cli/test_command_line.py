"""Names, options, errors and exit codes; nothing here loads a model."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import click
import pytest

from tests.cli.support import ROOT, call
from tokenmill import __version__
from tokenmill.cli import app, options
from tokenmill.cli.app import COMMANDS, LazyGroup, tokenmill
from tokenmill.cli.bench.group import MEASUREMENTS
from tokenmill.cli.serve import SERVER_HELP
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import CheckpointError
from tokenmill.core.params import FIELD_NAMES
from tokenmill.server.settings import ServerSettings

Capsys = pytest.CaptureFixture[str]


def every_command() -> list[tuple[str, ...]]:
    return [(name,) for name in COMMANDS] + [("bench", name) for name in MEASUREMENTS]


def command_of(path: tuple[str, ...]) -> click.Command:
    command: click.Command = tokenmill
    for name in path:
        assert isinstance(command, LazyGroup)
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    return command


def test_every_engine_field_is_an_option_and_every_option_a_field() -> None:
    names = {f.name for piece in options.PIECES for f in fields(piece)}
    assert set(options.ENGINE_HELP) == names - {"model", "source", "cache", "scheduler", "left_open"}
    shown = {parameter.name for parameter in command_of(("serve",)).params}
    assert set(options.ENGINE_HELP) | {"model"} <= shown


def test_every_server_setting_is_an_option_but_the_key_itself() -> None:
    # A key on the command line could be read by every user of the machine.
    assert set(SERVER_HELP) == {f.name for f in fields(ServerSettings)} - {"api_key"}


def test_sampling_options_are_sampling_parameters() -> None:
    assert set(options.SAMPLING_HELP) <= FIELD_NAMES


def test_defaults_have_one_home() -> None:
    """No option of the engine has a default of its own, and the help shows the record's."""
    serve = command_of(("serve",))
    for parameter in serve.params:
        if parameter.name in options.ENGINE_HELP and not parameter.multiple:
            assert parameter.default is None or not isinstance(parameter.default, int | float | str), parameter.name
    context = click.Context(serve)
    assert f"[default: {EngineConfig().scheduler.max_step_tokens}]" in " ".join(serve.get_help(context).split())


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_every_command_has_help_and_every_option_a_help_text(path: tuple[str, ...]) -> None:
    command = command_of(path)
    assert command.help
    missing = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert not missing


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_every_command_that_reports_takes_json(path: tuple[str, ...]) -> None:
    talks = {("serve",), ("chat",), ("bench",), ("keys",)}  # the last two are groups
    names = {parameter.name for parameter in command_of(path).params}
    assert ("as_json" in names) == (path not in talks)


def test_options_reach_the_engine_configuration(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EngineConfig] = []

    @click.command()
    @options.engine_options
    def probe(engine: EngineConfig) -> None:
        seen.append(engine)

    line = (
        "there --kv-memory-bytes 1.5GiB --policy fair --tenant-weights a=2 --tenant-weights b=0.5 --no-prefix-caching"
    )
    probe.main([*line.split(), "--itl-slo-s", "0.05", "--dtype", "bfloat16", "--depth", "2"], standalone_mode=False)
    (engine,) = seen
    assert engine == EngineConfig.from_options(
        model="there", kv_memory_bytes=int(1.5 * 2**30), policy="fair", tenant_weights={"a": 2.0, "b": 0.5},
        prefix_caching=False, itl_slo_s=0.05, dtype="bfloat16", depth=2,
    )  # fmt: skip
    probe.main([], standalone_mode=False)
    assert seen[1] == EngineConfig()


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("1000", 1000), ("4GB", 4_000_000_000), ("4 gb", 4_000_000_000), ("512MiB", 2**29), ("1.5kB", 1500)],
)
def test_sizes(text: str, wanted: int) -> None:
    assert options.byte_size(text) == wanted


@pytest.mark.parametrize("text", ["", "x", "4XB", "-4", "4.GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="4GB"):
        options.byte_size(text)


# ---- what is wrong is said in one line -------------------------------------------------------------------

MISUSE = {
    "unknown command": (["serv"], "did you mean 'serve'"),
    "unknown command of bench": (["bench", "scheduller"], "did you mean 'scheduler'"),
    "unknown command, none near": (["zzz"], "there are: serve, chat"),
    "unknown option": (["serve", "--max-seq", "3"], "--max-seqs"),
    "unknown sampling option": (["generate", "x", "--temprature", "1"], "--temperature"),
    "no choice": (["serve", "--policy", "lifo"], "fcfs"),
    "no number": (["serve", "--max-seqs", "many"], "many"),
    "no size": (["info", "--kv-memory-bytes", "much"], "4GB"),
    "neither prompt nor file": (["generate"], "--input"),
    "input without output": (["generate", "--input", "x.jsonl"], "--output"),
}


@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_one_line_with_the_remedy(case: str, capsys: Capsys) -> None:
    arguments, remedy = MISUSE[case]
    done = call(capsys, *arguments)
    assert (done.code, done.out) == (app.MISUSED, "")
    assert done.err.startswith("error: ") and done.err.count("\n") == 1
    assert remedy in done.err and "--help" in done.err


FAILURES = {
    "no such model": (["info", "stroy"], "'story'"),
    "no such folder": (["serve", "--port", "0", "./nowhere"], "no folder ./nowhere"),
    "value out of range": (["info", "--max-seqs", "0"], "max_seqs must be at least 1"),
    "no such journal": (["replay", "nowhere.jsonl"], "nowhere.jsonl"),
    "no such input": (["generate", "--input", "nowhere.jsonl", "--output", "x"], "nowhere.jsonl"),
    "no such key": (["serve", "--api-key-file", "nowhere.key"], "--api-key-file"),
    "no such lengths": (["bench", "serve", "--lengths", "nowhere.csv"], "nowhere.csv"),
    "no server": (["bench", "serve", "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9"),
    "journal that cannot be written": (["serve", "--port", "0", "--journal", "nowhere/x"], "journal nowhere/x"),
    "bad sampling value": (["generate", "x", "--temperature", "9"], "temperature"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_is_one_line_and_a_code(case: str, capsys: Capsys) -> None:
    arguments, cause = FAILURES[case]
    done = call(capsys, *arguments)
    *progress, last = done.err.splitlines()
    assert (done.code, done.out) == (app.FAILED, "")
    assert last.startswith("error: ") and cause in last
    assert all(line.endswith("…") for line in progress)


@pytest.mark.parametrize("where", [0, 2])
def test_debug_shows_the_traceback_wherever_it_stands(where: int, capsys: Capsys) -> None:
    arguments = ["info", "stroy"]
    arguments.insert(where, "--debug")
    with pytest.raises(CheckpointError, match="stroy"):
        app.main(arguments)


def test_a_bug_is_one_line_too(capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**arguments: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(tokenmill, "main", broken)
    done = call(capsys, "info")
    assert (done.code, done.err) == (1, "error: ZeroDivisionError: boom (this is a bug; --debug shows where)\n")


def test_version(capsys: Capsys) -> None:
    assert call(capsys, "--version") == call(capsys, "-V")
    assert call(capsys, "-V").out == f"tokenmill {__version__}\n"


# ---- quick -----------------------------------------------------------------------------------------------


def test_help_comes_at_once() -> None:
    """Less than 0.4 s of this machine's time, measured on the processor: others may be using it too."""

    def cpu_s() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def once() -> float:
        before_s = cpu_s()
        done = subprocess.run([sys.executable, "-m", "tokenmill", "--help"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "Commands:" in done.stdout
        return cpu_s() - before_s

    assert min(once() for _ in range(3)) < 0.4


@pytest.mark.parametrize("path", every_command(), ids=" ".join)
def test_help_of_every_command_loads_nothing_heavy(path: tuple[str, ...]) -> None:
    code = (
        "import sys, json\nfrom tokenmill.cli import main\n"
        f"try: main([*{list(path)!r}, '--help'])\nexcept SystemExit: pass\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & {"torch", "numpy", "tokenizers", "starlette", "uvicorn", "pydantic", "rich", "asyncio"}


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    line = f"{sys.executable} -m tokenmill bench scheduler --num-requests 30 --batch-size 1 --json | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "{\n" and "Error" not in done.stderr
