"""What only a GPU can show of ``DeviceModel``: graphs give the bits of eager launches, and nothing is allocated."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tokenmill.core.engine_config import CacheConfig, ModelSource, SchedulerConfig
from tokenmill.core.params import SamplingParams
from tokenmill.core.precision import Precision
from tokenmill.core.step import NewSequence, StepPlan, StepResult
from tokenmill.perf.memory import plan_memory
from tokenmill.runtime.table import Row, TableEntry
from tokenmill.runtime.worker import Worker
from tokenmill.testing import checkpoints

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

BLOCK = 16
CONTEXT = 512
MAX_SEQS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make_checkpoint(
        tmp_path_factory.mktemp("gpu"), "qwen3", vocab_size=4096, max_context=CONTEXT, hidden_size=256, num_heads=8,
        num_kv_heads=2, head_dim=64, intermediate_size=512, tokenizer=False,
    )  # fmt: skip


def made(folder: Path, weights: str, *, capture: bool = True, kv: str = "bf16") -> Any:
    from tokenmill.kernels.triton.kv import DeviceKV
    from tokenmill.models.load import load_model
    from tokenmill.models.quantization.device import DeviceScheme
    from tokenmill.runtime.gpu.model import DeviceModel

    precision = Precision("fast", weights, "bf16", kv, device="cuda")
    decoder = load_model(folder, scheme=DeviceScheme(precision, torch.device("cuda")), max_context=CONTEXT)
    pool = DeviceKV.allocate(decoder.config, MAX_SEQS * CONTEXT // BLOCK, BLOCK, form=kv, device="cuda")  # type: ignore
    return DeviceModel(decoder, pool, max_seqs=MAX_SEQS, max_step_tokens=256, capture=capture)


def sequence(seq_id: int, length: int, params: SamplingParams) -> NewSequence:
    chance = random.Random(seq_id)
    prompt = tuple(chance.randrange(4096) for _ in range(length))
    blocks = tuple(range(seq_id * 8, seq_id * 8 + 8))
    return NewSequence(seq_id, prompt, length, params, seq_id, frozenset(), blocks)


def answers(model: Any, params: Sequence[SamplingParams], num_tokens: int = 12) -> list[list[int]]:
    """Prompts in one step, then decode steps, one ahead of the results."""
    worker = Worker(model)
    worker.warm_up()
    new = [sequence(i, 3 + i, wish) for i, wish in enumerate(params)]
    ids = tuple(range(len(new)))
    lengths = tuple(len(each.token_ids) for each in new)
    pending = [worker.begin(StepPlan(0, ids, (0,) * len(ids), lengths, tuple(new)))]
    results: list[StepResult] = []
    for step in range(1, num_tokens):
        starts = tuple(length + step - 1 for length in lengths)
        pending.append(worker.begin(StepPlan(step, ids, starts, (1,) * len(ids))))
        results.append(worker.finish(pending.pop(0)))
    results.append(worker.finish(pending.pop(0)))
    assert not any(result.errors for result in results)
    return [[dict(zip(r.seq_ids, r.token_ids, strict=True))[i][0] for r in results] for i in ids]


KINDS = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 1.0},
    "filtered": {"temperature": 0.9, "top_p": 0.9, "top_k": 50},
    "counted": {"temperature": 0.9, "repetition_penalty": 1.2},
    "deterministic": {"temperature": 0.9, "deterministic": True},
}


@pytest.mark.parametrize("num_rows", [1, 3, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_a_replayed_graph_gives_the_tokens_of_eager_launches(folder: Path, kind: str, num_rows: int) -> None:
    params = [SamplingParams(**KINDS[kind])] * num_rows
    captured = made(folder, "bf16")
    assert answers(captured, params) == answers(made(folder, "bf16", capture=False), params)
    assert captured.graphs.num_replays >= 10


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4", "fp8"])
def test_logits_of_a_replay_are_those_of_the_launch_to_the_last_bit(folder: Path, weights: str) -> None:
    model = made(folder, weights)
    rows = list(decode_rows(model, 5))
    seen = []
    for _ in range(4):  # eager, captured, replayed, replayed: a step computed again changes nothing
        model.forward(rows, range(5))
        seen.append(model.logits(range(5)).clone())
    assert len(model.graphs) == 1 and model.graphs.num_replays == 3
    assert all(torch.equal(seen[0], each) for each in seen[1:])
    assert seen[0].isfinite().all()


def decode_rows(model: Any, count: int) -> Iterator[Row]:
    """Rows whose cache is computed but for the last token."""
    from tokenmill.runtime.sampling import SampledSequence

    for slot in range(count):
        new = sequence(slot, 9 + slot, SamplingParams(temperature=0.0))
        ids = list(new.token_ids)
        sampling = SampledSequence(ids, len(ids), new.params, 0, frozenset(), 4096)
        entry = TableEntry(ids, array("i", new.block_ids), sampling, slot=slot)
        model.forward([Row(slot, entry, 0, len(ids) - 1)], [])
        yield Row(slot, entry, len(ids) - 1, len(ids))


def test_nothing_is_allocated_once_steps_recur(folder: Path) -> None:
    model = made(folder, "bf16")
    model.warm_up()
    params = [SamplingParams(**KINDS["filtered"])] * 20
    answers(model, params)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    answers(model, params)
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    assert after["reserved_bytes.all.current"] == before["reserved_bytes.all.current"], "the allocator asked for more"
    assert after["allocated_bytes.all.current"] == before["allocated_bytes.all.current"]


@pytest.mark.parametrize("kv", ["bf16", "fp8"])
def test_the_ledger_is_within_two_percent_of_the_allocator(folder: Path, kv: Any) -> None:
    from tokenmill.models.config_file import read_config

    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    model = made(folder, "bf16", kv=kv)
    taken = torch.cuda.memory_allocated() - before
    cache = CacheConfig(num_blocks=model.num_blocks, kv=kv)
    scheduler = SchedulerConfig(max_seqs=MAX_SEQS, max_step_tokens=256)
    ledger = plan_memory(read_config(folder), ModelSource(max_context=CONTEXT), cache, scheduler, 10**11, device="cuda")
    foreseen = sum(item.num_bytes for item in ledger.items if "estimate" not in item.name)
    assert abs(taken - foreseen) <= 0.02 * foreseen


def test_a_deterministic_answer_is_the_same_in_any_company(folder: Path) -> None:
    params = SamplingParams(temperature=0.9, deterministic=True)
    model = made(folder, "bf16")
    (alone,) = answers(model, [params])
    for company in (1, 7, 30):
        others = [SamplingParams(temperature=1.0)] * company
        assert answers(made(folder, "bf16"), [params, *others])[0] == alone
