"""What a running server says of its own speed: parts that add up to the wall clock, shares of ceilings, predictions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from tests.server.conftest import REAL_MODEL
from tests.server.service import MODEL
from tests.server.support import Running, running_server
from tokenmill.bench.diagnose import Wishes, run
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import ConfigError
from tokenmill.core.events import StepEvents
from tokenmill.core.step import StepPlan, StepResult
from tokenmill.engine.telemetry import PARTS, REGIMES, Telemetry
from tokenmill.launch import inspect
from tokenmill.perf.diagnose.prometheus import Page
from tokenmill.server.settings import ServerSettings


@pytest.fixture(scope="module")
def observed() -> Iterator[Running]:
    with running_server(ServerSettings(port=0), step_s=0.002, max_seqs=2) as running:
        running.service.engine.telemetry = Telemetry()
        yield running


def load(url: str, model: str, num_requests: int, max_tokens: int) -> None:
    """Several requests at once, greedily, to their limits."""

    def one(number: int) -> None:
        wishes = {"max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        body = {"model": model, "prompt": [number + 5] * 20, **wishes}
        assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 200

    with ThreadPoolExecutor(num_requests) as pool:
        list(pool.map(one, range(num_requests)))


def parts(url: str) -> tuple[float, dict[str, float]]:
    """(moment, seconds by part)."""
    page = Page.parse(httpx.get(f"{url}/metrics").text)
    found = {labels["part"]: value for labels, value in page.samples["tokenmill_engine_seconds_total"]}
    return time.monotonic(), found


def test_the_parts_add_up_to_the_wall_clock(observed: Running) -> None:
    load(observed.url, MODEL, 1, 4)
    began_s, before = parts(observed.url)
    load(observed.url, MODEL, 4, 60)
    time.sleep(0.3)
    ended_s, after = parts(observed.url)
    assert set(after) == set(PARTS)
    grown = {part: after[part] - before[part] for part in PARTS}
    assert sum(grown.values()) == pytest.approx(ended_s - began_s, rel=0.05, abs=0.05)
    assert min(grown.values()) >= 0.0
    assert grown["idle"] > 0.25
    assert grown["scheduling"] > 0.1, "the fake step's pause is not the executor's own time"


def test_who_waits_for_a_place_is_counted(observed: Running) -> None:
    load(observed.url, MODEL, 6, 30)
    assert observed.metric("tokenmill_blocked_seconds_total") > 0.0
    account = observed.get("/debug/steps").json()["account"]
    assert account["blocked_s"]["max_seqs"] > 0.0
    assert account["delayed"]["queue:max_seqs"] >= 3


def test_steps_are_told_to_who_has_the_key_and_to_nobody_else() -> None:
    with running_server(ServerSettings(port=0, api_key="secret")) as running:
        assert running.get("/debug/steps").status_code == 401
        answer = running.get("/debug/steps", headers={"authorization": "Bearer secret"})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_observed"


@pytest.fixture(scope="module")
def busy_url(real_url: str) -> str:
    """The real model's server, after some work that was not looked at one by one."""
    client = openai.OpenAI(base_url=f"{real_url}/v1", api_key="none", max_retries=0)
    for seed in range(3):
        client.completions.create(model=REAL_MODEL, prompt="Once upon a time", max_tokens=150, seed=seed)
    return real_url


def test_a_real_server_knows_its_shares_its_regime_and_its_error(busy_url: str) -> None:
    page = Page.parse(httpx.get(f"{busy_url}/metrics").text)
    mfu, mbu = page.value("mfu"), page.value("mbu")
    assert mfu is not None
    assert mbu is not None
    assert 0.0 < mfu < 1.2
    assert 0.0 < mbu < 1.2
    regimes = {labels["regime"]: value for labels, value in page.samples["tokenmill_regime"]}
    assert set(regimes) == set(REGIMES)
    assert sum(regimes.values()) == 1.0
    count = page.value("step_prediction_error_count")
    assert count is not None
    assert count > 2
    assert page.buckets("step_prediction_error")[float("inf")] == count
    kernels = {labels["kernel"] for labels, _ in page.samples["tokenmill_kernel_seconds_total"]}
    assert {"attention", "choose", "rms_norm"} <= kernels


def test_diagnosing_a_real_server_adds_up(busy_url: str) -> None:
    with ThreadPoolExecutor(1) as pool:
        began_s = time.monotonic()
        diagnosis = pool.submit(run, busy_url, Wishes(seconds=1.5, slo={"itl": 60.0, "ttft": 1e-9}))
        while not diagnosis.done():
            load(busy_url, REAL_MODEL, 2, 60)
        took_s = time.monotonic() - began_s
    found = diagnosis.result()
    assert found.watched_s is not None
    assert 1.4 < found.watched_s < took_s
    assert found.wall_s == pytest.approx(found.watched_s, rel=0.02, abs=0.05)
    assert sum(found.parts.values()) == pytest.approx(found.wall_s, rel=1e-6)
    assert found.regime in REGIMES
    assert found.steps > 10
    assert found.parts["weights"] > 0.0
    by_name = {row["metric"]: row for row in found.slo}
    assert by_name["itl"]["met"] is True
    assert by_name["ttft"]["met"] is False


def test_ceilings_of_a_device_that_nobody_knows_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfigError, match="no device"):
        inspect(EngineConfig.from_options(model=REAL_MODEL, ceilings="H1000"))


def test_observing_a_step_costs_microseconds() -> None:
    """Two on a quiet machine at one sequence; the bound leaves room for a busy one."""
    telemetry, now = Telemetry(), 0.0
    plan, result = StepPlan(1, (1,), (100,), (1,)), StepResult(1, (1,), ((7,),), seconds=1e-3)
    best_s = float("inf")
    for _ in range(20):
        began_s = time.perf_counter()
        for _ in range(500):
            telemetry.began(now)
            telemetry.planned(None, 0)
            now += 1.2e-3
            telemetry.ended(plan, result, StepEvents(), now, 0, more=True)
        best_s = min(best_s, (time.perf_counter() - began_s) / 500)
    assert best_s < 15e-6
