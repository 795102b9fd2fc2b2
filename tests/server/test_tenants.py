"""Tenants and cache wishes over HTTP: who shares cached prompts with whom, and in what order tenants are served."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.server.support import Running

COMPLETIONS = "/v1/completions"
PROMPT = list(range(400, 450))


def cached(server: Running, **wishes: object) -> int:
    response = server.post(COMPLETIONS, server.completion(prompt=PROMPT, max_tokens=1, **wishes))
    assert response.status_code == 200, response.text
    return int(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])


def test_prompts_are_shared_within_a_tenant_only(server: Running) -> None:
    assert cached(server, tenant="acme") == 0
    assert cached(server, tenant="other") == 0
    assert cached(server, tenant="acme") > 0
    assert cached(server, tenant="acme", cache_salt="x") == 0
    assert cached(server, tenant="acmex") == 0, "a tenant and a salt cannot be read as another tenant"


@pytest.mark.parametrize(
    ("wishes", "param"),
    [
        ({"tenant": ""}, "tenant"),
        ({"tenant": "a/b"}, "tenant"),
        ({"tenant": 3}, "tenant"),
        ({"cache": {"priority": -1}}, "cache.priority"),
        ({"cache": {"ttl_s": 0}}, "cache.ttl_s"),
        ({"cache": {"pin": 1}}, "cache.pin"),
        ({"cache": {"pinned": True}}, "cache.pinned"),
        ({"cache": True}, "cache"),
    ],
)
def test_bad_wishes_are_named(server: Running, wishes: dict[str, object], param: str) -> None:
    response = server.post(COMPLETIONS, server.completion(**wishes))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_cache_wishes_are_taken(server: Running) -> None:
    assert cached(server, tenant="wishes", cache={"priority": 3, "ttl_s": 60.0, "pin": True}) == 0
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: cached(server, tenant="wishes") > 0, range(4)))
