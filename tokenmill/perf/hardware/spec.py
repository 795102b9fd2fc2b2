"""``Hardware``: what one device can do at best, and what of that others have seen it reach.

A datasheet figure is a ceiling; no program passes it. An observed figure is what somebody measured, and says who. They
are kept apart, each with its source, so that a prediction can begin with the ceiling, correct it by what was seen on
this device, its link or its architecture family, and tell how much it trusts either.

Units: bytes, seconds, operations, watts, all decimal (1 TB/s is 1e12 bytes a second). A multiplication and an addition
are two operations. Peaks are *dense*: vendors like to print the figure for matrices of which half is zero, which is
twice as high. Bandwidths of links are per device and per *direction*: vendors like to print the sum of both.
Memory is what the driver reports as the total, which is neither the number on the box in GB nor that number in GiB.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal, cast, get_args

from tokenmill.core.errors import ConfigError

Kind = Literal["gpu", "tpu", "npu", "soc", "cpu"]
Confidence = Literal["high", "medium", "low", "measured"]
KINDS: tuple[str, ...] = get_args(Kind)
CONFIDENCES: tuple[str, ...] = get_args(Confidence)

ARITHMETIC = ("fp32", "fp16", "bf16", "fp8", "int8", "fp4")
"""Types that products are computed in, each with sums wide enough for a model (32 bits)."""

_WIDER = {
    "fp4": ("fp8", "bf16", "fp16", "fp32"),
    "fp8": ("bf16", "fp16", "fp32"),
    "int8": ("bf16", "fp16", "fp32"),
    "bf16": ("fp16", "fp32"),
    "fp16": ("bf16", "fp32"),
    "fp32": (),
}
"""What does the work where a device has no units for a type: the narrowest that holds its values."""

MESSAGE_LATENCY_S = 10e-6
"""Of a message between two devices, where nobody measured the link (AIConfigurator takes the same)."""


@dataclass(frozen=True, slots=True)
class Figure:
    """An observed figure: a share of a ceiling, seconds, or bytes per second, as its name says."""

    value: float
    source: str
    confidence: Confidence
    low: float | None = None
    high: float | None = None
    """The range over what was measured, where there was more than one."""


@dataclass(frozen=True, slots=True)
class Link:
    """What joins the devices of a node, or of a rack."""

    name: str
    bytes_per_s: float
    """Of one device, in one direction."""
    domain: int
    """How many devices it joins at that speed."""
    latency_s: float = MESSAGE_LATENCY_S
    """Of the smallest exchange."""

    @property
    def generation(self) -> str:
        """The first word of its name, which figures of links go by: ``NVLink5`` of ``NVLink5 (72-GPU domain)``."""
        return self.name.partition(" ")[0]


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device: an accelerator, or a processor socket with its memory.

    ``peaks``: arithmetic type → dense operations per second; a type without units of its own is absent (T4 and V100
    have fp16 and no bf16). ``observed``: figure → what was seen (docs/reference/hardware.md lists their names).
    """

    name: str
    kind: Kind
    vendor: str
    family: str
    """The architecture whose efficiencies it shares: ``hopper``, ``cdna3``, ``avx512``, …"""
    memory_bytes: float
    """Usable: what the driver reports as the total."""
    memory_bytes_per_s: float
    peaks: Mapping[str, float]
    link: Link | None = None
    internode_bytes_per_s: float | None = None
    """Between nodes, per device and direction."""
    host_link_bytes_per_s: float | None = None
    """To the host's memory, per direction."""
    tdp_w: float | None = None
    power_limit_w: float | None = None
    """A cap below ``tdp_w``, if it runs under one."""
    devices_per_node: int = 1
    price_per_hour: float | None = None
    """Of one device, in the user's currency; the catalogue has none."""
    nominal_memory_gb: float | None = None
    """The number on the box."""
    observed: Mapping[str, Figure] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    source: str = ""
    confidence: Confidence = "low"
    note: str = ""
    confirmed: tuple[str, ...] = ()
    """Fields that look like a known mistake and are right all the same (``checks``)."""

    def computes(self, arithmetic: str) -> str:
        """The type that products of ``arithmetic`` are computed in here: itself, or a wider one that has units.

        Raises:
            ConfigError: there is no such type, or this device has nothing that could do it.
        """
        if arithmetic not in _WIDER:
            raise ConfigError(f"arithmetic must be one of {', '.join(ARITHMETIC)}, not {arithmetic!r}")
        for candidate in (arithmetic, *_WIDER[arithmetic]):
            if candidate in self.peaks:
                return candidate
        raise ConfigError(f"{self.name}: peaks.{arithmetic} is not given, nor that of any wider type")

    def peak(self, arithmetic: str) -> float:
        """Dense operations per second at products of this type; where it has no units, those of ``computes``."""
        return self.peaks.get(arithmetic) or self.peaks[self.computes(arithmetic)]

    def seen(self, figure: str, otherwise: float) -> float:
        """The observed figure, or ``otherwise`` where nobody measured it."""
        found = self.observed.get(figure)
        return otherwise if found is None else found.value


# ---- from TOML -------------------------------------------------------------------------------------------

NUMBERS = (
    "memory_bytes",
    "memory_bytes_per_s",
    "internode_bytes_per_s",
    "host_link_bytes_per_s",
    "tdp_w",
    "power_limit_w",
    "price_per_hour",
    "nominal_memory_gb",
)
"""Fields that hold a figure."""
_TEXTS = ("name", "vendor", "family", "source", "note")
_REQUIRED = ("name", "kind", "vendor", "family", "memory_bytes", "memory_bytes_per_s", "peaks")
_FIELDS = (*NUMBERS, *_TEXTS, "kind", "confidence", "devices_per_node", "aliases", "confirmed")
_TABLES = ("peaks", "link", "observed")


def make_hardware(table: Mapping[str, object], where: str, base: Hardware | None = None) -> Hardware:
    """A device from its TOML table. Only the form is looked at; whether the figures make sense, ``checks`` says.

    With ``base``, the table says what differs from it; peaks and observed figures that are not named stay.

    Raises:
        ConfigError: a field is missing, unknown or of the wrong type; says which, at ``where``.
    """
    where = f"{where}: {table['name']}" if isinstance(table.get("name"), str) else where
    _refuse_unknown(table, (*_FIELDS, *_TABLES), where)
    missing = [name for name in _REQUIRED if name not in table]
    if missing and base is None:
        raise ConfigError(f"{where}: {missing[0]} is missing")
    values = _plain_values(table, where)
    if "peaks" in table:
        peaks = _table(table["peaks"], f"{where}: peaks")
        _refuse_unknown(peaks, ARITHMETIC, f"{where}: peaks")
        found = {name: _number(value, f"{where}: peaks.{name}") for name, value in peaks.items()}
        values["peaks"] = {**(base.peaks if base else {}), **found}
    if "link" in table:
        values["link"] = _link(_table(table["link"], f"{where}: link"), f"{where}: link")
    if "observed" in table:
        figures = make_figures(_table(table["observed"], f"{where}: observed"), f"{where}: observed")
        values["observed"] = {**(base.observed if base else {}), **figures}
    return replace(base, **({"aliases": (), "note": ""} | values)) if base else Hardware(**values)


def _plain_values(table: Mapping[str, object], where: str) -> dict[str, Any]:
    """The fields that are not tables."""
    values: dict[str, Any] = {name: table[name] for name in _FIELDS if name in table}
    for name, value in values.items():
        at = f"{where}: {name}"
        if name in NUMBERS:
            values[name] = _number(value, at)
        elif name in _TEXTS:
            values[name] = _text(value, at)
        elif name in ("aliases", "confirmed"):
            values[name] = _texts(value, at)
        elif name == "devices_per_node":
            values[name] = _whole(value, at)
        else:
            values[name] = _one_of(value, KINDS if name == "kind" else CONFIDENCES, at)
    return values


def make_figures(table: Mapping[str, object], where: str) -> dict[str, Figure]:
    """Observed figures from their TOML tables, by name."""
    figures = {}
    for name, entry in table.items():
        at = f"{where}.{name}"
        found = _table(entry, at)
        _refuse_unknown(found, ("value", "low", "high", "source", "confidence"), at)
        if "value" not in found:
            raise ConfigError(f"{at}.value is missing")
        bounds = {key: _number(found[key], f"{at}.{key}") for key in ("value", "low", "high") if key in found}
        confidence = _one_of(found.get("confidence", "low"), CONFIDENCES, f"{at}.confidence")
        source = _text(found.get("source", ""), f"{at}.source")
        figures[name] = Figure(source=source, confidence=cast(Confidence, confidence), **bounds)
    return figures


def _link(table: Mapping[str, object], where: str) -> Link:
    _refuse_unknown(table, ("name", "bytes_per_s", "domain", "latency_s"), where)
    missing = [name for name in ("name", "bytes_per_s", "domain") if name not in table]
    if missing:
        raise ConfigError(f"{where}.{missing[0]} is missing")
    return Link(
        _text(table["name"], f"{where}.name"),
        _number(table["bytes_per_s"], f"{where}.bytes_per_s"),
        _whole(table["domain"], f"{where}.domain"),
        _number(table.get("latency_s", MESSAGE_LATENCY_S), f"{where}.latency_s"),
    )


def _refuse_unknown(table: Mapping[str, object], known: tuple[str, ...], where: str) -> None:
    for name in table:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
            raise ConfigError(f"{where}: unknown field {name!r}; {hint}")


def _table(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} must be a table, not {value!r}")
    return value


def _number(value: object, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{where} must be a number, not {value!r}")
    if not math.isfinite(value):
        raise ConfigError(f"{where} must be a finite number, not {value}")
    return float(value)


def _whole(value: object, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{where} must be a whole number of at least 1, not {value!r}")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{where} must be a text, not {value!r}")
    return value


def _texts(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ConfigError(f"{where} must be a list of texts, not {value!r}")
    return tuple(_text(item, where) for item in value)


def _one_of(value: object, choices: tuple[str, ...], where: str) -> str:
    if value not in choices:
        raise ConfigError(f"{where} must be one of {', '.join(choices)}, not {value!r}")
    return str(value)
