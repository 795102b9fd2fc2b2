"""The options that name the server under load, for every command that loads one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def with_target(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--url``, ``--model``, ``--api-key`` and ``--endpoint``."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_OPTIONS = (
    click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server's address."),
    click.option("--model", help="Which of its models; the first if not given."),
    click.option("--api-key", envvar="TOKENMILL_API_KEY", help="Its key; or set TOKENMILL_API_KEY."),
    click.option(
        "--endpoint",
        default="completions",
        show_default=True,
        type=click.Choice(("completions", "chat")),
        help="Which of the server's interfaces is asked.",
    ),
)
