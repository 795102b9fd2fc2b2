"""Which ways there are: what fits, what divides, what the device computes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.perf.plan.problems import DEVICE, PAIR, candidates, decoder
from tokenmill.perf.costs import Layout, formats_named, kv_bytes_per_token, reserved_bytes, weight_bytes
from tokenmill.perf.hardware import Hardware, find
from tokenmill.perf.plan.candidates import (
    MEMORY_SHARE,
    families,
    layouts_of,
    node_size,
    precisions_of,
)
from tokenmill.perf.shape import Experts, Layers, ModelShape
from tokenmill.perf.terms import Deployment

TOKENS, STEP = 1000, 512


def needed(sequences: int) -> float:
    """Memory of a device that holds the model and so many sequences, with nothing to spare."""
    formats = formats_named("bf16")
    reserved = reserved_bytes(decoder(), formats, Layout(), STEP)
    kv = kv_bytes_per_token(decoder(), formats) * TOKENS * sequences
    return (weight_bytes(decoder(), formats) + kv + reserved) / MEMORY_SHARE


@pytest.mark.parametrize("sequences", [1, 2, 13])
def test_a_sequence_fits_from_its_last_byte_on(sequences: int) -> None:
    for spare, fits in ((1000.0, sequences), (-1000.0, sequences - 1)):
        device = replace(DEVICE, memory_bytes=needed(sequences) + spare)
        deployment = Deployment(decoder(), formats_named("bf16"), Layout(), device)
        found = replace(candidates()[0], deployment=deployment, _known={})
        assert found.places(TOKENS, STEP) == fits


def test_what_does_not_fit_says_why() -> None:
    small = replace(DEVICE, memory_bytes=10e9)
    (family,) = families(decoder(), [small], ("bf16",), None, (TOKENS, STEP))
    assert not family.candidates
    assert "13.5 GB of weights on each device of 9.0 GB usable" in family.refused[0][1]
    tight = replace(DEVICE, memory_bytes=needed(1) - 1000)
    (family,) = families(decoder(), [tight], ("bf16",), None, (TOKENS, STEP))
    assert "no room for one sequence" in family.refused[0][1]


def test_layouts_stay_where_messages_are_quick() -> None:
    assert list(layouts_of(decoder(), DEVICE)) == [Layout()]  # nothing joins it to another
    assert node_size(PAIR) == 2
    found = list(layouts_of(decoder(), PAIR))
    assert Layout(tp=2) in found
    assert Layout(pp=2) in found
    assert Layout(tp=2, pp=4) in found  # stages on four nodes
    assert Layout(tp=4) not in found
    assert Layout(tp=1, pp=4) not in found  # half a node each


def test_experts_spread_over_devices_with_attention_in_groups() -> None:
    dense = decoder()
    experts = ModelShape("moe", 4096, 32000, (Layers(32, dense.layers[0].mixer, Experts(8, 2, 4096)),))
    found = set(layouts_of(experts, PAIR))
    assert {Layout(tp=2, ep=2), Layout(dp=2, ep=2)} <= found
    assert not any(one.ep > 1 for one in layouts_of(dense, PAIR))


def test_what_heads_cannot_be_cut_into_is_refused_by_name() -> None:
    shape = ModelShape("odd", 4096, 32000, (replace(decoder(kv_heads=8).layers[0], count=2),))
    device = replace(PAIR, link=replace(PAIR.link, domain=32), devices_per_node=32)  # type: ignore[type-var]
    (family,) = families(decoder(kv_heads=32), [device], ("bf16",), None, (TOKENS, STEP))
    assert {one.layout.tp for one in family.candidates} == {1, 2, 4, 8, 16, 32}
    three = replace(shape, layers=(replace(shape.layers[0], mixer=replace(shape.layers[0].mixer, num_heads=12)),))  # type: ignore[type-var]
    (family,) = families(three, [device], ("bf16",), None, (TOKENS, STEP))
    assert any("does not divide the 12 query heads" in reason for _, reason in family.refused)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("H100", ("bf16", "fp8", "int4")),
        ("A100", ("bf16", "int8", "int4")),
        ("B200", ("bf16", "fp8", "nvfp4")),
        ("MI355X", ("bf16", "fp8", "mxfp4")),
        ("V100", ("bf16", "int8wo", "int4")),
    ],
)
def test_precisions_are_those_of_the_device(device: str, expected: tuple[str, ...]) -> None:
    assert precisions_of(decoder(), find(device)) == expected


def test_a_narrow_checkpoint_is_not_widened() -> None:
    h100: Hardware = find("H100")
    assert precisions_of(replace(decoder(), quantization="fp8"), h100) == ("fp8", "int4")
    assert precisions_of(replace(decoder(), quantization="awq"), h100) == ("int4",)
