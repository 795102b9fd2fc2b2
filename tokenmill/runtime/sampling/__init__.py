"""Choosing tokens: from the model's logits and each sequence's wishes to one token a row.

The order of stages is that of ``core/params.py``; each is one class:

=================  ==========================================================================
``uniform.py``     the random numbers: a function of (seed, position) alone
``stages.py``      what changes logits: bias, bans, ``min_tokens``, penalties
``filters.py``     what narrows the choice after temperature: top-k, top-p, min-p, typical
``logprobs.py``    log-probabilities of the model's own distribution, ranks, the likeliest tokens
``sampler.py``     the order, the draw, errors by row
=================  ==========================================================================

**A row's outcome depends on the row alone, bit for bit.** Only operations are used that treat a row the
same in any company: comparisons, single-rounding arithmetic, sequential ``cumsum`` in float64, stable
``sort``, and ``softmax``/``log_softmax`` along the last dimension. Elementwise ``exp`` and ``log`` (vector code
for blocks, scalar code for what is left over) and ``sum`` (split among threads for one long row, not for
two) are not used. ``tests/numeric/test_sampling_independence.py`` checks it.
"""

from __future__ import annotations

from tokenmill.runtime.sampling.sampler import Sample, Sampler
from tokenmill.runtime.sampling.stages import SampledSequence

__all__ = ["Sample", "SampledSequence", "Sampler"]
