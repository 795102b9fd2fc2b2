"""``tokenmill serve``: a model behind OpenAI's API.

The address is taken before anything slow begins, so that a port in use is told at once. A signal while loading
ends the process at once (nothing is held that would need cleaning); once ready, the server drains.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from tokenmill.cli.options import engine_options, given, record_options
from tokenmill.cli.output import Loading
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import ConfigError
from tokenmill.engine.remote.options import Recovery, RemoteSettings
from tokenmill.engine.watchdog import STUCK_AFTER_S
from tokenmill.server.settings import ServerSettings

if TYPE_CHECKING:
    from tokenmill.engine.async_service import EngineService
    from tokenmill.engine.remote.service import RemoteService
    from tokenmill.launch import Checkpoint

API_KEY_VARIABLE = "TOKENMILL_API_KEY"

SERVER_HELP = {
    "host": "Address to listen on; 0.0.0.0: every network.",
    "port": "Port to listen on; 0: a free one.",
    "keys": "File of keys, each with its tenant and limits (tokenmill keys create); read again when it changes.",
    "open_metrics": "/metrics wants no key.",
    "max_waiting_requests": "Most choices that may wait for the engine; more are refused.",
    "max_waiting_tokens": "Most tokens that those who wait may still have to compute.",
    "max_wait_s": "A request that would wait longer, as far as can be foreseen, is refused at once.",
    "queue_timeout_s": "A request that has waited so long and not begun ends with 503; if not given, it waits.",
    "cors_origins": "Origin that a browser may call from; may be repeated.",
    "allowed_hosts": "Name by which this server may be called (its Host header); may be repeated.",
    "tls_cert": "Certificate chain in PEM: speak TLS; taken up anew when the file changes.",
    "tls_key": "The certificate's key in PEM, without a password.",
    "max_connections": "Most open connections; then whoever waited longest without a request gives way.",
    "head_timeout_s": "Seconds within which a request's header must be complete.",
    "max_held_bytes": "Most bytes of request bodies held at one time, over all clients.",
    "max_body_bytes": "Largest request body.",
    "body_timeout_s": "Seconds within which a body must be complete.",
    "write_stall_s": "Seconds after which a client that reads nothing is cut off.",
    "ping_s": "Seconds after which a silent stream sends a comment.",
    "drain_timeout_s": "Seconds that running requests may take to finish after SIGTERM.",
    "store_dir": "Folder where files, batches and responses are kept; if not given, they end with the server.",
    "max_file_bytes": "Largest file that may be uploaded.",
    "max_tenant_files": "Most files that one tenant may have stored.",
    "max_tenant_bytes": "Most bytes of files that one tenant may have stored.",
    "max_tenant_batches": "Most unfinished batches of one tenant.",
    "max_stored_responses": "Most responses that are kept to be continued.",
    "max_stored_response_bytes": "Most bytes of responses that are kept.",
    "response_ttl_s": "Seconds for which a response is kept.",
    "max_batch_lines": "Most lines of batches in flight at one time.",
    "tool_dialect": "How the model writes calls of functions (hermes, mistral, …); auto: told from its template.",
    "reasoning_dialect": "How the model marks its reasoning (think, mistral, …, none); auto: told from its template.",
    "max_request_tokens": "Most tokens that one HTTP request may ask for, over all its prompts and choices.",
    "log_format": "The log on standard error: lines for people, or JSON.",
    "log_requests": "Each request's line in the log has its sampling parameters and causes of delay too.",
    "otlp": "Send OpenTelemetry spans to this collector, such as http://localhost:4318.",
}


@click.command()
@engine_options
@record_options(ServerSettings, SERVER_HELP)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help=f"File with the key that clients must send; or set {API_KEY_VARIABLE}.",
)
@click.option("--isolate", is_flag=True, help="Run the engine in a process of its own, replaced when it dies.")
@click.option(
    "--stuck-timeout",
    type=float,
    default=STUCK_AFTER_S,
    help="Seconds without progress after which the engine is taken to hang.",
)
@click.option(
    "--recovery",
    type=click.Choice(("resume", "fail")),
    default="resume",
    help="With --isolate, what becomes of streams under way when the engine dies.",
)
def serve(
    engine: EngineConfig,
    api_key_file: Path | None,
    isolate: bool,
    stuck_timeout: float,
    recovery: Recovery,
    **options: Any,
) -> int:
    """Serve MODEL (a folder, org/name on the hub, or a built-in model: story, story-draft)."""
    from tokenmill.engine.faults import arm_from_environment
    from tokenmill.server.observe.logs import logging_to
    from tokenmill.server.serve import bind

    arm_from_environment()
    settings = ServerSettings(**given(options), api_key=_api_key(api_key_file, options["keys"]))
    engine = _with_keys(engine, settings)
    remote = RemoteSettings(recovery, stuck_timeout)
    started_s = time.monotonic()
    with bind(settings) as sock:
        make = _isolated(engine, remote) if isolate else _beside(engine, stuck_timeout)
        with logging_to(sys.stderr, settings.log_format):
            return _run(make, settings, sock, started_s)


Making = Callable[[], Awaitable[tuple["EngineService | RemoteService", "Checkpoint", str]]]
"""On the event loop: the service, what it serves, and the fingerprint of its answers."""


def _beside(engine: EngineConfig, stuck_after_s: float) -> Making:
    """The engine in a thread of this process."""
    with Loading() as progress:
        from tokenmill.launch import build

        launched = build(engine, progress)

    async def make() -> tuple[EngineService, Checkpoint, str]:
        return launched.service(stuck_after_s=stuck_after_s), launched.checkpoint, launched.fingerprint

    return make


def _isolated(engine: EngineConfig, options: RemoteSettings) -> Making:
    """The engine in a process of its own; nothing heavy is loaded into this one."""

    async def make() -> tuple[RemoteService, Checkpoint, str]:
        from tokenmill.launch import isolate

        with Loading() as progress:
            service, checkpoint = await isolate(engine, options, progress)
        return service, checkpoint, service.fingerprint

    return make


def _run(make: Making, settings: ServerSettings, sock: socket.socket, started_s: float) -> int:
    import asyncio

    from tokenmill.server.serve import EXIT_ENGINE_DIED
    from tokenmill.server.serve import serve as serve_on

    async def run() -> int:
        service, checkpoint, fingerprint = await make()

        def on_ready(address: str) -> None:
            print(_ready_text(checkpoint, address, settings, time.monotonic() - started_s), flush=True)

        await service.start()
        try:
            return await serve_on(service, settings, sock, on_ready=on_ready, fingerprint=fingerprint)
        finally:
            await service.close()

    code = asyncio.run(run())
    if code == EXIT_ENGINE_DIED:  # its thread may hang for ever: do not wait for it
        logging.shutdown()
        sys.stdout.flush()
        os._exit(code)
    return code


def _with_keys(engine: EngineConfig, settings: ServerSettings) -> EngineConfig:
    """Where keys have tenants, policy ``fair`` unless another was asked for. A wrong file is told before anything slow.

    Raises:
        ConfigError: see ``read_keys``.
    """
    if settings.keys is None:
        return engine
    from tokenmill.server.access.keys import read_keys

    read_keys(settings.keys)
    asked = click.get_current_context().get_parameter_source("policy")
    if asked is ParameterSource.COMMANDLINE:
        return engine
    return replace(engine, scheduler=replace(engine.scheduler, policy="fair"))


def _api_key(file: Path | None, keys: Path | None) -> str | None:
    """From the file, else from the environment, which says nothing to a server that has a file of keys."""
    if file is None:
        return None if keys is not None else os.environ.get(API_KEY_VARIABLE)
    try:
        key = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read --api-key-file {file}: {error.strerror}") from error
    if not key:
        raise ConfigError(f"--api-key-file {file} is empty: write the key into it, or leave the option out")
    return key


def _ready_text(checkpoint: Checkpoint, address: str, settings: ServerSettings, seconds: float) -> str:
    from tokenmill.perf.memory import format_bytes

    ledger = checkpoint.ledger
    millions = checkpoint.config.num_parameters / 1e6
    return (
        f"tokenmill is ready on {address}: {checkpoint.name}, {millions:,.1f} M parameters "
        f"in {ledger.precision}, context {ledger.max_context}, "
        f"{ledger.num_blocks} KV blocks of {ledger.block_size} tokens "
        f"({format_bytes(ledger.group_bytes('kv'))}), loaded in {seconds:.1f} s\n"
        f"try:  {_curl(checkpoint, address, settings.api_key is not None or settings.keys is not None)}"
    )


def _curl(checkpoint: Checkpoint, address: str, with_key: bool) -> str:
    body: dict[str, Any] = {"model": checkpoint.name, "max_tokens": 100}
    if checkpoint.codec.has_chat_template:
        path, question = "chat/completions", {"role": "user", "content": "Tell me a story about a fox."}
        body["messages"] = [question]
    else:
        path = "completions"
        body["prompt"] = "Once upon a time"
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if with_key else ""
    data = shlex.quote(json.dumps(body))
    return f"curl {address}/v1/{path} -H 'Content-Type: application/json'{key} -d {data}"
