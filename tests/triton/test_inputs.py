"""A step's inputs: what the host tells, and what arrives."""

from __future__ import annotations

from array import array

import pytest
import torch

from tokenmill.core.params import SamplingParams
from tokenmill.runtime.sampling import SampledSequence
from tokenmill.runtime.table import UNKNOWN, Row, TableEntry

pytest.importorskip("triton", reason="needs triton: pip install 'tokenmill[gpu]'")

BLOCK = 4


def entry(slot: int, token_ids: list[int], block_ids: list[int]) -> TableEntry:
    sampling = SampledSequence(token_ids, len(token_ids), SamplingParams(), 0, frozenset(), 100)
    return TableEntry(token_ids, array("i", block_ids), sampling, slot=slot)


def test_unknown_tokens_are_looked_up_and_tables_change(device: torch.device) -> None:
    from tokenmill.kernels.triton.inputs import take_in

    def ints(*values: int) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    token_ids, tables = ints(5, -3, 0, -1), torch.zeros((3, 4), dtype=torch.int32, device=device)
    take_in(token_ids, ints(70, 71, 72), ints(9, -1, 2), ints(40, 41, 42), tables)
    assert token_ids.tolist() == [5, 72, 0, 70]
    assert tables.tolist() == [[0, 0, 42, 0], [0] * 4, [0, 40, 0, 0]]


def test_rows_arrive_as_tokens_positions_and_cache_slots(device: torch.device) -> None:
    from tokenmill.runtime.gpu.inputs import DeviceInputs

    inputs = DeviceInputs(max_tokens=16, max_outputs=4, max_seqs=3, max_blocks=4, block_size=BLOCK, device=device)
    last = torch.tensor([0, 0, 33], dtype=torch.int32, device=device)
    prompt = entry(1, [10, 11, 12, 13, 14, 15], [7, 3])
    going = entry(2, [20, 21, 22, 23, UNKNOWN], [5, 9])
    rows = [Row(0, prompt, 2, 6), Row(1, going, 4, 5)]
    layout = inputs.send(rows, [3, 4], num_tokens=8, num_outputs=4, room=2)  # 4 changes: two launches
    parts = inputs.parts(layout)
    inputs.apply(parts, last)
    assert parts.token_ids.tolist() == [12, 13, 14, 15, 33, 0, 0, 0]
    assert parts.positions.tolist() == [2, 3, 4, 5, 4, 0, 0, 0]
    assert parts.slots.tolist() == [7 * 4 + 2, 7 * 4 + 3, 3 * 4, 3 * 4 + 1, 9 * 4, -1, -1, -1]
    assert parts.outputs.tolist() == [3, 4, 0, 0]
    assert inputs.tables.tolist() == [[0] * 4, [7, 3, 0, 0], [5, 9, 0, 0]]

    going.token_ids[4:] = [33, UNKNOWN]
    going.block_ids[1:] = array("i", [2])  # the shared tail became a copy
    going.num_shown = 1
    parts = inputs.parts(layout := inputs.send([Row(1, going, 5, 6)], [0], num_tokens=1, num_outputs=1, room=1))
    inputs.apply(parts, last)
    assert (parts.token_ids.tolist(), parts.slots.tolist()) == ([33], [2 * 4 + 1])
    assert inputs.tables[2].tolist() == [5, 2, 0, 0]
    again = inputs.parts(inputs.send([Row(1, going, 5, 6)], [0], num_tokens=1, num_outputs=1, room=1))
    assert again.token_ids.data_ptr() == parts.token_ids.data_ptr(), "a captured graph knows the address"


def test_stagings_take_turns(device: torch.device) -> None:
    """Many steps sent before any is looked at: each arrives as it was, in order."""
    from tokenmill.runtime.gpu.inputs import DeviceInputs

    inputs = DeviceInputs(max_tokens=16, max_outputs=4, max_seqs=3, max_blocks=4, block_size=BLOCK, device=device)
    sequence, seen = entry(0, list(range(12)), [1, 2, 3]), []
    for position in range(12):
        layout = inputs.send([Row(0, sequence, position, position + 1)], [0], 1, 1, 1)
        seen.append(inputs.parts(layout).token_ids.clone())
    assert [int(token) for token in seen] == list(range(12))
