"""``RequestRecord``: one HTTP request that has ended, in numbers and in names that this server gave or checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from tokenmill.core.events import Account
from tokenmill.core.params import SamplingParams

Outcome = Literal["ok", "refused", "limited", "unavailable", "failed", "gone"]
OUTCOMES: tuple[Outcome, ...] = ("ok", "refused", "limited", "unavailable", "failed", "gone")

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
_HELD_BACK = frozenset(
    {"stop", "bad_words", "bad_words_ids", "stop_token_ids", "allowed_token_ids", "logit_bias", "grammar"}
)
"""Sampling parameters that hold what a client wrote, or much of it."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a request had the engine do."""

    model: str
    params: SamplingParams
    num_prompts: int
    submitted_s: float
    """On ``time.monotonic``, as all moments here."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    first_token_s: float | None
    """From the request's arrival."""
    finish_reasons: tuple[str, ...]
    account: Account | None
    """Of the prompt that took longest; None if none was done."""
    error: str | None
    """The code that it failed with, or why it was given up (``disconnect``, ``write_stall``)."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    request_id: str
    method: str
    route: str
    """The route's pattern, ``other`` where nothing is; never the address as it was sent."""
    status: int
    """0 if the client left before the answer began."""
    tenant: str
    """As a label: one of those that the operator named, ``default``, or ``other``."""
    key_id: str | None
    began_s: float
    ended_s: float
    background: bool = False
    """A line of a batch."""
    error: str | None = None
    """The code of the error that was answered or that ended a stream."""
    trace: tuple[str, str] | None = None
    """Trace and span of the caller (W3C ``traceparent``)."""
    work: Work | None = None

    @property
    def duration_s(self) -> float:
        return self.ended_s - self.began_s

    @property
    def outcome(self) -> Outcome:
        """How it ended, for whoever counts."""
        error = self.error or (self.work.error if self.work else None)
        if self.status in (0, 499) or error in ("disconnect", "write_stall"):
            return "gone"
        if self.status == 429:
            return "limited"
        if self.status == 503:
            return "unavailable"
        if self.status >= 500 or (self.status < 400 and error is not None):
            return "failed"
        return "refused" if self.status >= 400 else "ok"

    def as_fields(self, *, details: bool = False) -> dict[str, Any]:
        """For a log; what is not known is left out. ``details``: sampling parameters and causes of delay too."""
        found: dict[str, Any] = {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "outcome": self.outcome,
            "duration_s": round(self.duration_s, 6),
            "tenant": self.tenant,
            "key_id": self.key_id,
            "error": self.error,
            "trace_id": self.trace[0] if self.trace else None,
        }
        if self.work is not None:
            found |= _work_fields(self.work)
            if details:
                found |= {"params": shown_params(self.work.params), "causes": _causes(self.work.account)}
        return {name: value for name, value in found.items() if value is not None}


def _work_fields(work: Work) -> dict[str, Any]:
    account = work.account
    return {
        "model": work.model,
        "prompts": work.num_prompts,
        "prompt_tokens": work.prompt_tokens,
        "completion_tokens": work.completion_tokens,
        "cached_tokens": work.cached_tokens,
        "finish_reasons": list(work.finish_reasons) or None,
        "error": work.error,
        "ttft_s": None if work.first_token_s is None else round(work.first_token_s, 6),
        "queue_s": None if account is None else round(account.queue_s, 6),
        "prefill_s": None if account is None else round(account.prefill_s, 6),
        "decode_s": None if account is None else round(account.decode_s, 6),
        "preemptions": None if account is None else account.num_preemptions,
    }


def _causes(account: Account | None) -> dict[str, float] | None:
    return None if account is None else {cause: round(seconds, 6) for cause, seconds in account.causes.items()}


def shown_params(params: SamplingParams) -> dict[str, Any]:
    """The sampling parameters that differ from their defaults, without those that hold texts or tokens."""
    default = SamplingParams()
    names = [field.name for field in fields(params) if field.name not in _HELD_BACK]
    return {name: value for name in names if (value := getattr(params, name)) != getattr(default, name)}


def trace_of(headers: Sequence[tuple[bytes, bytes]]) -> tuple[str, str] | None:
    """The caller's trace and span; None if there is no ``traceparent``, several, or one that is malformed."""
    values = [value for name, value in headers if name == b"traceparent"]
    found = _TRACEPARENT.fullmatch(values[0].strip()) if len(values) == 1 else None
    if found is None:
        return None
    trace_id, span_id = found[1].decode(), found[2].decode()
    return (trace_id, span_id) if int(trace_id, 16) and int(span_id, 16) else None


class TenantLabels:
    """Names for tenants in metrics and logs: a metric must not have a series for every name that somebody makes up.

    Tenants that keys name have their own, up to ``limit``; who comes later is ``other``. Where clients may call
    themselves what they like, all are ``default``.
    """

    def __init__(self, limit: int = 100) -> None:
        self._limit = limit
        self._named: set[str] = {"default"}

    def __call__(self, tenant: str, *, trusted: bool) -> str:
        if not trusted:
            return "default"
        if tenant not in self._named:
            if len(self._named) > self._limit:
                return "other"
            self._named.add(tenant)
        return tenant
