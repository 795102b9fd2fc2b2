"""``python -m tests.engine.remote_child …``: an engine process whose model is the fake executor, to be killed."""

from __future__ import annotations

import os
import socket
import sys
import time

from tests.server.service import CODEC_FOLDER, MAX_CONTEXT
from tokenmill.core.clock import MonotonicClock
from tokenmill.core.engine_config import EngineConfig
from tokenmill.core.errors import ConfigError
from tokenmill.core.step import StepPlan, StepResult
from tokenmill.engine.engine import Engine
from tokenmill.engine.faults import arm_from_environment, fire
from tokenmill.engine.grammar.compiler import GrammarCompiler
from tokenmill.engine.kvcache import KVCache
from tokenmill.engine.remote.host import Hosted, LoadingReports, run
from tokenmill.engine.resolve import ModelLimits
from tokenmill.engine.scheduler import Scheduler
from tokenmill.engine.text import TextCodec
from tokenmill.testing.executor import FakeExecutor


class SlowExecutor(FakeExecutor):
    """Takes real time, and passes the point at which a real worker passes too."""

    step_s = 0.0

    def _run(self, plan: StepPlan) -> StepResult:
        tables = [self._sequences.get(seq_id) for seq_id in plan.seq_ids]
        known = [t for table in tables if table for t in table.token_ids] + [t for n in plan.new for t in n.token_ids]
        fire("worker.step", plan, tokens=lambda: known)
        time.sleep(self.step_s)
        return super()._run(plan)


def make(config: EngineConfig, progress: LoadingReports) -> Hosted:
    if config.source.model == "missing":
        raise ConfigError("there is no such model")
    progress.stage("making a fake")
    codec = TextCodec.load(CODEC_FOLDER)
    num_blocks = config.cache.num_blocks or 256
    executor = SlowExecutor(num_blocks, config.cache.block_size, vocab_size=codec.vocab_size)
    executor.step_s = float(os.environ.get("FAKE_STEP_S", "0.002"))
    executor.start()
    scheduler = Scheduler(KVCache(num_blocks, config.cache.block_size), config.scheduler)
    limits = ModelLimits(MAX_CONTEXT, codec.vocab_size, codec.eos_token_ids, executor.hidden_size)
    engine = Engine(scheduler, executor, MonotonicClock())
    return Hosted(engine, limits, "fp_fake", GrammarCompiler(codec, codec.vocab_size, codec.eos_token_ids))


if __name__ == "__main__":
    arm_from_environment()
    os._exit(run(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), make))
