"""``tokenmill bench peers``: other engines on this machine, the same work, taking turns with ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tokenmill.cli.bench.report import finish
from tokenmill.cli.output import note

WIDTH = 150
"""Of the tables where there is no terminal."""
DISTURBED_NOTE = "other processes used more than 6 % of the machine in every repetition"

if TYPE_CHECKING:
    from tokenmill.bench.peers.environments import Environments, Peer


@click.command()
@click.option("--model", default="qwen3-0.6b", show_default=True, help="Whose shape: qwen3-0.6b or llama-3.2-1b.")
@click.option("--peer", "peers", multiple=True, help="Only this one; may be repeated. All if not given.")
@click.option("--task", "tasks", multiple=True, help="Only this one (decode_b8, serve, …); may be repeated.")
@click.option("--precision", "precisions", multiple=True, help="Only bf16, int8 or int4; may be repeated.")
@click.option("--repeat", default=3, show_default=True, type=click.IntRange(1), help="Turns of each engine at a task.")
@click.option("--kv", type=click.Choice(["bf16", "int8"]), help="Keys and values of our engine; its default else.")
@click.option("--threads", type=click.IntRange(1), help="Of every engine; one per core if not given.")
@click.option("--environments", type=click.Path(path_type=Path), help="Where peers and checkpoints are kept.")
@click.option("--install-only", is_flag=True, help="Install the peers and stop.")
@click.option("--skip-install", is_flag=True, help="Leave out peers that are not installed.")
@click.option("--output", type=click.Path(path_type=Path), help="Keep the result here; else results/peers-MODEL.json.")
@click.option("--add", is_flag=True, help="Keep what the output holds of tasks and precisions not measured now.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def peers(
    model: str,
    peers: tuple[str, ...],
    tasks: tuple[str, ...],
    precisions: tuple[str, ...],
    repeat: int,
    kv: str | None,
    threads: int | None,
    environments: Path | None,
    install_only: bool,
    skip_install: bool,
    output: Path | None,
    add: bool,
    as_json: bool,
) -> int:
    """Run the same work on other engines and on ours, in turns, and divide.

    Installs llama.cpp, OpenVINO, vLLM and transformers into environments of their own, makes a checkpoint of random
    weights at a real model's shape, and keeps the ratios. A peer that fails becomes a row with the reason.
    """
    from tokenmill.bench.machine import make_result, write_result
    from tokenmill.bench.peers.compare import PRECISIONS, Comparison, contenders
    from tokenmill.bench.peers.environments import DEFAULT_FOLDER, PEERS, Environments
    from tokenmill.bench.peers.shapes import MODELS, make_checkpoint
    from tokenmill.bench.peers.work import TASKS
    from tokenmill.launch import available_cores

    _check("--model", [model], MODELS)
    chosen = [PEERS[name] for name in _check("--peer", peers, PEERS)]
    chosen_tasks = [TASKS[name] for name in _check("--task", tasks, TASKS)]
    chosen_precisions = _check("--precision", precisions, PRECISIONS)
    home = Environments(environments or DEFAULT_FOLDER)
    failed = _install(home, chosen, skip_install and not install_only)
    if install_only:
        return 1 if failed else 0

    target = output or Path("results") / f"peers-{model}.json"
    threads = threads or available_cores()
    note(f"making the checkpoint {model}")
    engines = contenders(home, chosen, model, threads, {"kv": kv} if kv else {})
    comparison = Comparison(
        model=model,
        checkpoint=make_checkpoint(home.folder / "checkpoints" / model, MODELS[model]),
        config=MODELS[model],
        tasks=chosen_tasks,
        contenders=[engine for engine in engines if engine.precision in chosen_precisions],
        repeats=repeat,
        threads=threads,
        failed=failed,
        say=note,
        keep=lambda figures: write_result(target, make_result("peers", figures)),
        bandwidth=_bandwidth(threads),
        earlier=_rows_of(target, model) if add else (),
    )
    finish("peers", comparison.run(), target, as_json, _print)
    return 0


def _rows_of(path: Path, model: str) -> list[dict[str, Any]]:
    """The rows that a result file holds; none if it is not there."""
    import json

    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows: list[dict[str, Any]] = found["rows"]
        same = found["bench"] == "peers" and found["model"] == model
    except (ValueError, KeyError, TypeError) as error:
        raise click.UsageError(f"--add: {path} is no result of bench peers") from error
    if not same:
        raise click.UsageError(f"--add: {path} is no result of bench peers for {model}")
    return rows


def _bandwidth(threads: int) -> Callable[[], float] | None:
    """Measures bytes per second with our own kernels; its gigabyte is held during a measurement only."""
    from tokenmill.bench.kernels import Reader
    from tokenmill.kernels.cpu.build import NoCompiler
    from tokenmill.kernels.cpu.library import load

    try:
        library = load()
    except NoCompiler:
        return None
    return lambda: Reader(library, library.new_pool(threads)).bytes_per_s()


def _check(option: str, names: Sequence[str], known: Iterable[str]) -> Sequence[str]:
    """``names``, or all if there are none; refuses one that is not known."""
    known = list(known)
    for name in names:
        if name not in known:
            raise click.UsageError(f"{option} {name}: there are {', '.join(known)}")
    return names or known


def _install(home: Environments, peers: Sequence[Peer], skip: bool) -> dict[str, str]:
    """Peer → why it cannot take part."""
    from tokenmill.core.errors import SetupError

    failed = {}
    for peer in peers:
        if skip:
            if not home.is_installed(peer):
                failed[peer.name] = "not installed"
            continue
        try:
            home.install(peer, note)
        except SetupError as error:
            failed[peer.name] = error.message
            note(error.message)
    return failed


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from tokenmill.bench.peers.compare import pairs

    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    rows = result["rows"]
    ratios = Table(title=f"{result['model']}, {result['threads']} threads: our tokens per second over the best peer's")
    for name in ("work", "ours", "", "best peer", "", "ratio"):
        ratios.add_column(name, justify="right" if name in ("ours", "best peer", "ratio") else "left")
    found = result["ratios"][result["model"]]
    for name, (ours, best) in pairs(rows).items():
        ratio = f"{found[name]:.2f}" if name in found else "–"
        ratios.add_row(name, _rate(ours), _who(ours), _rate(best), _who(best), ratio)
    console.print(ratios)

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    table = Table(title="tokens per second of every engine")
    table.add_column("engine")
    for task in tasks:
        table.add_column(task, justify="right")
    for who in dict.fromkeys(_who(row) for row in rows):
        mine = {row["task"]: row for row in rows if _who(row) == who}
        table.add_row(who, *(_rate(mine.get(task)) for task in tasks))
    console.print(table)
    if any(row["disturbed"] for row in rows):
        console.print(f"* {DISTURBED_NOTE}")
    for who, reason in dict.fromkeys((_who(row), row["reason"]) for row in rows if row["reason"]):
        console.print(f"{who}: {reason}", soft_wrap=True, markup=False, highlight=False)


def _rate(row: dict[str, Any] | None) -> str:
    if row is None or row["tokens_per_s"] is None:
        return "–"
    return f"{row['tokens_per_s']:.1f}{'*' if row['disturbed'] else ''}"


def _who(row: dict[str, Any] | None) -> str:
    return "" if row is None else f"{row['engine']} {row['label']}"
