"""What the operator decides about the network face; every limit here protects the engine behind it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tokenmill.core.errors import ConfigError
from tokenmill.server.dialects import REASONING_DIALECT_NAMES, TOOL_DIALECT_NAMES
from tokenmill.server.observe.logs import LogFormat
from tokenmill.server.observe.tracing import collector_of


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Where to listen, whom to let in, and how long and how large anything may get."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """TCP port; 0 takes a free one."""
    api_key: str | None = field(default=None, repr=False)
    """If given, everything but ``/health…`` wants ``Authorization: Bearer <key>``."""
    keys: Path | None = None
    """File of keys (``tokenmill keys create``), each with its tenant and its limits; read again when it changes."""
    open_metrics: bool = False
    """``/metrics`` wants no key."""
    max_waiting_requests: int = 2048
    """Most choices that may wait for the engine; more are refused."""
    max_waiting_tokens: int = 1_000_000
    """Most tokens that those who wait may still have to compute."""
    max_wait_s: float = 30.0
    """A request that would have to wait longer than this, as far as can be foreseen, is refused at once."""
    queue_timeout_s: float | None = None
    """A request that has waited so long and not begun ends with 503; None: it waits as long as it takes."""
    cors_origins: tuple[str, ...] = ()
    """Origins that a browser may call from; none by default."""
    allowed_hosts: tuple[str, ...] = ()
    """Names by which this server may be called; () for every one, but see ``host.py`` for servers without a key."""
    tls_cert: Path | None = None
    """Certificate chain in PEM; with ``tls_key``, only TLS is spoken."""
    tls_key: Path | None = None
    """The certificate's key in PEM, without a password."""
    max_connections: int = 10_000
    """Most open connections; when one more comes, the one that has waited longest without a request is closed."""
    head_timeout_s: float = 8.0
    """A connection that has not sent a whole request header after this long is closed with 408."""
    max_body_bytes: int = 32 * 2**20
    """Largest request body; more is refused with 413 before it is read."""
    body_timeout_s: float = 30.0
    """A body that is not complete after this long is refused with 408."""
    max_held_bytes: int = 2**30
    """Most bytes of bodies that are being read, parsed and tokenised at one time, over all clients; then 503."""
    write_stall_s: float = 30.0
    """A client that takes nothing off a stream for this long is cut off and its request aborted."""
    ping_s: float = 15.0
    """A stream with nothing to say sends a comment this often, so that proxies keep it open."""
    drain_timeout_s: float = 30.0
    """After SIGTERM, how long running requests may take to finish."""
    max_request_tokens: int = 1_000_000
    """Most tokens that one HTTP request may ask for over all its prompts and choices."""
    log_format: LogFormat = "text"
    """How the log's lines are written: for people, or one JSON object each."""
    log_requests: bool = False
    """The line of each request has its sampling parameters and the causes of its delays too; never a text."""
    otlp: str | None = None
    """Address of an OpenTelemetry collector (OTLP over HTTP) that is sent a span per request and stage."""
    tool_dialect: str = "auto"
    """How the model writes calls of functions: one of ``TOOL_DIALECT_NAMES``; "auto": as the chat template shows it."""
    reasoning_dialect: str = "auto"
    """How the model marks reasoning: a name of ``REASONING_DIALECT_NAMES``; "auto": as the template shows it."""

    store_dir: Path | None = None
    """Folder where files and batches are kept; None: a temporary one that ends with the process."""
    max_file_bytes: int = 512 * 2**20
    """Largest file that may be uploaded; more is refused with 413."""
    max_tenant_files: int = 10_000
    """Most files that one tenant may have stored."""
    max_tenant_bytes: int = 10 * 2**30
    """Most bytes of files that one tenant may have stored."""
    max_tenant_batches: int = 100
    """Most batches of one tenant that are not over; more are refused with 429."""
    max_stored_responses: int = 10_000
    """Most responses that are kept to be asked for and continued; the tenant with the most gives up its oldest."""
    max_stored_response_bytes: int = 128 * 2**20
    """Most bytes of them, their inputs included."""
    response_ttl_s: float = 30 * 86400.0
    """How long a response is kept."""
    max_batch_lines: int = 64
    """Most lines of batches that are in flight at one time; fewer while the engine turns them away."""

    def __post_init__(self) -> None:
        for name, value in (
            ("max_body_bytes", self.max_body_bytes),
            ("max_connections", self.max_connections),
            ("max_held_bytes", self.max_held_bytes),
            ("head_timeout_s", self.head_timeout_s),
            ("body_timeout_s", self.body_timeout_s),
            ("write_stall_s", self.write_stall_s),
            ("ping_s", self.ping_s),
            ("max_request_tokens", self.max_request_tokens),
            ("max_file_bytes", self.max_file_bytes),
            ("max_tenant_files", self.max_tenant_files),
            ("max_tenant_bytes", self.max_tenant_bytes),
            ("max_tenant_batches", self.max_tenant_batches),
            ("max_batch_lines", self.max_batch_lines),
            ("max_stored_responses", self.max_stored_responses),
            ("max_stored_response_bytes", self.max_stored_response_bytes),
            ("response_ttl_s", self.response_ttl_s),
            ("max_waiting_requests", self.max_waiting_requests),
            ("max_waiting_tokens", self.max_waiting_tokens),
            ("max_wait_s", self.max_wait_s),
            ("queue_timeout_s", 1 if self.queue_timeout_s is None else self.queue_timeout_s),
        ):
            if value <= 0:
                raise ConfigError(f"{name} must be above 0, not {value}")
        if self.otlp is not None:
            collector_of(self.otlp)
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert and tls_key are only good together: give both, or neither")
        for name, chosen, known in (
            ("tool_dialect", self.tool_dialect, TOOL_DIALECT_NAMES),
            ("reasoning_dialect", self.reasoning_dialect, REASONING_DIALECT_NAMES),
        ):
            if chosen not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, not {chosen!r}")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, not {self.port}")
        if self.drain_timeout_s < 0:
            raise ConfigError(f"drain_timeout_s must be at least 0, not {self.drain_timeout_s}")
        if self.api_key == "":
            raise ConfigError("api_key must not be empty; leave it out to let everyone in")
        if self.api_key is not None and self.keys is not None:
            raise ConfigError(
                "give one shared key (--api-key-file, TOKENMILL_API_KEY) or a file of keys (--keys), not both"
            )
