"""The entry point: finds the command, and turns every failure into one line and an exit code."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from tokenmill import __version__
from tokenmill.core.errors import TokenmillError

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called.

    ``table``: command name → (``module:attribute``, what it does in a line).
    """

    def __init__(self, *, table: Mapping[str, tuple[str, str]], **attributes: Any) -> None:
        super().__init__(**attributes)
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        module, _, attribute = self.table[cmd_name][0].partition(":")
        command = getattr(import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in self.table and not name.startswith("-"):
            near = difflib.get_close_matches(name, self.table, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(self.table)}"
            raise click.UsageError(f"no such command {name!r}; {known}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])


COMMANDS = {
    "serve": ("tokenmill.cli.serve:serve", "Serve a model through OpenAI's API."),
    "chat": ("tokenmill.cli.chat:chat", "Talk to a model in the terminal."),
    "generate": ("tokenmill.cli.generate:generate", "Continue a prompt, or a file of prompts."),
    "keys": ("tokenmill.cli.keys:keys", "Make, list and revoke the keys of a server's clients."),
    "batch": ("tokenmill.cli.batch:batch", "Answer a file of requests, as the server's batches do."),
    "info": ("tokenmill.cli.info:info", "What a checkpoint is, and every byte it needs."),
    "replay": ("tokenmill.cli.replay:replay", "Carry out a journal again and compare bit for bit."),
    "hardware": ("tokenmill.cli.hardware:hardware", "The hardware that predictions know."),
    "probe": ("tokenmill.cli.probe:probe", "Measure this machine, and write it as such hardware."),
    "calibrate": ("tokenmill.cli.calibrate:calibrate", "Learn an engine's factors from measurements."),
    "score": ("tokenmill.cli.score:score", "Predict published measurements; report the errors."),
    "diagnose": ("tokenmill.cli.diagnose:diagnose", "Where an engine's time goes, and what would help."),
    "bench": ("tokenmill.cli.bench:bench", "Measure a server or the scheduler."),
    "simulate": ("tokenmill.cli.simulate:simulate", "Serve a trace in virtual time, on any hardware."),
    "plan": ("tokenmill.cli.plan:plan", "The best deployment for a load and its limits."),
    "report": ("tokenmill.cli.report:report", "Draw results as a page of pictures and numbers."),
}


@click.group(cls=LazyGroup, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", message="tokenmill %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure, and log in detail.")
def tokenmill(debug: bool) -> None:
    """An LLM inference engine that knows how fast it should be, runs close to that, and can say why not."""
    if debug:
        import logging

        logging.basicConfig(level=logging.DEBUG)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line and exit with its code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Accepted anywhere, so that a failed command can be repeated with --debug at its end.
    debug = "--debug" in arguments
    arguments = [*(["--debug"] if debug else []), *(word for word in arguments if word != "--debug")]
    try:
        code = tokenmill.main(args=arguments, prog_name="tokenmill", standalone_mode=False)
    except click.UsageError as error:
        _fail(f"{error.format_message()} ({_command_of(error.ctx)} --help lists what there is)", MISUSED)
    except click.ClickException as error:
        _fail(error.format_message(), FAILED)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", INTERRUPTED)
    except BrokenPipeError:
        # The reader left (`| head`): nothing to tell it, and Python must not try again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(DONE)
    except TokenmillError as error:
        if debug:
            raise
        _fail(error.message, FAILED)
    except OSError as error:
        if debug:
            raise
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), FAILED)
    except Exception as error:
        if debug:
            raise
        _fail(f"{type(error).__name__}: {error} (this is a bug; --debug shows where)", FAILED)
    sys.exit(code if isinstance(code, int) else DONE)


def _command_of(ctx: click.Context | None) -> str:
    return ctx.command_path if ctx is not None else "tokenmill"


def _fail(message: str, code: int) -> None:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(code)
