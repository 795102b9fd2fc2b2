"""A batch without a server: the same app, store and runner, over a folder beside the output, from file to file.

The folder holds what a server's would: a copy of the input and the answers so far. Started again after it was
killed, the same call goes on in it; when the batch is over, its files are copied to where they were wanted and the
folder is removed.
"""

from __future__ import annotations

import asyncio
import filecmp
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tokenmill.core.errors import ConfigError, Unavailable
from tokenmill.engine.service import Service
from tokenmill.server.access import OPEN
from tokenmill.server.app import create_app
from tokenmill.server.batches.records import BatchRecord, new_batch
from tokenmill.server.context import Context
from tokenmill.server.files.records import FileRecord, new_file_id
from tokenmill.server.protocol.batches import ENDPOINTS, BatchObject, BatchRequest
from tokenmill.server.settings import ServerSettings
from tokenmill.server.store import Draft, unix_time

POLL_S = 0.2
LONG_S = 10 * 365 * 86400
"""Nobody waits for it: its time is never over."""
COPY_BYTES = 2**20


def paths_of(output: Path) -> tuple[Path, Path]:
    """Where the lines that failed go, and the folder of a batch that is not over."""
    return output.with_name(f"{output.name}.errors"), output.with_name(f"{output.name}.batch")


async def run_file(
    service: Service, input_path: Path, output: Path, max_lines: int, on_progress: Callable[[BatchObject], None]
) -> BatchObject:
    """Answer the lines of ``input_path``, at most ``max_lines`` at a time, into ``output`` and its errors.

    The service has been started on this event loop; whoever made it closes it.

    Raises:
        ConfigError: the output is there already, or belongs to another input; the first line names no endpoint.
        Unavailable: the engine died.
    """
    errors, folder = paths_of(output)
    if not folder.exists() and output.exists():
        raise ConfigError(f"{output} is there already: choose another --output, or move it away")
    settings = ServerSettings(store_dir=folder, max_batch_lines=max_lines, max_file_bytes=2**50, max_tenant_bytes=2**50)
    context = create_app(service, settings).context
    try:
        await context.batches.start()
        record = await _batch_over(context, input_path)
        while not (record := await context.batches.table.find(OPEN.tenant, record.id)).over:
            if service.failed:
                raise Unavailable("the engine died; what is done is kept: run the same again")
            on_progress(context.batches.body_of(record))
            await asyncio.sleep(POLL_S)
        for path, file_id in ((errors, record.body["error_file_id"]), (output, record.body["output_file_id"])):
            if file_id is not None:
                shutil.copyfile(context.files.store.path_of(file_id), path)
    finally:
        await context.batches.stop()
        context.close()
    shutil.rmtree(folder)
    return record.body


async def _batch_over(context: Context, input_path: Path) -> BatchRecord:
    """The batch in the folder of ``context``, made if there is none yet."""
    found, _ = await context.batches.table.page(OPEN.tenant, after=None, limit=1)
    store = context.files.store
    if found:
        copy = store.path_of(found[0].body["input_file_id"])
        if not await store.do(lambda: filecmp.cmp(input_path, copy, shallow=False)):
            raise ConfigError(
                f"{copy.parents[1]} holds a batch of another input: delete it, or choose another --output"
            )
        return found[0]
    endpoint = await store.do(partial(_endpoint_of, input_path))
    file_id = new_file_id()
    num_bytes = await store.do(lambda: _copy(input_path, Draft(store, file_id), store.path_of(file_id)))
    await context.files.add(FileRecord(file_id, OPEN.tenant, input_path.name, "batch", num_bytes, unix_time()))
    wish = BatchRequest(input_file_id=file_id, endpoint=endpoint, completion_window="24h")  # type: ignore[arg-type]
    record = new_batch(OPEN, wish)
    record.body["expires_at"] = record.body["created_at"] + LONG_S
    await context.batches.take(record)
    return record


def _endpoint_of(path: Path) -> str:
    """What the first line asks; the others are held to it."""
    with open(path, "rb") as file:
        text = next((line for line in file if line.strip()), b"")
    try:
        url = json.loads(text)["url"]
    except (ValueError, KeyError, TypeError):
        url = None
    if url not in ENDPOINTS:
        raise ConfigError(f"{path}: 'url' in the first line must be one of {', '.join(ENDPOINTS)}")
    return str(url)


def _copy(path: Path, draft: Draft, target: Path) -> int:
    try:
        with open(path, "rb") as file:
            while data := file.read(COPY_BYTES):
                draft.write(data)
        draft.keep(target)
    except BaseException:
        draft.drop()
        raise
    return draft.num_bytes
