"""``bench overload`` against a server that admits by what it can do."""

from __future__ import annotations

import asyncio

import pytest

from tests.server.support import running_server
from tokenmill.bench.http import Client
from tokenmill.bench.overload import OverloadOptions, measure_overload
from tokenmill.bench.serve import parse_slo
from tokenmill.core.errors import ConfigError
from tokenmill.server.settings import ServerSettings


def test_the_figures_of_a_server_that_refuses() -> None:
    """What is sent is five times what is done; the rest is refused, and neither goodput nor health suffers much."""
    options = OverloadOptions(clients=4, seconds=0.6, prompt_tokens="8-16", output_tokens="10-20")
    settings = ServerSettings(port=0, max_wait_s=0.3)
    with running_server(settings, max_seqs=4, step_s=0.008, max_step_tokens=64) as server:
        found = asyncio.run(measure_overload(Client(server.url), options, parse_slo("ttft=5")))
    over = found["overload"]
    assert over["rate_per_s"] == pytest.approx(5 * found["capacity"]["requests_per_s"])
    assert [point["part_of_capacity"] for point in found["points"]] == [0.6, 0.8, 0.9, 1.0]
    assert found["peak_goodput_per_s"] == max(point["sustained"]["goodput_per_s"] for point in found["points"])
    assert over["refusals"]["count"] > 0
    assert over["refusals"]["other_errors"] == 0
    assert over["refusals"]["count"] + over["requests"]["completed"] == over["requests"]["sent"]
    assert found["goodput_share_of_peak"] > 0.3, "it does most of what it can"
    assert over["health"]["asked"] > 0
    assert over["health"]["failed"] == 0
    assert found["blocks_in_use"] == 0


@pytest.mark.parametrize("options", [OverloadOptions(factor=1.0), OverloadOptions(seconds=0.0)])
def test_options_that_cannot_be(options: OverloadOptions) -> None:
    with pytest.raises(ConfigError, match="factor"):
        options.check()
