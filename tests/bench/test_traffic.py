"""Traffic beyond Poisson: other arrivals, recorded traces, shared beginnings, clients that give up."""

from __future__ import annotations

import random
import statistics
from itertools import pairwise
from pathlib import Path

import pytest

from tokenmill.bench.load import PlannedRequest, arrival_times, give_up, prompt_text, trace_load
from tokenmill.core.errors import ConfigError


@pytest.mark.parametrize(
    ("process", "variation"), [("poisson", 1.0), ("gamma:cv=1", 1.0), ("gamma:cv=3", 3.0), ("uniform", 0.0)]
)
def test_gaps_have_their_mean_and_their_variation(process: str, variation: float) -> None:
    times = arrival_times(40_000, 50.0, random.Random(1), process)
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == 0.0
    assert statistics.mean(gaps) == pytest.approx(1 / 50, rel=0.06)
    assert statistics.pstdev(gaps) * 50 == pytest.approx(variation, rel=0.08, abs=1e-6)


def test_bursts_are_burstier_at_the_same_mean_rate() -> None:
    times = arrival_times(40_000, 50.0, random.Random(1), "bursty:on=0.1,off=0.3")
    gaps = [b - a for a, b in pairwise(times)]
    assert times[-1] == pytest.approx(40_000 / 50, rel=0.15)
    assert statistics.pstdev(gaps) * 50 > 2


def test_a_share_of_the_answers_is_given_up_on_the_way() -> None:
    load = give_up([PlannedRequest(0.0, 8, 10)] * 100, 0.25, random.Random(0))
    given_up = [request.give_up_after for request in load if request.give_up_after is not None]
    assert len(given_up) == 25 and all(1 <= pieces < 10 for pieces in given_up)
    assert len(set(given_up)) > 1


def test_azures_trace(shared: Path) -> None:
    trace = trace_load(shared / "data" / "traces" / "azure" / "AzureLLMInferenceTrace_conv.csv", 500, 2.0, 0)
    assert len(trace) == 500
    assert (trace[0].send_s, trace[0].prompt_tokens, trace[0].output_tokens) == (0.0, 374, 44)
    assert trace[1].send_s == pytest.approx(4.314579 / 2, abs=1e-5)
    assert (trace[1].prompt_tokens, trace[1].output_tokens) == (396, 109)


def test_mooncakes_trace_shares_beginnings(shared: Path) -> None:
    trace = trace_load(shared / "data" / "traces" / "mooncake" / "synthetic_trace.jsonl", 300, 1.0, 0)
    one, other = next((a, b) for a in trace for b in trace if a is not b and a.prefix_ids[:2] == b.prefix_ids[:2])
    words = [prompt_text(request, 1.0, "seed", index).split() for index, request in enumerate((one, other))]
    assert [len(w) for w in words] == [one.prompt_tokens, other.prompt_tokens]
    assert words[0][:1024] == words[1][:1024]
    assert prompt_text(one, 1.0, "another seed", 0).split()[:512] != words[0][:512]


def test_prompts_share_as_many_words_as_they_share_pieces() -> None:
    def words(index: int, *pieces: int) -> list[str]:
        request = PlannedRequest(0.0, 50, 1, prefix_ids=pieces, piece_tokens=10)
        return prompt_text(request, 1.0, "seed", index).split()

    one, other = words(0, 1, 2, 3, 4), words(1, 1, 2, 9, 4)
    assert len(one) == len(other) == 50
    assert one[:20] == other[:20] and one[20:30] != other[20:30] and one[30:40] == other[30:40]
    assert one[40:] != other[40:], "what is in no piece is a prompt's own"


def test_a_malformed_trace_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"timestamp": 1, "input_length": 3, "output_length": 4, "hash_ids": [1]}\n{"timestamp": 2}\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl, line 2"):
        trace_load(path, 10, 1.0, 0)
