"""A journal of plans and results reads back equal, and replays bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.harness import ClockedExecutor, Rig, request
from tokenmill.core.errors import SetupError
from tokenmill.core.params import SamplingParams
from tokenmill.core.step import StepPlan, StepResult, TokenLogprobs
from tokenmill.engine.engine import Engine
from tokenmill.engine.faults import Fault, InjectedFault, armed
from tokenmill.engine.journal import JournalWriter, compare, read_header, read_records, replay

PARAMS = SamplingParams(
    n=2, logprobs=2, prompt_logprobs=1, logit_bias={3: -1.5, 70: 0.1}, stop=("x",), bad_words_ids=((1, 2), (3,))
)


def recorded(path: Path, depth: int = 1) -> Rig:
    rig = Rig(num_blocks=14, depth=depth, options={"max_step_tokens": 16})
    rig.engine = Engine(
        rig.scheduler, rig.executor, rig.clock, depth=depth, journal=JournalWriter(path, {"num_blocks": 14})
    )
    for i in range(5):
        rig.add(request(f"r{i}", tuple(range(i, i + 9)), 12, params=PARAMS, seed=i, stop_token_ids=frozenset({5, 2})))
    rig.run()
    rig.engine.close()
    return rig


@pytest.mark.parametrize("depth", [1, 2])
def test_replay_is_bit_for_bit(tmp_path: Path, depth: int) -> None:
    path = tmp_path / "journal.jsonl"
    rig = recorded(path, depth)
    assert rig.scheduler.num_preemptions > 0, "the journal holds preemptions too"
    assert read_header(path)["num_blocks"] == 14
    fresh = ClockedExecutor(14, 4)
    fresh.clock = rig.clock
    fresh.start()
    steps = list(replay(read_records(path), fresh))
    assert len(steps) == rig.scheduler.num_steps
    assert all(not mismatches for _, mismatches in steps)


@pytest.mark.parametrize(
    "line",
    ["{", "[]", "5", "{}", '{"plan": 5}', '{"result": {}}', '{"plan": {"step_id": 1}}', "[" * 100_000, "\\ud800"],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "journal.jsonl"
    JournalWriter(path, {}).close()
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(SetupError, match="line 2"):
        list(read_records(path))


def test_records_read_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    plan = StepPlan(3, (1, 2), (0, 5), (4, 1), block_updates={2: (1, (7, 8))}, copies=((1, 2),), dropped=(9,))
    entry = TokenLogprobs(5, -0.1 - 0.2, 1, ((5, -0.30000000000000004), (6, -1e-300)))
    result = StepResult(3, (2,), ((5,),), {2: (entry,)}, {1: (1, (entry, entry))}, {1: "why"}, seconds=0.1)
    writer = JournalWriter(path, {})
    writer.plan(plan)
    writer.result(result)
    writer.close()
    assert list(read_records(path)) == [plan, result]


def test_a_changed_token_is_found(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    recorded(path)
    _, result = next(pair for pair in zip(*[read_records(path)] * 2, strict=False) if pair[1].seq_ids)
    changed = StepResult(result.step_id, result.seq_ids, ((999,), *result.token_ids[1:]), result.logprobs)
    found = compare(result, changed)
    assert [(m.field, m.seq_id) for m in found if m.field == "token_ids"] == [("token_ids", result.seq_ids[0])]


def test_a_line_cut_short_ends_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    recorded(path)
    whole = len(list(read_records(path)))
    text = path.read_text()
    path.write_text(text[: len(text) - 20])
    assert len(list(read_records(path))) == whole - 1


@pytest.mark.parametrize("content", ["", "{}", "nonsense", '{"journal": 99}', "[]"])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x"
    path.write_text(content)
    with pytest.raises(SetupError, match="journal"):
        read_header(path)


def test_ft28_a_crash_replays_at_the_same_step(tmp_path: Path) -> None:
    """FT-28: the journal's last line is the plan that the engine died of; carried out again, it dies of it again."""
    path = tmp_path / "journal.jsonl"
    rig = Rig(num_blocks=14, options={"max_step_tokens": 16})
    rig.engine = Engine(rig.scheduler, rig.executor, rig.clock, journal=JournalWriter(path, {"num_blocks": 14}))
    for i in range(5):
        rig.add(request(f"r{i}", tuple(range(i, i + 9)), 12, params=PARAMS, seed=i))
    crash = _crash_over(20)
    with armed(Fault("executor.submit", crash)), pytest.raises(InjectedFault):
        rig.run()
    rig.engine.close()
    records = list(read_records(path))
    assert isinstance(records[-1], StepPlan), "its result never came"
    fresh = ClockedExecutor(14, 4)
    fresh.clock = rig.clock
    fresh.start()
    steps = list(replay(iter(records[:-1]), fresh))
    assert steps and all(not mismatches for _, mismatches in steps)
    with pytest.raises(InjectedFault):
        crash(records[-1])
    for plan in records[:-1]:
        if isinstance(plan, StepPlan):
            crash(plan)


def _crash_over(position: int) -> Callable[[StepPlan], None]:
    """A bug that shows in the first step whose rows start at more than ``position`` positions in all."""

    def crash(plan: StepPlan) -> None:
        if sum(plan.starts) > position:
            raise InjectedFault

    return crash


def test_ft21_a_full_disk_ends_the_journal_and_not_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with armed(Fault("journal.write", error="disk", after=5)):
        rig = recorded(path)
    assert len(rig.records) == 5 and not rig.errors
    assert 0 < len(list(read_records(path))) <= 5


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_ft21_a_disk_that_is_really_full() -> None:
    writer = JournalWriter(Path("/dev/full"), {})
    writer.plan(StepPlan(1, (), (), ()))
    writer.close()
