"""All-reduce between two processes of this machine, by PyTorch's gloo over the loopback interface.

That is what tensor parallelism without anything better pays between two processes; it is no figure of a link.
Bandwidth is the bus bandwidth, 2 (n - 1) / n × bytes / seconds, which for two ranks is bytes / seconds.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from tokenmill.bench.probe.samples import Samples, rates, times

RANKS = 2
CALLS = 100
MESSAGE_BYTES = 16_000_000
TIMEOUT_S = 30
HOW = "gloo all-reduce between 2 processes of this machine"


def all_reduce(repeat: int) -> dict[str, Samples]:
    """``all_reduce_latency_s`` (4 bytes) and ``all_reduce_bytes_per_s`` (16 MB).

    Raises:
        RuntimeError: the processes did not come together.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        receiver, sender = context.Pipe(duplex=False)
        ranks = [context.Process(target=_rank, args=(rank, folder, repeat, sender)) for rank in range(RANKS)]
        for process in ranks:
            process.start()
        sender.close()
        try:
            if not receiver.poll(TIMEOUT_S):
                raise RuntimeError(f"no all-reduce within {TIMEOUT_S} s")
            latencies, bandwidths = receiver.recv()
            for process in ranks:
                process.join(TIMEOUT_S)
        except EOFError:
            raise RuntimeError("a process of the all-reduce failed") from None
        finally:
            for process in ranks:
                process.kill()
                process.join()
    return {
        "all_reduce_latency_s": Samples(tuple(latencies), f"{HOW}, 4 bytes", seconds=True),
        "all_reduce_bytes_per_s": rates(MESSAGE_BYTES, bandwidths, f"{HOW}, {MESSAGE_BYTES // 1_000_000} MB"),
    }


def _rank(rank: int, folder: str, repeat: int, sender: multiprocessing.connection.Connection) -> None:
    """One of the processes; the first one tells what it measured."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'meeting'}", rank=rank, world_size=RANKS)
    small, large = torch.zeros(1), torch.zeros(MESSAGE_BYTES // 4)

    def many() -> None:
        for _ in range(CALLS):
            dist.all_reduce(small)

    latencies = [seconds / CALLS for seconds in times(many, repeat)]
    bandwidths = times(lambda: dist.all_reduce(large), repeat)
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        sender.send((latencies, bandwidths))
