"""Gathering what a diagnosis needs: from a running server, a journal, or a result file.

A server is asked twice, ``seconds`` apart, for its metrics and (if it is one of ours) for its steps; its gauges are
read once a second in between. Everything that follows is ``perf/diagnose``, which knows no network and no clock.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tokenmill.bench.http import Client, HttpFailure
from tokenmill.core.errors import ConfigError, SetupError
from tokenmill.engine.journal import FORMAT, read_header, read_records
from tokenmill.engine.telemetry import StepAccount
from tokenmill.perf.costs import Layout, formats_named
from tokenmill.perf.diagnose import (
    Case,
    Diagnosis,
    Limits,
    case_from_json,
    case_of_journal,
    case_of_step_result,
    diagnose,
    with_slo,
)
from tokenmill.perf.diagnose.prometheus import LATENCIES, Page, Window, foreign_case
from tokenmill.perf.hardware import Hardware, find
from tokenmill.perf.metrics import parse_limit
from tokenmill.perf.simulate.deployment import find_shape
from tokenmill.perf.terms import Deployment

INTERVAL_S = 1.0
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user said beside the source."""

    seconds: float = 10.0
    """How long a server is looked at."""
    api_key: str | None = None
    hardware: str | None = None
    """A device's name or a probe's file; None: what the server measured, or this machine."""
    model: str | None = None
    """What runs, where the source does not say it, or has it elsewhere: a name, a folder, a ``config.json``."""
    precision: str = "bf16"
    """Of another engine's weights."""
    tp: int = 1
    """Devices that share another engine's matrices."""
    eager: bool = False
    """The other engine launches every operation itself: nothing is captured (``--enforce-eager``)."""
    batch: int | None = None
    """Of a result with several."""
    slo: Mapping[str, float] = field(default_factory=dict)


def parse_slo(text: str) -> dict[str, float]:
    """``ttft=0.5,itl=50ms`` to seconds by metric; raises ``ConfigError``."""
    found = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        if name.strip() not in LATENCIES:
            raise ConfigError(f"--slo {item!r}: give NAME=SECONDS above 0, with a name of {', '.join(LATENCIES)}")
        found[name.strip()] = parse_limit(name.strip(), value)
    return found


def run(source: str, wishes: Wishes, progress: Callable[[str], None] = lambda text: None) -> Diagnosis:
    """Diagnose ``source``: a server's address, a journal, or a result of ``bench step``.

    Raises:
        SetupError: it cannot be reached or read, or is none of these.
        ConfigError: a wish that cannot be.
    """
    if source.startswith(("http://", "https://")):
        if wishes.seconds <= 0:
            raise ConfigError(f"--seconds must be above 0, not {wishes.seconds:g}")
        progress(f"looking at {source} for {wishes.seconds:g} s")
        case, latencies = asyncio.run(_watch(source.rstrip("/"), wishes))
        return with_slo(diagnose(case), wishes.slo, latencies)
    return with_slo(diagnose(_case_of_file(Path(source), wishes, progress)), wishes.slo, {})


# ---- a server --------------------------------------------------------------------------------------------


async def _watch(url: str, wishes: Wishes) -> tuple[Case, dict[str, float]]:
    client = Client(url, wishes.api_key, TIMEOUT_S)
    pages = [Page.parse(await _get(client, "/metrics"))]
    ours = pages[0].prefix == "tokenmill_"
    before = await _steps(client) if ours else None
    began_s = time.perf_counter()
    while (left_s := began_s + wishes.seconds - time.perf_counter()) > 0:
        await asyncio.sleep(min(left_s, INTERVAL_S))
        if left_s > INTERVAL_S:
            pages.append(Page.parse(await _get(client, "/metrics")))
    after = await _steps(client) if ours else None
    watched_s = time.perf_counter() - began_s
    pages.append(Page.parse(await _get(client, "/metrics")))
    window = Window(pages, watched_s)
    device = find(wishes.hardware) if wishes.hardware else None
    if before is not None and after is not None:
        account = _account(after).minus(_account(before))
        case = case_from_json(after["about"], account, device)
        return replace(case, watched_s=watched_s), window.latencies()
    deployment = None
    if device is not None and wishes.model is not None:
        formats = formats_named(wishes.precision)
        deployment = Deployment(find_shape(wishes.model), formats, Layout(tp=wishes.tp), device)
        deployment.layout.check(deployment.shape)
    limits = Limits(eager=wishes.eager)
    return replace(foreign_case(window, deployment, limits), watched_s=watched_s), window.latencies()


async def _steps(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await _get(client, "/debug/steps"))
    return found


def _account(steps: Mapping[str, Any]) -> StepAccount:
    """Up to the moment it was asked for: of a step that was not over, the model's time so far."""
    try:
        account = StepAccount.from_dict(steps["account"])
        parts = dict(account.parts)
        parts["model"] += float(steps["under_way_s"])
        return replace(account, parts=parts)
    except (KeyError, TypeError, ValueError) as error:
        raise SetupError(f"the server tells its steps in a way that this version does not know: {error!r}") from error


async def _get(client: Client, path: str) -> str:
    try:
        return await client.get(path)
    except HttpFailure as error:
        if error.status in (401, 403):
            remedy = "the server wants a key: --api-key, or set TOKENMILL_API_KEY"
        elif error.status is not None:
            remedy = f"the server has no {path} (HTTP {error.status}): give the address of Tokenmill or vLLM itself"
        else:
            remedy = "is it running, and is this the address that it printed when it was ready?"
        raise SetupError(f"cannot read {client.base_url}{path}: {remedy}") from error


# ---- a file ----------------------------------------------------------------------------------------------


def _case_of_file(path: Path, wishes: Wishes, progress: Callable[[str], None]) -> Case:
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
            rest = first if first.rstrip() != "{" else first + file.read()
    except OSError as error:
        raise SetupError(
            f"cannot read {path}: {error.strerror}; give a server's address (http://…), a journal, or a result"
        ) from error
    except UnicodeDecodeError as error:
        raise SetupError(f"{path} is neither a journal nor a result: it is not text") from error
    data = _json_object(rest)
    if data.get("journal") == FORMAT:
        config = _config(wishes.model or str(data.get("model", "")))
        return case_of_journal(read_header(path), read_records(path), config, _machine(wishes, progress))
    if data.get("bench") == "step":
        name = wishes.model or str(data.get("model", ""))
        return case_of_step_result(data, _config(name), _machine(wishes, progress), wishes.batch)
    raise SetupError(
        f"{path} is neither a journal (serve --journal FILE) nor a result of bench step: there is nothing to diagnose"
    )


def _json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _config(model: str) -> Any:
    """The configuration of a checkpoint that is on this machine."""
    from tokenmill.launch import model_config

    return model_config(model)


def _machine(wishes: Wishes, progress: Callable[[str], None]) -> Hardware:
    """The device that was named, or this machine."""
    if wishes.hardware is not None:
        return find(wishes.hardware)
    progress("measuring this machine's ceilings (--hardware FILE if it ran on another)")
    from tokenmill.kernels.cpu.build import NoCompiler
    from tokenmill.kernels.cpu.library import load
    from tokenmill.launch import available_cores, measure_machine

    try:
        return measure_machine(load().new_pool(available_cores()))
    except NoCompiler as error:
        raise SetupError(f"this machine's ceilings cannot be measured ({error}): give --hardware") from error
