"""Published measurements whose bottleneck is known: the fitted model names it, on devices of the catalogue.

The figures are facts of ``../shared/data/perf/published_perf.csv``; each test says which.
"""

from __future__ import annotations

import pytest

from tokenmill.engine.telemetry import StepAccount, StepClass
from tokenmill.perf.calibrate import Calibration
from tokenmill.perf.costs import Layout, formats_named, largest_batch_of
from tokenmill.perf.diagnose import Case, Diagnosis, Limits, diagnose
from tokenmill.perf.hardware import find
from tokenmill.perf.models import find_model
from tokenmill.perf.terms import LAUNCH, NAMES, Deployment


def decoding(seconds: float, batch: float, context: float, **more: float) -> StepAccount:
    """A thousand equal steps; the host's share is not known."""
    each = StepClass(1000, 1000 * seconds, 1000 * batch, 1000 * batch * context, 0, 0, 0, 1000 * batch)
    waiting = more.get("waiting", 0.0)
    blocked = {"kv_blocks": 1000 * seconds} if waiting else {}
    return StepAccount({"model": 1000 * seconds}, {0: each}, blocked, waiting * 1000 * seconds)


def serving(tokens_per_s: float, batch: float, input_len: float, output_len: float, waiting: float) -> StepAccount:
    """Steady flow: each step gives ``batch`` tokens and takes in the prompts of those that end."""
    step_s = batch / tokens_per_s
    prompts = batch / output_len
    each = StepClass(
        1000, 1000 * step_s, 1000 * batch, 1000 * batch * (input_len + output_len / 2), 1000 * prompts,
        1000 * prompts * input_len, 0, 1000 * (batch + prompts),
    )  # fmt: skip
    seconds = 1000 * step_s
    return StepAccount({"model": seconds}, {0: each}, {"kv_blocks": seconds} if waiting else {}, waiting * seconds)


def deployed(model: str, hardware: str, precision: str = "bf16", kv: str | None = None, **layout: int) -> Deployment:
    return Deployment(find_model(model), formats_named(precision, kv), Layout(**layout), find(hardware))


def found(account: StepAccount, deployment: Deployment, limits: Limits | None = None) -> Diagnosis:
    return diagnose(Case(account, deployment, limits or Limits(), engine="somebody's"), Calibration())


def test_llama_70b_on_one_h100_is_held_by_its_memory() -> None:
    """70 GB of FP8 weights on 80 GB: few sequences of 2,048 + 128 tokens fit, and thousands wait."""
    deployment = deployed("Llama-3.1-70B", "H100-SXM-80GB", "fp8")
    batch = largest_batch_of(deployment.shape, deployment.formats, deployment.layout, 2112, 80e9, 3e9)
    assert 0 < batch < 40
    result = found(decoding(0.030, batch, 2112, waiting=1000), deployment)
    assert result.regime == "memory capacity"
    assert any("tensor-parallel" in change.option for change in result.changes)


@pytest.mark.parametrize(
    ("model", "tokens_per_s"), [("Llama-2-7B", 328.43), ("Llama-3.1-8B", 276.01)], ids=["7B", "8B"]
)
def test_eight_devices_for_one_small_sequence_wait_for_messages_and_launches(model: str, tokens_per_s: float) -> None:
    """gpt-fast on eight A100 80 GB, batch 1, five tokens of prompt and 200 of answer."""
    result = found(decoding(1 / tokens_per_s, 1, 105), deployed(model, "A100-SXM-80GB", tp=8))
    assert result.regime in ("interconnect latency", "host overhead")
    assert result.bounds["memory bandwidth"] < 0.5 * result.wall_s


def test_one_device_for_one_sequence_waits_for_its_memory() -> None:
    """gpt-fast on one A100 80 GB, Llama-2-7B in bf16: 104.9 tokens a second."""
    result = found(decoding(1 / 104.9, 1, 105), deployed("Llama-2-7B", "A100-SXM-80GB"))
    assert result.regime == "memory bandwidth"
    assert result.mbu == pytest.approx(0.66, abs=0.05)


def test_short_requests_at_the_largest_batch_are_held_by_compute() -> None:
    """TensorRT-LLM 0.17, Llama 3.1 70B in FP8 on four H100, 128 + 128 tokens, all queued at once: 11,128 tokens/s."""
    result = found(
        serving(11_127.53, 1024, 128, 128, waiting=500), deployed("Llama-3.1-70B", "H100-SXM-80GB", "fp8", tp=4)
    )
    assert result.regime == "compute"
    assert "requests wait" in result.because, "a queue stands, and is not what holds it back"


def test_prompts_over_pcie_are_held_by_the_link() -> None:
    """Llama 3.1 70B in FP4 on eight RTX PRO 6000, joined by PCIe alone: prompts of 2,048 tokens.

    By hand: 2 * 70.6e9 * 2048 / 8 operations at half of the peak; 160 messages of 2048 * 8192 * 2 bytes, of which each
    device sends 2 * 7/8, at 70 % of the link.
    """
    deployment = deployed("Llama-3.1-70B", "RTX-PRO-6000-96GB", "nvfp4", tp=8)
    peak = deployment.hardware.peak("fp4")
    seconds = 2 * 70.6e9 * 2048 / 8 / (0.5 * peak) + 160 * 2 * 7 / 8 * 2048 * 8192 * 2 / (0.7 * 64e9)
    each = StepClass(100, 100 * seconds, 0, 0, 100, 100 * 2048, 0, 100)
    result = found(StepAccount({"model": 100 * seconds}, {0: each}), deployment)
    assert result.regime == "interconnect bandwidth"
    assert result.elasticities["interconnect bandwidth"]["step_s"] < -0.3


def test_launches_from_an_eager_host_are_named_and_capturing_is_advised() -> None:
    """Qwen3-8B on an H100 without graphs: 36 layers whose launches take the host 32 µs each."""
    deployment = deployed("Qwen3-8B", "H100-SXM-80GB", "fp8")
    memory_s = 8.2e9 / 3.35e12
    account = decoding(memory_s + 36 * 12 * 20e-6, 1, 500)
    prior = Calibration(tuple(20.0 if index == LAUNCH else 1.0 for index in range(len(NAMES))))
    result = diagnose(Case(account, deployment, Limits(eager=True), engine="somebody's"), prior)
    assert result.regime == "host overhead"
    assert result.changes[0].option.startswith("capture")
    assert result.changes[0].after == pytest.approx(memory_s, rel=0.6)
