"""Which replica, which pair, how many: decisions on books alone."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from tokenmill.core.errors import ConfigError
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import Request
from tokenmill.engine.routing import (
    ROUTERS,
    Autoscaler,
    LeastLoaded,
    Pairing,
    PoolLoad,
    PrefixAware,
    RoundRobin,
    ScalingConfig,
    Session,
    make_router,
)
from tokenmill.engine.routing.load import LoadBook


def request(
    prompt: tuple[int, ...] = (1,) * 100, output: int = 10, tenant: str = "default", number: int = 0
) -> Request:
    return Request(str(number), prompt, SamplingParams(), output, tenant=tenant)


def with_replicas(router: RoundRobin | LeastLoaded, count: int) -> None:
    for replica in range(count):
        router.join(replica)


def test_the_book_s_least_is_the_least_whatever_happens() -> None:
    rng, book, truth = random.Random(1), LoadBook(), dict[int, int]()
    for step in range(5000):
        kind = rng.random()
        if kind < 0.02 or not truth:
            book.join(step)
            truth[step] = 0
        elif kind < 0.03 and len(truth) > 1:
            gone = rng.choice(list(truth))
            book.leave(gone)
            del truth[gone]
        else:
            replica, by = rng.choice(list(truth)), rng.randint(-5, 9)
            book.change(replica, by)
            truth[replica] += by
        assert book.least() == min(truth, key=lambda one: (truth[one], one))
    assert book.replicas == list(truth)


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_names_only_those_that_are_there(name: str) -> None:
    rng, router, there = random.Random(name), make_router(name), set[int]()
    sent: list[tuple[int, Request]] = []
    for number in range(2000):
        kind = rng.random()
        if kind < 0.05 or not there:
            router.join(number)
            there.add(number)
        elif kind < 0.09:
            gone = rng.choice(sorted(there))
            router.leave(gone)
            there.remove(gone)
        elif kind < 0.4 and sent:
            router.ended(*sent.pop(rng.randrange(len(sent))))
        else:
            asked = request((rng.randrange(3),) * rng.randrange(1, 400), rng.randrange(1, 50), f"t{rng.randrange(5)}")
            chosen = router.route(asked)
            assert chosen in there
            sent.append((chosen, asked))


def test_turns_are_taken_evenly_also_when_somebody_leaves() -> None:
    router = RoundRobin()
    with_replicas(router, 3)
    assert [router.route(request()) for _ in range(4)] == [0, 1, 2, 0]
    router.leave(0)
    assert [router.route(request()) for _ in range(4)] == [1, 2, 1, 2]


def test_the_least_loaded_is_told_by_tokens_not_by_requests() -> None:
    router = LeastLoaded()
    with_replicas(router, 2)
    long, short = request((1,) * 1000), request((1,) * 10)
    assert router.route(long) == 0
    assert [router.route(short) for _ in range(3)] == [1, 1, 1]
    router.ended(0, long)
    assert router.route(short) == 0


def test_a_prompt_goes_where_its_beginning_is_known() -> None:
    router = PrefixAware(chunk_tokens=16)
    with_replicas(router, 4)
    first = router.route(request((1,) * 64))
    other = router.route(request((2,) * 64))
    assert other != first
    assert router.route(request((1,) * 48 + (9,) * 100)) == first
    assert router.route(request((2,) * 32)) == other


def test_a_salt_parts_equal_prompts() -> None:
    router = PrefixAware(chunk_tokens=16, free_tokens=0, slack=100.0)
    with_replicas(router, 2)
    first = router.route(Request("a", (1,) * 64, SamplingParams(), 1, cache_salt="a"))
    assert router.route(Request("b", (1,) * 64, SamplingParams(), 1, cache_salt="b")) != first


def test_a_known_prompt_does_not_overrule_a_great_imbalance() -> None:
    router = PrefixAware(chunk_tokens=16, slack=2.0, free_tokens=500)
    with_replicas(router, 2)
    chosen = Counter(router.route(request((1,) * 100)) for _ in range(100))
    assert min(chosen.values()) > 30
    assert chosen[0] + chosen[1] == 100


def test_what_is_remembered_of_prompts_is_bounded() -> None:
    router = PrefixAware(chunk_tokens=16, max_chunks=50)
    with_replicas(router, 2)
    for number in range(100):
        router.route(request((number,) * 64))
    assert len(router._seen) == 50


def test_a_tenant_keeps_its_replica_and_a_loss_moves_only_its_own() -> None:
    router = Session()
    with_replicas(router, 8)
    tenants = [f"tenant-{i}" for i in range(400)]
    homes = {tenant: router.route(request(tenant=tenant)) for tenant in tenants}
    assert {tenant: router.route(request(tenant=tenant)) for tenant in tenants} == homes
    assert len(Counter(homes.values())) == 8
    router.leave(3)
    after = {tenant: router.route(request(tenant=tenant)) for tenant in tenants}
    assert {tenant for tenant in tenants if after[tenant] != homes[tenant]} == {t for t in tenants if homes[t] == 3}


def test_an_unknown_router_is_named() -> None:
    with pytest.raises(ConfigError, match="dice"):
        make_router("dice")


def test_a_pair_shares_a_request_token_by_token() -> None:
    pairing = Pairing(LeastLoaded(), LeastLoaded())
    whole = request((1, 2, 3), output=10)
    prompt, answer = pairing.prompt_part(whole), pairing.answer_part(whole, 7)
    assert (prompt.prompt_token_ids, prompt.max_new_tokens) == ((1, 2, 3), 1)
    assert answer is not None
    assert (answer.prompt_token_ids, answer.max_new_tokens) == ((1, 2, 3, 7), 9)
    assert pairing.answer_part(request(output=1), 7) is None


# ---- how many --------------------------------------------------------------------------------------------

CONFIG = ScalingConfig(1, 10, target_requests=10, interval_s=1.0, up_after_s=3.0, down_after_s=6.0)


def follow(loads: list[int], config: ScalingConfig = CONFIG, start: int = 1) -> list[int]:
    """The number of replicas after each second's look, starts being immediate."""
    scaler, replicas, found = Autoscaler(config), start, []
    for second, num_requests in enumerate(loads):
        replicas = scaler.decide(PoolLoad(replicas, num_requests), float(second))
        found.append(replicas)
    return found


def test_a_wish_for_more_is_followed_when_it_has_stood() -> None:
    assert follow([5, 35, 35, 35, 35, 35]) == [1, 1, 1, 1, 4, 4]


def test_a_moment_s_load_is_not_followed() -> None:
    assert follow([5, 95, 5, 95, 5, 95, 5, 95]) == [1] * 8


def test_going_up_goes_to_the_least_that_was_wished_for() -> None:
    assert follow([35, 95, 25, 95])[-1] == 3


def test_going_down_takes_longer_and_goes_to_the_most() -> None:
    assert follow([40] + [12] * 3 + [5] * 8, start=4) == [4, 4, 4, 4, 4, 4, 4, 2, 2, 2, 1, 1]


def test_bounds_hold() -> None:
    assert follow([10_000] * 5)[-1] == 10
    assert follow([0] * 9, start=3)[-1] == 1


def test_from_zero_there_is_no_patience() -> None:
    config = ScalingConfig(0, 4, target_requests=10, up_after_s=60.0)
    assert follow([0, 0, 15, 15], config, start=0) == [0, 0, 2, 2]
