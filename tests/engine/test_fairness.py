"""Who gets how much of the engine, in virtual time: FA-01 … FA-05, OV-06, OV-12, and how background work gives way."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest

from tests.engine.harness import Rig, request
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import Request
from tokenmill.engine.scheduler.policy import MAX_TENANTS, FairPolicy


def prompt(number: int, length: int) -> tuple[int, ...]:
    """No two of them share a block."""
    return (number % 1000 + 1, *range(length - 1))


def jain(shares: Iterable[float]) -> float:
    """1 where all are equal, 1/n where one has everything (Jain, Chiu, Hawe, 1984)."""
    values = list(shares)
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def saturate(weights: dict[str, float], *, in_request: bool, until_s: float = 0.5) -> dict[str, float]:
    """Tokens by tenant while each has more to do than the engine can."""
    options = {"policy": "fair", "max_seqs": 8} | ({} if in_request else {"tenant_weights": weights})
    rig = Rig(num_blocks=400, options=options)
    owner = {}
    for number in range(300):
        for tenant, weight in weights.items():
            name = f"{tenant}{number}"
            owner[name] = tenant
            more = {"weight": weight} if in_request else {}
            rig.add(request(name, prompt(number, 10), 12, tenant=tenant, cache_salt=tenant, **more))
    tokens = dict.fromkeys(weights, 0.0)
    while rig.clock.now() < until_s:
        for request_id, _, token_ids, _, _ in rig.step().tokens:
            tokens[owner[request_id]] += len(token_ids)
    ended = [sum(owner[name] == tenant for name in rig.records) for tenant in weights]
    assert max(ended) < 300, "it must still be saturated"
    return tokens


@pytest.mark.parametrize("in_request", [True, False])
def test_fa04_tokens_follow_weights(in_request: bool) -> None:
    tokens = saturate({"big": 3.0, "small": 1.0}, in_request=in_request)
    assert tokens["big"] / tokens["small"] == pytest.approx(3.0, rel=0.1)
    assert jain((tokens["big"] / 3.0, tokens["small"])) >= 0.95


def test_fa04_equal_weights_share_equally() -> None:
    assert jain(saturate(dict.fromkeys("abcd", 1.0), in_request=True).values()) >= 0.95


# ---- what one does to the others -------------------------------------------------------------------


def times_to_first_token(
    others: Callable[[Rig], None], policy: str, *, small: int = 40, every_s: float = 0.05, **options: object
) -> tuple[Rig, list[float]]:
    """Small requests of tenant ``b`` at even distances, beside whatever ``others`` adds at the start."""
    rig = Rig(num_blocks=2000, options={"policy": policy, "max_seqs": 16, "max_step_tokens": 128, **options})
    others(rig)
    number = 0
    while number < small or any(name.startswith("b") for name in rig.requests if name not in rig.records):
        if number < small and rig.clock.now() >= number * every_s:
            rig.add(request(f"b{number}", prompt(500 + number, 16), 4, arrival_s=number * every_s, tenant="b"))
            number += 1
        elif not rig.engine.has_work:
            rig.clock.advance(number * every_s - rig.clock.now())
        else:
            rig.step()
    waits = []
    for number in range(small):
        record = rig.records[f"b{number}"]
        assert record.first_token_s is not None
        waits.append(record.first_token_s - record.arrival_s)
    return rig, waits


def nobody(rig: Rig) -> None:
    pass


def test_fa01_one_tenant_floods() -> None:
    """Another waits at most three times as long as alone for its first token, and nobody of it fails."""

    def flood(rig: Rig) -> None:
        for number in range(200):
            rig.add(request(f"a{number}", prompt(number, 100), 8, tenant="a"))

    _, alone = times_to_first_token(nobody, "fair")
    rig, beside = times_to_first_token(flood, "fair")
    _, unfair = times_to_first_token(flood, "fcfs")
    # The batch is full when each of them comes, and a place is free after at most an answer's length.
    answer_s = 8 * (0.001 + 0.00001 * 128)
    assert quantile(beside, 0.99) <= 3 * quantile(alone, 0.99) + answer_s
    assert quantile(unfair, 0.99) > 5 * quantile(beside, 0.99), "the flood must be one"
    assert not rig.errors


@pytest.mark.parametrize("policy", ["fcfs", "fair"])
def test_fa02_a_long_prompt_holds_nobody_up(policy: str) -> None:
    """Fifty short prompts beside one that takes all the context: at most twice the time, and it ends as well."""

    def run(with_long: bool) -> tuple[Rig, list[float]]:
        rig = Rig(num_blocks=4000, options={"policy": policy, "max_seqs": 64, "max_step_tokens": 128})
        if with_long:
            rig.add(request("long", prompt(0, 8000), 4))
            rig.step()
        started_s = rig.clock.now()
        for number in range(50):
            rig.add(request(f"s{number}", prompt(1 + number, 12), 2, arrival_s=started_s))
        rig.run()
        return rig, [(rig.records[f"s{number}"].first_token_s or 0.0) - started_s for number in range(50)]

    _, alone = run(with_long=False)
    rig, beside = run(with_long=True)
    assert quantile(beside, 0.99) <= 2 * quantile(alone, 0.99)
    assert rig.reasons["long", 0] == "length"
    assert (rig.records["long"].first_token_s or 0.0) > quantile(beside, 0.99), "it was long"


@pytest.mark.parametrize("best_of", [None, 12])
def test_fa03_choices_are_paid_for_in_tokens(best_of: int | None) -> None:
    """Many choices in one request count as many: who asks for one is served as beside a tenant that asks for one."""

    def amplifier(n: int, best_of: int | None) -> Callable[[Rig], None]:
        def add(rig: Rig) -> None:
            for number in range(300 // max(n, best_of or n)):
                params = SamplingParams(n=n, best_of=best_of)
                rig.add(request(f"a{number}", prompt(number, 20), 12, tenant="a", params=params))

        return add

    _, plain = times_to_first_token(amplifier(1, None), "fair", small=20)
    _, amplified = times_to_first_token(amplifier(1 if best_of else 12, best_of), "fair", small=20)
    assert quantile(amplified, 0.9) <= 2 * quantile(plain, 0.9)


@pytest.mark.parametrize("policy", ["priority", "deadline", "sjf", "fair", "fcfs"])
def test_fa05_nobody_starves(policy: str) -> None:
    """While better-placed requests saturate the engine, the others end, or are told within their deadline."""
    rig = Rig(num_blocks=400, options={"policy": policy, "max_seqs": 2})
    rig.add(request("low", prompt(0, 8), 4, priority=5))
    rig.add(request("hurried", prompt(1, 8), 4, priority=5, deadline_s=100.0))
    number = 0
    while {"low", "hurried"} - rig.records.keys():
        while rig.scheduler.num_waiting < 4:  # it is never idle, and always has somebody better to serve
            now = rig.clock.now()
            rig.add(request(f"h{number}", prompt(number, 4), 2, arrival_s=now, deadline_s=now + 60.0))
            number += 1
        rig.step()
        rig.clock.advance(0.3)
        assert rig.clock.now() < 700, "it starves"
    assert rig.reasons["low", 0] == "length"
    assert ("hurried", 0) in rig.reasons or rig.errors["hurried"].code == "deadline_exceeded"


def test_a_tenant_that_was_away_has_no_claim_on_that_time() -> None:
    rig = Rig(num_blocks=400, options={"policy": "fair", "max_seqs": 4})
    for number in range(60):
        rig.add(request(f"a{number}", prompt(number, 8), 8, tenant="a"))
    while len(rig.records) < 40:
        rig.step()
    for number in range(60):
        rig.add(request(f"b{number}", prompt(100 + number, 8), 8, tenant="b", arrival_s=rig.clock.now()))
    before = len(rig.records)
    while len(rig.records) < before + 16:
        rig.step()
    ended = [name for name in rig.records if name not in list(rig.records)[:before]]
    assert sum(name.startswith("a") for name in ended) >= 6, "b takes it all"


def test_ten_thousand_tenants_cost_what_one_does() -> None:
    """The queue is a heap over tenants, and those who are gone are forgotten."""
    policy = FairPolicy({})
    from tokenmill.core.sequence import Sequence

    for number in range(MAX_TENANTS + 500):
        seq = Sequence(number, request(f"r{number}", (1,), tenant=f"t{number}"))
        policy.push(seq)
        if number >= 10:
            taken = policy.pop()
            policy.served(taken, 1 + number % 7)
    assert len(policy) == 10
    assert len(policy._service) <= MAX_TENANTS + 500
    assert len(policy._heap) <= 20


# ---- background ------------------------------------------------------------------------------------


def background(rig: Rig, count: int, *, length: int = 24, max_new: int = 20) -> None:
    for number in range(count):
        rig.add(request(f"bg{number}", prompt(number, length), max_new, tenant="batch", background=True))


@pytest.mark.parametrize("policy", ["fcfs", "fair", "priority"])
def test_background_comes_after_everybody(policy: str) -> None:
    rig = Rig(options={"policy": policy, "max_seqs": 1})
    rig.add(request("bg", prompt(1, 4), 2, background=True, priority=-9))
    rig.add(request("x", prompt(2, 4), 2, arrival_s=5.0, priority=9))
    rig.run()
    assert list(rig.records) == ["x", "bg"]


@pytest.mark.parametrize("preemption", ["recompute", "refuse"])
@pytest.mark.parametrize("depth", [1, 2])
def test_background_gives_its_place_and_its_blocks(preemption: str, depth: int) -> None:
    """Whoever comes starts at once; what gave way is computed again, to the same tokens, and never refused."""
    rig = Rig(num_blocks=24, depth=depth, options={"max_seqs": 3, "preemption": preemption})
    background(rig, 3)
    for _ in range(6):
        rig.step()
    rig.add(request("x", prompt(50, 40), 30, arrival_s=rig.clock.now()))
    for _ in range(depth + 2):
        rig.step()
    assert ("x", 0) in rig.tokens, "it had to wait"
    rig.run()
    assert not rig.errors
    for name in rig.requests:
        rig.check_finished(name)
    assert rig.scheduler.num_preemptions >= 1


def test_background_fills_an_idle_engine() -> None:
    """Alone it has every place and the whole step."""
    rig = Rig(num_blocks=400, options={"max_seqs": 8, "max_step_tokens": 64})
    background(rig, 8)
    while len(rig.records) < 8:
        rig.step()
    assert max(events.num_tokens for events in rig.steps) == 64
    assert max(events.num_sequences for events in rig.steps) == 8


def test_ov12_interactive_requests_hardly_notice_background_work() -> None:
    """OV-12: the time to the first token grows by at most a fifth, and the batch goes on meanwhile."""

    def interactive(with_batch: bool) -> tuple[Rig, list[float]]:
        rig = Rig(num_blocks=4000, options={"max_seqs": 32, "max_step_tokens": 256})
        if with_batch:
            background(rig, 60, length=200, max_new=50)
        steady: list[Request] = [request(f"i{n}", prompt(300 + n, 64), 40) for n in range(60)]
        added = 0
        while added < len(steady) or any(f"i{n}" not in rig.records for n in range(len(steady))):
            # A new one for each that ends: ten at a time.
            while added < len(steady) and added - sum(f"i{n}" in rig.records for n in range(added)) < 10:
                ready = steady[added]
                rig.add(request(ready.id, ready.prompt_token_ids, 40, arrival_s=rig.clock.now()))
                added += 1
            rig.step()
        return rig, [(r.first_token_s or 0) - r.arrival_s for n, r in rig.records.items() if n.startswith("i")]

    _, alone = interactive(with_batch=False)
    rig, beside = interactive(with_batch=True)
    assert quantile(beside, 0.99) <= 1.2 * quantile(alone, 0.99) * 1.02
    done = sum(len(tokens) for (name, _), tokens in rig.tokens.items() if name.startswith("bg"))
    assert done > 100, "the batch stands still"


# ---- not enough blocks -----------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["fcfs", "fair"])
def test_ov06_more_requests_than_blocks(policy: str) -> None:
    """OV-06: each needs an eighth of the pool. All end with the tokens that they get alone; none waits for ever."""
    rig = Rig(num_blocks=64, options={"policy": policy, "max_seqs": 64, "max_step_tokens": 64})
    for number in range(64):
        rig.add(request(f"r{number}", prompt(number, 8), 24, tenant="ab"[number % 2]))
    rig.run()
    for name in rig.requests:
        rig.check_finished(name)
    preemptions = [rig.records[name].account.num_preemptions for name in rig.requests]
    assert max(preemptions) <= 16
    if policy == "fcfs":
        assert rig.records["r0"].account.num_preemptions == 0, "the oldest always goes on"
