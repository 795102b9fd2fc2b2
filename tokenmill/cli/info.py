"""``tokenmill info``: what a checkpoint is, and every byte it needs, foreseen and (``--load``) measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from tokenmill.cli.options import engine_options
from tokenmill.cli.output import Loading, print_json, print_table
from tokenmill.core.engine_config import EngineConfig
from tokenmill.perf.shape import shape_of

if TYPE_CHECKING:
    from tokenmill.launch import Checkpoint, Measured
    from tokenmill.perf.memory import Ledger


@click.command()
@engine_options
@click.option("--load", is_flag=True, help="Load it, and compare what it takes with what was foreseen.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def info(engine: EngineConfig, load: bool, as_json: bool) -> None:
    """Say what MODEL is and what it needs; reads no weights unless --load is given."""
    with Loading() as progress:
        from tokenmill.launch import build, inspect

        measured = None
        if load:
            launched = build(engine, progress)
            checkpoint, measured = launched.checkpoint, launched.measured
            launched.engine.close()
        else:
            checkpoint = inspect(engine, progress)
    comparison = _comparison(checkpoint.ledger, measured) if measured else None
    if as_json:
        report = {"model": _description(checkpoint), "memory": checkpoint.ledger.as_dict()}
        print_json(report | ({"measured": comparison} if comparison else {}))
        return
    print_table([(f"{name}:", value) for name, value in _description(checkpoint).items()])
    print()
    _print_ledger(checkpoint.ledger)
    if comparison:
        print()
        _print_comparison(comparison)


def _description(checkpoint: Checkpoint) -> dict[str, Any]:
    config, codec = checkpoint.config, checkpoint.codec
    windows = sorted({window for window in config.windows if window is not None})
    experts: dict[str, Any] = {}
    if (spec := config.experts) is not None:
        where = "" if not config.num_dense_layers else f", in {len(spec.layers)} layers"
        experts = {
            "parameters of a token": shape_of(config).active_parameters,
            "experts": f"{spec.num_experts}, {spec.num_active} of them for a token, of {spec.intermediate_size}{where}",
        }
    return {
        "name": checkpoint.name,
        "folder": str(checkpoint.path),
        "architecture": config.architecture,
        "parameters": config.num_parameters,
        **experts,
        "layers": config.num_layers,
        "hidden size": config.hidden_size,
        "heads": f"{config.num_heads} query, {config.num_kv_heads} key/value, of {config.head_dim}",
        "context": config.max_context,
        "sliding window": ", ".join(map(str, windows)) or "none",
        "embeddings": "tied" if config.tie_embeddings else "not tied",
        "checkpoint dtype": config.dtype or "not said",
        "quantization": config.quantization or "none",
        "vocabulary": f"{codec.vocab_size} tokens, {config.vocab_size} rows",
        "end tokens": ", ".join(map(str, sorted({*codec.eos_token_ids, *config.eos_token_ids}))) or "none",
        "chat template": "yes" if codec.has_chat_template else "no",
    }


def _print_ledger(ledger: Ledger) -> None:
    rows: list[tuple[object, ...]] = [("memory", "", "bytes", "formula")]
    rows += [(item.group, item.name, f"{item.num_bytes:,}", item.formula) for item in ledger.items]
    rows += [("total", "", f"{ledger.total_bytes:,}", ""), ("available", "", f"{ledger.available_bytes:,}", "")]
    print_table(rows, right=(2,))
    print(
        f"\nserves contexts of up to {ledger.max_context} tokens in {ledger.precision}, "
        f"{ledger.num_blocks} KV blocks of {ledger.block_size} tokens"
    )


def _comparison(ledger: Ledger, measured: Measured) -> dict[str, dict[str, int]]:
    """Foreseen and measured bytes: equal for weights and KV; the process's growth without the untouched KV pages."""
    foreseen = {
        "weights": ledger.group_bytes("weights"),
        "kv": ledger.group_bytes("kv"),
        "resident": ledger.group_bytes("weights") + ledger.group_bytes("workspace"),
    }
    taken = asdict(measured)
    return {
        name: {"foreseen_bytes": num_bytes, "measured_bytes": taken[f"{name}_bytes"]}
        for name, num_bytes in foreseen.items()
    }


def _print_comparison(comparison: dict[str, dict[str, int]]) -> None:
    rows: list[tuple[object, ...]] = [("loaded", "foreseen", "measured", "")]
    for name, pair in comparison.items():
        foreseen, measured = pair["foreseen_bytes"], pair["measured_bytes"]
        verdict = "equal" if foreseen == measured else f"{measured - foreseen:+,}"
        rows.append((name, f"{foreseen:,}", f"{measured:,}", verdict))
    print_table(rows, right=(1, 2, 3))
