"""From logits to tokens on the device: greedy, a plain draw, top-p, and penalties with it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from tokenmill.bench.gpu.case import Case, random, unit
from tokenmill.bench.gpu.place import Place
from tokenmill.bench.gpu.shapes import LLAMA_8B
from tokenmill.bench.gpu.timing import copies_for
from tokenmill.bench.gpu.unit import Context, Unit
from tokenmill.kernels.triton.sample import DeviceDraws, Scratch, sample

ROWS = (1, 64, 256)
TOY_ROWS = {"greedy": (3,), "temperature": (2,), "top-p": (1,), "top-p, penalties": (1,)}
KINDS = {
    "greedy": (0.0, 1.0, 1.0),
    "temperature": (1.0, 1.0, 1.0),
    "top-p": (0.7, 0.9, 1.0),
    "top-p, penalties": (0.7, 0.9, 1.1),
}
"""Temperature, top-p, repetition penalty."""


def units(place: Place) -> list[Unit]:
    return [
        unit(f"sample {kind}", f"{rows} rows", partial(_case, kind, rows))
        for kind in KINDS
        for rows in (TOY_ROWS[kind] if place.toy else ROWS)
    ]


def _case(kind: str, rows: int, context: Context) -> Case:
    temperature, top_p, repetition = KINDS[kind]
    vocab, device = context.shape(LLAMA_8B)["vocab_size"], context.place.device
    counted, penalised = rows if repetition != 1.0 else 0, repetition != 1.0
    every = torch.arange(rows)
    nowhere = torch.full((rows,), -1)
    integers = torch.stack([every + 1, every + 100, every, every if penalised else nowhere, torch.zeros_like(every)], 1)
    reals = torch.tensor([temperature, top_p, 0.0, repetition, 0.0, 0.0], dtype=torch.float64).repeat(rows, 1)
    draws = DeviceDraws(
        integers=integers.to(device),
        reals=reals.to(device),
        last_tokens=torch.zeros(rows, dtype=torch.int32, device=device),
        counts=torch.zeros(counted, vocab, dtype=torch.int32, device=device) if penalised else None,
        scratch=Scratch.allocate(rows, vocab, device),
        drawn=temperature > 0,
        filtered=top_p < 1,
    )
    num_bytes = rows * vocab * 4 * (2 if penalised else 1)
    count = copies_for(context.place, num_bytes)
    logits = [random(context, rows, vocab, dtype=torch.float32, std=4.0) for _ in range(count)]
    out = torch.full((rows,), -2, dtype=torch.int32, device=device)
    check = partial(_likeliest, logits[0], out) if kind == "greedy" else partial(_drawn, out)
    calls = [partial(sample, each, draws, out) for each in logits]
    return Case(calls, num_bytes, 4.0 * rows * vocab, "bf16", check, tolerance=0.0)


def _likeliest(logits: Tensor, out: Tensor) -> tuple[Tensor, Tensor]:
    return out, logits.argmax(1)


def _drawn(out: Tensor) -> tuple[Tensor, Tensor]:
    """That each row has a token; which, the tests ask."""
    return (out >= 0).float(), torch.ones(len(out), device=out.device)
