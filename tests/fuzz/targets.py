"""One target per parser that meets the outside world: what to feed it, and how it may refuse."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h11
from hypothesis import strategies as st
from python_multipart.exceptions import FormParserError

from tests.fuzz import grammars
from tests.fuzz.inputs import SCALARS, VALUES, WORDS, as_json, disordered, mutated
from tests.text.test_hostile_files import spec
from tokenmill.bench.http import HttpFailure, _Body, _Events
from tokenmill.bench.scrape import parse_metrics
from tokenmill.core.errors import CheckpointError, ConfigError, InvalidRequest, NotSupported, SetupError
from tokenmill.core.model_config import ModelConfig
from tokenmill.core.step import StepPlan, StepResult, TokenLogprobs
from tokenmill.engine.journal import JournalWriter, read_header, read_records
from tokenmill.engine.remote.wire import HEADER, Abort, Close, Died, ProtocolError, Stop, command_of, pack, report_of
from tokenmill.engine.text import TextCodec, formats
from tokenmill.engine.text.regex_safety import check_pattern
from tokenmill.engine.text.template import ChatTemplates
from tokenmill.models.weights.checkpoint import Checkpoint
from tokenmill.models.weights.safetensors_file import SafetensorsFile
from tokenmill.perf.hardware.catalogue import FOLDER as HARDWARE
from tokenmill.perf.hardware.catalogue import load as load_device
from tokenmill.perf.simulate import traces
from tokenmill.perf.simulate.traces.draw import Draw
from tokenmill.server import jsonio
from tokenmill.server.access.keys import read_keys
from tokenmill.server.batches.lines import Complaint
from tokenmill.server.batches.lines import parse as parse_line
from tokenmill.server.context import Ticket
from tokenmill.server.dialects import DIALECTS, Function
from tokenmill.server.dialects.reader import Parse, Reader
from tokenmill.server.errors import HttpError, from_validation
from tokenmill.server.files.upload import _Form, _parser
from tokenmill.server.parser import Parser
from tokenmill.server.protocol.chat import ChatRequest
from tokenmill.server.protocol.completions import CompletionRequest
from tokenmill.server.protocol.responses import ResponseRequest
from tokenmill.server.responses.conversation import as_chat, read_conversation
from tokenmill.server.responses.state import Responses
from tokenmill.server.settings import ServerSettings
from tokenmill.server.store import Store
from tokenmill.server.turn import TurnParser
from tokenmill.testing.checkpoints import make_checkpoint

BUILTIN = Path(__file__).resolve().parents[2] / "tokenmill" / "builtin" / "story"


@dataclass(frozen=True)
class Target:
    """``run`` either returns or raises one of ``refusals``, within ``limit_s`` of processor time."""

    inputs: st.SearchStrategy[Any]
    run: Callable[[Any], object]
    refusals: tuple[type[Exception], ...]
    limit_s: float = 2.0


@cache
def folder() -> Path:
    """For files that are read from a path; removed when Python ends."""
    kept.append(tempfile.TemporaryDirectory(prefix="fuzz-"))
    return Path(kept[-1].name)


kept: list[tempfile.TemporaryDirectory[str]] = []


def written(name: str, data: bytes) -> Path:
    path = folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


# ---- requests -----------------------------------------------------------------------------------------

CHAT: list[dict[str, Any]] = [
    {
        "model": "m",
        "messages": [{"role": "system", "content": "a"}, {"role": "user", "content": [{"type": "text", "text": "b"}]}],
        "max_tokens": 4,
        "stop": ["a"],
        "logit_bias": {"5": 1.0},
        "stream": True,
        "stream_options": {"include_usage": True},
        "metadata": {"a": "b"},
    },
    {
        "model": "m",
        "messages": [
            {"role": "user", "content": "a"},
            {
                "role": "assistant",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
            },
            {"role": "tool", "tool_call_id": "c", "content": "1"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}},
    },
]
COMPLETIONS: list[dict[str, Any]] = [
    {"model": "m", "prompt": ["a", "b"], "n": 2, "best_of": 3, "logprobs": 2, "seed": 5, "stop": "x"},
    {"model": "m", "prompt": [1, 2, 3], "temperature": 0.5, "echo": True, "stream": False},
]


RESPONSES: list[dict[str, Any]] = [
    {
        "model": "m",
        "instructions": "a",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "b"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "c"}]},
            {
                "type": "function_call",
                "call_id": "c",
                "name": "f",
                "arguments": "{}",
                "id": "fc_1",
                "status": "completed",
            },
            {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "1"}]},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "d", "annotations": []}],
            },
            {"role": "user", "content": "e"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}],
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}},
    },
    {"model": "m", "input": [{"type": "item_reference", "id": "msg_1"}], "previous_response_id": "resp_1"},
]


@cache
def server_context() -> Any:
    service = SimpleNamespace(model_name="m", codec=TextCodec.load(BUILTIN))
    return SimpleNamespace(service=service, responses=Responses(ServerSettings(), Store()))


def read_response(body: bytes) -> None:
    """A body becomes a conversation, and that what chat takes."""
    request = read_body(ResponseRequest)(body)
    context, ticket = server_context(), Ticket("req_0", 0.0)
    conversation = asyncio.run(read_conversation(context, ticket, request, "resp_" + 32 * "0"))
    as_chat(context, request, conversation.whole)


def read_body(model: type[Any]) -> Callable[[Any], Any]:
    def run(body: bytes) -> object:
        from pydantic import ValidationError

        value = jsonio.loads(body)
        try:
            return model.model_validate(value)
        except ValidationError as error:
            raise from_validation(error, model) from None

    return run


def read_http(data: bytes) -> None:
    """However the bytes are cut, the same requests are read, or the same place is refused."""
    whole, bytewise = http_events(data, len(data) or 1), http_events(data, 3)
    assert whole == bytewise, (whole, bytewise)


def http_events(data: bytes, step: int) -> list[object]:
    parser, found, body = Parser(), list[object](), b""
    for start in range(0, len(data), step):
        parser.receive_data(data[start : start + step])
        while True:
            try:
                event = parser.next_event()
            except h11.RemoteProtocolError:
                return [*found, "refused"]
            if event is h11.NEED_DATA:
                break
            if isinstance(event, h11.Request):
                found.append((event.method, event.target, list(event.headers)))
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                found.append(body)
                body = b""
                parser.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                parser.send(h11.EndOfMessage())
                if parser.our_state is not h11.DONE:
                    return found
                parser.start_next_cycle()
            else:
                return found
    return found


HTTP = [
    b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\nGET / HTTP/1.1\r\nhost: b\r\nconnection: close\r\n\r\n",
    b"POST /a?b=c HTTP/1.1\r\nhost: a:80\r\ncontent-length: 5\r\n\r\nhelloGET / HTTP/1.1\r\nhost: b\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n2\r\nab\r\n0\r\n\r\n"
    b"GET / HTTP/1.1\r\nhost: b\r\n\r\n",
    b"POST / HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: 1\r\n\r\nx",
]
HTTP_WORDS = (
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"content-length: 3\r\n", b"transfer-encoding: chunked\r\n", b"0\r\n\r\n",
    b"HTTP/1.1", b"host: c\r\n", b"\0", b";", b"\r\n\r\n",
)  # fmt: skip

# ---- templates ----------------------------------------------------------------------------------------

TEMPLATES = [
    b"{% for m in messages %}<|{{ m.role }}|>{{ m['content'] | trim }}{% endfor %}",
    b"{%- if tools %}{{ tools | tojson(indent=2) }}{% endif %}{% set ns = namespace(x=0) %}{% for i in range(3) %}"
    b"{% set ns.x = ns.x + i * 2 %}{{ loop.index ~ ns.x }}{% endfor %}",
    b"{% macro f(a, b=2) %}{{ a ~ b }}{% endmacro %}{{ f(1) }}{{ 'a' * 3 }}"
    b"{{ ''.join(['a', 'b']) | upper | replace('A', 'b') }}",
    b"{{ messages | map(attribute='role') | list | join(',') }}"
    b"{% if messages[0] is mapping %}{{ '%s' % 1 }}{% endif %}",
]
TEMPLATE_WORDS = (
    b"{{", b"}}", b"{%", b"%}", b"__class__", b"|attr('x')", b"range(99999)", b"*", b"**", b"~", b"[0:]", b"loop",
    b"cycler", b"joiner", b"lipsum", b".format(", b"|format", b"'a'*99999", b"messages", b"import 'x'", b"include 'x'",
    b"|safe", b"|xmlattr", b"|pprint", b"|batch(2)", b"|slice(99999)", b"|groupby('a')", b"|sum", b"|unique",
    b"self", b"for x in ",
)  # fmt: skip
MESSAGE = {"role": "user", "content": "Hi"}


def read_template(data: bytes) -> None:
    ChatTemplates({"default": data.decode("utf-8", "replace")}, {}).render([MESSAGE], tools=[{"a": 1}])


@cache
def story() -> TextCodec:
    return TextCodec.load(BUILTIN)


def encode_chat(messages: Any) -> None:
    ids = story().encode_chat(messages)
    assert all(0 <= token_id < story().vocab_size for token_id in ids)


CHATS = [
    [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "<|im_start|>b"},
        {"role": "assistant", "content": "c"},
    ],
    [{"role": "user", "content": [{"type": "text", "text": "a<|im_end|>"}], "name": "n", "reasoning_content": None}],
]

# ---- models -------------------------------------------------------------------------------------------


def safetensors(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@cache
def good_checkpoint() -> Path:
    sizes: dict[str, Any] = {"hidden_size": 8, "head_dim": 8, "num_heads": 1, "num_kv_heads": 1, "intermediate_size": 8}
    return make_checkpoint(folder() / "good", tokenizer=False, num_layers=1, vocab_size=16, max_context=16, **sizes)


TENSORS = {
    "__metadata__": {"format": "pt"},
    "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
    "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]},
}
INDEX = {"metadata": {"total_size": 24}, "weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}


def read_tensors(data: bytes) -> None:
    opened = SafetensorsFile(written("x.safetensors", data))
    for name in opened.entries:
        assert opened.tensor(name).nbytes <= len(data)


def read_index(value: Any) -> None:
    home = folder() / "indexed"
    written("indexed/x.safetensors", safetensors(as_json(TENSORS), bytes(24)))
    written("indexed/model.safetensors.index.json", as_json(value))
    Checkpoint(home)


@cache
def good_config() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((good_checkpoint() / "config.json").read_text())
    return found


def read_tokenizer(files: Mapping[str, Any]) -> None:
    home = folder() / "tokenizer"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    for name in TOKENIZERS[0].keys() & files.keys():
        (home / name).write_bytes(as_json(files[name]))
    codec = TextCodec.load(home)
    assert codec.encode("a b", add_special_tokens=False) is not None


TOKENIZERS = [
    {
        "tokenizer.json": spec(),
        "tokenizer_config.json": {
            "bos_token": {"content": "<begin>"},
            "eos_token": "<end>",
            "add_bos_token": True,
            "added_tokens_decoder": {"257": {"content": "<begin>", "special": True}},
            "chat_template": [{"name": "default", "template": "{{ messages }}"}],
        },
        "generation_config.json": {"eos_token_id": [256, 7]},
        "special_tokens_map.json": {"pad_token": "<end>"},
        "added_tokens.json": {"<more>": 258},
    }
]


def field(number: int, data: bytes) -> bytes:
    return bytes([number << 3 | 2, len(data)]) + data


PIECES = b"".join(
    field(1, field(1, piece) + b"\x15" + struct.pack("<f", -index) + bytes([3 << 3, kind]))
    for index, (piece, kind) in enumerate(
        [(b"<unk>", 2), (b"<s>", 3), (b"</s>", 3), (b"a", 1), (b"b", 1), (b"ab", 1), (b"<0x00>", 6)]
    )
)
SENTENCEPIECE = PIECES + field(2, bytes([3 << 3, 2])) + field(3, bytes([3 << 3, 1, 4 << 3, 0]))
TIKTOKEN = b"".join(base64.b64encode(bytes([value])) + b" %d\n" % value for value in range(256))

# ---- files of ours, and other servers' answers -----------------------------------------------------------


def read_trace(form: str) -> Callable[[bytes], object]:
    def run(data: bytes) -> object:
        trace = traces.read_trace(written(f"trace-{form}.txt", data), Draw(requests=5, rate=1.0), form)
        return trace.requests

    return run


def read_answer(data: bytes) -> None:
    """As ``bench serve`` reads a server's answer, in two pieces."""
    body = _Body()
    middle = len(data) // 2
    if not body.feed(0.0, data[:middle]):
        body.feed(1.0, data[middle:])


@cache
def journal() -> bytes:
    """A header, a plan and a result."""
    path = folder() / "journal.jsonl"
    writer = JournalWriter(path, {"num_blocks": 14})
    plan = StepPlan(3, (1, 2), (0, 5), (4, 1), block_updates={2: (1, (7, 8))}, copies=((1, 2),), dropped=(9,))
    entry = TokenLogprobs(5, -0.1, 1, ((5, -0.3), (6, -1e-300)))
    writer.plan(plan)
    writer.result(StepResult(3, (2,), ((5,),), {2: (entry,)}, {1: (1, (entry, entry))}, {1: "why"}, seconds=0.1))
    writer.close()
    return path.read_bytes()


def read_journal(data: bytes) -> None:
    path = written("damaged.jsonl", data)
    read_header(path)
    list(read_records(path))


def read_events(data: bytes) -> None:
    """As ``bench serve`` takes a stream apart."""
    events, middle = _Events(), len(data) // 2
    for piece in (data[:middle], data[middle:]):
        list(events.of(0.0, piece))


STREAM = b'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n10\r\ndata: {"a": 1}\n\n\r\n0\r\n\r\n'


def device_file() -> bytes:
    """One device of the catalogue, as a user would describe theirs."""
    tables = (HARDWARE / "nvidia.toml").read_bytes().split(b"[[device]]")
    return b"[[device]]" + tables[1]


def parse_form(data: bytes) -> None:
    boundary, form = b"xyz", _Form()
    parser = _parser(boundary, form)
    try:
        for start in range(0, len(data), 7):
            parser.write(data[start : start + 7])
    except FormParserError as error:
        raise InvalidRequest(str(error)) from error
    form.wishes()


FORM = (
    b'--xyz\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    b'--xyz\r\ncontent-disposition: form-data; name="expires_after[seconds]"\r\n\r\n3600\r\n'
    b'--xyz\r\ncontent-disposition: form-data; name="expires_after[anchor]"\r\n\r\ncreated_at\r\n'
    b'--xyz\r\ncontent-disposition: form-data; name="file"; filename="a.jsonl"\r\n'
    b"content-type: text/plain\r\n\r\n{}\n\r\n--xyz--\r\n"
)
FORM_WORDS = (
    b"--xyz",
    b"--",
    b"\r\n",
    b"\r\n\r\n",
    b'"',
    b";",
    b"name=",
    b"filename*=UTF-8''%e2",
    b"\0",
    b"\xff",
    b":",
)

BATCH_LINE: dict[str, Any] = {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": COMPLETIONS[0]}

KEYS = {
    "keys": [
        {
            "id": "0f3a0f3a0f3a",
            "sha256": "a" * 64,
            "tenant": "acme",
            "created": "2026-11-21T18:00:00Z",
            "expires": None,
            "requests_per_minute": 5,
        }
    ],
    "tenants": {"acme": {"weight": 3.0, "tokens_per_minute": 100000}},
}


def read_turn(drawn: tuple[str, bytes, list[int]]) -> None:
    """However a turn's text is cut, the same parts come out of it, and the model's text makes no exception."""
    name, data, cuts = drawn
    text = data.decode("utf-8", "replace")
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[begin:end] for begin, end in itertools.pairwise(places)]
    assert turn_of(name, [text]) == turn_of(name, pieces)


def turn_of(name: str, pieces: list[str]) -> list[tuple[str, int, str, str]]:
    functions = {"f": Function("f", parameters={"type": "object", "properties": {"a": {"type": "string"}}})}

    def parse(reader: Reader) -> Parse[None]:
        yield from DIALECTS[name].read(reader, functions)
        yield from reader.rest(reader.sink.content)

    parser = TurnParser(parse)
    found: list[tuple[str, int, str, str]] = []
    for piece in [*(part for text in pieces for part in parser.push(text)), *parser.finish()]:
        last = found[-1] if found else None
        if last is not None and last[:2] == (piece.kind, piece.index) and piece.kind not in ("tool_begin", "tool_end"):
            found[-1] = (*last[:3], last[3] + piece.text)
        else:
            found.append((piece.kind, piece.index, piece.name, piece.text))
    return found


TURN_SEEDS = [
    b'<tool_call>\n{"name": "f", "arguments": {"a": "b"}}\n</tool_call>',
    b'[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]',
    b'<|python_tag|>{"name": "f", "parameters": {"a": "\\u00e9"}}',
    b"[f(a='b', c=[1, 2])]",
    b"<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>b</arg_value>\n</tool_call>",
    b"<tool_call>\n<function=f>\n<parameter=a>\nb\n</parameter>\n</function>\n</tool_call>",
    b'<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "b"}<|call|>',
    b"Hello, this is a plain answer { with [ brackets.",
]
TURN_WORDS = (
    *WORDS,
    b"<tool_call>",
    b"</tool_call>",
    b"[TOOL_CALLS]",
    b"<|",
    b"|>",
    b"'",
    b"(",
    b")",
    b"=",
    b"f",
    b"{" * 500,
    b"[" * 500,
)


FOLDER_REFUSALS = (CheckpointError, NotSupported)

TARGETS: dict[str, Target] = {
    "chat body": Target(mutated([as_json(body) for body in CHAT]), read_body(ChatRequest), (InvalidRequest,)),
    "chat fields": Target(disordered(CHAT).map(as_json), read_body(ChatRequest), (InvalidRequest,)),
    "completion fields": Target(disordered(COMPLETIONS).map(as_json), read_body(CompletionRequest), (InvalidRequest,)),
    "response items": Target(
        disordered(RESPONSES).filter(lambda v: isinstance(v, dict)).map(as_json),
        read_response,
        (InvalidRequest, HttpError),
    ),
    "http": Target(mutated(HTTP, HTTP_WORDS), read_http, ()),
    "template": Target(mutated(TEMPLATES, TEMPLATE_WORDS), read_template, (CheckpointError, InvalidRequest), 20.0),
    "conversation": Target(disordered(CHATS).filter(lambda v: isinstance(v, list)), encode_chat, (InvalidRequest,)),
    "safetensors": Target(
        mutated([safetensors(as_json(TENSORS), bytes(24))])
        | disordered([TENSORS]).map(lambda v: safetensors(as_json(v), bytes(24))),
        read_tensors,
        (CheckpointError,),
    ),
    "index": Target(disordered([INDEX]), read_index, (CheckpointError,)),
    "config": Target(
        st.deferred(lambda: disordered([good_config()])), ModelConfig.from_hf, (*FOLDER_REFUSALS, ConfigError)
    ),
    "tokenizer": Target(disordered(TOKENIZERS).filter(lambda v: isinstance(v, dict)), read_tokenizer, FOLDER_REFUSALS),
    "sentencepiece": Target(mutated([SENTENCEPIECE]), formats.from_sentencepiece, FOLDER_REFUSALS),
    "tiktoken": Target(mutated([TIKTOKEN]), formats.from_tiktoken, FOLDER_REFUSALS),
    "pattern": Target(
        mutated([p.encode() for p in (formats.LLAMA3_WORDS, formats.QWEN2_WORDS, "(a|b)+c", "[a-z&&[^b]]*")]).map(
            lambda data: data.decode("utf-8", "replace")
        ),
        check_pattern,
        (CheckpointError,),
        10.0,
    ),
    "answer of a server": Target(mutated([STREAM]), read_answer, (ValueError,)),
    "events of a server": Target(
        mutated(
            [b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n: ping\n\ndata: {"error": {"message": "x"}}\n\n']
        ),
        read_events,
        (HttpFailure, ValueError),
    ),
    "journal": Target(st.deferred(lambda: mutated([journal()])), read_journal, (SetupError,)),
    "metrics of a server": Target(
        mutated([b'# TYPE a counter\nvllm:num_requests_running{model="a"} 3.0\ntokenmill_x_total 5e3 1700000\n']).map(
            lambda data: data.decode("utf-8", "replace")
        ),
        parse_metrics,
        (),
    ),
    "hardware file": Target(
        mutated([device_file()]),
        lambda data: load_device(written("device.toml", data)),
        (ConfigError,),
    ),
    "grammar: schema": Target(
        disordered(grammars.SCHEMAS).map(as_json) | mutated([as_json(schema) for schema in grammars.SCHEMAS]),
        grammars.follow("json_schema"),
        (InvalidRequest,),
    ),
    "grammar: pattern": Target(
        mutated(grammars.PATTERNS, grammars.PATTERN_WORDS), grammars.follow("regex"), (InvalidRequest,)
    ),
    "grammar: lark": Target(mutated(grammars.LARKS, grammars.LARK_WORDS), grammars.follow("lark"), (InvalidRequest,)),
    "form": Target(mutated([FORM], FORM_WORDS), parse_form, (InvalidRequest,)),
    "batch line": Target(
        disordered([BATCH_LINE]).map(as_json) | mutated([as_json(BATCH_LINE)]),
        lambda data: parse_line(data, BATCH_LINE["url"]).encoded(),
        (Complaint,),
    ),
    "key file": Target(
        disordered([KEYS]).map(as_json) | mutated([as_json(KEYS)]),
        lambda data: read_keys(written("keys.json", data)),
        (ConfigError,),
    ),
    "turn": Target(
        st.tuples(
            st.sampled_from(sorted(DIALECTS)),
            mutated(TURN_SEEDS, TURN_WORDS),
            st.lists(st.integers(0, 300), max_size=5),
        ),
        read_turn,
        (),
    ),
    "command to the engine": Target(
        mutated([pack(Abort("r"))[HEADER.size :], pack(Stop("r", 1))[HEADER.size :], pack(Close())[HEADER.size :]])
        | st.binary(max_size=40),
        command_of,
        (ProtocolError,),
    ),
    "report of the engine": Target(
        mutated([pack(Died())[HEADER.size :]]) | st.binary(max_size=40), report_of, (ProtocolError,)
    ),
    "output": Target(st.one_of(VALUES, SCALARS), lambda value: jsonio.loads(jsonio.dumps(value)), (InvalidRequest,)),
}
for form, seed in {
    "azure": b"TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:47.1,10,5\n",
    "mooncake": b'{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}\n',
}.items():
    TARGETS[f"trace {form}"] = Target(mutated([seed]), read_trace(form), (ConfigError, SetupError))
