"""``tokenmill serve``: a model behind OpenAI's API.

The address is taken before anything slow begins, so that a port in use is told at once. A signal while loading
ends the process at once (nothing is held that would need cleaning); once ready, the server drains.
"""

from __future__ import annotations

import json
import os
import shlex
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenmill.cli.options import engine_options, given, record_options
from tokenmill.cli.output import Loading
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import ConfigError
from tokenmill.server.settings import ServerSettings

if TYPE_CHECKING:
    from tokenmill.launch import Launched

API_KEY_VARIABLE = "TOKENMILL_API_KEY"

SERVER_HELP = {
    "host": "Address to listen on; 0.0.0.0: every network.",
    "port": "Port to listen on; 0: a free one.",
    "cors_origins": "Origin that a browser may call from; may be repeated.",
    "max_body_bytes": "Largest request body.",
    "body_timeout_s": "Seconds within which a body must be complete.",
    "write_stall_s": "Seconds after which a client that reads nothing is cut off.",
    "ping_s": "Seconds after which a silent stream sends a comment.",
    "drain_timeout_s": "Seconds that running requests may take to finish after SIGTERM.",
    "max_request_tokens": "Most tokens that one HTTP request may ask for, over all its prompts and choices.",
}


@click.command()
@engine_options
@record_options(ServerSettings, SERVER_HELP)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    help=f"File with the key that clients must send; or set {API_KEY_VARIABLE}.",
)
def serve(engine: EngineConfig, api_key_file: Path | None, **options: Any) -> int:
    """Serve MODEL (a folder, org/name on the hub, or a built-in model: story, story-draft)."""
    from tokenmill.server.serve import bind

    settings = ServerSettings(**given(options), api_key=_api_key(api_key_file))
    started_s = time.monotonic()
    with bind(settings) as sock:
        with Loading() as progress:
            from tokenmill.launch import build

            launched = build(engine, progress)
        return _run(launched, settings, sock, started_s)


def _run(launched: Launched, settings: ServerSettings, sock: socket.socket, started_s: float) -> int:
    import asyncio

    from tokenmill.server.serve import serve as serve_on

    def on_ready(address: str) -> None:
        print(_ready_text(launched, address, settings, time.monotonic() - started_s), flush=True)

    async def run() -> int:
        service = launched.service()
        await service.start()
        try:
            return await serve_on(service, settings, sock, on_ready=on_ready, fingerprint=launched.fingerprint)
        finally:
            await service.close()

    return asyncio.run(run())


def _api_key(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get(API_KEY_VARIABLE)
    try:
        key = file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"cannot read --api-key-file {file}: {error.strerror}") from error
    if not key:
        raise ConfigError(f"--api-key-file {file} is empty: write the key into it, or leave the option out")
    return key


def _ready_text(launched: Launched, address: str, settings: ServerSettings, seconds: float) -> str:
    from tokenmill.perf.memory import format_bytes

    checkpoint, ledger = launched.checkpoint, launched.checkpoint.ledger
    millions = checkpoint.config.num_parameters / 1e6
    return (
        f"tokenmill is ready on {address}: {checkpoint.name}, {millions:,.1f} M parameters "
        f"in {ledger.precision}, context {ledger.max_context}, "
        f"{ledger.num_blocks} KV blocks of {ledger.block_size} tokens "
        f"({format_bytes(ledger.group_bytes('kv'))}), loaded in {seconds:.1f} s\n"
        f"try:  {_curl(launched, address, settings.api_key is not None)}"
    )


def _curl(launched: Launched, address: str, with_key: bool) -> str:
    body: dict[str, Any] = {"model": launched.checkpoint.name, "max_tokens": 100}
    if launched.checkpoint.codec.has_chat_template:
        path, question = "chat/completions", {"role": "user", "content": "Tell me a story about a fox."}
        body["messages"] = [question]
    else:
        path = "completions"
        body["prompt"] = "Once upon a time"
    key = f' -H "Authorization: Bearer ${API_KEY_VARIABLE}"' if with_key else ""
    data = shlex.quote(json.dumps(body))
    return f"curl {address}/v1/{path} -H 'Content-Type: application/json'{key} -d {data}"
