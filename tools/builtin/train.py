"""Train a built-in model: ``train.py --data DIR --out DIR --minutes N``.

The schedule is a function of time, not of steps: after a short warm-up the learning rates stay at their peak and
over the last part of ``--minutes`` they fall linearly to zero (warm-up, stable, decay).  So a run always ends
where it should, however busy the machine is.  Time counts only while training, summed over resumed runs.

Weight matrices of the layers are trained with Muon, everything else (embedding, norms) with AdamW.

``--out`` receives ``checkpoint.pt`` (everything needed to ``--resume``) every few minutes and at the end, and
``log.jsonl`` with one line about every twenty seconds.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Mix, validation_windows
from model import Qwen3
from optimizer import Muon
from presets import PRESETS, Preset
from tokenizer import END_OF_TEXT, load_tokenizer

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

LOG_SECONDS = 20.0
CHECKPOINT_SECONDS = 300.0
VALID_WINDOWS = 24
CPU_PASS_TOKENS = 4096  # per forward pass on a CPU: more would only fall out of its caches
GRADIENT_NORM = 1.0


def rate(progress: float, preset: Preset) -> float:
    """The factor on the peak learning rates after a share ``progress`` of the training time."""
    warm_up = progress / preset.warm_up
    decay = (1.0 - progress) / preset.decay
    return max(0.0, min(1.0, warm_up, decay))


def keep_freed_memory() -> None:
    """Have glibc keep large freed blocks for the next step instead of giving them back to the system.

    A training step frees and claims the same gigabytes again; clearing fresh pages costs a third of the time.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        trim_threshold, top_pad, mmap_max = -1, -2, -4  # from malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
        libc.mallopt(top_pad, 2**29)


def make_optimizers(model: Qwen3, preset: Preset) -> list[torch.optim.Optimizer]:
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        Muon(matrices, lr=preset.muon_lr, weight_decay=preset.weight_decay),
        torch.optim.AdamW(others, lr=preset.adamw_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


class Trainer:
    """One training run: model, optimizers, data and the clock."""

    def __init__(self, preset: Preset, data: Path, out: Path, seconds: float, seed: int, compiled: bool) -> None:
        torch.manual_seed(seed)
        self.preset, self.out, self.seconds = preset, out, seconds
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Qwen3(preset.model).to(self.device)
        self.optimizers = make_optimizers(self.model, preset)
        self.loss = torch.compile(self.model.loss, dynamic=False) if compiled else self.model.loss
        end_id = load_tokenizer(data / "tokenizer.json").token_to_id(END_OF_TEXT)
        self.mix = Mix(data, preset.mix, end_id, seed)
        self.valid = {
            name: validation_windows(np.load(data / f"{name}.npy"), preset.length)[:VALID_WINDOWS]
            for name in ("valid", "valid_stories")
        }
        self.step = self.tokens = 0
        self.elapsed = 0.0

    def autocast(self) -> Any:
        on_gpu = self.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext()

    def mean_loss(self, windows: np.ndarray, loss: LossFunction) -> torch.Tensor:
        batch = torch.from_numpy(windows).to(self.device)
        with self.autocast():
            return loss(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())

    def window_length(self) -> int:
        late = self.elapsed > self.preset.long_from * self.seconds
        turn = self.step % self.preset.long_every == 0
        return self.preset.long_length if late and turn else self.preset.length

    def train_step(self) -> float:
        """One update on ``tokens_per_step`` tokens, accumulated over passes that fit the machine."""
        factor = rate(self.elapsed / self.seconds, self.preset)
        for optimizer, peak in zip(self.optimizers, (self.preset.muon_lr, self.preset.adamw_lr), strict=True):
            optimizer.param_groups[0]["lr"] = peak * factor
        length = self.window_length()
        batch = self.mix.batch(self.preset.tokens_per_step // length, length)
        rows = len(batch) if self.device.type == "cuda" else CPU_PASS_TOKENS // length
        passes = [batch[i : i + rows] for i in range(0, len(batch), rows)]
        total = 0.0
        for part in passes:
            loss = self.mean_loss(part, self.loss) / len(passes)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), GRADIENT_NORM)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.shape[0] * length
        return total

    @torch.no_grad()
    def valid_loss(self, name: str) -> float:
        """Not compiled: a second compilation would take longer than these few windows."""
        windows = self.valid[name]
        rows = CPU_PASS_TOKENS // self.preset.length
        parts = [windows[i : i + rows] for i in range(0, len(windows), rows)]
        return float(np.mean([self.mean_loss(part, self.model.loss).item() for part in parts]))

    def save(self) -> None:
        state = {
            "preset": asdict(self.preset),
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "mix": self.mix.state(),
            "step": self.step,
            "tokens": self.tokens,
            "elapsed": self.elapsed,
        }
        unfinished = self.out / "checkpoint.tmp"
        torch.save(state, unfinished)
        os.replace(unfinished, self.out / "checkpoint.pt")

    def resume(self) -> None:
        state = torch.load(self.out / "checkpoint.pt", map_location=self.device, weights_only=False)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.mix.restore(state["mix"])
        self.step, self.tokens, self.elapsed = state["step"], state["tokens"], state["elapsed"]

    def log(self, losses: list[float], checked: bool) -> None:
        row = {
            "minutes": round(self.elapsed / 60, 2),
            "step": self.step,
            "tokens": self.tokens,
            "loss": round(float(np.mean(losses)), 4),
            "rate": round(rate(self.elapsed / self.seconds, self.preset), 3),
        }
        if checked:
            row |= {name: round(self.valid_loss(name), 4) for name in self.valid}
        print(json.dumps(row), flush=True)
        with (self.out / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(row) + "\n")

    def run(self) -> None:
        begun = time.monotonic() - self.elapsed
        last_log = last_save = self.elapsed
        losses: list[float] = []
        while self.elapsed < self.seconds:
            losses.append(self.train_step())
            self.elapsed = time.monotonic() - begun
            if self.elapsed - last_log > LOG_SECONDS:
                save_due = self.elapsed - last_save > CHECKPOINT_SECONDS
                self.log(losses, checked=save_due)
                last_log, losses = self.elapsed, []
                if save_due:
                    self.save()
                    last_save = self.elapsed
        self.log(losses, checked=True)
        self.save()


def parse_mix(text: str) -> dict[str, float]:
    """``books=0.5,chat=0.5`` as a dictionary."""
    return {name: float(weight) for name, weight in (part.split("=") for part in text.split(","))}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a built-in model.")
    parser.add_argument("--data", type=Path, required=True, help="folder written by data.py")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint.pt and log.jsonl")
    parser.add_argument("--minutes", type=float, required=True, help="training time, resumed runs included")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="story")
    parser.add_argument("--mix", type=parse_mix, help="weights of the sources, such as books=0.6,chat=0.4")
    parser.add_argument("--length", type=int, help="tokens per window, instead of the preset's")
    parser.add_argument("--resume", action="store_true", help="continue from checkpoint.pt in --out")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="CPU threads")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    preset = PRESETS[args.preset]
    preset = replace(preset, mix=args.mix or preset.mix, length=args.length or preset.length)
    args.out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(preset, args.data, args.out, args.minutes * 60, args.seed, args.compile)
    if args.resume:
        trainer.resume()
    trainer.run()


if __name__ == "__main__":
    main()
