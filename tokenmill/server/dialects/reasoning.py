"""How models mark that they are thinking, before they answer."""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.server.dialects.lark import Terms
from tokenmill.server.dialects.reader import Parse, Reader


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Text between two markers at the beginning of an answer. Many templates write the first of them."""

    name: str
    opening: str
    closing: str
    signs: tuple[str, ...]
    """A chat template that holds one of these is of this kind."""

    def begun_by(self, prompt_end: str) -> bool:
        """Whether a prompt that ends like this has the model go on reasoning."""
        return prompt_end.rstrip().endswith(self.opening)

    def read(self, reader: Reader, *, begun: bool) -> Parse[None]:
        """Read the reasoning, if there is one, and no further."""
        if not begun:
            space: str = yield from reader.text_of(reader.spaces)
            if not (yield from reader.at(self.opening)):
                reader.sink.content(space)
                return
        sink = reader.sink
        sink.edge()
        sink.reasons = True
        if (yield from reader.until(sink.reasoning, self.closing)):
            sink.edge()
            sink.reasons = False
            sink.num_after_reasoning = reader.num_unread

    def rules(self, terms: Terms, *, begun: bool) -> list[str]:
        """``reasoned``: what the grammar lets stand before an answer."""
        thought = terms.up_to("thought", self.closing)
        if begun:
            return [*thought, r"reasoned: thought /\s{0,2}/"]
        return [*thought, rf"reasoned: ({terms.text(self.opening)} thought /\s{{0,2}}/)?"]


REASONINGS = (
    Reasoning("harmony", "<|channel|>analysis<|message|>", "<|end|><|start|>assistant", ("<|channel|>analysis",)),
    Reasoning("think", "<think>", "</think>", ("<think>", "</think>")),
    Reasoning("mistral", "[THINK]", "[/THINK]", ("[THINK]",)),
    Reasoning("command", "<|START_THINKING|>", "<|END_THINKING|>", ("<|START_THINKING|>",)),
    Reasoning("seed", "<seed:think>", "</seed:think>", ("<seed:think>",)),
    Reasoning("granite", "Here is my thought process:", "Here is my response:", ("Here is my thought process:",)),
)
"""In the order in which they are tried."""
