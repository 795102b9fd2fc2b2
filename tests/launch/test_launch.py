"""Putting the parts together for real: the built-in model through every layer, against Hugging Face and the ledger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tokenmill import LLM, EngineConfig, SamplingParams, builtin
from tokenmill.core.errors import ConfigError, DoesNotFit
from tokenmill.engine.journal import read_header
from tokenmill.kernels.reference import attention
from tokenmill.launch import available_memory_bytes, build, inspect
from tokenmill.launch.machine import _cgroup_rooms
from tokenmill.perf import memory
from tokenmill.runtime import worker
from tokenmill.runtime.sampling import logprobs

SMALL = {"model": "story-draft", "num_blocks": 256}
PROMPTS = ("Once upon a time", "The fox was hungry. It", "x")


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(**SMALL)


def test_greedy_answers_are_hugging_faces() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = builtin.path("story-draft")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with LLM(**SMALL, kernels="reference") as llm:
        answers = llm.generate(PROMPTS, SamplingParams(max_tokens=30, temperature=0.0))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")
        assert answer.prompt_token_ids == tuple(ids["input_ids"][0].tolist())
        out = reference.generate(**ids, max_new_tokens=30, do_sample=False)
        generated = out[0, ids["input_ids"].shape[1] :]
        assert answer.choices[0].token_ids == tuple(generated.tolist())
        assert answer.text == tokenizer.decode(generated, skip_special_tokens=True)


def test_a_chat_turn_is_templated_as_hugging_face_does(llm: LLM) -> None:
    from transformers import AutoTokenizer

    turns = [{"role": "user", "content": "Tell me a story."}]
    tokenizer = AutoTokenizer.from_pretrained(builtin.path("story-draft"))
    wanted = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    first, second = llm.chat([turns, turns], SamplingParams(max_tokens=5, seed=1))
    assert first.prompt_token_ids == tuple(wanted)
    assert first.text == second.text == llm.chat(turns, SamplingParams(max_tokens=5, seed=1))[0].text


def test_a_seeded_answer_is_the_same_alone_and_in_company(llm: LLM) -> None:
    """CC-14, without the network."""
    params = SamplingParams(max_tokens=12, seed=11, ignore_eos=True)
    (alone,) = llm.generate("Once upon a time", params)
    others = [SamplingParams(max_tokens=4 + i, seed=i, ignore_eos=True) for i in range(15)]
    in_company = llm.generate(["Once upon a time", *(f"Number {i}" for i in range(15))], [params, *others])
    assert in_company[0].choices == alone.choices


def test_weights_and_cache_take_what_the_ledger_foresaw(llm: LLM) -> None:
    launched = llm.launched
    ledger = launched.checkpoint.ledger
    assert launched.measured.weights_bytes == ledger.group_bytes("weights")
    assert launched.measured.kv_bytes == ledger.group_bytes("kv")


def test_the_ledger_cuts_work_as_the_kernels_do() -> None:
    assert (memory.KEY_TILE, memory.QUERY_ROWS) == (attention.KEY_TILE, attention.QUERY_ROWS)
    assert (memory.MAX_PAIRS, memory.PROMPT_LOGITS_ROWS) == (attention._MAX_PAIRS, worker.PROMPT_LOGITS_ROWS)
    assert memory.SAMPLED_AT_ONCE == logprobs.AT_ONCE


def test_an_open_context_is_what_the_pool_holds() -> None:
    checkpoint = inspect(EngineConfig.from_options(model="story-draft", num_blocks=8))
    assert checkpoint.ledger.max_context == 8 * 16
    full = inspect(EngineConfig.from_options(model="story-draft")).ledger
    assert (
        full.max_context
        == json.loads((builtin.path("story-draft") / "config.json").read_text())["max_position_embeddings"]
    )


def test_a_context_that_the_pool_or_the_model_cannot_hold_is_refused() -> None:
    with pytest.raises(DoesNotFit, match="it fits with --num-blocks 32"):
        inspect(EngineConfig.from_options(model="story-draft", num_blocks=8, max_context=512))
    with pytest.raises(ConfigError, match="max_context 1000000 is beyond"):
        inspect(EngineConfig.from_options(model="story-draft", max_context=1_000_000))


def test_names(tmp_path: Path) -> None:
    (tmp_path / "my-model").symlink_to(builtin.path("story-draft"))
    name = {"story-draft": "story-draft", str(tmp_path / "my-model"): "story-draft"}
    for model, wanted in name.items():
        assert inspect(EngineConfig.from_options(model=model)).name == wanted
    assert inspect(EngineConfig.from_options(model="story-draft", served_name="mine")).name == "mine"


def test_progress_is_told_to_the_end() -> None:
    stages: list[str] = []
    reached: list[tuple[int, int]] = []

    class Told:
        def stage(self, text: str) -> None:
            stages.append(text)

        def update(self, done: int, total: int) -> None:
            reached.append((done, total))

        def note(self, text: str) -> None:
            raise AssertionError(text)

    build(EngineConfig.from_options(**SMALL), Told()).engine.close()
    assert stages[0] == "finding the model" and "loading weights" in stages
    assert reached[-1][0] == reached[-1][1] > 0


def test_the_journal_says_how_to_build_the_executor_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    build(EngineConfig.from_options(**SMALL, journal=str(path), max_context=100)).engine.close()
    header = read_header(path)
    assert header.pop("journal") == 1
    header.pop("tokenmill")
    assert header == {
        "model": "story-draft", "block_size": 16, "num_blocks": 256, "max_context": 100, "max_seqs": 64,
        "max_step_tokens": 512, "kernels": "fast", "weights": "int8", "lm_head": "int8", "group_size": None,
        "kv": "bf16", "weight_only": False, "device": "cpu",
    }  # fmt: skip


def test_bfloat16_runs_in_half_the_memory() -> None:
    with LLM(**SMALL, dtype="bfloat16") as llm:
        measured = llm.launched.measured
        assert measured.weights_bytes == llm.launched.checkpoint.ledger.group_bytes("weights")
        assert measured.weights_bytes == 2 * llm.launched.checkpoint.config.num_parameters
        assert llm.generate("Once", SamplingParams(max_tokens=3, ignore_eos=True))[0].usage.completion_tokens == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ConfigError, match=r"device cuda: no GPU .* ask for device cpu"):
        inspect(EngineConfig.from_options(**SMALL, device="cuda"))


# ---- what the machine has --------------------------------------------------------------------------------


def group(path: Path, limit: str, used: int, inactive: int = 0) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.max").write_text(limit + "\n")
    (path / "memory.current").write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file 7\n")


def test_every_control_group_around_the_process_limits_it(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "self"
    group(root / "pod", "1000", 300, inactive=50)
    group(root / "pod" / "container", "max", 200)
    group(root / "pod" / "container" / "job", "600", 100)
    group(root / "elsewhere", "1", 1)
    proc.write_text("0::/pod/container/job\n")
    assert sorted(_cgroup_rooms(proc, root)) == [500, 750]


def test_without_control_groups_the_machine_is_the_limit(tmp_path: Path) -> None:
    proc = tmp_path / "self"
    assert _cgroup_rooms(proc, tmp_path) == []
    proc.write_text("4:memory:/version/one\n")
    assert _cgroup_rooms(proc, tmp_path) == []
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < available_memory_bytes() <= total
