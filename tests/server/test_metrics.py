"""Metrics: series that no client can multiply, tenants by name, and files for Grafana and Prometheus that fit them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.server.service import MODEL
from tests.server.support import ROOT, Running, running_server, wait_until
from tokenmill.perf.diagnose.prometheus import Page
from tokenmill.server.access.keys import add_key, new_key
from tokenmill.server.observe.record import OUTCOMES, TenantLabels
from tokenmill.server.settings import ServerSettings

DEPLOY = ROOT / "deploy"
NAME = re.compile(r"\btokenmill_\w+")


def samples(server: Running, name: str, **more: Any) -> dict[tuple[tuple[str, str], ...], float]:
    """One metric's values by labels."""
    page = Page.parse(server.get("/metrics", **more).text)
    return {tuple(sorted(labels.items())): value for labels, value in page.samples.get(name, ())}


def num_series(server: Running) -> int:
    return sum(not line.startswith("#") for line in server.get("/metrics").text.splitlines())


def test_sk04_no_client_can_multiply_series() -> None:
    """Names of tenants, models, users, salts, paths and methods that are made up anew with every request."""

    def ask(number: int) -> None:
        name = f"n{number}"
        salted = {"user": name, "tenant": name, "cache_salt": name}
        server.post("/v1/completions", server.completion(max_tokens=1, **salted), headers={"x-request-id": name})
        server.post("/v1/completions", {"model": name, "prompt": "x"})
        server.post("/v1/embeddings", {"model": MODEL, "input": "x", name: 1})
        server.get(f"/{name}")
        server.get(f"/v1/models/{name}")
        server.http.request(name.upper(), server.url + "/v1/models")

    with running_server() as server:
        for number in range(5):
            ask(number)
        num_series(server)  # the scrape is an answer too
        before = num_series(server)
        for number in range(5, 60):
            ask(number)
        assert num_series(server) == before
        assert before < 1500


def test_sk04_tenants_have_a_hundred_names_and_strangers_none() -> None:
    labels = TenantLabels()
    named = {labels(f"t{number}", trusted=True) for number in range(10_000)}
    assert named == {f"t{number}" for number in range(100)} | {"other"}
    assert labels("t5", trusted=True) == "t5"
    assert {labels(f"x{number}", trusted=False) for number in range(100)} == {"default"}


@pytest.fixture
def keyed(tmp_path: Path) -> Iterator[tuple[Running, dict[str, str]]]:
    """A server with keys of two tenants, the first of which may look at metrics; (server, key by tenant)."""
    path, keys = tmp_path / "keys.json", {}
    for tenant in ("acme", "zoo"):
        record, keys[tenant] = new_key(tenant=tenant, admin=tenant == "acme")
        add_key(path, record)
    with running_server(ServerSettings(port=0, keys=path)) as server:
        yield server, keys


def test_tenants_are_counted_apart(keyed: tuple[Running, dict[str, str]]) -> None:
    server, keys = keyed
    headers = {tenant: {"authorization": f"Bearer {key}"} for tenant, key in keys.items()}
    usage = server.post("/v1/completions", server.completion(), headers=headers["acme"]).json()["usage"]
    for _ in range(2):
        server.post("/v1/completions", server.completion(max_tokens=7), headers=headers["zoo"])
    server.post("/v1/completions", server.completion(n=0), headers=headers["zoo"])
    server.post("/v1/completions", server.completion(), headers={"authorization": "Bearer tm-nobody-x"})

    def read(name: str) -> dict[tuple[tuple[str, str], ...], float]:
        return samples(server, name, headers=headers["acme"])

    wait_until(lambda: sum(read("tokenmill_tenant_requests_total").values()) >= 4, 5)
    assert read("tokenmill_tenant_generation_tokens_total") == {(("tenant", "acme"),): 4.0, (("tenant", "zoo"),): 14.0}
    assert read("tokenmill_tenant_prompt_tokens_total")[(("tenant", "acme"),)] == usage["prompt_tokens"]
    requests = read("tokenmill_tenant_requests_total")
    assert requests[("outcome", "ok"), ("tenant", "acme")] == 1.0
    assert requests[("outcome", "ok"), ("tenant", "zoo")] == 2.0
    assert requests[("outcome", "refused"), ("tenant", "zoo")] == 1.0
    assert {dict(labels)["outcome"] for labels in requests} <= set(OUTCOMES)
    assert read("tokenmill_tenant_queue_seconds_total")[(("tenant", "zoo"),)] >= 0.0


def test_embeddings_and_the_queue_are_shown(server: Running) -> None:
    before = server.metric("tokenmill_embeddings_total")
    server.post("/v1/embeddings", {"model": MODEL, "input": ["a", "b", "c"]})
    assert server.metric("tokenmill_embeddings_total") == before + 3
    server.wait_idle()
    for name in ("queue_tokens", "queue_wait_seconds", "num_background_waiting"):
        assert server.metric(f"tokenmill_{name}") == 0.0


def test_times_per_token_and_of_inference(server: Running) -> None:
    name = "tokenmill_request_time_per_output_token_seconds"
    before = server.metric(f"{name}_count"), server.metric("tokenmill_request_inference_time_seconds_sum")
    timing = server.post("/v1/completions", server.completion(max_tokens=9)).json()["timing"]
    assert server.metric(f"{name}_count") == before[0] + 1
    inference_s = server.metric("tokenmill_request_inference_time_seconds_sum") - before[1]
    assert inference_s == pytest.approx(timing["prefill_s"] + timing["decode_s"], abs=1e-6)


# ---- files for Grafana and Prometheus ----------------------------------------------------------------------


def exported() -> set[str]:
    """Every name that may stand in a query."""
    from tests.architecture.test_reference import metric_names

    names = metric_names()
    return names | {f"{name}_{part}" for name in names for part in ("bucket", "sum", "count")}


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOY / "grafana" / "tokenmill.json").read_text(encoding="utf-8"))
    return found


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel.get("targets", ())]


def test_the_dashboard_is_whole() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) > 20
    for panel in panels:
        assert panel["type"] == "row" or (panel["title"] and panel["description"] and panel["targets"])
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    rows = [panel["gridPos"]["y"] for panel in panels]
    assert rows == sorted(rows)


def test_every_metric_in_the_dashboard_and_the_alerts_exists() -> None:
    alerts = (DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    queried = {name for text in (*expressions(), alerts) for name in NAME.findall(text)}
    assert len(queried) > 30
    assert queried <= exported()


def test_every_query_is_balanced_and_rates_are_of_counters() -> None:
    for query in expressions():
        for opening, closing in ("()", "{}", "[]"):
            assert query.count(opening) == query.count(closing), query
        for name in re.findall(r"rate\((tokenmill_\w+)", query):
            assert name.endswith(("_total", "_bucket", "_sum", "_count")), query
        for name in NAME.findall(query):
            assert not name.endswith("_total") or f"rate({name}" in query, f"{name} only ever grows: {query}"


def test_the_files_for_prometheus_are_in_form() -> None:
    yaml = pytest.importorskip("yaml")
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert len({rule["alert"] for rule in rules}) == len(rules) >= 8
    for rule in rules:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["annotations"]["summary"]
        assert rule["expr"].count("(") == rule["expr"].count(")")
    config = yaml.safe_load((DEPLOY / "prometheus" / "scrape.yml").read_text(encoding="utf-8"))
    assert config["rule_files"] == ["alerts.yml"]
    assert config["scrape_configs"][0]["job_name"] == "tokenmill"
