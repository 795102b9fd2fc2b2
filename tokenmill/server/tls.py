"""TLS from two files: TLS 1.2 at least, forward secrecy, and new files taken up without a restart.

What ``openssl`` and Python leave out by default stays out (old protocols, compression); of TLS 1.2, only ciphers with
ephemeral keys and authentication in one are offered. The files are looked at every few seconds: a certificate that
was renewed is used for every connection that begins after it. Files that do not fit together, as while they are being
replaced, change nothing.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from tokenmill.core.errors import SetupError
from tokenmill.server.settings import ServerSettings

log = logging.getLogger(__name__)

CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"
"""For TLS 1.2; all of TLS 1.3 are of this kind."""
HANDSHAKE_TIMEOUT_S = 10.0
CHECK_PERIOD_S = 5.0


class Certificate:
    """The two files, and the context that new connections are opened with."""

    def __init__(self, cert: Path, key: Path) -> None:
        """Raises ``SetupError`` naming the file that cannot be read or does not fit."""
        self._cert, self._key = cert, key
        self._seen = self._stamp()
        self.context = self._load(_new_context())

    def renew(self) -> bool:
        """Take up the files if they have changed; whether they were."""
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            self._load(_new_context())  # whole and fitting, before the one in use is touched
            self._load(self.context)
        except SetupError as error:
            log.warning("the certificate stays as it was: %s", error)
            return False
        log.info("a new certificate is in use")
        return True

    def _stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(map(_stamp_of, (self._cert, self._key)))

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        for option, path in (("--tls-cert", self._cert), ("--tls-key", self._key)):
            try:
                path.read_bytes()
            except OSError as error:
                raise SetupError(f"cannot read {option} {path}: {(error.strerror or str(error)).lower()}") from error
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except (ssl.SSLError, ValueError) as error:
            reason = getattr(error, "reason", None) or str(error)
            raise SetupError(
                f"--tls-cert {self._cert} and --tls-key {self._key} are no certificate chain in PEM and its key "
                f"without a password: {reason.lower().replace('_', ' ')}"
            ) from error
        return context


def certificate_of(settings: ServerSettings) -> Certificate | None:
    """None where no TLS is asked for; raises ``SetupError`` as ``Certificate`` does."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Certificate(settings.tls_cert, settings.tls_key)


def _new_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _no_password() -> str:
    raise ValueError("the key is protected by a password")
