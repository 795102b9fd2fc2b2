"""Requests for embeddings in the real scheduler: no token, no phase of their own, the same batches as everybody's."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.engine.harness import ClockedExecutor, Rig, request
from tokenmill.core.errors import InvalidRequest
from tokenmill.core.pooling import NO_TOKENS, Pooling
from tokenmill.core.request import Request
from tokenmill.engine.engine import Engine
from tokenmill.engine.journal import JournalWriter, read_records, replay

LAST, MEAN = Pooling("last"), Pooling("mean", dimensions=5)
PROMPT = tuple(range(40, 61))


def embedding(name: str, prompt: tuple[int, ...] = PROMPT, pooling: Pooling = LAST, arrival_s: float = 0.0) -> Request:
    return request(name, prompt, 0, params=NO_TOKENS, pooling=pooling, arrival_s=arrival_s)


def expected(rig: Rig, req: Request) -> bytes:
    assert req.pooling is not None
    return rig.executor.expected_embedding(req.prompt_token_ids, req.pooling)


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("chunk", [1, 5, 64])
@pytest.mark.parametrize("pooling", [LAST, MEAN])
def test_a_prompt_becomes_an_embedding_and_no_token(pooling: Pooling, chunk: int, depth: int) -> None:
    rig = Rig(depth=depth, options={"max_step_tokens": chunk})
    rig.add(embedding("e", pooling=pooling))
    rig.run()
    assert rig.embeddings == {"e": expected(rig, rig.requests["e"])}
    assert not rig.tokens
    record = rig.records["e"]
    assert (record.outcome, record.prompt_tokens, record.generated_tokens) == ("finished", len(PROMPT), 0)
    assert record.account.num_chunks == -(-len(PROMPT) // chunk)
    rig.check_account("e")


def test_the_last_position_reads_the_prefix_cache_and_a_mean_does_not() -> None:
    rig = Rig()
    for name, pooling, cached in (("cold", LAST, 0), ("warm", LAST, 20), ("mean", MEAN, 0)):
        rig.add(embedding(name, pooling=pooling))
        rig.run()
        assert rig.records[name].cached_tokens == cached
        assert rig.embeddings[name] == expected(rig, rig.requests[name])
    rig.add(request("tokens", PROMPT))
    rig.run()
    assert rig.records["tokens"].cached_tokens == 20, "what an embedding computed serves whoever comes next"
    rig.check_finished("tokens")


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_embeddings_and_answers_share_steps_chunks_and_preemptions(seed: int, depth: int) -> None:
    rng = random.Random(seed)
    rig = Rig(num_blocks=20, depth=depth, options={"max_step_tokens": 12, "max_seqs": 6})
    for i in range(24):
        prompt = tuple(rng.randrange(3) for _ in range(rng.randint(1, 40)))
        rig.add(embedding(f"r{i}", prompt, rng.choice((LAST, MEAN))) if i % 2 else request(f"r{i}", prompt, 9, seed=i))
    step = 0
    while rig.engine.has_work:
        running = rig.scheduler.running
        if running and step % 3 == 0 and rig.scheduler.num_preemptions < 40:
            rig.scheduler.preempt(rng.choice(running), rig.clock.now())
        rig.step()
        step += 1
    assert rig.scheduler.num_preemptions > 10
    assert not rig.errors
    for name, req in rig.requests.items():
        if req.pooling is None:
            rig.check_finished(name)
        else:
            assert rig.embeddings[name] == expected(rig, req)
            rig.check_account(name)
    assert rig.scheduler.cache.pool.num_held == 0


def test_an_aborted_embedding_is_not_told() -> None:
    rig = Rig(options={"max_step_tokens": 8})
    rig.add(embedding("e"))
    rig.step()
    rig.engine.abort("e")
    rig.run()
    assert not rig.embeddings
    assert rig.records["e"].outcome == "aborted"


def test_a_journal_with_embeddings_replays(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    rig = Rig(options={"max_step_tokens": 8})
    rig.engine = Engine(rig.scheduler, rig.executor, rig.clock, journal=JournalWriter(path, {}))
    rig.add(embedding("a", pooling=MEAN))
    rig.add(request("b", PROMPT))
    rig.add(embedding("c"))
    rig.run()
    rig.engine.close()
    fresh = ClockedExecutor(rig.num_blocks, rig.block_size)
    fresh.clock = rig.clock
    fresh.start()
    steps = list(replay(read_records(path), fresh))
    assert all(not mismatches for _, mismatches in steps)
    assert sorted(v for result, _ in steps for v in result.embeddings.values()) == sorted(rig.embeddings.values())
    other = ClockedExecutor(rig.num_blocks, rig.block_size, hidden_size=7)
    other.clock = rig.clock
    other.start()
    found = [mismatch.field for _, mismatches in replay(read_records(path), other) for mismatch in mismatches]
    assert found.count("embeddings") == 1, "another embedding is noticed; the one cut to 5 numbers is the same"


def test_the_fields_are_checked() -> None:
    for bad in ({"kind": "cls"}, {"dimensions": 0}):
        with pytest.raises(InvalidRequest):
            Pooling(**bad)  # type: ignore[arg-type]
