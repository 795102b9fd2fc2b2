"""The embedding kernel gives the very rows that the table, or the packed output matrix, stores."""

from __future__ import annotations

import pytest
import torch

from tests.numeric.cpu_support import each_isa, pool, run
from tokenmill.kernels.cpu.packing import PackedMatrix
from tokenmill.kernels.cpu.records import EmbeddingArgs, WeightFormat

VOCAB, SIZE = 150, 192
IDS = [149, 0, 64, 63, 64, 127, 128]


@each_isa
@pytest.mark.parametrize("group", [32, 96])
@pytest.mark.parametrize("format", list(WeightFormat), ids=lambda format: format.name)
def test_rows_of_a_packed_matrix(isa: str, format: WeightFormat, group: int) -> None:
    matrix = PackedMatrix.allocate(format, VOCAB, SIZE, group)
    matrix.write_rows(0, torch.randn(VOCAB, SIZE, generator=torch.Generator().manual_seed(0)))
    out = torch.full((len(IDS), SIZE), float("nan"))
    run(pool(isa), "embedding", EmbeddingArgs(packed=matrix.record(), out=out.data_ptr(), size=SIZE), token_ids=IDS)
    assert torch.equal(out, matrix.dequantize()[IDS])


@each_isa
def test_rows_of_a_table(isa: str) -> None:
    size = SIZE + 3
    table = torch.randn(VOCAB, size, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = torch.full((len(IDS), size), float("nan"))
    run(pool(isa), "embedding", EmbeddingArgs(table=table.data_ptr(), out=out.data_ptr(), size=size), token_ids=IDS)
    assert torch.equal(out, table[IDS].float())
