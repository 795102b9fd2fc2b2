"""``/v1/files``: shapes, limits, hostile forms, whose files are whose, and what a full disk leaves behind."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import FileDeleted, FileObject

from tests.server.service import MODEL
from tests.server.support import Running, error_of, raw_request, running_server
from tokenmill.core.errors import SetupError
from tokenmill.server import store
from tokenmill.server.access.keys import add_key, new_key
from tokenmill.server.settings import ServerSettings
from tokenmill.server.store import Store

MAX_FILE = 200_000
MAX_FILES = 12
MAX_BYTES = 600_000
HEADERS = {"content-type": "multipart/form-data; boundary=xyz"}
PURPOSE = b'--xyz\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
FILE = b'--xyz\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'
END = b"\r\n--xyz--\r\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files") / "store"


@pytest.fixture(scope="module")
def shared(folder: Path) -> Iterator[Running]:
    settings = ServerSettings(
        port=0,
        store_dir=folder,
        max_file_bytes=MAX_FILE,
        max_tenant_files=MAX_FILES,
        max_tenant_bytes=MAX_BYTES,
        body_timeout_s=1.0,
    )
    with running_server(settings) as running:
        yield running


@pytest.fixture
def server(shared: Running, folder: Path) -> Iterator[Running]:
    """Every file is deleted after a test, and then there is nothing on the disk either."""
    yield shared
    for file in shared.get("/v1/files").json()["data"]:
        assert shared.http.delete(f"{shared.url}/v1/files/{file['id']}").status_code == 200
    assert contents(folder) == []
    assert list((folder / "partial").iterdir()) == []


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "files").iterdir())


def upload(server: Running, data: bytes = b"hello", name: str = "a.txt", **fields: str) -> httpx.Response:
    form = {"purpose": "user_data", **fields}
    return server.http.post(f"{server.url}/v1/files", files={"file": (name, data)}, data=form)


def send(server: Running, body: bytes, headers: dict[str, str] = HEADERS) -> httpx.Response:
    return server.http.post(f"{server.url}/v1/files", content=body, headers=headers)


# ---- what a client sees ------------------------------------------------------------------------------


def test_ac10_a_file_there_and_back(server: Running) -> None:
    """AC-10: stored, listed, read and deleted with the official client, in exactly its shapes."""
    client, data = server.client(), bytes(range(256)) * 300
    made = client.files.create(file=("ümläut %.bin", data), purpose="user_data")
    assert (made.bytes, made.filename, made.purpose, made.status) == (
        len(data),
        "ümläut %.bin",
        "user_data",
        "processed",
    )
    assert abs(made.created_at - time.time()) < 60
    assert made.expires_at is None
    assert re.fullmatch(r"file-[0-9a-f]{32}", made.id)
    body = server.get(f"/v1/files/{made.id}").json()
    FileObject.model_validate(body, strict=True)
    assert client.files.retrieve(made.id) == made
    assert [file.id for file in client.files.list()] == [made.id]
    assert client.files.content(made.id).read() == data
    deleted = client.files.delete(made.id)
    assert deleted == FileDeleted(id=made.id, deleted=True, object="file")
    for gone in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError) as caught:
            gone(made.id)
        assert caught.value.code == "file_not_found"


def test_ac10_expiry_is_told_and_kept(server: Running, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AC-10: a file past its expiry is gone for every reader, and its contents with the next sweep."""
    made = server.client().files.create(
        file=b"x", purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert made.expires_at == made.created_at + 3600
    for_batch = server.client().files.create(file=b"x", purpose="batch")
    assert for_batch.expires_at == for_batch.created_at + 30 * 86400
    monkeypatch.setattr("tokenmill.server.files.records.unix_time", lambda: int(time.time()) + 3601)
    assert server.get(f"/v1/files/{made.id}").status_code == 404
    assert server.get(f"/v1/files/{for_batch.id}").status_code == 200
    assert contents(folder) == sorted([made.id, for_batch.id])
    assert server.server._loop is not None
    asyncio.run_coroutine_threadsafe(server.app.context.files.sweep(), server.server._loop).result(30)
    assert contents(folder) == [for_batch.id]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "anything"}, "purpose"),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "expires_after.seconds"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "9" * 999}, "expires_after.seconds"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "an hour"}, "expires_after.seconds"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "expires_after.anchor"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_wrong_fields_are_named(server: Running, fields: dict[str, str], param: str) -> None:
    response = upload(server, **fields)
    assert response.status_code == 400, response.text
    assert error_of(response)["param"] == param


def test_a_missing_field_is_named(server: Running) -> None:
    for body, param in ((FILE + b"x" + END, "purpose"), (PURPOSE[:-2] + END, "file")):
        response = send(server, body)
        assert (response.status_code, error_of(response)["param"]) == (400, param)


def test_pages_are_walked_in_order(server: Running) -> None:
    made = [upload(server, name=str(i), purpose="batch" if i % 2 else "user_data").json()["id"] for i in range(7)]
    client = server.client()
    assert [file.id for file in client.files.list(order="asc", limit=3)] == made
    assert [file.id for file in client.files.list(limit=2)] == made[::-1]
    assert [file.id for file in client.files.list(purpose="batch", order="asc", limit=1)] == made[1::2]
    page = server.get("/v1/files", params={"limit": 3, "order": "asc", "after": made[3]}).json()
    assert (page["first_id"], page["last_id"], page["has_more"]) == (made[4], made[6], False)
    for query, status, param in (
        ({"limit": "0"}, 400, "limit"),
        ({"limit": "ten"}, 400, "limit"),
        ({"limit": "10001"}, 400, "limit"),
        ({"order": "up"}, 400, "order"),
        ({"after": "file-unknown"}, 404, "after"),
    ):
        response = server.get("/v1/files", params=query)
        assert (response.status_code, error_of(response)["param"]) == (status, param)


# ---- limits ------------------------------------------------------------------------------------------


def test_shares_are_limited_and_given_back(server: Running, folder: Path) -> None:
    """Files, bytes, and the size of one; what is refused leaves nothing."""
    assert error_of(upload(server, b"x" * (MAX_FILE + 1)))["code"] == "file_too_large"
    assert upload(server, b"x" * (MAX_FILE + 100_000)).status_code == 413  # announced: not even read
    big = [upload(server, b"x" * MAX_FILE).json()["id"] for _ in range(3)]
    response = upload(server, b"x")
    assert (response.status_code, error_of(response)["code"]) == (403, "storage_quota_exceeded")
    assert contents(folder) == sorted(big)
    for file_id in big:
        server.http.delete(f"{server.url}/v1/files/{file_id}")
    for _ in range(MAX_FILES):
        assert upload(server).status_code == 200
    response = upload(server)
    assert (response.status_code, error_of(response)["code"]) == (403, "storage_quota_exceeded")


def test_an_upload_that_crawls_is_ended(server: Running) -> None:
    """A client may be slow for ``body_timeout_s`` (1 s here), not for ever."""

    def crawl() -> Iterator[bytes]:
        yield PURPOSE + FILE
        for _ in range(100):
            time.sleep(0.1)
            yield b"x"

    started_s = time.monotonic()
    try:
        response = server.http.post(f"{server.url}/v1/files", content=crawl(), headers=HEADERS)
    except httpx.TransportError:
        pass  # the connection was closed while the client went on sending
    else:
        assert error_of(response)["code"] == "request_timeout"
    assert time.monotonic() - started_s < 8


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch, room: int) -> Iterator[None]:
    """Writes take ``room`` bytes more, then there is no space left, as on a real disk half way through a write."""
    left = room

    def write_all(file: Any, data: bytes) -> None:
        nonlocal left
        file.write(data[:left])
        if len(data) > left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left -= len(data)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_all", write_all)
        yield


def test_a_full_disk_is_said_and_leaves_nothing(server: Running, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with full_disk(monkeypatch, 1000):
        response = upload(server, b"x" * 5000)
        assert response.status_code == 507
        error = error_of(response)
        assert (error["code"], error["type"]) == ("storage_full", "server_error")
        assert response.headers["x-should-retry"] == "false"
    assert contents(folder) == []
    assert list((folder / "partial").iterdir()) == []
    assert upload(server, b"x" * 5000).status_code == 200


# ---- HT-06, HT-07: forms and ranges that are made to hurt --------------------------------------------


def part(name: str, value: bytes, header: str = "") -> bytes:
    return f'--xyz\r\nContent-Disposition: form-data; name="{name}"{header}\r\n\r\n'.encode() + value + b"\r\n"


BOMBS = {
    "100,000 parts": b"".join(part(f"n{i}", b"") for i in range(100_000)) + END,
    "100,000 times the same": PURPOSE * 100_000 + END,
    "a header of a megabyte": b"--xyz\r\nX-A: " + b"x" * 2**20 + b"\r\n" + PURPOSE[5:] + FILE + END,
    "100,000 headers": b"--xyz\r\n" + b"X-A: b\r\n" * 100_000 + b"\r\n\r\n" + END,
    "a name of a megabyte": PURPOSE + FILE.replace(b"a.txt", b"a" * 2**20) + b"x" + END,
    "a field of a megabyte": part("purpose", b"x" * 2**20) + FILE + END,
    "no closing boundary": PURPOSE + FILE + b"x" * 1000,
    "no boundary at all": b"x" * 100_000,
    "a part without a name": b"--xyz\r\n\r\nhello" + END,
    "not UTF-8": PURPOSE + FILE.replace(b"a.txt", b"\xff\xfe") + b"x" + END,
    "a file twice": PURPOSE + FILE + b"x\r\n" + FILE + b"y" + END,
    "nothing": b"",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_ht06_multipart_bombs(server: Running, bomb: str) -> None:
    """HT-06: refused for little, with nothing left (the fixture looks)."""
    started_s = time.process_time()
    response = send(server, BOMBS[bomb])
    assert response.status_code in (400, 413), response.text
    error_of(response)
    assert time.process_time() - started_s < 1.0


def test_ht06_fifty_megabytes_before_the_first_part(server: Running) -> None:
    """HT-06: announced, it is not read; sent in pieces, it is cut off."""
    response = send(server, b"\r\n" * (25 * 2**20) + PURPOSE + FILE + b"x" + END)
    assert response.status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(50):
            yield b"\r\n" * 2**19

    try:
        response = server.http.post(f"{server.url}/v1/files", content=pieces(), headers=HEADERS)
    except httpx.TransportError:
        return  # closed while it was still sending
    assert response.status_code == 413


@pytest.mark.parametrize(
    "kind",
    ["application/json", "multipart/form-data", "multipart/mixed; boundary=xyz", "", "multipart/form-data; boundary="],
)
def test_only_forms_are_taken(server: Running, kind: str) -> None:
    response = send(server, PURPOSE + FILE + b"x" + END, {"content-type": kind})
    assert (response.status_code, error_of(response)["code"]) == (415, "unsupported_media_type")


def test_a_boundary_may_come_in_any_pieces(server: Running) -> None:
    """Contents that look like boundaries arrive as they are, wherever the network cuts them."""
    data = b"\r\n--xy\r\n--xyz \r\n-\r\r\n--x" * 50
    body = PURPOSE + FILE + data.replace(b"--xyz ", b"--xy ") + END

    def one_by_one() -> Iterator[bytes]:
        yield from (body[i : i + 7] for i in range(0, len(body), 7))

    response = server.http.post(f"{server.url}/v1/files", content=one_by_one(), headers=HEADERS)
    assert response.status_code == 200, response.text
    content = server.get(f"/v1/files/{response.json()['id']}/content").content
    assert content == data.replace(b"--xyz ", b"--xy ")


def test_ht07_ranges_are_not_honoured(server: Running) -> None:
    """HT-07: ten thousand of them cost no more than none."""
    data = bytes(range(256)) * 8
    file_id = upload(server, data).json()["id"]
    for ranges in ("bytes=0-0", "bytes=" + ",".join(f"{i}-" for i in range(10_000))):
        started_s = time.process_time()
        response = server.get(f"/v1/files/{file_id}/content", headers={"range": ranges})
        if response.status_code == 431:  # the door takes no header so large
            continue
        assert response.status_code == 200
        assert response.content == data
        assert time.process_time() - started_s < 0.5


# ---- SE-15, SE-16: names, addresses, tenants ---------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "a\\..\\b", "n" * 4096, "con", ".", "a;b=c", "\u202egpj.exe"]
)
def test_se15_a_filename_is_never_a_path(server: Running, folder: Path, name: str) -> None:
    """SE-15: it is kept as text, and the contents lie under an id made here, for the owner alone."""
    before = set(folder.parent.rglob("*"))
    made = upload(server, name=name).json()
    assert made["filename"] == name
    assert contents(folder) == [made["id"]]
    new = set(folder.parent.rglob("*")) - before
    assert {path.parent for path in new} <= {folder / "files", folder}
    assert (folder / "files" / made["id"]).stat().st_mode & 0o777 == 0o600
    assert (folder / "files").stat().st_mode & 0o777 == 0o700
    disposition = server.get(f"/v1/files/{made['id']}/content").headers["content-disposition"]
    assert re.fullmatch(r"attachment; filename\*=UTF-8''[\w.%~-]+", disposition, re.ASCII)


@pytest.mark.parametrize(
    "file_id", ["..%2f", "%2e%2e%2fstore.db", "..", "store.db", "%00", "file-%27%20OR%201=1--", "x" * 4000]
)
@pytest.mark.parametrize("place", ["/v1/files/{}", "/v1/files/{}/content", "/v1/batches/{}"])
def test_se15_an_id_is_never_a_path(server: Running, file_id: str, place: str) -> None:
    """SE-15."""
    path = place.format(file_id)
    answer = raw_request(server.port, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")), answer


@contextmanager
def two_tenants(folder: Path) -> Iterator[tuple[openai.OpenAI, openai.OpenAI, Running]]:
    """Clients with keys of two tenants."""
    book = folder / "keys.json"
    keys = []
    for tenant in ("acme", "other"):
        record, key = new_key(tenant=tenant)
        add_key(book, record)
        keys.append(key)
    with running_server(ServerSettings(port=0, keys=book, store_dir=folder / "store"), step_s=0.002) as running:
        first, second = (
            openai.OpenAI(base_url=f"{running.url}/v1", api_key=key, max_retries=0, timeout=30) for key in keys
        )
        with first, second:
            yield first, second, running


def test_se16_what_a_tenant_stores_no_other_sees(tmp_path: Path) -> None:
    """SE-16: another's file or batch is answered like one that never was, byte for byte."""
    with two_tenants(tmp_path) as (ours, theirs, running):
        body = {"model": MODEL, "prompt": "a"}
        line = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": body}
        file = ours.files.create(file=json.dumps(line).encode(), purpose="batch")
        batch = ours.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        unknown_file, unknown_batch = "file-" + "0" * 32, "batch_" + "0" * 32

        def answer(method: str, path: str, known: str, unknown: str) -> None:
            found = []
            for name in (known, unknown):
                key = {"authorization": f"Bearer {theirs.api_key}"}
                response = running.http.request(method, f"{running.url}{path.format(name)}", headers=key)
                found.append((response.status_code, response.text.replace(name, "ID")))
            assert found[0] == found[1]
            assert found[0][0] == 404

        for method, path in (
            ("GET", "/v1/files/{}"),
            ("GET", "/v1/files/{}/content"),
            ("DELETE", "/v1/files/{}"),
            ("GET", "/v1/files?after={}"),
        ):
            answer(method, path, file.id, unknown_file)
        for method, path in (
            ("GET", "/v1/batches/{}"),
            ("POST", "/v1/batches/{}/cancel"),
            ("GET", "/v1/batches?after={}"),
        ):
            answer(method, path, batch.id, unknown_batch)
        with pytest.raises(openai.NotFoundError) as caught:
            theirs.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        assert caught.value.param == "input_file_id"
        assert list(theirs.files.list()) == []
        assert list(theirs.batches.list()) == []
        assert [entry.id for entry in ours.batches.list()] == [batch.id]
        assert all(len(name.rpartition(sep)[2]) * 4 >= 128 for name, sep in ((file.id, "-"), (batch.id, "_")))


# ---- the folder --------------------------------------------------------------------------------------


def test_a_folder_has_one_server(server: Running, folder: Path) -> None:
    with pytest.raises(SetupError, match="is in use by another server"):
        Store(folder)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SetupError, match="--store-dir"):
        Store(tmp_path / "file")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(SetupError, match="another --store-dir"):
        Store(tmp_path / "store")


def test_without_a_folder_files_end_with_the_process() -> None:
    with running_server(ServerSettings(port=0)) as running:
        made = running.client().files.create(file=b"hello", purpose="user_data")
        path = running.app.context.files.store.path_of(made.id)
        assert running.client().files.content(made.id).read() == b"hello"
        assert path.exists()
        temporary = path.parents[1]
        assert temporary.stat().st_mode & 0o777 == 0o700
    assert not temporary.exists()


def test_a_server_that_can_write_nowhere_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(**_: Any) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(store.tempfile, "mkdtemp", read_only)
    with running_server(ServerSettings(port=0)) as running:
        for response in (upload(running), running.get("/v1/batches")):
            assert (response.status_code, error_of(response)["code"]) == (507, "storage_unavailable")
        assert running.post("/v1/completions", running.completion()).status_code == 200


def test_files_are_there_after_a_restart_and_rubbish_is_not(tmp_path: Path) -> None:
    settings = ServerSettings(port=0, store_dir=tmp_path / "store")
    with running_server(settings) as running:
        made = running.client().files.create(file=b"hello", purpose="user_data")
    (tmp_path / "store" / "partial" / "file-1").write_bytes(b"half")
    (tmp_path / "store" / "files" / "file-2").write_bytes(b"whole, but its row was never written")
    with running_server(settings) as running:
        assert running.client().files.retrieve(made.id) == made
        assert running.client().files.content(made.id).read() == b"hello"
        assert contents(tmp_path / "store") == [made.id]
        assert list((tmp_path / "store" / "partial").iterdir()) == []
