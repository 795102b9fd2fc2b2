"""Routing and experts in plain PyTorch: against float64 and Hugging Face's own, and independent of company."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.numeric.ops_support import depends_on_company
from tokenmill.kernels import ops

SIZES = (1, 2, 3, 5, 7, 8, 12, 13, 17, 33, 64)
HIDDEN, INNER, EXPERTS, ACTIVE = 64, 40, 9, 3


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stacks() -> tuple[Tensor, Tensor]:
    return normal(EXPERTS, 2 * INNER, HIDDEN, seed=1) / 8, normal(EXPERTS, HIDDEN, INNER, seed=2) / 6


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("num_active", [1, 3, 9])
def test_route(num_active: int, normalize: bool) -> None:
    logits = normal(50, EXPERTS) * 3
    ids, weights = ops.route(logits, num_active, normalize=normalize)
    wanted, chosen = logits.double().softmax(-1).topk(num_active)
    if normalize:
        wanted = wanted / wanted.sum(-1, keepdim=True)
    assert (ids.dtype, weights.dtype) == (torch.int32, torch.float32)
    assert torch.equal(ids.long(), chosen)
    torch.testing.assert_close(weights.double(), wanted, rtol=1e-6, atol=1e-7)


def test_among_equals_the_lowest_id_is_chosen() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0], [0.0] * 5])
    assert ops.route(logits, 2, normalize=True)[0].tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_route_and_experts_are_hugging_faces(family: str) -> None:
    transformers = pytest.importorskip("transformers")
    module = getattr(__import__(f"transformers.models.{family}", fromlist=["x"]), f"modeling_{family}")
    name = {"qwen3_moe": "Qwen3Moe", "mixtral": "Mixtral"}[family]
    config = getattr(transformers, f"{name}Config")(
        hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=EXPERTS, num_experts_per_tok=ACTIVE,
        **({"moe_intermediate_size": INNER, "norm_topk_prob": True} if family == "qwen3_moe" else {}),
    )  # fmt: skip
    block = getattr(module, f"{name}SparseMoeBlock")(config).float().eval()
    gate_up, down = stacks()
    router, x = normal(EXPERTS, HIDDEN, seed=3), normal(20, HIDDEN, seed=4)
    block.gate.weight.data, block.experts.gate_up_proj.data, block.experts.down_proj.data = router, gate_up, down
    with torch.inference_mode():
        wanted = block(x.unsqueeze(0)).squeeze(0)
    found = ops.experts(x, *ops.route(ops.linear(x, router), ACTIVE, normalize=True), gate_up, down)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def moe(x: Tensor) -> Tensor:
    """Rows carry their router's logits with them."""
    x, logits = x.split([HIDDEN, EXPERTS], dim=1)
    return ops.experts(x, *ops.route(logits, ACTIVE, normalize=False), *stacks())


@pytest.mark.usefixtures("threads")
def test_rows_stand_alone() -> None:
    assert depends_on_company(moe, normal(64, HIDDEN + EXPERTS), SIZES) == []


def test_what_is_not_finite_stays_in_its_row() -> None:
    x = normal(20, HIDDEN + EXPERTS)
    clean = moe(x)
    x[3, 5], x[11, HIDDEN] = float("nan"), float("nan")
    found = moe(x)
    assert found[3].isnan().all() and found[11].isnan().any()
    others = [i for i in range(20) if i not in (3, 11)]
    assert torch.equal(found[others], clean[others])


def test_no_tokens() -> None:
    assert moe(torch.zeros(0, HIDDEN + EXPERTS)).shape == (0, HIDDEN)
