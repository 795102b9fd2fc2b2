"""``tokenmill batch``: a file of requests in OpenAI's batch format to a file of answers, without a server.

Lines are run by the server's own runner and endpoints, in this process. Run again after it was killed, the command
goes on where it stood: every ``custom_id`` is answered exactly once.
"""

from __future__ import annotations

import time
from pathlib import Path

import click

from tokenmill.cli.options import engine_options_only
from tokenmill.cli.output import Loading, counting, note, print_json
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import ConfigError


@click.command()
@click.argument("input_path", metavar="INPUT", type=click.Path(path_type=Path))
@engine_options_only
@click.option(
    "--output", "output_path", required=True, type=click.Path(path_type=Path), help="JSONL file for the answers."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def batch(input_path: Path, engine: EngineConfig, output_path: Path, as_json: bool) -> int:
    """Answer every line of INPUT into --output (run again, it goes on where it was stopped)."""
    import asyncio

    from tokenmill.server.batches.offline import paths_of, run_file
    from tokenmill.server.protocol.batches import BatchObject

    if not input_path.is_file():
        raise ConfigError(f"there is no file {input_path}")
    with Loading() as progress:
        from tokenmill.launch import build

        launched = build(engine, progress)

    async def run() -> BatchObject:
        service = launched.service()
        await service.start()
        try:
            with counting("answering", 0) as bar:

                def show(body: BatchObject) -> None:
                    counts = body["request_counts"]
                    bar.update(counts["completed"] + counts["failed"], total=counts["total"])

                return await run_file(service, input_path, output_path, 2 * engine.scheduler.max_seqs, show)
        finally:
            await service.close()

    started_s = time.monotonic()
    body = asyncio.run(run())
    counts, errors = body["request_counts"], paths_of(output_path)[0]
    if as_json:
        print_json(
            {**body, "seconds": time.monotonic() - started_s, "output": str(output_path), "errors_output": str(errors)}
        )
    for error in (body["errors"] or {"data": []})["data"]:
        note(f"line {error['line']}: {error['message']}")
    if body["status"] == "failed":
        raise ConfigError(f"{input_path} is no batch that can be run: nothing was")
    failed = f", {counts['failed']} failed: {errors}" if counts["failed"] else ""
    note(f"{counts['completed']} answered in {time.monotonic() - started_s:.1f} s: {output_path}{failed}")
    return 1 if counts["failed"] else 0
