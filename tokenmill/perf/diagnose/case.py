"""``Case``: what is diagnosed. Steps observed, what ran, on what, within which limits; and the same as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from tokenmill.core.errors import SetupError
from tokenmill.core.model_config import ExpertsSpec, ModelConfig, RopeSpec
from tokenmill.core.precision import Precision
from tokenmill.engine.telemetry import StepAccount
from tokenmill.perf.costs import Layout, own_formats
from tokenmill.perf.hardware import Figure, Hardware
from tokenmill.perf.shape import shape_of
from tokenmill.perf.terms import Deployment


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine was told, as far as it is known (None: not)."""

    max_seqs: int | None = None
    max_step_tokens: int | None = None
    num_blocks: int | None = None
    block_size: int | None = None
    batching: str = "continuous"
    eager: bool = False
    """Every operation is launched by the host, step by step; nothing is captured."""


@dataclass(frozen=True, slots=True)
class Case:
    """What is diagnosed."""

    account: StepAccount
    deployment: Deployment | None = None
    """None: nobody said what runs, or on what."""
    limits: Limits = field(default_factory=Limits)
    precision: Precision | None = None
    """Of this engine's own CPU kernels."""
    engine: str = "tokenmill"
    unknown: tuple[str, ...] = ()
    """What this source cannot tell, in sentences."""
    watched_s: float | None = None
    """By the observer's own clock, where somebody watched: the account should add up to it."""


def deployment_of(config: ModelConfig, name: str, precision: Precision, hardware: Hardware) -> Deployment:
    """This engine's own: one model on one machine."""
    return Deployment(shape_of(config, name), own_formats(precision, config.head_dim), Layout(), hardware)


# ---- as JSON ---------------------------------------------------------------------------------------------


def describe(
    config: ModelConfig, name: str, precision: Precision, hardware: Hardware | None, limits: Limits
) -> dict[str, Any]:
    """What a server tells of itself, so that somebody else can diagnose it."""
    device = None
    if hardware is not None:
        device = {
            "name": hardware.name,
            "kind": hardware.kind,
            "family": hardware.family,
            "memory_bytes": hardware.memory_bytes,
            "memory_bytes_per_s": hardware.memory_bytes_per_s,
            "peaks": dict(hardware.peaks),
            "source": hardware.source,
            "observed": {name: asdict(figure) for name, figure in hardware.observed.items()},
        }
    return {
        "model": name,
        "config": asdict(config),
        "precision": asdict(precision),
        "hardware": device,
        "limits": asdict(limits),
    }


def case_from_json(about: Mapping[str, Any], account: StepAccount, hardware: Hardware | None = None) -> Case:
    """The inverse of ``describe``, with an account; ``hardware`` instead of the server's own.

    Raises:
        SetupError: it is not what ``describe`` makes (another version's, or not this engine's).
    """
    try:
        config = _model_config(about["config"])
        precision = Precision(**about["precision"])
        device = about["hardware"]
        if hardware is None and device is not None:
            seen = {name: Figure(**figure) for name, figure in device["observed"].items()}
            hardware = Hardware(vendor="", confidence="measured", **(device | {"observed": seen}))
        limits = Limits(**about["limits"])
        name = str(about["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise SetupError(f"the server describes itself in a way that this version does not know: {error!r}") from error
    unknown: tuple[str, ...] = ()
    if hardware is None:
        unknown = ("what this machine can do was not measured (--ceilings none): give --hardware for shares of it",)
    deployment = deployment_of(config, name, precision, hardware) if hardware else None
    return Case(account, deployment, limits, precision, unknown=unknown)


def _model_config(data: Mapping[str, Any]) -> ModelConfig:
    values = dict(data)
    values["rope"] = RopeSpec(**values["rope"])
    values["windows"] = tuple(values["windows"])
    values["eos_token_ids"] = tuple(values["eos_token_ids"])
    if values.get("experts") is not None:
        values["experts"] = ExpertsSpec(**values["experts"] | {"layers": tuple(values["experts"]["layers"])})
    return ModelConfig(**values)
