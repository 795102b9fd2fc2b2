"""Options of the command line, made from the configuration records: a field is an option, its default the default.

The records' docstrings cannot be read at run time, so the help texts stand here, one per field; a test keeps
the tables and the records equal. An option that was not given is not passed on: the record's default holds.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields
from functools import wraps
from typing import Any, Literal

import click

from tokenmill.core.engine_config import CacheConfig, EngineConfig, ModelSource, SchedulerConfig
from tokenmill.core.params import SamplingParams

Command = Callable[..., Any]

ENGINE_HELP: Mapping[str, str] = {
    "device": "What computes: cpu, or a GPU (cuda); auto: a GPU if there is one that can serve the model.",
    "kernels": "fast: made for the device; reference: plain PyTorch on the CPU; auto: fast where it can be had.",
    "weights": "How the fast kernels hold weights, quantised on loading; auto: int8 on a CPU, bf16 on a GPU.",
    "lm_head": "The same for the output matrix; auto: bf16 on a GPU and beside bf16 weights, else int8.",
    "group_size": "Inputs that share a scale in quantised weights; if not given, 128, 64 or 32, what divides.",
    "weight_only": "Multiply quantised weights with activations in bf16: closer to the checkpoint, and slower.",
    "keep_packed": "Keep packed weights in a file beside the checkpoint, for the next start.",
    "random_weights": "Draw the weights instead of reading them: speed and memory from config.json alone, no sense.",
    "dtype": "Precision of the reference kernels; given, it chooses them; auto: float32.",
    "served_name": "The id that clients use; the model's own name if not given.",
    "max_context": "Longest prompt + answer in tokens; if not given, the model's, as far as the KV pool holds it.",
    "num_threads": "Threads of one operation; one per core if not given.",
    "block_size": "Token positions per KV block.",
    "num_blocks": "Blocks in the KV pool; if not given, from --kv-memory-bytes.",
    "kv_memory_bytes": "Memory for KV blocks (4GB, 512MiB); if not given, from what the machine has free.",
    "prefix_caching": "Reuse computed blocks for equal prefixes.",
    "kv": "How the fast kernels hold keys and values; auto: bf16; in 8 bits: int8 on a CPU, fp8 on a GPU.",
    "max_seqs": "Most sequences in a step; on a GPU 256 if not given.",
    "max_step_tokens": "Most tokens computed in a step; longer prompts in chunks; on a GPU 8192 if not given.",
    "policy": "Who runs next.",
    "batching": "When sequences may join the batch.",
    "batch_wait_s": "Dynamic batching: seconds to wait for a full batch.",
    "preemption": "What happens to a running sequence whose blocks are needed.",
    "itl_slo_s": "Cut prompt chunks so that a step stays under this many seconds.",
    "tenant_weights": "Fair share: NAME=WEIGHT, may be repeated.",
    "depth": "Steps in flight: 2 plans one step ahead, as a GPU does if not given.",
    "journal": "Write every plan and result to this file (tokenmill replay reads it).",
    "ceilings": "What MFU and MBU are shares of: measure (at the start), none, a device, or a probe's file.",
}

SAMPLING_HELP: Mapping[str, str] = {
    "n": "Choices to return.",
    "best_of": "Choices to draw, of which the likeliest are returned.",
    "max_tokens": "Most tokens to generate; if not given, until the context is full.",
    "min_tokens": "No end before this many tokens.",
    "temperature": "0 is greedy.",
    "top_k": "Keep the k likeliest tokens; 0 keeps all.",
    "top_p": "Keep the smallest set of likeliest tokens with this probability.",
    "min_p": "Keep tokens at least this many times as likely as the likeliest.",
    "typical_p": "Keep tokens of typical surprise, up to this probability.",
    "repetition_penalty": "Above 1 makes tokens of prompt and answer less likely.",
    "presence_penalty": "Subtracted from the logit of each token already generated.",
    "frequency_penalty": "Subtracted as often as the token occurred.",
    "stop": "End before this text; may be repeated.",
    "ignore_eos": "Go on after the model's end.",
    "seed": "Draw the same again with the same seed.",
    "deterministic": "On a GPU: the same tokens in any company, at a price; on a CPU that always holds.",
    "logprobs": "Report log-probabilities, and this many likeliest tokens.",
}

PIECES = (ModelSource, CacheConfig, SchedulerConfig, EngineConfig)


def engine_options(command: Command) -> Command:
    """Give ``command`` an argument MODEL and the engine's options; it is called with ``engine: EngineConfig``."""
    return click.argument("model", default=ModelSource().model, required=False)(_with_engine(command))


def engine_options_only(command: Command) -> Command:
    """The same with an option ``--model``, for commands whose argument is something else."""
    help_text = f"A folder, org/name on the hub, or a built-in model.  [default: {ModelSource().model}]"
    return click.option("--model", default=ModelSource().model, help=help_text)(_with_engine(command))


def _with_engine(command: Command) -> Command:
    names = [f.name for piece in PIECES for f in fields(piece) if f.name in ENGINE_HELP]

    @wraps(command)
    def with_engine(*args: Any, model: str, **values: Any) -> Any:
        options = given({name: values.pop(name) for name in names})
        if "tenant_weights" in options:
            options["tenant_weights"] = dict(options["tenant_weights"])
        return command(*args, engine=EngineConfig.from_options(model=model, **options), **values)

    decorated: Command = with_engine
    for piece in reversed(PIECES):
        decorated = record_options(piece, ENGINE_HELP)(decorated)
    return decorated


def sampling_options(command: Command) -> Command:
    """Give ``command`` the sampling options; it is called with ``sampling``: those that were given, by name."""

    @wraps(command)
    def with_sampling(*args: Any, **values: Any) -> Any:
        sampling = given({name: values.pop(name) for name in SAMPLING_HELP})
        return command(*args, sampling=sampling, **values)

    return record_options(SamplingParams, SAMPLING_HELP)(with_sampling)


def given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that stand on the command line: for the others the record's defaults hold."""
    return {name: value for name, value in options.items() if value is not None and value != ()}


def record_options(record: type, help_texts: Mapping[str, str]) -> Callable[[Command], Command]:
    """One option per field of ``record`` that ``help_texts`` names; None (or ``()``) where not given."""
    hints = typing.get_type_hints(record)

    def add(command: Command) -> Command:
        for field in reversed(fields(record)):
            if field.name in help_texts:
                command = _option(field, hints[field.name], help_texts[field.name])(command)
        return command

    return add


UNIT_BYTES = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip


def byte_size(text: str) -> int:
    """``4GB``, ``512 MiB`` or plain bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in UNIT_BYTES:
        raise click.BadParameter(f"{text!r} is not a size such as 4GB, 512MiB or 1000000")
    return int(float(match[1]) * UNIT_BYTES[match[2]])


def named_weight(text: str) -> tuple[str, float]:
    """``NAME=WEIGHT``."""
    name, _, weight = text.rpartition("=")
    try:
        return name, float(weight)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not of the form NAME=WEIGHT") from None


def _option(field: Field[Any], hint: Any, help_text: str) -> Callable[[Command], Command]:
    flag = field.name.replace("_", "-")
    attributes: dict[str, Any] = {"default": None, "help": help_text + _default_text(field)}
    hint = _without_none(hint)
    if hint is bool:
        return click.option(f"--{flag}/--no-{flag}", field.name, **attributes)
    if typing.get_origin(hint) is Literal:
        attributes["type"] = click.Choice(typing.get_args(hint))
    elif typing.get_origin(hint) is dict:
        attributes |= {"type": named_weight, "multiple": True, "metavar": "NAME=WEIGHT"}
    elif field.name.endswith("_bytes"):
        attributes |= {"type": byte_size, "metavar": "SIZE"}
    elif typing.get_origin(hint) is tuple:
        attributes |= {"type": str, "multiple": True}
    else:
        attributes["type"] = hint
    return click.option(f"--{flag}", field.name, **attributes)


def _without_none(hint: Any) -> Any:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


def _default_text(field: Field[Any]) -> str:
    if field.default is MISSING or field.default is None or field.default == ():
        return ""
    value = {True: "on", False: "off"}[field.default] if isinstance(field.default, bool) else field.default
    return f"  [default: {value}]"
