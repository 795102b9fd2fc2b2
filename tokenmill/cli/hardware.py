"""``tokenmill hardware``: the catalogue, or all that is known of one device."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from tokenmill.cli.output import print_json, print_table

if TYPE_CHECKING:
    from tokenmill.perf.hardware import Hardware


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
def hardware(name: str | None, as_json: bool) -> None:
    """List the hardware that predictions know; of one NAME (or a TOML file) say everything, with its sources."""
    from tokenmill.perf.hardware import catalogue, find

    devices = [find(name)] if name is not None else list(catalogue().values())
    if as_json:
        print_json({"hardware": [asdict(device) for device in devices]})
    elif name is not None:
        _print_one(devices[0])
    else:
        _print_all(devices)


def amount(field: str, value: float) -> str:
    """A figure in the unit that people use for it, by its field's name."""
    if "_share" in field:
        return f"{value:.1%}"
    if field.endswith("bytes_per_s") or "bytes_per_s_" in field:
        return f"{digits(value / 1e9)} GB/s"
    if field.endswith("_s"):
        return f"{digits(value * 1e6)} µs"
    if field.startswith("peaks."):
        return f"{digits(value / 1e12)} Top/s" if value >= 1e12 else f"{digits(value / 1e9)} Gop/s"
    if field.endswith("_bytes"):
        return f"{digits(value / 1e9)} GB"
    return f"{value:g}" + (" W" if field.endswith("_w") else "")


def digits(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _print_all(devices: list[Hardware]) -> None:
    head = ("name", "memory GB", "GB/s", "fp16/bf16", "fp8", "int8", "fp4", "link GB/s", "joins", "trust", "source")
    rows: list[tuple[object, ...]] = [head]
    for device in devices:
        peaks = [device.peaks.get("bf16", device.peaks.get("fp16"))]
        peaks += [device.peaks.get(name) for name in ("fp8", "int8", "fp4")]
        link = device.link
        rows.append(
            (
                device.name,
                digits(device.memory_bytes / 1e9),
                digits(device.memory_bytes_per_s / 1e9),
                *(digits(peak / 1e12) if peak else "" for peak in peaks),
                digits(link.bytes_per_s / 1e9) if link else "",
                link.domain if link else "",
                device.confidence,
                device.source if len(device.source) <= 40 else device.source[:39] + "…",
            )
        )
    print_table(rows, right=(1, 2, 3, 4, 5, 6, 7, 8))
    print("\npeaks are dense, in Top/s; links one way, per device; `tokenmill hardware NAME` says all of one")


def _print_one(device: Hardware) -> None:
    from tokenmill.perf.hardware.checks import figures

    print(f"{device.name}: {device.vendor} {device.kind}, family {device.family}")
    print(f"also {', '.join(device.aliases)}" if device.aliases else "no other name")
    print(f"source: {device.source} (confidence: {device.confidence})")
    print(f"{device.note}\n" if device.note else "")
    rows: list[tuple[object, ...]] = [("datasheet", "")]
    rows += [(name, amount(name, value)) for name, value in figures(device).items() if name != "nominal_memory_gb"]
    if device.link is not None:
        rows.append(("link", f"{device.link.name}, joins {device.link.domain}"))
    print_table(rows, right=(1,))
    if device.observed:
        print()
        seen: list[tuple[object, ...]] = [("observed", "", "range", "trust", "source")]
        for name, figure in device.observed.items():
            bounds = [amount(name, bound) for bound in (figure.low, figure.high) if bound is not None]
            seen.append((name, amount(name, figure.value), " to ".join(bounds), figure.confidence, figure.source))
        print_table(seen, right=(1,))
