"""Starting: every stage is timed, and what fails says why."""

from __future__ import annotations

import pytest

from tokenmill.bench.start import run


def test_every_stage_up_to_the_first_token() -> None:
    result = run("story-draft", {"num_blocks": 64}, repeat=1)
    stages = result["stages"]
    assert list(stages)[0] == "interpreter and imports" and list(stages)[-1] == "first token"  # noqa: RUF015
    assert {"importing torch", "loading weights", "warming up"} <= set(stages)
    assert all(seconds >= 0 for seconds in stages.values())
    assert result["total_s"] == pytest.approx(sum(stages.values()))
    assert result["weights_bytes"] == result["foreseen_bytes"]["weights"] < result["peak_bytes"]


def test_a_model_that_is_not_there() -> None:
    with pytest.raises(RuntimeError, match=r"^no built-in model and no folder 'no-such-model'"):
        run("no-such-model", {}, repeat=1)
