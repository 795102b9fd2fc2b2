"""A model that answers as it is told to: for what depends on the text that a model writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from tests.server.service import CODEC_FOLDER, TimedExecutor
from tests.server.support import Running, running_server
from tokenmill.core.params import SamplingParams
from tokenmill.engine.text import TextCodec
from tokenmill.engine.text.checkpoint import read_folder
from tokenmill.testing.executor import _Outcome, _Sequence

Script = Callable[[str], str]
"""The prompt's text, special tokens included → the answer's."""


class ScriptedExecutor(TimedExecutor):
    """Writes what ``script`` says to its prompt, token by token, and then the end of the turn.

    Only the choice of the token is another: blocks, plans and steps are as ever.
    """

    def __init__(self, *arguments: Any, codec: TextCodec, script: Script, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.prompts: list[str] = []
        """Every prompt that it was given, in the order in which they were read to their ends."""
        self.params: list[SamplingParams] = []
        """And what was wished for each."""
        self._codec = codec
        self._script = script
        self._answers: dict[int, list[int]] = {}
        self._next = 0

    def _finish_row(self, outcome: _Outcome, seq_id: int, seq: _Sequence, start: int, count: int) -> None:
        if start + count == len(seq.token_ids):
            self._next = self._wanted(seq_id, seq)
        super()._finish_row(outcome, seq_id, seq, start, count)

    def _wanted(self, seq_id: int, seq: _Sequence) -> int:
        if seq_id not in self._answers:
            prompt = self._codec.decode(seq.token_ids[: seq.prompt_len], skip_special_tokens=False)
            self.prompts.append(prompt)
            self.params.append(seq.params)
            self._answers[seq_id] = self._codec.encode(self._script(prompt), add_special_tokens=False)
        answer, done = self._answers[seq_id], len(seq.token_ids) - seq.prompt_len
        return answer[done] if done < len(answer) else min(seq.stop_token_ids)

    def _draw(self, history: int, seed: int, stop_token_ids: tuple[int, ...], *, may_stop: bool) -> int:
        return self._next


@contextmanager
def scripted_server(
    script: Script, *, template: str | None = None, **options: Any
) -> Iterator[tuple[Running, ScriptedExecutor]]:
    """A server whose model writes what ``script`` says; ``template``: another chat template than the built-in one."""
    files = read_folder(CODEC_FOLDER)
    codec = TextCodec(files if template is None else replace(files, chat_templates={"default": template}))
    make = partial(ScriptedExecutor, codec=codec, script=script)
    with running_server(codec=codec, executor_class=make, **options) as running:
        assert isinstance(running.executor, ScriptedExecutor)
        yield running, running.executor
