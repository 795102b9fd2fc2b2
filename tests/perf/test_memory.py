"""The memory ledger: it adds up, it fits, and what it names fits. (Worked numbers: ``costs/test_golden.py``.)"""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tokenmill.core.engine_config import CacheConfig, ModelSource, SchedulerConfig
from tokenmill.core.errors import ConfigError, DoesNotFit
from tokenmill.core.model_config import ModelConfig
from tokenmill.perf.memory import (
    DEFAULT_KV_BYTES,
    Ledger,
    format_bytes,
    plan_memory,
)

GB = 1e9


def model(**fields: object) -> ModelConfig:
    base = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 32000,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 11008,
        "max_position_embeddings": 131072,
    }
    return ModelConfig.from_hf(base | fields)


SMALL = model(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
              intermediate_size=512, vocab_size=4096, max_position_embeddings=1024)  # fmt: skip


def kv_bytes(config: ModelConfig, num_tokens: int, element_bytes: int) -> int:
    return num_tokens * 2 * config.num_layers * config.num_kv_heads * config.head_dim * element_bytes


def plan(
    config: ModelConfig = SMALL,
    available: float = 8 * GB,
    source: ModelSource = ModelSource(),  # noqa: B008
    cache: CacheConfig = CacheConfig(),  # noqa: B008
    scheduler: SchedulerConfig = SchedulerConfig(),  # noqa: B008
    missing: str | None = "no compiler",
) -> Ledger:
    """Of the reference kernels, unless ``missing`` is None."""
    return plan_memory(config, source, cache, scheduler, int(available), missing=missing)


# ---- the ledger ------------------------------------------------------------------------------------------


def test_weights_are_counted_by_class_and_tied_embeddings_once() -> None:
    untied, tied = plan(), plan(replace(SMALL, tie_embeddings=True))
    assert untied.group_bytes("weights") == 4 * SMALL.num_parameters
    assert untied.group_bytes("weights") - tied.group_bytes("weights") == 4 * SMALL.vocab_size * SMALL.hidden_size


def test_bfloat16_halves_weights_and_cache() -> None:
    wide, narrow = plan(), plan(source=ModelSource(dtype="bfloat16"))
    assert wide.group_bytes("weights") == 2 * narrow.group_bytes("weights")
    assert wide.group_bytes("kv") == 2 * narrow.group_bytes("kv")


def test_the_total_is_the_sum_of_its_lines_and_fits() -> None:
    ledger = plan()
    assert ledger.total_bytes == sum(item.num_bytes for item in ledger.items)
    assert 0 <= ledger.spare_bytes == ledger.available_bytes - ledger.total_bytes
    assert ledger.as_dict()["total_bytes"] == ledger.total_bytes


def test_the_pool_takes_no_more_than_every_sequence_can_use() -> None:
    ledger = plan()
    assert ledger.num_blocks == 64 * 1024 // 16
    assert ledger.max_context == 1024
    assert ledger.group_bytes("kv") == kv_bytes(SMALL, 64 * 1024, 4)


def test_the_pool_takes_no_more_than_its_default_limit_on_a_large_machine() -> None:
    ledger = plan(replace(SMALL, max_context=32768), available=1000 * GB, scheduler=SchedulerConfig(max_seqs=1024))
    assert ledger.group_bytes("kv") <= DEFAULT_KV_BYTES < ledger.group_bytes("kv") + kv_bytes(SMALL, 16, 4)


def test_the_default_limit_gives_way_to_one_full_context() -> None:
    ledger = plan(model(max_position_embeddings=65536), available=200 * GB)
    assert ledger.group_bytes("kv") == kv_bytes(model(), 65536, 4) > DEFAULT_KV_BYTES
    assert ledger.max_context == 65536


def test_an_open_context_is_what_the_pool_holds() -> None:
    ledger = plan(model(), available=40 * GB)
    assert ledger.max_context == ledger.num_blocks * 16 < 131072
    assert ledger.spare_bytes >= 0


@pytest.mark.parametrize(
    ("cache", "blocks"), [(CacheConfig(num_blocks=77), 77), (CacheConfig(kv_memory_bytes=10**7), 152)]
)
def test_blocks_that_are_given_are_kept(cache: CacheConfig, blocks: int) -> None:
    assert kv_bytes(SMALL, 16, 4) == 65536
    assert plan(cache=cache).num_blocks == blocks


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="--max-context 1024"):
        plan(source=ModelSource(max_context=2048))


# ---- what does not fit -----------------------------------------------------------------------------------

BIG = model()
BIG_WEIGHTS_GB = BIG.num_parameters * 4 / GB
CASES = {
    "num_blocks": (plan, {"cache": CacheConfig(num_blocks=10**7)}),
    "num_blocks too few": (plan, {"cache": CacheConfig(num_blocks=8), "source": ModelSource(max_context=1024)}),
    "max_context": (plan, {"config": BIG, "available": 40 * GB, "source": ModelSource(max_context=131072)}),
    "dtype": (plan, {"config": BIG, "available": 20 * GB}),
    "step tokens": (plan, {"available": 250e6, "scheduler": SchedulerConfig(max_step_tokens=65536)}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_remedy_that_is_named_fits(case: str) -> None:
    function, arguments = CASES[case]
    with pytest.raises(DoesNotFit) as refused:
        function(**arguments)
    remedy = re.search(r"it fits with --([a-z-]+) (\S+)$", str(refused.value))
    assert remedy is not None, refused.value
    name, value = remedy[1].replace("-", "_"), remedy[2]
    home = {"num_blocks": "cache", "max_step_tokens": "scheduler"}.get(name, "source")
    piece = arguments.get(home, {"cache": CacheConfig(), "scheduler": SchedulerConfig(), "source": ModelSource()}[home])
    changed = replace(piece, **{name: int(value) if value.isdigit() else value})
    assert function(**arguments | {home: changed}).spare_bytes >= 0


def test_the_largest_context_that_fits_is_named() -> None:
    arguments = CASES["max_context"][1]
    with pytest.raises(DoesNotFit) as refused:
        plan(**arguments)
    context = int(str(refused.value).split()[-1])
    plan(**arguments | {"source": ModelSource(max_context=context)})
    with pytest.raises(DoesNotFit):
        plan(**arguments | {"source": ModelSource(max_context=context + 16)})


def test_where_no_option_helps_the_memory_that_would_is_named() -> None:
    with pytest.raises(DoesNotFit, match=r"1\.00 GB is available; no single option .* smaller model") as refused:
        plan(BIG, available=1 * GB)
    assert "\n" not in str(refused.value)
    enough = float(re.search(r"or ([\d.]+) GB of free", str(refused.value))[1]) * GB
    assert BIG.num_parameters * 4 < enough < BIG.num_parameters * 4 * 1.1
    plan(BIG, available=enough + 0.01 * GB)
    with pytest.raises(DoesNotFit):
        plan(BIG, available=enough - 0.01 * GB, source=ModelSource(dtype="float32"))


def test_bytes_are_written_for_people() -> None:
    assert [format_bytes(n) for n in (12, 1342, 1_342_177_280, 618.5e9)] == ["12 B", "1.34 kB", "1.34 GB", "618 GB"]
