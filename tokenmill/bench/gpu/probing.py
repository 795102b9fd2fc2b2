"""The stage ``probe``: this device as a file of the catalogue, for ``--hardware`` of every other command."""

from __future__ import annotations

from tokenmill.bench import probe
from tokenmill.bench.gpu.place import Place, slug
from tokenmill.bench.gpu.unit import Context, Outcome, Unit
from tokenmill.bench.probe import cuda
from tokenmill.bench.probe.machine import Probe, make_hardware
from tokenmill.perf.hardware import load
from tokenmill.perf.hardware.write import to_toml


def units(place: Place) -> list[Unit]:
    return [Unit("probe", _run)]


def _run(context: Context) -> Outcome:
    found = probe.run(device="cuda", folder=context.output) if context.place.is_gpu else _rehearse()
    path = context.output / f"{slug(context.place.name)}.toml"
    path.write_text(to_toml(found.hardware), encoding="utf-8")
    load(path)  # what was written can be read, and looks like no known mistake
    shares = ", ".join(f"{name} {share:.0%}" for name, (_, _, share) in found.shares().items())
    return Outcome(found.as_dict(), f"{path.name}; of the datasheet: {shares or 'not in the catalogue'}")


def _rehearse() -> Probe:
    samples = cuda.measure(3, cuda.TOY, lambda text: None, "cpu")
    description = {"name": "toy", "kind": "gpu", "vendor": "none", "family": "toy", "memory_bytes": 1e9}
    return Probe(make_hardware(samples, description), samples, None, (), 0.0)
