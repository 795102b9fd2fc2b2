"""Cases from files: a journal's plans and results, and a result of ``bench step``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from tokenmill.core.errors import SetupError
from tokenmill.core.events import StepEvents
from tokenmill.core.model_config import ModelConfig
from tokenmill.core.precision import Precision
from tokenmill.core.step import StepPlan, StepResult
from tokenmill.engine.telemetry import StepAccount, StepClass, Telemetry
from tokenmill.perf.costs import kv_bytes_per_token
from tokenmill.perf.diagnose.case import Case, Limits, deployment_of
from tokenmill.perf.hardware import Hardware

JOURNAL_UNKNOWN = (
    "a journal keeps each step's seconds, not the time between steps: host scheduling, text and idle time are not in "
    "it, nor who waited (diagnose the running server for these)"
)
RESULT_UNKNOWN = "bench step decodes without text, network or a queue: these are not in it"


def case_of_journal(
    header: Mapping[str, Any],
    records: Iterable[StepPlan | StepResult],
    config: ModelConfig,
    hardware: Hardware,
) -> Case:
    """Every step of a journal (``engine/journal.py``) on ``hardware``.

    Raises:
        SetupError: there is no result in it.
    """
    telemetry, now, plans = Telemetry(), 0.0, {}
    for record in records:
        if isinstance(record, StepPlan):
            plans[record.step_id] = record
            continue
        plan = plans.pop(record.step_id)
        telemetry.began(now)
        telemetry.planned(None, 0)
        now += record.seconds
        telemetry.ended(plan, record, StepEvents(), now, 0, more=True)
    account = telemetry.account(now)
    if account.num_steps == 0:
        raise SetupError(
            "the journal holds no finished step: serve with --journal, send requests, and diagnose it then"
        )
    limits = Limits(
        max_seqs=header.get("max_seqs"),
        max_step_tokens=header.get("max_step_tokens"),
        num_blocks=header.get("num_blocks"),
        block_size=header.get("block_size"),
    )
    precision = precision_of(header)
    deployment = deployment_of(config, str(header.get("model", "")), precision, hardware)
    return Case(account, deployment, limits, precision, unknown=(JOURNAL_UNKNOWN,))


def precision_of(header: Mapping[str, Any]) -> Precision:
    """Of a journal's header (``launch.journal_header``)."""
    if header.get("kernels") == "reference":
        dtype = str(header.get("dtype", "float32"))
        return Precision("reference", dtype, dtype, dtype)
    try:
        names = (header["weights"], header["lm_head"], header["kv"])
        return Precision("fast", *names, header.get("group_size"), bool(header.get("weight_only")))
    except KeyError as error:
        raise SetupError(f"the journal's header lacks {error}: it was written by another version") from error


def case_of_step_result(
    result: Mapping[str, Any], config: ModelConfig, hardware: Hardware, batch: int | None = None
) -> Case:
    """One batch of a ``bench step`` result, the first if ``batch`` is None.

    The bandwidth is the result's own, measured in the same run; peaks are those of ``hardware``.

    Raises:
        SetupError: the batch is not in it, or a field is missing.
    """
    try:
        rows = {int(row["batch"]): row for row in result["batches"]}
        chosen = rows.get(batch) if batch is not None else next(iter(rows.values()))
        if chosen is None:
            raise SetupError(f"no batch of {batch} in this result; there are {', '.join(map(str, rows))}")
        precision = _precision_named(str(result["precision"]))
        device = replace(hardware, memory_bytes_per_s=float(result["bandwidth_gigabytes_per_s"]) * 1e9)
        deployment = deployment_of(config, str(result["model"]), precision, device)
        position_bytes = kv_bytes_per_token(deployment.shape, deployment.formats)
        account = _account_of(chosen, float(result["weights_bytes"]), position_bytes)
    except (KeyError, TypeError, ValueError, StopIteration) as error:
        raise SetupError(f"not a result of bench step that this version knows: {error!r}") from error
    return Case(account, deployment, Limits(), precision, unknown=(RESULT_UNKNOWN,))


def _account_of(row: Mapping[str, Any], weights_bytes: float, position_bytes: float) -> StepAccount:
    """One average step."""
    wall_s, host_s = row["milliseconds"] / 1e3, row["host_microseconds"] / 1e6
    kernels_s = max(wall_s - host_s, 0.0)
    batch = float(row["batch"])
    positions = max(row["gigabytes_per_s"] * 1e9 * wall_s - weights_bytes, 0.0) / position_bytes
    kernels = {name: share * kernels_s for name, share in row["kernel_share"].items()}
    sampling = kernels.get("choose", 0.0)
    parts = {"model": kernels_s - sampling, "sampling": sampling, "scheduling": wall_s - kernels_s}
    each = StepClass(1.0, kernels_s, batch, positions, 0.0, 0.0, 0.0, batch)
    return StepAccount(parts=parts, classes={0: each}, kernels=kernels)


def _precision_named(text: str) -> Precision:
    """The inverse of ``str(Precision)`` for the fast kernels.

    >>> str(_precision_named("int4 weights, output matrix int8, bf16 KV"))
    'int4 weights, output matrix int8, bf16 KV'
    """
    found = re.fullmatch(r"(\w+) weights(?:, output matrix (\w+))?(, bf16 activations)?, (\w+) KV", text)
    if found is None:
        raise ValueError(f"precision {text!r}")
    weights, head, beside, kv = found.groups()
    return Precision("fast", weights, head or weights, kv, weight_only=bool(beside))
