"""The causal account in words: why was this request slow?"""

from __future__ import annotations

from typing import Any

from tokenmill.core.events import Account

_PLACES = {
    "queue": "waiting to start",
    "preempted": "waiting to go on after its KV blocks were taken",
    "prefill": "computing the prompt",
    "decode": "generating",
}

_CAUSES = {
    "step_boundary": "for the step in progress to end",
    "kv_blocks": "for free KV blocks",
    "max_seqs": "for a place in the batch (max_seqs)",
    "token_budget": "while the step's tokens went to others (max_step_tokens)",
    "prompt_of_sibling": "for another choice to compute the shared prompt",
    "batch_policy": "for the batch to fill or to end (static or dynamic batching)",
    "beside_prefill": "in steps that also computed others' prompts",
}


def explain_account(account: Account) -> dict[str, Any]:
    """``causes``, the longest first, each with seconds, share and a sentence; the seconds add up to the total."""
    causes = [
        {
            "cause": name,
            "seconds": seconds,
            "share": seconds / account.total_s if account.total_s else 0.0,
            "means": _sentence(name),
        }
        for name, seconds in sorted(account.causes.items(), key=lambda item: -item[1])
    ]
    return {"total_s": account.total_s, "causes": causes}


def _sentence(name: str) -> str:
    place, _, cause = name.partition(":")
    return f"{_PLACES[place]} {_CAUSES[cause]}" if cause else _PLACES[place]
