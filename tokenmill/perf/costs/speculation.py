"""What speculative decoding is worth (Leviathan et al., arXiv 2211.17192).

A draft of k tokens, each accepted with probability α while all before it were, brings on average
(1 − α^(k+1))/(1 − α) tokens per verification: the accepted ones and one that verification itself yields. With a draft
step that costs r of a verification, a round costs 1 + k·r.
"""

from __future__ import annotations


def expected_tokens(acceptance: float, length: int) -> float:
    """Tokens per verification."""
    if acceptance >= 1:
        return length + 1.0
    return (1 - acceptance ** (length + 1)) / (1 - acceptance)


def speed_up(tokens: float, length: int, draft_cost: float) -> float:
    """Over plain decoding; ``draft_cost``: a draft step's time over a verification's."""
    return tokens / (1 + length * draft_cost)


def best_length(acceptance: float, draft_cost: float, longest: int = 64) -> tuple[int, float]:
    """(draft length, its speed-up); 0 and 1.0 where every draft would lose."""
    gains = [(speed_up(expected_tokens(acceptance, k), k, draft_cost), -k) for k in range(longest + 1)]
    gain, length = max(gains)
    return -length, gain
