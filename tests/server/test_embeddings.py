"""``POST /v1/embeddings``: OpenAI's shapes, every form of input, and errors that name what is wrong (AC-11, CC-18)."""

from __future__ import annotations

import base64
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.server.conftest import REAL_MODEL
from tests.server.service import MAX_CONTEXT, MODEL
from tests.server.support import RawStream, Running, error_of, running_server
from tokenmill.core.pooling import Pooling
from tokenmill.server.settings import ServerSettings

TEXT = "Once upon a time"


def body(value: Any = TEXT, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": value, **more}


def embed(server: Running, value: Any = TEXT, **more: Any) -> dict[str, Any]:
    response = server.post("/v1/embeddings", body(value, **more))
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def vectors(server: Running, value: Any, **more: Any) -> list[list[float]]:
    return [entry["embedding"] for entry in embed(server, value, **more)["data"]]


def token_ids(server: Running, text: str = TEXT) -> list[int]:
    ids: list[int] = server.post("/tokenize", {"prompt": text}).json()["tokens"]
    return ids


def test_ac11_the_answer_has_openais_shape(server: Running) -> None:
    answer = embed(server, ["a", "b", "c"], user="someone")
    assert set(answer) == {"object", "data", "model", "usage"}
    assert (answer["object"], answer["model"]) == ("list", MODEL)
    assert [set(entry) for entry in answer["data"]] == [{"object", "index", "embedding"}] * 3
    assert [entry["index"] for entry in answer["data"]] == [0, 1, 2]
    assert {entry["object"] for entry in answer["data"]} == {"embedding"}
    num_tokens = sum(len(token_ids(server, text)) for text in "abc")
    assert answer["usage"] == {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


def test_ac11_text_and_token_ids_in_all_four_forms(server: Running) -> None:
    ids = token_ids(server)
    expected = struct.unpack("<8f", server.executor.expected_embedding(ids, Pooling("last")))
    for form in (TEXT, ids, [TEXT], [ids]):
        assert vectors(server, form) == [list(expected)]


def test_cc18_many_are_what_each_is_alone_in_order(server: Running) -> None:
    texts = [f"{'fox ' * (i % 17)}number {i}" for i in range(100)]
    together = vectors(server, texts)
    with ThreadPoolExecutor(8) as pool:
        alone = list(pool.map(lambda text: vectors(server, text)[0], texts[::7]))
    assert together[::7] == alone
    assert vectors(server, texts[::-1]) == together[::-1]


def test_cc18_base64_holds_the_same_floats(server: Running) -> None:
    texts = ["a fox", "a hen"]
    for more in ({}, {"dimensions": 3}, {"pooling": "mean"}, {"normalize": False}):
        coded = [base64.b64decode(v) for v in vectors(server, texts, encoding_format="base64", **more)]  # type: ignore[arg-type]
        assert [list(struct.unpack(f"<{len(v) // 4}f", v)) for v in coded] == vectors(server, texts, **more)


def test_cc18_dimensions_are_the_beginning_scaled_to_length_1(server: Running) -> None:
    (whole,), (short,) = vectors(server, TEXT), vectors(server, TEXT, dimensions=5)
    length = sum(v * v for v in whole[:5]) ** 0.5
    assert short == pytest.approx([v / length for v in whole[:5]], abs=1e-6)
    assert sum(v * v for v in short) == pytest.approx(1, abs=1e-6)
    assert len(vectors(server, TEXT, dimensions=8)[0]) == 8


def test_the_kind_of_pooling_and_the_length_can_be_chosen(server: Running) -> None:
    ids = token_ids(server)
    for pooling in (Pooling("last"), Pooling("mean"), Pooling("mean", 4, normalize=False)):
        expected = struct.unpack(f"<{pooling.dimensions or 8}f", server.executor.expected_embedding(ids, pooling))
        wishes = {"pooling": pooling.kind, "normalize": pooling.normalize, "dimensions": pooling.dimensions}
        assert vectors(server, TEXT, **wishes) == [list(expected)]


def test_the_openai_client_reads_both_forms(server: Running) -> None:
    """Its default is base64, decoded by itself."""
    texts = ["a fox", "a hen"]
    with server.client() as client:
        default = client.embeddings.create(model=MODEL, input=texts)
        floats = client.embeddings.create(model=MODEL, input=texts, encoding_format="float", dimensions=8)
    assert [entry.embedding for entry in default.data] == [entry.embedding for entry in floats.data]
    assert default.usage.total_tokens == default.usage.prompt_tokens > 0


@pytest.mark.parametrize(
    ("wrong", "param", "code"),
    [
        ({"input": ""}, "input", "invalid_value"),
        ({"input": ["a", ""]}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [[]]}, "input", "invalid_value"),
        ({"input": ["a"] * 2049}, "input", "invalid_value"),
        ({"input": ["a", [1]]}, "input", "invalid_value"),
        ({"input": [1, "a"]}, "input", "invalid_value"),
        ({"input": [1.5]}, "input", "invalid_value"),
        ({"input": [-1]}, "input", "invalid_value"),
        ({"input": {"text": "a"}}, "input", "invalid_value"),
        ({"input": None}, "input", "missing_required_parameter"),
        ({"input": ["a", "b"], "model": None}, "model", "missing_required_parameter"),
        ({"input": [[5], [10**6]]}, "input[1]", "invalid_value"),
        ({"dimensions": 0}, "dimensions", "invalid_value"),
        ({"dimensions": 9}, "dimensions", "invalid_value"),
        ({"dimensions": "8"}, "dimensions", "invalid_type"),
        ({"encoding_format": "int8"}, "encoding_format", "invalid_value"),
        ({"pooling": "cls"}, "pooling", "invalid_value"),
        ({"normalize": 1}, "normalize", "invalid_type"),
        ({"stream": True}, "stream", "unknown_parameter"),
    ],
)
def test_ac11_what_is_wrong_is_named(server: Running, wrong: dict[str, Any], param: str, code: str) -> None:
    response = server.post("/v1/embeddings", {**body(), **wrong})
    assert response.status_code == 400
    error = error_of(response)
    assert (error["param"], error["code"]) == (param, code)


def test_ac11_an_empty_entry_and_too_many_are_told_apart(server: Running) -> None:
    assert "entry 1 must not be empty" in error_of(server.post("/v1/embeddings", body(["a", ""])))["message"]
    assert "2049 entries; at most 2048" in error_of(server.post("/v1/embeddings", body(["a"] * 2049)))["message"]
    assert error_of(server.post("/v1/embeddings", body(model="other")))["code"] == "model_not_found"


def test_an_input_that_is_too_long_is_named_by_its_place(server: Running) -> None:
    before = server.metric("tokenmill_iterations_total")
    for value, param in (([[5] * 600], "input"), (["a", "b " * 700], "input[1]"), ([[5], [6] * 513], "input[1]")):
        response = server.post("/v1/embeddings", body(value))
        assert response.status_code == 400
        error = error_of(response)
        assert (error["param"], error["code"]) == (param, "context_length_exceeded")
        assert str(MAX_CONTEXT) in error["message"]
    assert server.metric("tokenmill_iterations_total") == before, "nothing reached the engine"
    assert len(embed(server, [[5] * MAX_CONTEXT])["data"]) == 1, "a prompt may fill the context: nothing follows it"


def test_the_tokens_of_one_request_are_bounded() -> None:
    with running_server(ServerSettings(port=0, max_request_tokens=100)) as server:
        assert embed(server, [[5] * 50, [6] * 50])["usage"]["total_tokens"] == 100
        error = error_of(server.post("/v1/embeddings", body([[5] * 50, [6] * 51])))
        assert (error["param"], "100 tokens" in error["message"]) == ("input", True)


def test_2048_inputs_are_taken(server: Running) -> None:
    answer = embed(server, [[i % 4000] for i in range(2048)], encoding_format="base64")
    assert [entry["index"] for entry in answer["data"]] == list(range(2048))
    assert answer["usage"]["total_tokens"] == 2048


def test_a_client_that_leaves_frees_its_blocks(server: Running) -> None:
    stream = RawStream(server.port, "/v1/embeddings", body([[i % 4000] * 400 for i in range(200)]))
    stream.close()
    server.wait_idle(5)


def test_a_deadline_that_passes_is_an_error(server: Running) -> None:
    response = server.post("/v1/embeddings", body([[5] * 500], timeout_s=0.0001))
    assert response.status_code in (503, 504), "refused at once where the wait can be foreseen"
    assert error_of(response)["code"] in ("server_overloaded", "deadline_exceeded")


def test_cc18_a_real_model_gives_the_same_bits_beside_others(real_url: str) -> None:
    """Texts embedded one by one, then all together while others generate: equal to the last bit, through base64."""
    texts = [
        f"Once upon a time there was a {animal}. " * (1 + i) for i, animal in enumerate(("fox", "hen", "cat", "owl"))
    ]

    def ask(value: Any, **more: Any) -> list[str]:
        asked = {"model": REAL_MODEL, "input": value, "encoding_format": "base64", **more}
        response = httpx.post(f"{real_url}/v1/embeddings", json=asked, timeout=60)
        assert response.status_code == 200, response.text
        return [entry["embedding"] for entry in response.json()["data"]]

    def generate(seed: int) -> None:
        asked = {"model": REAL_MODEL, "prompt": "One day", "max_tokens": 30, "seed": seed}
        assert httpx.post(f"{real_url}/v1/completions", json=asked, timeout=60).status_code == 200

    for pooling in ("last", "mean"):
        alone = [ask(text, pooling=pooling)[0] for text in texts]
        with ThreadPoolExecutor(4) as pool:
            others = [pool.submit(generate, seed) for seed in range(3)]
            assert ask(texts, pooling=pooling) == alone
            for other in others:
                other.result()
        assert len(set(alone)) == len(texts)
        assert ask(texts[2], pooling=pooling, dimensions=16) != ask(texts[2], pooling=pooling)
