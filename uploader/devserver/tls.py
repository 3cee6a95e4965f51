"""TLS for loopback: a certificate authority and a certificate, created by trustme."""

from __future__ import annotations

import ssl
from pathlib import Path


def server_context(folder: Path, *names: str) -> tuple[ssl.SSLContext, Path]:
    """A server-side context for these names and localhost, and the CA file clients must trust.

    The authority's key is never written; each start makes a new one.

    Raises: RuntimeError when trustme is not installed.
    """
    try:
        import trustme
    except ImportError as error:
        raise RuntimeError(
            "TLS needs the package 'trustme': pip install 'vodup[devserver]', or run without --tls"
        ) from error
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, "localhost", "127.0.0.1").configure_cert(context)
    ca_file = folder / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    ca_file.chmod(0o600)
    return context, ca_file
