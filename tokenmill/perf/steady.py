"""Serving in the steady state, in closed form: how fast a deployment goes under a load that does not change.

What is predicted is a weighted sum of step times, so that one calibration serves steps and services alike. Four loads:

* **One batch** (``generation``): b equal requests start together. The first token takes a step over all prompts, each
  further one a step over b rows whose context grows from the input to the end; a step is affine in its context, so the
  mean takes a step at the middle.
* **Closed loop** (``closed_loop_token``, ``closed_loop_first``): c clients, each sends its next request when it has
  its last answer. Every request brings one prompt and o − 1 further tokens, so per decoding step c/o prompts are
  computed as well. An engine that puts both into one step (chunked prefill, in-flight batching) takes a step over c
  rows and c·i/o prompt tokens; one that lets prompts go first adds prompt steps, (c − 1)/o of them per token. A prompt
  waits for the step in progress and for its share of the other prompts.
* **Saturation** (``saturated``): more requests than fit; the batch is what memory holds. Tokens per second are
  batch / step, with prompts mixed in as in the closed loop.
* **Waiting**: if more clients come than memory holds (``capacity``), the rest wait for a place: with room for k of c
  the wait is (c − k)/k residences of a request.

Formulas of queues with chance in them (Poisson arrivals, percentiles) are the simulator's matter.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.perf.costs import Rows, Work, largest_batch_of, weight_bytes
from tokenmill.perf.terms import Deployment

Steps = tuple[tuple[float, Work], ...]
"""Weighted steps: seconds are Σ weight · step(work)."""

ACTIVATION_BYTES = 3.5e9
"""Beside weights and KV on a device: activations of a full prompt step, graphs, communication buffers, context."""


@dataclass(frozen=True, slots=True)
class MemoryRule:
    """How an engine sizes its cache: a share of the device's total (vLLM), or of what weights leave (TensorRT-LLM)."""

    share: float
    of_total: bool
    reserved_bytes: float = ACTIVATION_BYTES

    def kv_bytes(self, total: float, weights: float) -> float:
        if self.of_total:
            return total * self.share - weights - self.reserved_bytes
        return (total - weights - self.reserved_bytes) * self.share


def capacity(deployment: Deployment, rule: MemoryRule, tokens: float) -> int:
    """Sequences of ``tokens`` tokens that the whole instance holds at once; 0: not even its weights and one of them."""
    shape, formats, layout = deployment.shape, deployment.formats, deployment.layout
    weights = weight_bytes(shape, formats, layout)
    room = rule.kv_bytes(deployment.hardware.memory_bytes, weights)
    return largest_batch_of(shape, formats, layout, tokens, weights + room) if room > 0 else 0


def mixed(batch: float, input_len: float, output_len: float) -> Work:
    """An average step in flow: ``batch`` rows in the middle of their output, and the prompts that come per step."""
    decode = Work.decode(batch, input_len + max(output_len, 1.0) / 2)
    prompts = batch / max(output_len, 1.0)
    return decode + Work((Rows(max(input_len, 1.0), 0, prompts),), 0.0)


def first_token(batch: float, input_len: float) -> Steps:
    """A step over ``batch`` prompts."""
    return ((1.0, Work.prefill(max(input_len, 1.0), 0, batch)),)


def per_token(batch: float, input_len: float, output_len: float) -> Steps:
    """A step over ``batch`` rows in the middle of their output."""
    return ((1.0, Work.decode(batch, input_len + max(output_len, 1.0) / 2)),)


def generation(batch: float, input_len: float, output_len: float) -> Steps:
    """One batch from its prompts to its last token."""
    steps = max(output_len - 1.0, 0.0)
    return (*first_token(batch, input_len), (steps, Work.decode(batch, input_len + max(output_len, 1.0) / 2)))


def closed_loop_token(clients: float, input_len: float, output_len: float, *, mixes: bool) -> Steps:
    """Seconds per output token after the first, of one of ``clients`` requests in flight."""
    others = max(clients - 1.0, 0.0) / max(clients, 1.0)
    decode = Work.decode(clients, input_len + output_len / 2)
    if mixes:
        return ((1.0 - others, decode), (others, mixed(clients, input_len, output_len)))
    prompts = max(clients - 1.0, 0.0) / max(output_len, 1.0)
    return ((1.0, decode), (prompts, Work.prefill(max(input_len, 1.0))))


OTHERS = 0.1
"""Share of the other clients' prompts that a prompt finds before it: they come bunched at the start, spread out
later."""


def closed_loop_first(clients: float, input_len: float, output_len: float, waiting: float, token: Steps) -> Steps:
    """Seconds to a request's first token: half a step in progress, its own prompt, others', and a place in memory.

    ``waiting``: clients without a place, over those with one; each place comes free once per residence.
    """
    prompts = 1.0 + OTHERS * max(clients - 1.0, 0.0)
    own = ((0.5, Work.decode(clients, input_len + output_len / 2)), (prompts, Work.prefill(max(input_len, 1.0))))
    return (*own, *((waiting * output_len * weight, work) for weight, work in token if waiting))


def saturated(batch: float, input_len: float, output_len: float) -> Steps:
    """Seconds per step, in which ``batch`` rows get a token each."""
    return ((1.0, mixed(batch, input_len, output_len)),)
