"""The roofline: limits of its formulas, what binds, how quick it is, and that the quick form is the exact one."""

from __future__ import annotations

import math
import random
import time

import pytest

from tokenmill.core.step import StepPlan
from tokenmill.perf.calibrate import Calibration, calibration_for
from tokenmill.perf.costs import Layout, Message, Work, formats_named
from tokenmill.perf.hardware import find
from tokenmill.perf.models import find_model, knows_model, model_names, normalise
from tokenmill.perf.roofline import (
    BOUNDS,
    Roofline,
    predict_step,
    seconds_of,
    shares_of,
    step_time,
    together,
)
from tokenmill.perf.terms import NAMES, Deployment, compact, message_seconds

PLAIN = Calibration()
H100 = find("h100_sxm")
CASES = (
    ("Llama-3.1-8B", Layout()),
    ("Llama-3.1-70B", Layout(tp=4, pp=2)),
    ("gpt-oss-120b", Layout(tp=4)),  # windows and experts
    ("DeepSeek-R1", Layout(dp=8, ep=8)),  # latent attention, messages to experts
    ("Qwen3.5-397B-A17B", Layout(tp=8, ep=8)),  # recurrent layers
    ("GLM-5", Layout(tp=8)),  # attention over an index
)


def plan_of(seed: int, rows: int, prompts: int) -> StepPlan:
    chance = random.Random(seed)
    starts = [chance.randrange(1, 6000) for _ in range(rows)]
    counts = [1] * rows
    for row in range(prompts):
        counts[row], starts[row] = chance.randrange(2, 900), chance.choice((0, 512))
    return StepPlan(0, tuple(range(rows)), tuple(starts), tuple(counts))


@pytest.mark.parametrize(("model", "layout"), CASES)
@pytest.mark.parametrize("prompts", [0, 1, 3])
def test_the_quick_form_is_the_exact_one(model: str, layout: Layout, prompts: int) -> None:
    shape, formats = find_model(model), formats_named("fp8")
    calibration = calibration_for(H100, "vllm", shape=shape, formats=formats)
    roofline = Roofline(Deployment(shape, formats, layout, H100), calibration)
    for seed in range(3):
        plan = plan_of(seed, 24, prompts)
        exact = predict_step(shape, formats, layout, H100, Work.of(plan), calibration)
        quick = roofline.predict(plan)
        assert math.isclose(quick.seconds, exact.seconds, rel_tol=1e-9)
        assert quick.bound == exact.bound


def test_a_prediction_takes_microseconds() -> None:
    roofline = Roofline(Deployment(find_model("Llama-3.1-8B"), formats_named("bf16"), Layout(), H100), PLAIN)
    plan = plan_of(1, 64, 0)
    roofline.predict(plan)
    best = math.inf
    for _ in range(20):
        begin = time.perf_counter()
        for _ in range(50):
            roofline.predict(plan)
        best = min(best, (time.perf_counter() - begin) / 50)
    assert best < 50e-6  # a few on a quiet machine


def test_parts_and_bounds_add_up_and_the_interval_holds_the_value() -> None:
    found = predict_step(
        find_model("Llama-3.1-70B"), formats_named("bf16"), Layout(tp=8), H100, Work.decode(32, 2000), PLAIN
    )
    assert math.isclose(sum(found.parts.values()), found.seconds, rel_tol=1e-12)
    assert math.isclose(sum(found.by_bound.values()), found.seconds, rel_tol=1e-12)
    assert set(found.by_bound) == set(BOUNDS)
    assert found.low_s < found.seconds < found.high_s
    assert found.by_bound[found.bound] == max(found.by_bound.values())


def test_decode_of_one_sequence_reads_the_weights_once() -> None:
    """140 GB of weights at 3.35 TB/s take 41.8 ms (golden numbers); a plain calibration adds little else."""
    shape = find_model("Llama-2-70b")
    found = predict_step(shape, formats_named("bf16"), Layout(), H100, Work.decode(1, 1), PLAIN)
    weights_s = (shape.num_parameters - shape.vocab_size * shape.hidden_size) * 2 / 3.35e12
    assert found.bound == "memory bandwidth"
    assert weights_s < found.seconds < 1.05 * weights_s


@pytest.mark.parametrize(
    ("work", "layout", "device", "bound"),
    [
        (Work.decode(1, 100), Layout(), "h100_sxm", "memory bandwidth"),
        (Work.prefill(8192), Layout(), "h100_sxm", "compute"),
        (Work.prefill(8192), Layout(tp=8), "L40S", "interconnect bandwidth"),
    ],
)
def test_what_binds(work: Work, layout: Layout, device: str, bound: str) -> None:
    found = predict_step(find_model("Llama-3.1-70B"), formats_named("bf16"), layout, find(device), work, PLAIN)
    assert found.bound == bound


def test_many_devices_for_a_small_model_wait_for_messages_or_the_host() -> None:
    found = predict_step(
        find_model("TinyLlama"), formats_named("fp8"), Layout(tp=4), find("b200_sxm"), Work.decode(1, 64), PLAIN
    )
    assert found.bound in ("interconnect latency", "host overhead")


def test_the_corner_is_rounded() -> None:
    assert together(1.0, 0.0) == 1.0
    assert together(0.0, 0.0) == 0.0
    assert together(1.0, 1.0) == pytest.approx(2**0.25)
    assert together(2.0, 1.0) == together(1.0, 2.0) == pytest.approx(17**0.25)


def test_shares_are_the_derivatives() -> None:
    terms = Deployment(find_model("Mixtral-8x7B"), formats_named("fp8"), Layout(tp=2), H100).terms(
        Work.decode(50, 900) + Work.prefill(700)
    )
    factors = [1.0 + 0.05 * index for index in range(len(NAMES))]
    shares, base = shares_of(terms, factors), seconds_of(terms, factors)
    assert math.isclose(sum(shares), base, rel_tol=1e-12)
    for index in range(len(NAMES)):
        moved = list(factors)
        moved[index] *= math.exp(1e-5)
        slope = (seconds_of(terms, moved) - base) / 1e-5
        assert slope == pytest.approx(shares[index], rel=1e-3, abs=1e-12)


def test_step_time_and_seconds_of_agree() -> None:
    terms = Deployment(find_model("DeepSeek-R1"), formats_named("fp8"), Layout(tp=8), H100).terms(Work.decode(64, 3000))
    calibration = Calibration(tuple(1.0 + 0.1 * index for index in range(len(NAMES))))
    assert math.isclose(step_time(terms, calibration).seconds, seconds_of(terms, calibration.factors), rel_tol=1e-12)


def test_equal_layers_are_counted_together_without_changing_the_sum() -> None:
    shape = find_model("gpt-oss-120b")
    assert len(compact(shape).layers) == 2
    assert compact(shape).num_parameters == shape.num_parameters


def test_small_messages_go_in_one_shot_and_large_ones_in_a_ring() -> None:
    small, _ = message_seconds(Message("all_reduce", 8, 16_384), H100)
    large, bandwidth = message_seconds(Message("all_reduce", 8, 1e9), H100)
    assert small < large
    assert bandwidth == pytest.approx(2 * 1e9 * 7 / 8 / 450e9)


def test_messages_beyond_the_fabric_pay_the_network() -> None:
    inside = message_seconds(Message("all_reduce", 8, 1e8), H100)
    outside = message_seconds(Message("all_reduce", 16, 1e8), H100)
    assert outside[1] > 3 * inside[1]


# ---- models by name ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", "Llama-3.1-70B"),
        ("LLaMA v3.1 70B", "Llama-3.1-70B"),
        ("llama2-70b-99.9", "Llama-2-70b"),
        ("Kimi-K2-Thinking (native int4)", "Kimi-K2"),
        ("GPT-OSS 120B", "gpt-oss-120b"),
    ],
)
def test_models_are_found_by_the_names_that_people_use(name: str, own: str) -> None:
    assert find_model(name).name == own


def test_an_unknown_model_is_not_guessed() -> None:
    assert not knows_model("Imaginary-12B")
    with pytest.raises(Exception, match=r"Imaginary-12B.*config\.json"):
        find_model("Imaginary-12B")


def test_the_catalogue_has_no_name_twice() -> None:
    keys = [normalise(name) for name in model_names()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("name", "billions", "active"),
    [
        ("DeepSeek-R1", 671.0, 37.6),
        ("gpt-oss-120b", 116.8, 5.7),
        ("Llama-3.1-405B", 405.9, 405.9),
        ("bloom-176b", 176.2, 176.2),
    ],
)
def test_parameters_of_the_catalogue(name: str, billions: float, active: float) -> None:
    shape = find_model(name)
    assert shape.num_parameters / 1e9 == pytest.approx(billions, rel=0.002)
    assert shape.active_parameters / 1e9 == pytest.approx(active, rel=0.005)
