"""The error tree, split by who is to blame.

::

    TokenmillError
    ├── RequestError              one request ends; the engine and every other request go on
    │   ├── InvalidRequest        the client's mistake: says which field (``param``) and the remedy
    │   │   └── ContextLengthExceeded
    │   ├── ModelNotFound         the client asked for a model that is not served
    │   ├── NeverFits             the request needs more KV blocks than the pool has, with the numbers
    │   ├── Preempted             the preemption policy refused to recompute
    │   ├── DeadlineExceeded      the request's own deadline passed before it was done
    │   ├── RateLimited           the client's own share is used up: its key's limits, its tenant's part of the queue
    │   ├── Aborted               the client or the operator gave the request up
    │   ├── NumericalError        the model's logits were not finite, or every token was banned
    │   ├── GrammarFailed         the answer cannot go on within its grammar: no token fits, or it is too complex here
    │   ├── PoisonRequest         computing this one request raises, or takes the engine down: do not try again
    │   └── OutOfMemory           the step of this one request, run alone, found no memory
    ├── Unavailable               try again later: draining, not ready, the engine died
    ├── SetupError                the operator's mistake: configuration, checkpoint, memory
    │   ├── ConfigError
    │   ├── CheckpointError
    │   └── DoesNotFit            the memory ledger says no, and names the one change that fits
    └── NotSupported              a feature that is not built; docs/status.md lists them

Every message is one line that a user can act on. ``code`` is a stable snake_case word for programs.
"""

from __future__ import annotations


class TokenmillError(Exception):
    """Base of everything this package raises on purpose."""

    code = "error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code


class RequestError(TokenmillError):
    """Ends one request. ``param`` names the field to blame, if one is."""

    code = "request_failed"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.param = param


class InvalidRequest(RequestError):
    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    code = "context_length_exceeded"


class ModelNotFound(RequestError):
    code = "model_not_found"


class NeverFits(RequestError):
    code = "kv_capacity_exceeded"


class Preempted(RequestError):
    code = "preempted"


class DeadlineExceeded(RequestError):
    code = "deadline_exceeded"


class RateLimited(RequestError):
    """Nothing is wrong with the request but that its sender has had enough for now."""

    code = "rate_limit_exceeded"

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, param=param, code=code)
        self.retry_after_s = retry_after_s
        """When to try again; None: never, it asks for more than the limit ever allows."""


class Aborted(RequestError):
    code = "aborted"


class NumericalError(RequestError):
    code = "numerical_error"


class GrammarFailed(RequestError):
    code = "grammar_failed"


class PoisonRequest(RequestError):
    code = "poison_request"


class OutOfMemory(RequestError):
    code = "out_of_memory"


class Unavailable(TokenmillError):
    """Nothing is wrong with the request: the server cannot take or finish it now."""

    code = "unavailable"

    def __init__(self, message: str, *, code: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message, code=code)
        self.retry_after_s = retry_after_s


class SetupError(TokenmillError):
    code = "setup_error"


class ConfigError(SetupError):
    code = "config_error"


class CheckpointError(SetupError):
    code = "checkpoint_error"


class DoesNotFit(SetupError):
    code = "does_not_fit"


class NotSupported(TokenmillError):
    code = "not_supported"
