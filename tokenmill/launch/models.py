"""From a checkpoint and its plan to a model with weights and KV pool, for whichever device computes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import ConfigError
from tokenmill.core.step import StepPlan
from tokenmill.launch.machine import available_cores

if TYPE_CHECKING:
    from tokenmill.kernels.triton.kv import KVForm
    from tokenmill.launch import Checkpoint, Progress
    from tokenmill.runtime.compiled import CompiledModel
    from tokenmill.runtime.eager import EagerModel
    from tokenmill.runtime.gpu.model import DeviceModel
    from tokenmill.runtime.step_model import StepModel


def load_model(config: EngineConfig, checkpoint: Checkpoint, progress: Progress) -> tuple[StepModel, int, int]:
    """A model with its weights and its KV pool; how many bytes either takes."""
    precision = checkpoint.ledger.precision
    config = config.for_device(precision.device)
    progress.stage("importing torch")
    # Threads that spin while they wait make two cores slower than one as soon as anything else runs (docs/log.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    num_threads = config.source.num_threads or available_cores()
    torch.set_num_threads(num_threads)
    progress.stage("loading weights")
    model: CompiledModel | EagerModel | DeviceModel
    if precision.device == "cuda":
        model = _load_on_gpu(config, checkpoint, progress)
    elif precision.kernels == "fast":
        model = _load_fast(config, checkpoint, num_threads, progress)
    else:
        model = _load_reference(config, checkpoint, progress)
    return model, sum(tensor.nbytes for tensor in model.decoder.parameters()), model.kv.num_bytes


def _load_fast(config: EngineConfig, checkpoint: Checkpoint, num_threads: int, progress: Progress) -> CompiledModel:
    from tokenmill.kernels.cpu.kv import PagedKV
    from tokenmill.kernels.cpu.library import load
    from tokenmill.kernels.cpu.records import WeightFormat
    from tokenmill.models.load import load_model as load_decoder
    from tokenmill.models.quantization.packed import PackedScheme
    from tokenmill.runtime.compiled import CompiledModel
    from tokenmill.runtime.worker import MIN_STEP_TOKENS, PROMPT_LOGITS_ROWS

    ledger, scheduler = checkpoint.ledger, config.scheduler
    scheme = PackedScheme(ledger.precision)
    decoder = load_decoder(
        checkpoint.path,
        scheme=scheme,
        max_context=ledger.max_context,
        keep_packed=config.source.keep_packed,
        random_weights=config.source.random_weights,
        progress=progress.update,
    )
    progress.stage("allocating the KV pool")
    form = WeightFormat[ledger.precision.kv.upper()]
    kv = PagedKV(checkpoint.config, ledger.num_blocks, ledger.block_size, form)
    max_tokens = max(scheduler.max_step_tokens, MIN_STEP_TOKENS)
    max_outputs = max(min(scheduler.max_seqs, max_tokens), PROMPT_LOGITS_ROWS)
    pool = load().new_pool(num_threads)
    return CompiledModel(decoder, kv, pool, max_tokens=max_tokens, max_outputs=max_outputs)


def _load_reference(config: EngineConfig, checkpoint: Checkpoint, progress: Progress) -> EagerModel:
    import torch

    from tokenmill.kernels.kv import KVTensors
    from tokenmill.models.load import load_model as load_decoder
    from tokenmill.runtime.eager import EagerModel

    ledger = checkpoint.ledger
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[ledger.precision.weights]
    decoder = load_decoder(
        checkpoint.path,
        dtype=dtype,
        max_context=ledger.max_context,
        random_weights=config.source.random_weights,
        progress=progress.update,
    )
    progress.stage("allocating the KV pool")
    kv = KVTensors.allocate(checkpoint.config, ledger.num_blocks, ledger.block_size, dtype=dtype)
    return EagerModel(decoder, kv)


def _load_on_gpu(config: EngineConfig, checkpoint: Checkpoint, progress: Progress) -> DeviceModel:
    """Raises ``SetupError`` where PyTorch or Triton cannot use the GPU that there is."""
    import torch

    from tokenmill.kernels.triton.device import is_interpreted
    from tokenmill.kernels.triton.kv import DeviceKV
    from tokenmill.models.load import load_model as load_decoder
    from tokenmill.models.quantization.device import DeviceScheme
    from tokenmill.runtime.gpu.model import DeviceModel

    ledger = checkpoint.ledger
    if is_interpreted():
        device = torch.device("cpu")
    elif torch.cuda.is_available():
        device = torch.device("cuda", torch.cuda.current_device())
    else:
        raise ConfigError(f"PyTorch {torch.__version__} cannot use the GPU: install its CUDA build, or device cpu")
    decoder = load_decoder(
        checkpoint.path,
        scheme=DeviceScheme(ledger.precision, device),
        max_context=ledger.max_context,
        random_weights=config.source.random_weights,
        progress=progress.update,
    )
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what quantising took in passing
    progress.stage("allocating the KV pool")
    form = cast("KVForm", ledger.precision.kv)
    kv = DeviceKV.allocate(checkpoint.config, ledger.num_blocks, ledger.block_size, form=form, device=device)
    max_seqs, max_tokens = config.scheduler.max_seqs, config.scheduler.max_step_tokens
    cost = decode_cost(checkpoint, torch.cuda.get_device_name(device) if device.type == "cuda" else "")
    model = DeviceModel(decoder, kv, max_seqs=max_seqs, max_step_tokens=max_tokens, cost=cost)
    progress.stage("capturing steps")
    model.warm_up()
    return model


def decode_cost(checkpoint: Checkpoint, gpu: str) -> Callable[[int], float]:
    """What a decode step costs by its rows, as the cost model has it for the GPU of that name; a usual one for a GPU
    that the catalogue does not have. Without contexts: rows that pad a step read none."""
    from tokenmill.perf.calibrate import Calibration
    from tokenmill.perf.diagnose import deployment_of
    from tokenmill.perf.hardware import find
    from tokenmill.perf.roofline import Roofline
    from tokenmill.runtime.gpu.buckets import typical_cost

    try:
        hardware = find(gpu)
    except ConfigError:
        return typical_cost
    deployment = deployment_of(checkpoint.config, checkpoint.name, checkpoint.ledger.precision, hardware)
    roofline = Roofline(deployment, Calibration())

    def cost(num_rows: int) -> float:
        ids = tuple(range(num_rows))
        return roofline.predict(StepPlan(0, ids, (0,) * num_rows, (1,) * num_rows)).seconds

    return cost
