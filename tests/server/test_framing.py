"""Bytes below HTTP's meaning: HT-01, HT-02, HT-04, HT-05, HT-09, HT-10, ST-09, on bare sockets."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import resource
import socket
import statistics
import struct
import time
from collections.abc import Iterator

import h11
import httpx
import pytest

from tests.server.service import MODEL
from tests.server.support import RawStream, Running, raw_request, running_server, server_process, wait_until
from tokenmill.server.parser import MAX_FIELDS, MAX_HEAD_BYTES, MAX_REQUEST_LINE_BYTES, Parser
from tokenmill.server.serve import ListeningSocket
from tokenmill.server.settings import ServerSettings

GET = b"GET /health/live HTTP/1.1\r\nhost: x\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def json_of(answer: bytes) -> dict[str, str]:
    """The error of a raw answer, after checking that it is whole, OpenAI's, and the connection's last."""
    head, _, body = answer.partition(b"\r\n\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(b": ") for line in head.split(b"\r\n")[1:])}
    assert int(fields[b"content-length"]) == len(body)
    assert fields[b"content-type"] == b"application/json"
    assert fields[b"x-request-id"].startswith(b"req_")
    assert fields[b"connection"] == b"close"
    error: dict[str, str] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# ---- smuggling ----------------------------------------------------------------------------------------

HIDDEN = b"GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
AMBIGUOUS = {
    "length and coding": POST + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "coding and length": POST + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two lengths": POST + b"content-length: 2\r\ncontent-length: 40\r\n\r\n{}" + HIDDEN,
    "the same length twice": POST + b"content-length: 2\r\ncontent-length: 2\r\n\r\n{}" + HIDDEN,
    "a list of lengths": POST + b"content-length: 2, 2\r\n\r\n{}" + HIDDEN,
    "negative length": POST + b"content-length: -2\r\n\r\n{}" + HIDDEN,
    "signed length": POST + b"content-length: +2\r\n\r\n{}" + HIDDEN,
    "hexadecimal length": POST + b"content-length: 0x2\r\n\r\n{}" + HIDDEN,
    "length with an underscore": POST + b"content-length: 1_0\r\n\r\n{}" + HIDDEN,
    "empty length": POST + b"content-length: \r\n\r\n{}" + HIDDEN,
    "length of 30 digits": POST + b"content-length: " + b"9" * 30 + b"\r\n\r\n{}" + HIDDEN,
    "other digits": POST + "content-length: ٢\r\n\r\n{}".encode() + HIDDEN,
    "space before the colon": POST + b"content-length : 2\r\n\r\n{}" + HIDDEN,
    "chunked twice": POST + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "two codings": POST + b"transfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n" + HIDDEN,
    "unknown coding": POST + b"transfer-encoding: xchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "quoted coding": POST + b'transfer-encoding: "chunked"\r\n\r\n0\r\n\r\n' + HIDDEN,
    "vertical tab": POST + b"transfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n" + HIDDEN,
    "chunked in HTTP/1.0": CHUNKED.replace(b"HTTP/1.1", b"HTTP/1.0") + b"0\r\n\r\n" + HIDDEN,
    "bare line feeds": GET.replace(b"\r\n", b"\n") + b"\n" + HIDDEN,
    "one bare line feed": GET + b"x-a: b\nx-c: d\r\n\r\n" + HIDDEN,
    "bare carriage return": GET + b"x-a: b\rx-c: d\r\n\r\n" + HIDDEN,
    "folded line": GET + b"x-a: b\r\n c\r\n\r\n" + HIDDEN,
    "fold of the first line": b"GET / HTTP/1.1\r\n host: x\r\n\r\n" + HIDDEN,
    "zero byte": GET + b"x-a: \0\r\n\r\n" + HIDDEN,
    "control character": GET + b"x-a: \x01\r\n\r\n" + HIDDEN,
    "no name": GET + b": b\r\n\r\n" + HIDDEN,
    "no colon": GET + b"x-a\r\n\r\n" + HIDDEN,
    "two hosts": GET + b"host: y\r\n\r\n" + HIDDEN,
    "no host": b"GET / HTTP/1.1\r\nx-a: b\r\n\r\n" + HIDDEN,
    "host with a path": b"GET / HTTP/1.1\r\nhost: x/health?\r\n\r\n" + HIDDEN,
    "host with a user": b"GET / HTTP/1.1\r\nhost: a@b\r\n\r\n" + HIDDEN,
    "empty line first": b"\r\n" + GET + b"\r\n" + HIDDEN,
    "tab in the request line": b"GET\t/ HTTP/1.1\r\nhost: x\r\n\r\n" + HIDDEN,
    "two spaces": b"GET  / HTTP/1.1\r\nhost: x\r\n\r\n" + HIDDEN,
    "no version": b"GET /\r\nhost: x\r\n\r\n" + HIDDEN,
    "size that is none": CHUNKED + b"xyz\r\n{}\r\n0\r\n\r\n" + HIDDEN,
    "negative size": CHUNKED + b"-2\r\n{}\r\n0\r\n\r\n" + HIDDEN,
    "size of 30 digits": CHUNKED + b"0" * 29 + b"2\r\n{}\r\n0\r\n\r\n" + HIDDEN,
    "prefixed size": CHUNKED + b"0x2\r\n{}\r\n0\r\n\r\n" + HIDDEN,
    "size ends in a line feed": CHUNKED + b"2\n{}\r\n0\r\n\r\n" + HIDDEN,
    "chunk ends in a line feed": CHUNKED + b"2\r\n{}\n0\r\n\r\n" + HIDDEN,
    "chunk longer than its size": CHUNKED + b"1\r\n{}\r\n0\r\n\r\n" + HIDDEN,
    "last chunk ends in a line feed": CHUNKED + b"2\r\n{}\r\n0\r\n\n" + HIDDEN,
    "trailer": CHUNKED + b"2\r\n{}\r\n0\r\nx-a: b\r\n\r\n" + HIDDEN,
    "trailer that is a head": CHUNKED + b"2\r\n{}\r\n0\r\ncontent-length: 40\r\n\r\n" + HIDDEN,
    "extension of a megabyte": CHUNKED + b"2;" + b"x" * 2**20 + b"\r\n{}\r\n0\r\n\r\n" + HIDDEN,
}


@pytest.mark.parametrize("pieces", [1, 7], ids=["at once", "in pieces"])
@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_ht05_what_two_readers_could_read_differently_is_refused(server: Running, kind: str, pieces: int) -> None:
    """HT-05: 400, closed, and what follows is nobody's request."""
    data = AMBIGUOUS[kind]
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        step = len(data) // pieces + 1
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), step):
                sock.sendall(data[start : start + step])
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1, "two answers"
    assert json_of(answer)["code"] == "invalid_http"


def read_all(parser: Parser) -> None:
    while parser.next_event() not in (h11.NEED_DATA, h11.PAUSED):
        pass


def test_ht05_the_same_bytes_one_by_one() -> None:
    """The parser alone: how bytes are cut into packets makes no difference."""
    for kind, data in AMBIGUOUS.items():
        parser = Parser()
        with contextlib.suppress(h11.RemoteProtocolError):
            for byte in data[: data.index(HIDDEN)] + b"G":
                parser.receive_data(bytes([byte]))
                read_all(parser)
        assert parser.refusal is not None, kind


def test_ht05_crumbs_of_a_body_cost_little() -> None:
    """A body in chunks of a byte takes a hundred times longer to take apart than to send: it is cut off."""
    started_s, parser = time.thread_time(), Parser()
    parser.receive_data(CHUNKED + b"1\r\n{\r\n" * 40_000)
    with pytest.raises(h11.RemoteProtocolError, match="small chunks"):
        read_all(parser)
    assert time.thread_time() - started_s < 1
    parser = Parser()
    parser.receive_data(CHUNKED + b"400\r\n" + b" " * 1024 + b"\r\n")
    for _ in range(3000):
        parser.receive_data(b"400\r\n" + b" " * 1024 + b"\r\n")
        read_all(parser)


def test_ordinary_chunks_are_taken(server: Running) -> None:
    body = json.dumps(server.completion()).encode()
    for cut in (1, 40, len(body)):
        parts = [body[start : start + cut] for start in range(0, len(body), cut)]
        chunks = b"".join(b"%x;name=value\r\n%s\r\n" % (len(part), part) for part in parts)
        answer = raw_request(
            server.port, CHUNKED.replace(b"host", b"connection: close\r\nhost") + chunks + b"0\r\n\r\n"
        )
        assert answer.startswith(b"HTTP/1.1 200 "), answer


# ---- size ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (GET + b"x-a: b\r\n" * 300 + b"\r\n", 431, "headers_too_large"),
        (GET + b"x-a: " + b"b" * 65536 + b"\r\n\r\n", 431, "headers_too_large"),
        (GET + b"x-a: " + b"b" * 2**20, 431, "headers_too_large"),
        (b"GET /" + b"a" * 16384 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 414, "uri_too_long"),
        (b"GET /" + b"a" * 2**20, 414, "uri_too_long"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "http_version_not_supported"),
    ],
    ids=["300 fields", "64 KiB field", "endless field", "16 KiB address", "endless address", "HTTP/2"],
)
def test_ht04_floods_in_the_head_are_refused(server: Running, data: bytes, status: int, code: str) -> None:
    """HT-04."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        with contextlib.suppress(ConnectionError):
            sock.sendall(data)
        answer = b"".join(iter(lambda: sock.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]
    assert json_of(answer)["code"] == code


def test_ht04_what_is_just_small_enough_is_taken(server: Running) -> None:
    """HT-04: the limits are where they are said to be."""
    fields = b"".join(b"x-%d: b\r\n" % i for i in range(MAX_FIELDS - 2))
    assert raw_request(server.port, GET + fields + b"connection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    room = MAX_HEAD_BYTES - len(GET) - len(b"connection: close\r\nx-a: ") - 100
    assert raw_request(server.port, GET + b"x-a: " + b"b" * room + b"\r\nconnection: close\r\n\r\n").startswith(
        b"HTTP/1.1 200 "
    )
    line = b"GET /health/live?" + b"a" * (MAX_REQUEST_LINE_BYTES - 26) + b" HTTP/1.1\r\n"
    assert MAX_REQUEST_LINE_BYTES - 8 < len(line) <= MAX_REQUEST_LINE_BYTES + 2
    assert raw_request(server.port, line + b"host: x\r\nconnection: close\r\n\r\n").startswith(b"HTTP/1.1 200 ")


# ---- slowness -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hasty() -> Iterator[Running]:
    settings = ServerSettings(port=0, head_timeout_s=1.0, body_timeout_s=1.0, write_stall_s=0.5, max_connections=40)
    with running_server(settings, step_s=0.002) as running:
        yield running


def until_closed(sock: socket.socket, feed: bytes = b"", pause_s: float = 0.1) -> bytes:
    """Send ``feed`` a byte at a time until the other side closes; what it said."""
    sock.settimeout(pause_s)
    said = b""
    for index in range(200):
        try:
            part = sock.recv(65536)
        except TimeoutError:
            with contextlib.suppress(ConnectionError):
                sock.send(feed[index : index + 1])
            continue
        except ConnectionError:
            return said
        if not part:
            return said
        said += part
    raise AssertionError("the connection stays open")


@pytest.mark.parametrize(
    "sent", [b"", b"G", GET, GET + b"\r\n" + GET], ids=["nothing", "a byte", "half", "second half"]
)
def test_ht01_a_head_that_does_not_come_is_a_timeout(hasty: Running, sent: bytes) -> None:
    """HT-01: 408 and closed, also when it drips, and for a later request of the same connection."""
    started_s = time.monotonic()
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=10) as sock:
        sock.sendall(sent)
        said = until_closed(sock, b"a" * 200)
    assert b"HTTP/1.1 408 " in said
    assert b'"request_timeout"' in said
    assert 0.8 < time.monotonic() - started_s < 8


def test_ht01_drips_do_not_hold_up_others(hasty: Running) -> None:
    """HT-01: many slow senders at once; meanwhile a client is answered, and then nothing is left of them."""
    slow = [socket.create_connection(("127.0.0.1", hasty.port), timeout=10) for _ in range(30)]
    for sock in slow:
        sock.sendall(GET)
    assert hasty.post("/v1/completions", hasty.completion()).status_code == 200
    for sock in slow:
        assert b"HTTP/1.1 408 " in until_closed(sock, b"a" * 200, 0.02)
        sock.close()
    wait_until(lambda: len(hasty.server.server_state.connections) <= 1, 10)


@pytest.mark.parametrize("drip", [b"", b" " * 200], ids=["stalled", "slow"])
def test_ht02_a_body_that_does_not_come_is_a_timeout(hasty: Running, drip: bytes) -> None:
    """HT-02: 408, no request was begun."""
    requests = hasty.stats()["requests"]
    with socket.create_connection(("127.0.0.1", hasty.port), timeout=10) as sock:
        sock.sendall(POST + b"content-length: 1000000\r\n\r\n{")
        said = until_closed(sock, drip)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in said
    assert hasty.stats()["requests"] == requests


def test_an_answer_that_nobody_takes_is_dropped(hasty: Running) -> None:
    """ST-03 for what is no stream: pipelined questions, no reading; the connection does not stay for ever."""
    before = len(hasty.server.server_state.connections)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", hasty.port))
        sock.sendall(b"GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n" * 60)
        wait_until(lambda: len(hasty.server.server_state.connections) > before, 5)
        wait_until(lambda: len(hasty.server.server_state.connections) <= before, 20)


# ---- many ---------------------------------------------------------------------------------------------


def test_ht10_the_one_that_waited_longest_gives_way() -> None:
    """HT-10: idle and slow connections make room, the first first; a newcomer is served."""
    with running_server(ServerSettings(port=0, max_connections=40)) as running, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", running.port), 10)) for _ in range(40)]
        wait_until(lambda: len(running.server.server_state.connections) == 40, 10)
        for sock in idle[:5]:
            sock.sendall(GET + b"\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert running.get("/health/live").status_code == 200
        assert len(running.server.server_state.connections) <= 40
        said = until_closed(idle[5])
        assert said.startswith(b"HTTP/1.1 503 "), "the first of those that had sent nothing"
        assert json_of(said)["code"] == "too_many_connections"
        assert b"retry-after: 1\r\n" in said


def test_ht10_answers_are_never_given_up_for_newcomers() -> None:
    """HT-10: when all connections are being answered, one more is told so at once, in JSON."""
    settings = ServerSettings(port=0, max_connections=8)
    with running_server(settings, step_s=0.01) as running, contextlib.ExitStack() as stack:
        body = running.completion(max_tokens=200, stream=True, ignore_eos=True)
        streams = [RawStream(running.port, "/v1/completions", body) for _ in range(8)]
        for stream in streams:
            stack.callback(stream.close)
            assert stream.read_some()
        said = raw_request(running.port, b"")
        assert said.startswith(b"HTTP/1.1 503 ")
        streams[0].socket.settimeout(20)
        text = b""
        while b"data: [DONE]" not in text:
            text += streams[0].read_some(65536)
        running.wait_idle(20)


def test_ht10_a_flood_passes() -> None:
    """HT-10: far more connections than there is room for; others are answered during it and after it."""
    settings = ServerSettings(port=0, max_connections=50, head_timeout_s=30)
    with running_server(settings) as running, contextlib.ExitStack() as stack:
        for index in range(600):
            sock = socket.create_connection(("127.0.0.1", running.port), 10)
            stack.callback(sock.close)
            if index % 100 == 99:
                assert httpx.get(f"{running.url}/health/live").status_code == 200
                assert len(running.server.server_state.connections) <= 60
        assert running.post("/v1/completions", running.completion()).status_code == 200


@pytest.mark.heavy
def test_ht01_two_thousand_slow_senders() -> None:
    """HT-01 at full size: all are closed by the deadline; an honest client's first token comes nearly as soon."""
    with server_process() as (process, url), contextlib.ExitStack() as stack:
        port = int(url.rsplit(":", 1)[1])

        def first_token_s() -> float:
            raw = RawStream(port, "/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 4, "stream": True})
            started_s = time.monotonic()
            while b"data: {" not in raw.read_some(65536):
                pass
            raw.close()
            return time.monotonic() - started_s

        alone = [first_token_s() for _ in range(100)]
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port), 10)) for _ in range(2000)]
        opened_s = time.monotonic()
        beside, num_sent = [], 0
        while (passed_s := time.monotonic() - opened_s) < 5:
            for sock in slow[num_sent : (num_sent := int(passed_s / 5 * len(slow)))]:
                sock.send(b"G")
            beside.append(first_token_s())
        beside.sort()
        assert statistics.median(beside) < max(3 * statistics.median(alone), 0.05)
        assert beside[int(0.99 * len(beside))] < 1
        time.sleep(max(0.0, opened_s + 10 - time.monotonic()))
        for sock in slow:
            sock.settimeout(5)
            with contextlib.suppress(ConnectionError):
                assert b"HTTP/1.1 408 " in sock.recv(1000)
        assert process.poll() is None


@pytest.mark.heavy
def test_ht10_twenty_thousand_connections() -> None:
    """HT-10 at full size, with 4,096 descriptors: the server goes on accepting, and health is told all the while."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, before[1]))
    with server_process(max_connections=3900) as (process, url), contextlib.ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (4096, 4096))
        port = int(url.rsplit(":", 1)[1])
        open_now: list[socket.socket] = []
        waits = []
        for index in range(20_000):
            sock = socket.create_connection(("127.0.0.1", port), 30)
            open_now.append(sock)
            if len(open_now) > 6000:
                open_now.pop(0).close()
            if index % 500 == 499:
                started_s = time.monotonic()
                assert httpx.get(f"{url}/health/live", timeout=30).status_code == 200
                waits.append(time.monotonic() - started_s)
        for sock in open_now:
            stack.callback(sock.close)
        assert sorted(waits)[len(waits) // 2] < 3  # behind as many as wait to be accepted
        small = {"model": MODEL, "prompt": "a", "max_tokens": 2}
        assert httpx.post(f"{url}/v1/completions", json=small, timeout=30).status_code == 200
        assert process.poll() is None


# ---- framing ------------------------------------------------------------------------------------------


def test_ht09_http_1_0(server: Running) -> None:
    """HT-09: no chunks, closed unless asked otherwise; a stream ends with the connection."""
    answer = raw_request(server.port, b"GET /health/live HTTP/1.0\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ") and b"transfer-encoding" not in head.lower()
    assert json.loads(body)["status"] == "ok"
    data = json.dumps(server.completion(stream=True)).encode()
    head10 = POST.replace(b"HTTP/1.1", b"HTTP/1.0") + b"content-length: %d\r\n\r\n" % len(data)
    answer = raw_request(server.port, head10 + data)
    assert b"chunked" not in answer and answer.endswith(b"data: [DONE]\n\n")


def test_ht09_a_hundred_requests_on_one_connection(server: Running) -> None:
    """HT-09: kept alive."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.connect()
    first = connection.sock
    for _ in range(100):
        connection.request("GET", "/health/live")
        assert connection.getresponse().read()
        assert connection.sock is first
    connection.close()


def test_ht09_pipelined_requests_are_answered_in_order(server: Running) -> None:
    """HT-09: one answer each, in the order of the requests."""
    paths = [f"/v1/requests/req_{index}" if index % 3 else "/health/live" for index in range(100)]
    requests = b"".join(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode() for path in paths[:-1])
    last = b"GET %s HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % paths[-1].encode()
    answer = raw_request(server.port, requests + last)
    statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"404" if index % 3 else b"200" for index in range(100)]


def test_ht09_expecting_to_be_asked(server: Running) -> None:
    """HT-09: ``Expect: 100-continue`` is answered, or refused, before the body is sent."""
    data = json.dumps(server.completion()).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(POST + b"content-length: %d\r\nexpect: 100-continue\r\n\r\n" % len(data))
        assert sock.recv(1000).startswith(b"HTTP/1.1 100 ")
        sock.sendall(data)
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    answer = raw_request(server.port, POST + b"content-length: 99999999\r\nexpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_ht09_head_and_options(server: Running) -> None:
    """HT-09: a head without a body, as long as the body would be."""
    answer = raw_request(server.port, b"HEAD /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n")
    assert b"content-length: %d" % len(server.get("/v1/models").content) in answer
    answer = raw_request(server.port, b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 40")


def test_ht09_other_protocols_are_declined(server: Running) -> None:
    """HT-09: an offer to change the protocol is answered in this one."""
    upgrade = GET + b"connection: upgrade, close\r\nupgrade: websocket\r\n\r\n"
    assert raw_request(server.port, upgrade).startswith(b"HTTP/1.1 200 ")
    answer = raw_request(server.port, b"CONNECT evil.example:443 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 40")


# ---- half-closed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_st09_a_half_closed_client_gets_its_answer(server: Running, stream: bool) -> None:
    """ST-09: it will send nothing more, and reads to the end; ``100 Continue`` may stand before the answer."""
    raw = RawStream(server.port, "/v1/completions", server.completion(stream=stream, max_tokens=60, ignore_eos=True))
    raw.socket.shutdown(socket.SHUT_WR)
    answer = raw.read_all()
    raw.close()
    final = answer[answer.index(b"HTTP/1.1 200 ") :]
    assert answer.replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"") == final
    if stream:
        assert final.endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    else:
        assert json.loads(final.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 60


@pytest.mark.parametrize("stream", [True, False])
def test_st09_a_reset_ends_the_request(server: Running, stream: bool) -> None:
    """ST-09: nothing is left running."""
    raw = RawStream(server.port, "/v1/completions", server.completion(stream=stream, max_tokens=450, ignore_eos=True))
    wait_until(lambda: server.stats()["running"] > 0, 5)
    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    raw.close()
    server.wait_idle(5)


def test_missing_descriptors_are_told_once_and_not_for_each_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asyncio tries hundreds of times in a row, and logs what is raised; that nobody is there it takes quietly."""

    def exhausted(self: socket.socket) -> tuple[socket.socket, object]:
        raise OSError(errno.EMFILE, "too many open files")

    with ListeningSocket() as sock:
        monkeypatch.setattr(socket.socket, "accept", exhausted)
        with pytest.raises(OSError, match="too many open files") as told:
            sock.accept()
        assert told.value.errno == errno.EMFILE
        for _ in range(3):
            with pytest.raises(BlockingIOError):
                sock.accept()
