"""lm-evaluation-harness: likelihoods by echoed log-probabilities, and answers to chats, on tiny tasks shipped here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import lm_eval
import pytest
from lm_eval.tasks import TaskManager

from tests.clients.conftest import MODEL

TASKS = Path(__file__).parent / "tasks"


def evaluate(model: str, url: str, task: str, **options: Any) -> dict[str, Any]:
    arguments = {"model": MODEL, "base_url": url, "num_concurrent": 2, "max_retries": 1, "max_length": 512}
    manager = TaskManager(include_path=str(TASKS), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model=model, model_args=arguments | options.pop("arguments", {}), tasks=[task], task_manager=manager,
        bootstrap_iters=0, log_samples=True, **options,
    )  # fmt: skip
    assert found is not None
    return found


@pytest.mark.parametrize("batch", [1, 4])
def test_likelihoods_are_the_server_s_own(server: str, v1: str, batch: int) -> None:
    """AC-07. The harness finds the tokenizer by ``/tokenizer_info``; its sums are those of a request by hand."""
    found = evaluate("local-completions", f"{v1}/completions", "fox_choice", batch_size=batch)
    assert found["results"]["fox_choice"]["acc,none"] == 1.0
    for sample in found["samples"]["fox_choice"]:
        for choice, answer in zip(sample["doc"]["choices"], sample["filtered_resps"], strict=True):
            loglikelihood = float(answer[0])
            assert loglikelihood == pytest.approx(by_hand(server, sample["doc"]["text"], choice), abs=1e-4)


def by_hand(server: str, text: str, choice: str) -> float:
    body = {"model": MODEL, "prompt": text + choice, "max_tokens": 0, "echo": True, "logprobs": 0}
    answer = httpx.post(f"{server}/v1/completions", json=body, timeout=60).json()["choices"][0]["logprobs"]
    pairs = zip(answer["token_logprobs"], answer["text_offset"], strict=True)
    return float(sum(logprob for logprob, offset in pairs if offset >= len(text)))


def test_generating_by_completions(v1: str) -> None:
    found = evaluate("local-completions", f"{v1}/completions", "fox_story", batch_size=2)
    answers = [sample["filtered_resps"][0] for sample in found["samples"]["fox_story"]]
    assert all(answers) and not any("." in answer for answer in answers)


def test_generating_by_chats(v1: str) -> None:
    """AC-08."""
    url = f"{v1}/chat/completions"
    found = evaluate("local-chat-completions", url, "fox_story", batch_size=1, apply_chat_template=True)
    answers = [sample["filtered_resps"][0] for sample in found["samples"]["fox_story"]]
    assert all(answers) and not any("." in answer for answer in answers)
