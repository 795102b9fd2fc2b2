"""The reference pages are complete and invent nothing: compared with the routes, fields, codes, metrics and options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from tokenmill.cli.app import COMMANDS
from tokenmill.cli.app import tokenmill as command_line
from tokenmill.core.engine_config import CacheConfig, EngineConfig, ModelSource, SchedulerConfig
from tokenmill.core.params import FIELD_NAMES
from tokenmill.engine.telemetry import ERROR_BOUNDS, LiveFigures, Observation, StepAccount
from tokenmill.server.admission import Queue
from tokenmill.server.app import ENDPOINTS
from tokenmill.server.metrics import ServerMetrics
from tokenmill.server.protocol.chat import ChatRequest
from tokenmill.server.protocol.completions import CompletionRequest
from tokenmill.server.protocol.embeddings import EmbeddingRequest
from tokenmill.server.protocol.responses import ResponseRequest
from tokenmill.server.settings import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
SETUP_CODES = {"setup_error", "config_error", "checkpoint_error", "does_not_fit", "error", "request_failed"}


def page(name: str) -> str:
    return (ROOT / "docs" / "reference" / f"{name}.md").read_text(encoding="utf-8")


def not_in(text: str, names: set[str]) -> set[str]:
    return {name for name in names if f"`{name}`" not in text}


# ---- configuration and Python ----------------------------------------------------------------------------


def test_every_engine_and_server_option_is_documented() -> None:
    pieces = (ModelSource, CacheConfig, SchedulerConfig, EngineConfig, ServerSettings)
    options = {f.name for piece in pieces for f in fields(piece)} - {"source", "cache", "scheduler", "left_open"}
    assert not not_in(page("configuration"), options)


def test_every_sampling_parameter_is_documented() -> None:
    assert not not_in(page("python"), set(FIELD_NAMES))


def test_the_tiles_are_those_of_the_kernels() -> None:
    linear, attention = (
        (ROOT / "tokenmill" / "kernels" / "reference" / f"{name}.py").read_text(encoding="utf-8")
        for name in ("linear", "attention")
    )
    rows = re.search(r"^TILE_ROWS = (\d+)", linear, re.MULTILINE)
    keys = re.search(r"^KEY_TILE = (\d+)", attention, re.MULTILINE)
    assert rows is not None
    assert keys is not None
    text = (ROOT / "docs" / "explanation" / "independence.md").read_text(encoding="utf-8")
    assert f"tiles of {rows[1]} rows" in text
    assert f"multiples of {keys[1]} positions" in text


# ---- HTTP ------------------------------------------------------------------------------------------------


def test_every_route_is_documented() -> None:
    routes = {f"{e.method} {re.sub(r':path', '', e.path)}" for e in ENDPOINTS}
    text = page("http-api")
    assert not {route for route in routes if not re.search(rf"`{re.escape(route)}`", text)}


def test_every_field_of_every_request_is_documented() -> None:
    requests = (ChatRequest, CompletionRequest, EmbeddingRequest, ResponseRequest)
    fields = {name for request in requests for name in request.model_fields}
    assert not not_in(page("http-api"), fields)


def error_codes() -> set[str]:
    """Every word that the source gives to ``code``."""
    found: set[str] = set()
    for folder in ("core", "engine", "server"):
        for path in (ROOT / "tokenmill" / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            found |= set(re.findall(r'\bcode ?= ?"([a-z_]+)"', text))
            found |= {
                code for table in re.findall(r"\bcodes = \{(.*)\}", text) for code in re.findall(r'"(\w+)"', table)
            }
    return found - SETUP_CODES


def test_every_error_code_is_documented() -> None:
    codes = error_codes()
    assert {"invalid_json", "model_not_found", "unknown_url"} <= codes
    assert not not_in(page("http-api"), codes)


# ---- metrics ---------------------------------------------------------------------------------------------


class Service:
    """What a scrape asks of a service."""

    ready = True

    def subscribe(self, listener: Any) -> None:
        pass

    def stats(self) -> dict[str, float]:
        return _Ones()

    def observation(self) -> Observation:
        live, counts = LiveFigures(0.5, 0.5, "compute"), (0,) * (len(ERROR_BOUNDS) + 1)
        return Observation({}, StepAccount(), 0.0, live, 0.0, 0.0, counts)


class Admission:
    """What a scrape asks of the queue."""

    waiting = background = Queue()

    def wait_s(self) -> float:
        return 0.0


class _Ones(dict[str, float]):
    def __missing__(self, key: str) -> float:
        return 1.0


def metric_names() -> set[str]:
    metrics = ServerMetrics(Service())  # type: ignore[arg-type]
    metrics.watch(Admission())  # type: ignore[arg-type]
    families = metrics.registry.collect()
    return {f"{family.name}_total" if family.type == "counter" else family.name for family in families}


def test_metrics_page_names_exactly_what_is_exported() -> None:
    assert set(re.findall(r"^\| `(tokenmill_\w+)` \|", page("metrics"), re.MULTILINE)) == metric_names()


# ---- command line ----------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(command_line)
    for name in COMMANDS:
        command = command_line.get_command(context, name)
        assert command is not None
        yield name, command
        if isinstance(command, click.Group):
            for sub in command.list_commands(context):
                found = command.get_command(context, sub)
                assert found is not None
                yield f"{name} {sub}", found


def options_of(command: click.Command) -> set[str]:
    options = {o for p in command.params if isinstance(p, click.Option) for o in (*p.opts, *p.secondary_opts)}
    return {option for option in options if option.startswith("--")}


def test_every_command_and_its_own_options_are_documented() -> None:
    text = page("cli")
    configuration = page("configuration")
    missing = []
    for name, command in commands():
        missing += [] if f"tokenmill {name}" in text else [name]
        for option in options_of(command):
            field = option.removeprefix("--no-").removeprefix("--").replace("-", "_")
            if option not in text and f"`{field}`" not in configuration:
                missing.append(f"{name} {option}")
    assert not missing


def test_options_named_in_the_docs_exist() -> None:
    known = {option for _, command in commands() for option in options_of(command)} | {"--help", "--version", "--debug"}
    # Options of pip, make, curl, the hub's own command and Prometheus, which the pages name too.
    known |= {"--no-compile", "--strict", "--local-dir", "--config"}
    strangers = {
        f"{path.relative_to(ROOT)}: {option}"
        for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", path.read_text(encoding="utf-8"))
        if option not in known
    }
    assert not strangers
