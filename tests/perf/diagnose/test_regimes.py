"""Each of the seven regimes is named where it was built in, and the parts of the time are those that were built in."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.perf.diagnose.engines import Built, Truth
from tokenmill.engine.telemetry import REGIMES
from tokenmill.perf.diagnose import Diagnosis

LONG = {"prompts": (2048,), "answers": (2,), "num_requests": 20}
CROWD = {"num_requests": 60, "prompts": (64,), "answers": (120,)}

BUILT: dict[str, tuple[str, Built]] = {
    "one sequence": ("memory bandwidth", Built()),
    "a batch with long contexts": (
        "memory bandwidth",
        Built(prompts=(6000,), answers=(800,), num_requests=8, options={"max_step_tokens": 8192}),
    ),
    "prompts": ("compute", Built(**LONG, options={"max_step_tokens": 4096})),
    "a large batch": (
        "compute",
        Built(Truth(operations_per_s=20e12), **CROWD, options={"max_seqs": 64, "max_step_tokens": 4096}),
    ),
    "prompts over a slow link": (
        "interconnect bandwidth",
        Built(Truth(tp=4, link_bytes_per_s=12e9), **LONG, options={"max_step_tokens": 4096}),
    ),
    "one sequence over eight devices": (
        "interconnect latency",
        Built(Truth(tp=8, message_s=40e-6)),
    ),
    "a slow host": ("host overhead", Built(host_s=20e-3)),
    "slow text": ("host overhead", Built(text_s=20e-3)),
    "launches one by one": ("host overhead", Built(Truth(launch_s=50e-6))),
    "a small pool": ("memory capacity", Built(**CROWD, num_blocks=60)),
    "a small pool that preempts": (
        "memory capacity",
        Built(num_requests=40, prompts=(16,), answers=(400,), num_blocks=90),
    ),
    "static batches of unlike answers": (
        "scheduler",
        Built(num_requests=60, answers=(10, 10, 10, 10, 10, 10, 300), options={"batching": "static", "max_seqs": 8}),
    ),
    "few places": ("scheduler", Built(**CROWD, options={"max_seqs": 2})),
    "a batch that is waited for": (
        "scheduler",
        Built(num_requests=6, apart_s=3.0, options={"batching": "dynamic", "batch_wait_s": 2.0}),
    ),
    "small pieces of prompts": (
        "scheduler",
        Built(prompts=(1024,), answers=(2,), num_requests=30, options={"max_step_tokens": 32}),
    ),
}


@pytest.fixture(scope="module")
def diagnoses() -> dict[str, Diagnosis]:
    return {name: built.diagnosed() for name, (_, built) in BUILT.items()}


@pytest.mark.parametrize("name", BUILT)
def test_what_was_built_in_is_named(name: str, diagnoses: dict[str, Diagnosis]) -> None:
    assert diagnoses[name].regime == BUILT[name][0], (diagnoses[name].because, diagnoses[name].bounds)


def test_all_seven_are_built() -> None:
    assert {regime for regime, _ in BUILT.values()} == set(REGIMES)


@pytest.mark.parametrize("name", BUILT)
def test_parts_and_bounds_add_up(name: str, diagnoses: dict[str, Diagnosis]) -> None:
    found = diagnoses[name]
    assert sum(found.parts.values()) == pytest.approx(found.wall_s, rel=1e-9)
    busy_s = found.wall_s - found.parts["idle"] - found.parts["waiting"]
    assert sum(found.bounds.values()) == pytest.approx(busy_s, rel=1e-9)
    assert min(found.parts.values()) >= 0.0


def test_the_host_gets_exactly_its_time() -> None:
    built = Built(host_s=3e-3, text_s=2e-3)
    account = built.run()
    steps = account.num_steps
    assert account.parts["scheduling"] == pytest.approx(3e-3 * steps)
    assert account.parts["text"] == pytest.approx(2e-3 * (steps - 1))  # nothing follows the last
    assert account.parts["idle"] == pytest.approx(2e-3)


def test_shares_of_the_ceilings_are_those_built_in() -> None:
    """Decoding alone takes what its bytes take, plus the launches: the rest of the bandwidth is the launches' share."""
    found = Built().diagnosed()
    launches_s = 10 * 32 * 1e-6
    assert found.mbu is not None
    assert found.mbu == pytest.approx(1 - launches_s / found.step_s, abs=0.02)
    found = Built(**LONG, options={"max_step_tokens": 4096}).diagnosed()
    assert found.mfu is not None
    assert found.mfu == pytest.approx(0.9, abs=0.12)


def test_a_regime_is_named_through_noise() -> None:
    chance = random.Random(1)
    noise = [chance.uniform(0.85, 1.4) for _ in range(5000)]
    for name in ("one sequence", "prompts", "one sequence over eight devices", "a small pool", "few places"):
        regime, built = BUILT[name]
        assert replace(built, noise=lambda step: noise[step]).diagnosed().regime == regime, name


def test_a_queue_alone_proves_nothing() -> None:
    """Sixty prompts wait for a place, and a larger batch would not be done sooner: the processor is full."""
    found = Built(
        Truth(operations_per_s=20e12), num_requests=60, prompts=(512,), answers=(60,),
        options={"max_seqs": 16, "max_step_tokens": 2048},
    ).diagnosed()  # fmt: skip
    assert found.regime == "compute"
    assert "requests wait for a place" in found.because


def test_ceilings_that_are_too_low_are_told() -> None:
    built = Built()
    slow = Built(Truth(bytes_per_s=1e12))
    found = slow.diagnosed(built.run())
    assert found.mbu is not None
    assert found.mbu > 1.0
    assert any("while others used it" in sentence for sentence in found.unknown)
    assert built.diagnosed().unknown == ()


def test_nothing_ran() -> None:
    built = Built()
    account = replace(built.run(), parts={"idle": 5.0}, classes={})
    found = built.diagnosed(account)
    assert found.regime is None
    assert "send requests" in found.because
