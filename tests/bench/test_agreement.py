"""The server's metrics and the client's figures of the same run, side by side."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.server.support import running_server
from tokenmill.bench.agreement import agreement
from tokenmill.bench.http import Client
from tokenmill.bench.load import PlannedRequest
from tokenmill.bench.serve import Outcome
from tokenmill.bench.serve_sweep import ServeOptions, measure
from tokenmill.server.settings import ServerSettings


def test_a_real_server_and_the_client_agree() -> None:
    """Tokens to the last one; times within what a busy machine does to two event loops."""
    load = ServeOptions(num_requests=12, prompt_tokens="8-40", output_tokens="20", rates=(40.0,))
    with running_server(ServerSettings(port=0), step_s=0.02) as server:
        found = asyncio.run(measure(Client(server.url), replace(load, metrics=f"{server.url}/metrics")))
    compared = found["agreement"]
    assert set(compared) == {"requests", "ttft_s", "e2e_s", "input_tokens", "output_tokens"}
    for figure in ("requests", "input_tokens", "output_tokens"):
        assert compared[figure]["ratio"] == 1.0
    assert compared["output_tokens"]["client"] == 240
    assert compared["e2e_s"]["server"] > 20 * 0.02
    assert compared["e2e_s"]["ratio"] == pytest.approx(1, abs=0.1)
    assert compared["ttft_s"]["ratio"] == pytest.approx(1, abs=0.4)
    assert 0 < compared["ttft_s"]["between_s"] < compared["ttft_s"]["client"]
    assert compared["e2e_s"]["accounted"] == pytest.approx(1, abs=0.1)


def outcome(sent_s: float, first_s: float, end_s: float) -> Outcome:
    return Outcome(PlannedRequest(0.0, 10, 5), sent_s, [first_s, end_s], end_s, 10, 5)


def test_means_are_what_the_histograms_grew_by() -> None:
    outcomes = [outcome(0.0, 0.1, 1.0), outcome(1.0, 1.3, 3.0)]
    before = {"vllm:time_to_first_token_seconds_sum": 7.0, "vllm:time_to_first_token_seconds_count": 3.0}
    after = {
        "vllm:time_to_first_token_seconds_sum": 7.38,
        "vllm:time_to_first_token_seconds_count": 5.0,
        "vllm:e2e_request_latency_seconds_sum": 2.7,
        "vllm:e2e_request_latency_seconds_count": 2.0,
        "vllm:generation_tokens_total": 20.0,
        "vllm:something_else": 9.0,
    }
    found = agreement(outcomes, before, after)
    assert found is not None
    assert found["ttft_s"] == pytest.approx({"client": 0.2, "server": 0.19, "ratio": 0.95})
    assert found["e2e_s"] == pytest.approx({"client": 1.5, "server": 1.35, "ratio": 0.9})
    assert found["output_tokens"] == {"client": 10.0, "server": 20.0, "ratio": 2.0}
    assert "input_tokens" not in found
    found = agreement(outcomes, before, after, [0.005, 0.015])
    assert found is not None
    accounted = {"client": 0.2, "server": 0.19, "ratio": 0.95, "between_s": 0.01, "accounted": 1.0}
    assert found["ttft_s"] == pytest.approx(accounted)
    assert "between_s" not in found["output_tokens"]


def test_what_cannot_be_compared_is_not() -> None:
    failed = outcome(0.0, 0.1, 1.0)
    failed.error = "500"
    assert agreement([failed], {}, {"tokenmill_prompt_tokens_total": 1.0}) is None
    assert agreement([outcome(0.0, 0.1, 1.0)], {}, {}) is None
    assert agreement([], {}, {}) is None
