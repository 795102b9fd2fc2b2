"""TLS by files: modern versions, the official client, renewal, and what does not fit."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
import trustme

from tests.server.service import MODEL
from tests.server.support import Running, running_server, wait_until
from tokenmill.core.errors import ConfigError, SetupError
from tokenmill.server import tls
from tokenmill.server.serve import bind
from tokenmill.server.settings import ServerSettings

AUTHORITY = trustme.CA()


def write_pair(folder: Path, name: str = "localhost") -> tuple[Path, Path]:
    """A certificate and its key, by the tests' own authority."""
    made = AUTHORITY.issue_cert(name)
    cert, key = folder / "cert.pem", folder / "key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    return cert, key


def client_context(**versions: ssl.TLSVersion) -> ssl.SSLContext:
    context = ssl.create_default_context()
    AUTHORITY.configure_trust(context)
    for name, version in versions.items():
        setattr(context, name, version)
    return context


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secure(pair: tuple[Path, Path]) -> Iterator[Running]:
    cert, key = pair
    settings = ServerSettings(port=0, tls_cert=cert, tls_key=key, head_timeout_s=1.0)
    with running_server(settings, step_s=0.002) as running:
        yield running


def url_of(running: Running) -> str:
    return f"https://localhost:{running.port}"


def handshake(port: int, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="localhost")


def test_the_official_client_speaks_tls(secure: Running) -> None:
    http = httpx.Client(verify=client_context())
    client = openai.OpenAI(base_url=f"{url_of(secure)}/v1", api_key="none", http_client=http)
    answer = client.completions.create(model=MODEL, prompt="Once", max_tokens=4)
    assert answer.usage is not None and answer.usage.completion_tokens == 4
    chunks = list(client.completions.create(model=MODEL, prompt="Once", max_tokens=4, stream=True))
    assert chunks[-1].choices[0].finish_reason == "length"
    client.close()


def test_a_stranger_authority_is_not_believed(secure: Running) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"{url_of(secure)}/health/live")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_modern_versions_are_spoken(secure: Running, version: ssl.TLSVersion) -> None:
    context = client_context(minimum_version=version, maximum_version=version)
    context.set_alpn_protocols(["h2", "http/1.1"])
    with handshake(secure.port, context) as sock:
        assert sock.version() == ("TLSv1.2" if version is ssl.TLSVersion.TLSv1_2 else "TLSv1.3")
        assert sock.selected_alpn_protocol() == "http/1.1"
        cipher = sock.cipher()
        assert cipher is not None and ("GCM" in cipher[0] or "CHACHA20" in cipher[0])


def test_old_versions_and_weak_ciphers_are_not(pair: tuple[Path, Path]) -> None:
    context = tls.Certificate(*pair).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION
    names = [str(cipher["name"]) for cipher in context.get_ciphers()]
    assert names and all("GCM" in name or "CHACHA20" in name for name in names)
    assert all(name.startswith(("ECDHE-", "TLS_")) for name in names)


@pytest.mark.filterwarnings("ignore:.*TLSv1_1.*:DeprecationWarning")
def test_an_old_client_is_turned_away(secure: Running) -> None:
    context = client_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(secure.port, context)


def test_plain_http_is_not_answered(secure: Running) -> None:
    with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", secure.port), 10) as sock:
        sock.sendall(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"HTTP/1.1" not in sock.recv(1000)


def test_deadlines_hold_within_tls(secure: Running) -> None:
    """HT-01."""
    with handshake(secure.port, client_context()) as sock:
        sock.settimeout(10)
        sock.sendall(b"GET /health/live HTTP/1.1\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_leaving_within_tls_frees_the_request(secure: Running) -> None:
    """ST-02."""
    with httpx.Client(verify=client_context()) as http:
        body = secure.completion(max_tokens=450, stream=True, ignore_eos=True)
        with http.stream("POST", f"{url_of(secure)}/v1/completions", json=body) as response:
            next(response.iter_bytes())
    secure.wait_idle(5)


def test_a_renewed_certificate_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a restart; files that do not fit together change nothing."""
    monkeypatch.setattr("tokenmill.server.serve.CHECK_PERIOD_S", 0.05)
    cert, key = write_pair(tmp_path)

    def serial() -> str:
        with handshake(running.port, client_context()) as sock:
            peer = sock.getpeercert()
            assert peer is not None
            return str(peer["serialNumber"])

    with running_server(ServerSettings(port=0, tls_cert=cert, tls_key=key)) as running:
        first = serial()
        (tmp_path / "other").mkdir()
        other_cert, other_key = write_pair(tmp_path / "other")
        shutil.copy(other_cert, cert)  # as yet without its key
        time.sleep(0.3)
        assert serial() == first
        shutil.copy(other_key, key)
        wait_until(lambda: serial() != first, 10)


def test_files_that_are_no_good_are_told_at_once(tmp_path: Path) -> None:
    cert, key = write_pair(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    _, other_key = write_pair(other)
    (tmp_path / "empty.pem").write_text("")
    cases = [
        (tmp_path / "none.pem", key),
        (cert, tmp_path / "none.pem"),
        (cert, other_key),
        (tmp_path / "empty.pem", key),
    ]
    for wrong_cert, wrong_key in cases:
        with pytest.raises(SetupError, match="--tls-") as caught:
            bind(ServerSettings(port=0, tls_cert=wrong_cert, tls_key=wrong_key))
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="tls_cert and tls_key"):
        ServerSettings(tls_cert=cert)


def test_a_key_with_a_password_is_refused_without_asking(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    cert, key = write_pair(tmp_path)
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    form = serialization.PrivateFormat.PKCS8
    key.write_bytes(loaded.private_bytes(serialization.Encoding.PEM, form, secret))
    with pytest.raises(SetupError, match="without a password"):
        bind(ServerSettings(port=0, tls_cert=cert, tls_key=key))
