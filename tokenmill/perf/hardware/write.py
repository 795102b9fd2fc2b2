"""A device as TOML, in the form that ``catalogue.read`` reads back to an equal one."""

from __future__ import annotations

import json
from collections.abc import Iterator

from tokenmill.perf.hardware.spec import NUMBERS, Hardware


def to_toml(device: Hardware) -> str:
    """The text of a file with this one device."""
    return "\n".join(_lines(device)) + "\n"


def _lines(device: Hardware) -> Iterator[str]:
    yield "[[device]]"
    for name in ("name", "aliases", "kind", "vendor", "family", *NUMBERS, "devices_per_node"):
        value = getattr(device, name)
        if value not in (None, ()):
            yield f"{name} = {_value(value)}"
    for name in ("source", "confidence", "note", "confirmed"):
        if getattr(device, name):
            yield f"{name} = {_value(getattr(device, name))}"
    yield f"peaks = {{ {', '.join(f'{name} = {_value(peak)}' for name, peak in device.peaks.items())} }}"
    if device.link is not None:
        link = device.link
        yield (
            f"link = {{ name = {_value(link.name)}, bytes_per_s = {_value(link.bytes_per_s)}, "
            f"domain = {link.domain}, latency_s = {_value(link.latency_s)} }}"
        )
    for name, figure in device.observed.items():
        yield f"\n[device.observed.{name}]\nvalue = {_value(figure.value)}"
        for bound in ("low", "high"):
            if getattr(figure, bound) is not None:
                yield f"{bound} = {_value(getattr(figure, bound))}"
        yield f"source = {_value(figure.source)}\nconfidence = {_value(figure.confidence)}"


def _value(value: object) -> str:
    """JSON's strings, lists and numbers are TOML's too, but for a number's exponent without a point."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return f"{int(value)}"
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
