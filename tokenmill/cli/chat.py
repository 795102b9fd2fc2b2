"""``tokenmill chat``: a conversation in the terminal; with piped input, one turn a line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from tokenmill.cli.options import engine_options, sampling_options
from tokenmill.cli.output import Loading, note
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import ConfigError, RequestError
from tokenmill.core.params import SamplingParams

if TYPE_CHECKING:
    from tokenmill.llm import LLM

HELP = "/reset forgets the conversation, /quit (or Ctrl-D) leaves; Ctrl-C stops an answer"
Turn = dict[str, str]


@click.command()
@engine_options
@sampling_options
@click.option("--system", help="What the model is told first.")
def chat(engine: EngineConfig, sampling: dict[str, Any], system: str | None) -> None:
    """Talk to MODEL. /reset forgets the conversation, /quit leaves, Ctrl-C stops the answer only."""
    params = SamplingParams(**sampling)
    with Loading() as progress:
        from tokenmill.launch import build
        from tokenmill.llm import LLM

        launched = build(engine, progress)
    if not launched.checkpoint.codec.has_chat_template:
        raise ConfigError(f"{launched.checkpoint.name} has no chat template: tokenmill generate continues plain text")
    with LLM.over(launched) as llm:
        _converse(llm, params, [{"role": "system", "content": system}] if system else [])


def _converse(llm: LLM, params: SamplingParams, start: list[Turn]) -> None:
    interactive = sys.stdin.isatty()
    if interactive:
        note(HELP)
    history = list(start)
    for line in _lines(interactive):
        if line == "/quit":
            return
        if line == "/reset":
            history = list(start)
            note("(a new conversation)")
        elif line.startswith("/"):
            note(f"{line.split()[0]} is no command; {HELP}")
        elif line:
            history = _answer(llm, params, [*history, {"role": "user", "content": line}])


def _answer(llm: LLM, params: SamplingParams, history: list[Turn]) -> list[Turn]:
    """Print the answer as it comes; the history with it, or without the last turn if there was none."""
    said: list[str] = []
    try:
        with _stopped_by_ctrl_c() as stopped:
            outputs = llm.stream(history, params)
            for output in outputs:
                said.append(output.text)
                print(output.text, end="", flush=True)
                if stopped:
                    outputs.close()
                    break
    except RequestError as error:
        note(f"error: {error.message} (/reset starts anew)")
        return history[:-1]
    print(flush=True)
    return [*history, {"role": "assistant", "content": "".join(said)}]


def _lines(interactive: bool) -> Iterator[str]:
    """The user's turns, without the blanks around them."""
    if not interactive:
        yield from (line.strip() for line in sys.stdin)
        return
    import readline  # noqa: F401  (line editing and history for input())

    # Whoever started us may have had interrupts ignored (a background job); somebody at a terminal means them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    while True:
        try:
            yield input("> ").strip()
        except KeyboardInterrupt:
            note(f"\n({HELP})")
        except EOFError:
            print()
            return


@contextmanager
def _stopped_by_ctrl_c() -> Iterator[list[bool]]:
    """A list that fills when Ctrl-C is pressed; the step in progress ends first, so the engine stays whole."""
    pressed: list[bool] = []

    def press(signum: int, frame: FrameType | None) -> None:
        pressed.append(True)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)
