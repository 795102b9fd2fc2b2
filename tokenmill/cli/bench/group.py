"""The table of measurements."""

from __future__ import annotations

import click

from tokenmill.cli.app import LazyGroup

MEASUREMENTS = {
    "serve": ("tokenmill.cli.bench.serve:serve", "Load on a running server, open or closed loop."),
    "overload": ("tokenmill.cli.bench.overload:overload", "What a server does with far more than it can."),
    "soak": ("tokenmill.cli.bench.soak:soak", "A server under load and chaos, and all that must hold."),
    "offline": ("tokenmill.cli.bench.offline:offline", "Tokens a second without a network, options side by side."),
    "scheduler": ("tokenmill.cli.bench.scheduler:scheduler", "Microseconds per step of the scheduler alone."),
    "peers": (
        "tokenmill.cli.bench.peers:peers",
        "Other engines on this machine, the same work, taking turns with ours.",
    ),
    "kernels": ("tokenmill.cli.bench.kernels:kernels", "Each CPU kernel's share of what this machine can do."),
    "start": ("tokenmill.cli.bench.start:start", "From the command to the first token, stage by stage."),
    "step": ("tokenmill.cli.bench.step:step", "Where a decoding step's time goes, kernel by kernel."),
    "gpu": ("tokenmill.cli.bench.gpu:gpu", "Everything on a GPU in ten minutes, and a score-card."),
    "quality": ("tokenmill.cli.bench.quality:quality", "What each precision costs, against the reference."),
    "grammar": ("tokenmill.cli.bench.grammar:grammar", "What structured output costs: compiling, and masks."),
    "kv-waste": ("tokenmill.cli.bench.kv_waste:kv_waste", "KV memory that holds nothing, on a trace of lengths."),
}


@click.group(cls=LazyGroup, table=MEASUREMENTS)
def bench() -> None:
    """Measure. --output FILE keeps a result with machine, versions and command."""
