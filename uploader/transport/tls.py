"""Which certificates a TLS connection trusts."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

from uploader.errors import ConfigurationError


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """A context that always verifies. Reads files, so call it in a thread.

    Not `ssl.create_default_context`: there SSL_CERT_FILE and SSL_CERT_DIR decide what is
    trusted, and the keys of every session are written to the file that SSLKEYLOGFILE names.

    Raises:
        ConfigurationError: `ca_file` holds no certificates.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _trust_system_authorities(context)
    context.set_alpn_protocols(["http/1.1"])
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as exc:  # ssl.SSLError is one
            raise ConfigurationError(
                f"{ca_file} holds no readable certificates ({exc.strerror or exc}).",
                next_step="Point VODUP_CA_FILE at a file of PEM certificates.",
            ) from exc
    return context


def _trust_system_authorities(context: ssl.SSLContext) -> None:
    """Load them from where this build of OpenSSL expects them, not from the environment."""
    paths = ssl.get_default_verify_paths()
    for name, path in (("cafile", paths.openssl_cafile), ("capath", paths.openssl_capath)):
        with suppress(OSError):  # usually one of the two exists; ssl.SSLError is an OSError
            context.load_verify_locations(**{name: path})
