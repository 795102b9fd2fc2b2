"""What the operator decides about the network face; every limit here protects the engine behind it."""

from __future__ import annotations

from dataclasses import dataclass

from tokenmill.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where to listen, whom to let in, and how long and how large anything may get."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """TCP port; 0 takes a free one."""
    api_key: str | None = None
    """If given, everything but ``/health…`` wants ``Authorization: Bearer <key>``."""
    cors_origins: tuple[str, ...] = ()
    """Origins that a browser may call from; none by default."""
    max_body_bytes: int = 32 * 2**20
    """Largest request body; more is refused with 413 before it is read."""
    body_timeout_s: float = 30.0
    """A body that is not complete after this long is refused with 408."""
    write_stall_s: float = 30.0
    """A client that takes nothing off a stream for this long is cut off and its request aborted."""
    ping_s: float = 15.0
    """A stream with nothing to say sends a comment this often, so that proxies keep it open."""
    drain_timeout_s: float = 30.0
    """After SIGTERM, how long running requests may take to finish."""
    max_request_tokens: int = 1_000_000
    """Most tokens that one HTTP request may ask for over all its prompts and choices."""

    def __post_init__(self) -> None:
        for name, value in (
            ("max_body_bytes", self.max_body_bytes),
            ("body_timeout_s", self.body_timeout_s),
            ("write_stall_s", self.write_stall_s),
            ("ping_s", self.ping_s),
            ("max_request_tokens", self.max_request_tokens),
        ):
            if value <= 0:
                raise ConfigError(f"{name} must be above 0, not {value}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, not {self.port}")
        if self.drain_timeout_s < 0:
            raise ConfigError(f"drain_timeout_s must be at least 0, not {self.drain_timeout_s}")
        if self.api_key == "":
            raise ConfigError("api_key must not be empty; leave it out to let everyone in")
