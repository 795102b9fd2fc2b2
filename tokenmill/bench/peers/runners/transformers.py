"""transformers: ``generate`` on static, left-padded batches; what a batch makes beyond the wanted does not count."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from tokenmill.bench.peers.protocol import Events, Prompts, Setup, serve

BATCH = 32
"""Most sequences in one call: more of them pad more than they share."""


class Transformers:
    packages = ("transformers", "torch")

    def prepare(self, model: Path, precision: str, folder: Path) -> None:
        """Nothing: it reads the checkpoint."""

    def load(self, setup: Setup) -> None:
        self._torch = import_module("torch")
        library = import_module("transformers")
        self._torch.set_num_threads(setup.threads)
        model = library.AutoModelForCausalLM.from_pretrained(
            setup.model, dtype=self._torch.bfloat16, attn_implementation="sdpa"
        )
        self._model = model.eval()

    def generate(self, prompts: Prompts, outputs: Sequence[int]) -> Events:
        events = Events()
        for begin in range(0, len(prompts), BATCH):
            self._batch(prompts[begin : begin + BATCH], outputs[begin : begin + BATCH], events)
        return events

    def _batch(self, prompts: Prompts, outputs: Sequence[int], events: Events) -> None:
        torch, longest, steps = self._torch, max(map(len, prompts)), 0
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])

        def note(ids: Any, scores: Any, **_: Any) -> Any:
            """Called once a step, as a stopping criterion that never stops."""
            nonlocal steps
            steps += 1
            events.add(sum(output >= steps for output in outputs))
            return torch.zeros(len(prompts), dtype=torch.bool)

        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=mask,
                min_new_tokens=max(outputs),
                max_new_tokens=max(outputs),
                do_sample=False,
                pad_token_id=0,
                stopping_criteria=[note],
            )


if __name__ == "__main__":
    serve(Transformers())
