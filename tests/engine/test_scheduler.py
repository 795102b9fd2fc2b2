"""What the scheduler decides, case by case, over the fake executor."""

from __future__ import annotations

import pytest

from tests.engine.harness import Rig, request
from tokenmill.core.errors import DeadlineExceeded, InvalidRequest, NeverFits, NumericalError, Preempted
from tokenmill.core.events import Admitted, PreemptedForBlocks
from tokenmill.core.params import SamplingParams
from tokenmill.core.request import CacheHints

BLOCK = 4


def prompt(length: int, first: int = 0) -> tuple[int, ...]:
    return tuple(range(first, first + length))


# ---- chunks and budget ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_a_prompt_is_cut_into_chunks_of_the_budget(chunk: int) -> None:
    rig = Rig(options={"max_step_tokens": chunk})
    rig.add(request("a", prompt(20), 3))
    rig.run()
    rig.check_finished("a")
    assert rig.records["a"].account.num_chunks == -(-20 // chunk)
    assert max(step.num_tokens for step in rig.steps) <= chunk


def test_generating_sequences_never_wait_for_a_prompt() -> None:
    rig = Rig(num_blocks=200, options={"max_step_tokens": 8})
    rig.add(request("old", prompt(4), 40))
    rig.step()
    rig.add(request("long", prompt(100, 1000), 1, arrival_s=rig.clock.now()))
    before = len(rig.tokens["old", 0])
    for i in range(10):
        rig.step()
        assert len(rig.tokens["old", 0]) == before + i + 1
    rig.run()
    rig.check_finished("long")
    assert rig.records["old"].account.causes["decode:beside_prefill"] > 0


def test_slo_budget_cuts_chunks_to_the_goal() -> None:
    """The fake step takes 1 ms + 10 µs a token; 2 ms between tokens leave about 100 tokens a step."""
    rig = Rig(num_blocks=2000, options={"max_step_tokens": 1000, "itl_slo_s": 0.002})
    rig.add(request("talking", prompt(4), 400))
    for i in range(20):  # different sizes, so that there is a line to fit
        rig.add(request(f"warm{i}", prompt(10 + 5 * i, 5000 + 300 * i), 1, arrival_s=rig.clock.now()))
        rig.step()
    rig.add(request("long", prompt(900, 20_000), 1, arrival_s=rig.clock.now()))
    rig.step()
    assert 80 <= rig.steps[-1].num_tokens <= 101
    assert rig.steps[-1].seconds <= 0.00201
    rig.run()
    rig.check_finished("long")


# ---- prefix cache -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK - 1, 3 * BLOCK, 3 * BLOCK + 1])
def test_prefix_hit_is_the_full_blocks_shared(shared: int) -> None:
    """CC-03: at block edges; and the answer is the one it would have been."""
    rig = Rig()
    rig.add(request("first", (*prompt(shared), 500, 501), 5))
    rig.run()
    rig.add(request("second", (*prompt(shared), 600, 601, 602), 5, arrival_s=rig.clock.now()))
    rig.run()
    rig.check_finished("second")
    assert rig.records["second"].cached_tokens == shared // BLOCK * BLOCK


def test_a_full_hit_leaves_one_token_to_compute() -> None:
    rig = Rig()
    for name in ("cold", "warm"):
        rig.add(request(name, prompt(4 * BLOCK), 5, arrival_s=rig.clock.now()))
        rig.run()
        rig.check_finished(name)
    assert rig.records["warm"].cached_tokens == 3 * BLOCK


def test_salts_and_tenants_do_not_share() -> None:
    rig = Rig()
    for name, salt in (("a", "x"), ("b", "y"), ("c", "x")):
        rig.add(request(name, prompt(12), 2, cache_salt=salt, arrival_s=rig.clock.now()))
        rig.run()
    assert [rig.records[name].cached_tokens for name in "abc"] == [0, 0, 8]


def test_prompt_logprobs_do_not_read_the_cache() -> None:
    rig = Rig()
    params = SamplingParams(prompt_logprobs=0)
    for name in "ab":
        rig.add(request(name, prompt(10), 2, params=params, arrival_s=rig.clock.now()))
        rig.run()
        told = [e for step in rig.steps for e in step.prompt_logprobs if e.request_id == name]
        assert [e.position + i for e in told for i in range(len(e.entries))] == list(range(1, 10))
        assert rig.records[name].cached_tokens == 0


def cached_after_pressure(asked: str, **hints: object) -> bool:
    """``kept`` was cached with ``hints``, then ``other``; then 12 of 16 blocks were wanted. Is ``asked`` left?"""
    rig = Rig(num_blocks=16)
    prompts = {"kept": prompt(16), "other": prompt(16, 100)}
    for name, token_ids in prompts.items():
        cache = CacheHints(**hints) if name == "kept" else None
        rig.add(request(name, token_ids, 1, cache=cache, arrival_s=rig.clock.now()))
        rig.run()
        rig.clock.advance(1.0)
    rig.add(request("big", prompt(48, 200), 1, arrival_s=rig.clock.now()))
    rig.run()
    rig.add(request("again", prompts[asked], 1, arrival_s=rig.clock.now()))
    rig.run()
    rig.check_finished("again")
    return rig.records["again"].cached_tokens > 0


@pytest.mark.parametrize(("hints", "survivor"), [({}, "other"), ({"priority": 1}, "kept"), ({"pin": True}, "kept")])
def test_eviction_order(hints: dict, survivor: str) -> None:
    """Least recently used goes first, unless priority or a pin holds it."""
    assert {name: cached_after_pressure(name, **hints) for name in ("kept", "other")} == {
        name: name == survivor for name in ("kept", "other")
    }


def test_expired_blocks_go_before_higher_priorities_and_older_ones() -> None:
    assert not cached_after_pressure("kept", priority=5, ttl_s=0.5)
    assert cached_after_pressure("kept", priority=5, ttl_s=50.0)


# ---- n > 1 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 2])
@pytest.mark.parametrize("prefix_caching", [True, False])
def test_choices_share_the_prompt_and_differ_by_seed(length: int, prefix_caching: bool) -> None:
    """CC-16: choice i is what a separate request with seed + i gets, at and around a block edge."""
    rig = Rig(prefix_caching=prefix_caching)
    rig.add(request("many", prompt(length), 6, params=SamplingParams(n=8), seed=3))
    rig.step()
    rig.step()
    num_shared = (length - 1) // BLOCK
    table = [seq.block_ids[:num_shared] for seq in rig.scheduler.running]
    assert len(table) == 8 and all(blocks == table[0] for blocks in table)
    rig.run()
    rig.check_finished("many")
    assert rig.executor.num_tokens <= length + 8 * 6, "the prompt was computed once"


def test_choices_of_a_leader_that_ended_at_once() -> None:
    rig = Rig()
    rig.add(request("many", prompt(9), 1, params=SamplingParams(n=3)))
    rig.run()
    rig.check_finished("many")


# ---- preemption -------------------------------------------------------------------------------------------


def test_preemption_recomputes_and_changes_no_token() -> None:
    rig = Rig(num_blocks=8)
    for i in range(3):
        rig.add(request(f"r{i}", prompt(6, 50 * i), 12))
    rig.run()
    for i in range(3):
        rig.check_finished(f"r{i}")
    preempted = [d for d in rig.decisions if isinstance(d, PreemptedForBlocks)]
    assert preempted and all(d.beneficiary != d.request_id or d.request_id != "r0" for d in preempted)
    assert rig.records["r0"].account.num_preemptions == 0, "who came first gives way last"
    assert any(name.startswith("preempted:kv_blocks") for name in rig.records["r2"].account.causes)


@pytest.mark.parametrize("depth", [1, 2])
def test_preemption_forced_at_each_step(depth: int) -> None:
    """CC-04 over the fake: at every step, everyone running is preempted in turn."""
    rig = Rig(depth=depth)
    for i in range(4):
        rig.add(request(f"r{i}", prompt(7, 50 * i), 16))
    for step in range(400):
        if not rig.engine.has_work:
            break
        running = rig.scheduler.running
        if running and step % 2:
            rig.scheduler.preempt(running[step // 2 % len(running)], rig.clock.now())
        rig.step()
    for i in range(4):
        rig.check_finished(f"r{i}")
    assert rig.scheduler.num_preemptions >= 8


def test_refusal_instead_of_recomputation() -> None:
    rig = Rig(num_blocks=8, options={"preemption": "refuse"})
    for i in range(3):
        rig.add(request(f"r{i}", prompt(6, 50 * i), 12))
    rig.run()
    rig.check_finished("r0")
    assert isinstance(rig.errors["r2"], Preempted)
    assert rig.records["r2"].outcome == "failed"
    rig.check_account("r2")


def test_what_can_never_fit_is_refused_with_the_numbers() -> None:
    rig = Rig(num_blocks=8, block_size=4)
    rig.add(request("fits", prompt(20), 13))  # the last token needs no KV
    with pytest.raises(NeverFits, match=r"20 tokens.*14.*9 KV blocks of 4 tokens, the pool has 8"):
        rig.add(request("too much", prompt(20), 14))
    rig.run()
    rig.check_finished("fits")


# ---- ends -------------------------------------------------------------------------------------------------


def test_stop_tokens_and_length() -> None:
    rig = Rig(stop_probability=0.2)
    for i in range(20):
        rig.add(request(f"r{i}", prompt(3, i), 10, stop_token_ids=frozenset({5}), seed=i))
    rig.run()
    for i in range(20):
        rig.check_finished(f"r{i}")
        assert rig.reasons[f"r{i}", 0] == ("stop" if rig.tokens[f"r{i}", 0][-1] == 5 else "length")
    assert set(rig.reasons.values()) == {"stop", "length"}


def test_no_tokens_asked_for() -> None:
    rig = Rig()
    rig.add(request("echo", prompt(9), 0, params=SamplingParams(n=2)))
    rig.run()
    assert rig.tokens["echo", 0] == [] and rig.reasons == {("echo", 0): "length", ("echo", 1): "length"}


def test_deadline_fails_the_request_and_frees_its_blocks() -> None:
    rig = Rig()
    rig.add(request("late", prompt(9), 1000 // 8, deadline_s=0.01))
    rig.add(request("other", prompt(9, 50), 20))
    rig.run()
    assert isinstance(rig.errors["late"], DeadlineExceeded)
    rig.check_finished("other")


def test_one_rows_error_ends_one_request() -> None:
    rig = Rig()
    bad: list[int] = []
    rig.executor._fail = lambda seq_id, position: "logits are not finite" if seq_id in bad and position == 12 else None
    rig.add(request("bad", prompt(9), 8))
    rig.add(request("good", prompt(9, 50), 8))
    bad.append(0)
    rig.run()
    assert isinstance(rig.errors["bad"], NumericalError)
    rig.check_finished("good")
    rig.add(request("again", prompt(9), 8, arrival_s=rig.clock.now()))
    rig.run()
    rig.check_finished("again")


def test_ids_are_unique_while_in_use() -> None:
    rig = Rig()
    rig.add(request("same", prompt(3)))
    with pytest.raises(InvalidRequest, match="in use"):
        rig.add(request("same", prompt(3)))
    with pytest.raises(InvalidRequest, match="no tokens"):
        rig.add(request("empty", ()))


# ---- policies ---------------------------------------------------------------------------------------------


def order_of_ends(policy: str, **options: object) -> list[str]:
    """One sequence at a time; everything is there from the start."""
    rig = Rig(options={"policy": policy, "max_seqs": 1, **options})
    rig.add(request("long", prompt(9), 30, tenant="a", priority=2, deadline_s=9.0))
    rig.add(request("short", prompt(9, 50), 2, tenant="a", priority=1))
    rig.add(request("middle", prompt(9, 90), 10, tenant="b", priority=0, deadline_s=8.0))
    rig.run()
    for name in ("long", "short", "middle"):
        rig.check_finished(name)
    return list(rig.records)


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("fcfs", ["long", "short", "middle"]),
        ("sjf", ["short", "middle", "long"]),
        ("priority", ["middle", "short", "long"]),
        ("deadline", ["middle", "long", "short"]),
        ("fair", ["long", "middle", "short"]),
    ],
)
def test_policy_orders(policy: str, order: list[str]) -> None:
    assert order_of_ends(policy) == order


def test_shortest_first_starves_nobody() -> None:
    rig = Rig(options={"policy": "sjf", "max_seqs": 1})
    rig.add(request("long", prompt(9), 60))
    for i in range(1000):
        if i % 2 == 0:  # a short job takes two steps: there is always another one waiting
            rig.add(request(f"s{i}", prompt(4, 50 + i), 2, arrival_s=rig.clock.now()))
        rig.step()
        if "long" in {seq.request_id for seq in rig.scheduler.running}:
            return
    raise AssertionError("the long job never ran")


def test_fair_share_follows_weights() -> None:
    """Two tenants, weights 3 : 1, always waiting: service per weight stays equal (Jain index ≥ 0.95)."""
    rig = Rig(num_blocks=400, options={"policy": "fair", "max_seqs": 4, "tenant_weights": {"big": 3.0, "small": 1.0}})
    served = {"big": 0, "small": 0}
    for i in range(600):
        for tenant in served:
            rig.add(request(f"{tenant}{i}", prompt(5, 10 * i), 10, tenant=tenant, arrival_s=rig.clock.now()))
    for _ in range(600):
        rig.step()
    for record in rig.records.values():
        served[record.tenant] += record.generated_tokens
    x = [served["big"] / 3.0, served["small"] / 1.0]
    assert sum(x) ** 2 / (2 * sum(v * v for v in x)) >= 0.95


# ---- batching ---------------------------------------------------------------------------------------------


def test_static_batching_waits_for_the_batch_to_end() -> None:
    """Golden number: 8 requests, 7 end after 20 tokens and one after 500: 3,360 of 4,000 slots idle."""
    rig = Rig(num_blocks=2000, options={"batching": "static", "max_seqs": 8})
    for i in range(8):
        rig.add(request(f"r{i}", prompt(4, 10 * i), 500 if i == 7 else 20))
    for _ in range(30):
        rig.step()
    rig.add(request("next", prompt(4, 999), 2, arrival_s=rig.clock.now()))
    rig.run()
    rig.check_finished("next")
    # The first tokens come from the prompts' step; 500 steps of 8 slots, of which 7 · 20 + 500 were used.
    busy = [step.num_sequences for step in rig.steps][:500]
    assert 8 * 500 - sum(busy) == 3360
    assert rig.records["next"].account.causes["queue:batch_policy"] > 0.4


def test_dynamic_batching_starts_when_full_or_after_a_while() -> None:
    rig = Rig(options={"batching": "dynamic", "max_seqs": 2, "batch_wait_s": 0.05})
    rig.add(request("a", prompt(4), 2))
    assert rig.step().num_tokens == 0
    rig.add(request("b", prompt(4, 50), 2))
    assert rig.step().num_tokens > 0
    rig.run()
    rig.add(request("c", prompt(4, 90), 2, arrival_s=rig.clock.now()))
    begin = rig.clock.now()
    rig.run()
    assert rig.clock.now() - begin >= 0.05
    assert rig.records["c"].account.causes["queue:batch_policy"] >= 0.049


# ---- accounts ---------------------------------------------------------------------------------------------


def test_the_account_names_what_a_request_waited_for() -> None:
    rig = Rig(num_blocks=12, options={"max_seqs": 2, "max_step_tokens": 16})
    rig.add(request("a", prompt(8), 20))
    rig.add(request("b", prompt(8, 50), 20))
    rig.add(request("place", prompt(8, 90), 2))
    rig.run()
    for name in ("a", "b", "place"):
        rig.check_finished(name)
    assert rig.records["place"].account.causes["queue:max_seqs"] > 0.01
    admitted = {d.request_id: d for d in rig.decisions if isinstance(d, Admitted)}
    assert admitted["place"].waited_for in ("max_seqs", "kv_blocks")

    rig = Rig(num_blocks=12)
    rig.add(request("holder", prompt(30), 12))
    rig.add(request("blocks", prompt(30, 100), 2))
    rig.run()
    assert rig.records["blocks"].account.causes["queue:kv_blocks"] > 0.005


def test_a_running_request_can_be_explained() -> None:
    rig = Rig()
    rig.add(request("a", prompt(8), 20))
    for _ in range(5):
        rig.step()
    account = rig.scheduler.explain("a", rig.clock.now())
    assert account is not None and abs(sum(account.causes.values()) - rig.clock.now()) < 1e-9
    assert rig.scheduler.explain("unknown", 0.0) is None
    rig.run()
    rig.check_account("a")
