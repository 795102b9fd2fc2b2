"""The catalogue: devices by name, in whatever way people write the name, and files of the same form from users.

The TOML files beside this one hold a ``[[device]]`` for every device, its datasheet. ``observed.toml`` holds what was
measured, by family, by link and by device; a device gets the figures of all three, the narrower one where two have one
name. A figure that was measured on another device of the family or link is trusted a degree less than its source.

Names are compared without case, punctuation, vendors and memory types. What a name says beside is left away: how many
devices, and a power limit (``A100-SXM-80GB (330 W cap)``), which the device that is found then carries.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tokenmill.core.errors import ConfigError
from tokenmill.perf.hardware.checks import Finding, check
from tokenmill.perf.hardware.spec import Confidence, Figure, Hardware, make_figures, make_hardware

FOLDER = Path(__file__).parent
OBSERVED = "observed.toml"

_NOISE = {
    "nvidia", "amd", "intel", "google", "aws", "instinct", "geforce", "platinum", "processor", "cpu", "gpu", "r", "tm",
    "virtualized", "cts", "hbm2", "hbm2e", "hbm3", "hbm3e",
}  # fmt: skip
_COUNT = re.compile(r"\(x\d+\)")
_POWER = re.compile(r"\((?:power cap )?(\d+) W(?: cap)?\)", re.IGNORECASE)
_BETWEEN = re.compile(r" \+ | and |, ")
_LESS_SURE: Mapping[Confidence, Confidence] = {"high": "medium", "measured": "medium", "medium": "low", "low": "low"}


@cache
def catalogue() -> Mapping[str, Hardware]:
    """Every device that ships, by name."""
    paths = (path for path in sorted(FOLDER.glob("*.toml")) if path.name != OBSERVED)
    return MappingProxyType({device.name: device for path in paths for device in read(path)})


def find(name: str) -> Hardware:
    """The device that ``name`` means; or the one in the file, if it ends in ``.toml``.

    Raises:
        ConfigError: there is none, and which names are near; or ``name`` means several devices.
    """
    if name.endswith(".toml"):
        return load(Path(name))
    power = _POWER.search(name)
    plain = _COUNT.sub("", _POWER.sub("", name))
    parts = [part.strip() for part in _BETWEEN.split(plain)]
    if len(parts) > 1:
        raise ConfigError(f"hardware: {name!r} is several devices ({'; '.join(parts)}): name one of them")
    device = lookup(plain)
    if device is None:
        near = _nearest(plain)
        hint = f"did you mean {' or '.join(near)}?" if near else "`tokenmill hardware` lists what there is"
        raise ConfigError(f"hardware: no device {name!r}; {hint} (or give a TOML file that describes it)")
    return replace(device, power_limit_w=float(power[1])) if power else device


def lookup(name: str) -> Hardware | None:
    """The device of that name or alias; None if there is none."""
    return _by_key().get(_key(name))


def load(path: str | Path) -> Hardware:
    """The one device that a user's file describes.

    Raises:
        ConfigError: the file does not hold exactly one device, or a figure is missing, of the wrong kind, or looks like
            a known mistake; names the field.
    """
    devices = read(Path(path))
    if len(devices) != 1:
        raise ConfigError(f"{path}: one [[device]] is needed, there are {len(devices)}")
    findings = check(devices, str(path), known=lookup)
    if findings:
        more = f" (and {len(findings) - 1} more)" if len(findings) > 1 else ""
        raise ConfigError(f"{findings[0]}{more}; if it is right, put the field's name into `confirmed`")
    return devices[0]


def check_catalogue() -> tuple[Finding, ...]:
    """What looks wrong in the files that ship: nothing, the tests say."""
    paths = (path for path in sorted(FOLDER.glob("*.toml")) if path.name != OBSERVED)
    return tuple(finding for path in paths for finding in check(read(path), path.name))


def read(path: Path) -> tuple[Hardware, ...]:
    """The devices of a TOML file, with what was observed of them; only their form is looked at.

    A device with ``based_on = NAME`` need only give what differs from that one.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or a device lacks a field or has one of the wrong type.
    """
    tables = _parse(path).get("device")
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise ConfigError(f"{path}: no [[device]] in it")
    found: dict[str, Hardware] = {}
    for table in tables:
        device = _device(table, path.name, found)
        if device.name in found:
            raise ConfigError(f"{path}: name: {device.name!r} is there twice")
        found[device.name] = device
    return tuple(found.values())


def _device(table: dict[str, Any], where: str, before: Mapping[str, Hardware]) -> Hardware:
    """A device, which may be based on one ``before`` it in the file or on one of the catalogue."""
    base_name = table.pop("based_on", None)
    if base_name is None:
        return _with_observed(make_hardware(table, where))
    if not isinstance(base_name, str):
        raise ConfigError(f"{where}: based_on must be a name, not {base_name!r}")
    return make_hardware(table, where, before.get(base_name) or find(base_name))


# ---- names -----------------------------------------------------------------------------------------------


def _key(name: str) -> str:
    """Words without case and punctuation, run together."""
    words = re.findall(r"[a-z0-9]+", name.lower())
    return "".join(word for word in words if word not in _NOISE)


@cache
def _by_key() -> Mapping[str, Hardware]:
    found: dict[str, Hardware] = {}
    for device in catalogue().values():
        for name in (device.name, *device.aliases):
            other = found.setdefault(_key(name), device)
            assert other is device, f"{name!r} is {other.name} and {device.name}"
    return found


def _nearest(name: str) -> list[str]:
    keys = get_close_matches(_key(name), _by_key(), n=6, cutoff=0.6)
    return list(dict.fromkeys(_by_key()[key].name for key in keys))[:3]


# ---- observed --------------------------------------------------------------------------------------------


def _with_observed(device: Hardware) -> Hardware:
    """The device with the figures of its family, its link and its own; its own file's come first."""
    link = device.link.generation if device.link else ""
    scopes = (("family", device.family), ("link", link), ("device", device.name))
    found: dict[str, Figure] = {}
    for scope, name in scopes:
        for figure, value, measured_on in _observations(scope, name):
            elsewhere = scope != "device" and device.name not in measured_on
            found[figure] = replace(value, confidence=_LESS_SURE[value.confidence]) if elsewhere else value
    found |= device.observed
    latency = found.get("all_reduce_latency_s")
    if device.link and latency:
        device = replace(device, link=replace(device.link, latency_s=latency.value))
    return replace(device, observed=found)


def _observations(scope: str, name: str) -> Iterator[tuple[str, Figure, tuple[str, ...]]]:
    """(figure, what was seen, on which devices)."""
    table = dict(_observed().get(scope, {}).get(name, {}))
    measured_on = tuple(table.pop("measured_on", ()))
    for figure, value in make_figures(table, f"{OBSERVED}: {scope}.{name}").items():
        yield figure, value, measured_on


@cache
def _observed() -> Mapping[str, Any]:
    return _parse(FOLDER / OBSERVED)


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
