"""What a device costs an hour: what the user says, else what its description says, else a proxy that is named.

The catalogue has no prices: they differ by place and day. Without any, plans are ranked by watts, which stand for money
well enough to tell a large device from a small one. With some, a device without one is taken at the mean price per
watt of those that have one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tokenmill.core.errors import ConfigError
from tokenmill.perf.hardware import Hardware, find

WATTS_PER_BANDWIDTH = 200 / 1e12
"""Of a device whose power is not published: the usual watts per byte a second of memory bandwidth."""


@dataclass(frozen=True, slots=True)
class Prices:
    """``given``: hardware name → price per hour; ``per_watt``: of those that have a price, None if none has."""

    given: Mapping[str, float] = field(default_factory=dict)
    per_watt: float | None = None

    @classmethod
    def among(cls, hardware: tuple[Hardware, ...], given: Mapping[str, float]) -> Prices:
        known = {device.name: device.price_per_hour for device in hardware if device.price_per_hour is not None}
        known |= given
        rates = [known[device.name] / watts(device) for device in hardware if device.name in known]
        return cls(known, sum(rates) / len(rates) if rates else None)

    @property
    def are_money(self) -> bool:
        """False: watts."""
        return self.per_watt is not None

    def is_known(self, device: Hardware) -> bool:
        return device.name in self.given

    def of(self, device: Hardware) -> float:
        """Per device and hour, in money or in watts."""
        found = self.given.get(device.name)
        return watts(device) * (self.per_watt or 1.0) if found is None else found


def watts(device: Hardware) -> float:
    """Of one device: its design power, or what its bandwidth suggests."""
    power = device.power_limit_w or device.tdp_w
    return power if power else device.memory_bytes_per_s * WATTS_PER_BANDWIDTH


def parse_price(text: str, own: Iterable[Hardware] = ()) -> tuple[str, float]:
    """``H100=2.5`` → the device's name, of ``own`` devices or in the catalogue, and its price per hour.

    Raises:
        ConfigError: not NAME=NUMBER, an unknown device, or a price that is not above 0.
    """
    name, sign, value = text.rpartition("=")
    try:
        price = float(value)
    except ValueError:
        price = math.nan
    if not sign or not name.strip():
        raise ConfigError(f"--price: {text!r} is not HARDWARE=PRICE, like H100=2.5")
    if not 0 < price < 1e9:
        raise ConfigError(f"--price: the price of {name} must be a number above 0, not {value!r}")
    name = name.strip()
    return name if name in {device.name for device in own} else find(name).name, price
