"""``tokenmill replay``: carry out a journal's plans again and compare every result, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from tokenmill.cli.output import Loading, counting, print_json
from tokenmill.core.engine_config import EngineConfig

MAX_SHOWN = 10
HEADER_OPTIONS = (
    "model",
    "device",
    "kernels",
    "weights",
    "lm_head",
    "group_size",
    "weight_only",
    "kv",
    "dtype",
    "block_size",
    "num_blocks",
    "max_context",
    "max_seqs",
    "max_step_tokens",
)


@click.command()
@click.argument("journal", type=click.Path(path_type=Path))
@click.option("--model", help="Where the model is on this machine, if not where the journal says.")
@click.option("--num-threads", type=int, help="Threads of one operation; one per core if not given.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def replay(journal: Path, model: str | None, num_threads: int | None, as_json: bool) -> int:
    """Replay JOURNAL (serve --journal FILE writes one); exit code 1 if anything differs."""
    from tokenmill.core.step import StepPlan
    from tokenmill.engine.journal import read_header, read_records
    from tokenmill.engine.journal import replay as replay_on

    header = read_header(journal)
    options = {name: header[name] for name in HEADER_OPTIONS if name in header} | ({"model": model} if model else {})
    num_plans = sum(isinstance(record, StepPlan) for record in read_records(journal))
    with Loading() as progress:
        from tokenmill.launch import inspect, load_executor

        engine = EngineConfig.from_options(**options, num_threads=num_threads)
        executor, _ = load_executor(engine, inspect(engine, progress), progress)
    num_steps, num_tokens, found = 0, 0, []
    try:
        with counting("replaying", num_plans) as bar:
            for result, mismatches in replay_on(read_records(journal), executor):
                num_steps += 1
                num_tokens += sum(map(len, result.token_ids))
                found += mismatches
                bar.update(num_steps)
    finally:
        executor.close()
    _report(journal, num_steps, num_tokens, found, as_json)
    return 1 if found else 0


def _report(journal: Path, num_steps: int, num_tokens: int, found: list[Any], as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        mismatches = [asdict(mismatch) for mismatch in found]
        print_json({"journal": str(journal), "steps": num_steps, "tokens": num_tokens, "mismatches": mismatches})
        return
    verdict = f"{len(found)} differences" if found else "every bit equal"
    print(f"{num_steps} steps, {num_tokens} tokens: {verdict}")
    for one in found[:MAX_SHOWN]:
        print(f"  step {one.step_id}, sequence {one.seq_id}, {one.field}: was {one.recorded}, is {one.replayed}")
    if len(found) > MAX_SHOWN:
        print(f"  and {len(found) - MAX_SHOWN} more (--json shows all)")
