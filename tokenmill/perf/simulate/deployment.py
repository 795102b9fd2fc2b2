"""From model, precision, layout and device to the engine that is simulated: what a step costs, how many blocks fit."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from tokenmill.core.engine_config import CacheConfig, SchedulerConfig
from tokenmill.core.errors import CheckpointError, DoesNotFit
from tokenmill.perf.calibrate import Calibration
from tokenmill.perf.costs import kv_bytes_per_token, reserved_bytes, weight_bytes
from tokenmill.perf.models import find_model
from tokenmill.perf.roofline import Roofline
from tokenmill.perf.shape import ModelShape, shape_from_config
from tokenmill.perf.simulate.replica import EngineSetup
from tokenmill.perf.simulate.transfer import TransferCost
from tokenmill.perf.terms import Deployment

TRANSFER_LATENCY_S = 1e-3
"""Of a transfer between nodes: handshake, registration, first bytes."""


@dataclass(frozen=True, slots=True)
class Simulated:
    """One replica, in facts: what runs on what, and how near its engine comes to the datasheet."""

    deployment: Deployment
    calibration: Calibration

    @property
    def weight_bytes(self) -> float:
        """Of the fullest device."""
        d = self.deployment
        return weight_bytes(d.shape, d.formats, d.layout)

    @property
    def kv_bytes_per_token(self) -> float:
        """Of one position, on one device."""
        d = self.deployment
        return kv_bytes_per_token(d.shape, d.formats, d.layout)

    def kv_bytes(self, memory_share: float, reserved: float) -> float:
        """What a device has left for keys and values.

        Args:
            memory_share: of the device's memory, what the engine may use.
            reserved: bytes for activations, graphs and buffers, within that share.

        Raises:
            DoesNotFit: nothing is left.
        """
        shape, hardware = self.deployment.shape, self.deployment.hardware
        total = hardware.memory_bytes
        room = total * memory_share - self.weight_bytes - reserved
        if room <= 0:
            raise DoesNotFit(
                f"{shape.name} needs {self.weight_bytes / 1e9:.1f} GB of weights per device and "
                f"{reserved / 1e9:.1f} GB beside them; "
                f"{hardware.name} gives {total * memory_share / 1e9:.1f} GB: "
                "spread it over more devices (--tp, --pp), or take a smaller --precision"
            )
        return room

    def num_blocks(self, block_size: int, kv_bytes: float) -> int:
        """KV blocks of a replica; data-parallel groups each hold their own.

        Raises:
            DoesNotFit: not even one block.
        """
        per_block = self.kv_bytes_per_token * block_size
        blocks = int(kv_bytes / per_block) if per_block else 1 << 20
        if blocks < 1:
            raise DoesNotFit(f"{kv_bytes / 1e6:.1f} MB per device hold no KV block of {per_block / 1e6:.1f} MB")
        return blocks * self.deployment.layout.dp

    def engine(
        self,
        cache: CacheConfig,
        scheduler: SchedulerConfig,
        *,
        depth: int,
        memory_share: float,
        reserved: float | None = None,
    ) -> EngineSetup:
        """A simulated engine of this deployment; the number of blocks is worked out where ``cache`` leaves it open.

        Args:
            reserved: bytes of a device for what is neither weights nor cache; None: foreseen from the largest step.
        """
        if reserved is None:
            d = self.deployment
            reserved = reserved_bytes(d.shape, d.formats, d.layout, -(-scheduler.max_step_tokens // d.layout.dp))
        if cache.num_blocks is None:
            room = cache.kv_memory_bytes or self.kv_bytes(memory_share, reserved)
            cache = replace(cache, num_blocks=self.num_blocks(cache.block_size, room))
        return EngineSetup(Roofline(self.deployment, self.calibration), cache, scheduler, depth)

    def transfer(self, bytes_per_s: float | None, latency_s: float, *, overlap: bool) -> TransferCost:
        """The link to another replica: what is given, else all devices' links between nodes, else within one."""
        hardware = self.deployment.hardware
        link = hardware.internode_bytes_per_s or (hardware.link.bytes_per_s if hardware.link else None)
        if bytes_per_s is None and link is None:
            raise DoesNotFit(f"{hardware.name} has no link to other nodes: give --transfer-bandwidth")
        whole = kv_bytes_per_token(self.deployment.shape, self.deployment.formats)
        return TransferCost(
            whole, bytes_per_s or (link or 0.0) * self.deployment.layout.num_devices, latency_s, overlap
        )


def find_shape(model: str) -> ModelShape:
    """The shape of a model: a ``config.json``, a folder that holds one, or a name of the catalogue.

    Raises:
        CheckpointError: the file is no configuration of a decoder.
        ConfigError: there is neither such a file nor such a name.
    """
    path = Path(model)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        return find_model(model)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return shape_from_config(config, path.parent.name or path.name)
