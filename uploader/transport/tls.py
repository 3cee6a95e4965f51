"""Which certificates a TLS connection trusts, and who issued one that it does not."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from uploader.errors import ConfigurationError
from uploader.protocol.documents import clean_text

if TYPE_CHECKING:
    from uploader.transport.proxies import Proxy


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
                next_step="Pass a file of PEM certificates with --ca-file (VODUP_CA_FILE).",
            ) from exc
    return context


def _trust_system_authorities(context: ssl.SSLContext) -> None:
    """Load them from where this build of OpenSSL expects them, not from the environment."""
    paths = ssl.get_default_verify_paths()
    for name, path in (("cafile", paths.openssl_cafile), ("capath", paths.openssl_capath)):
        with suppress(OSError):  # usually one of the two exists; ssl.SSLError is an OSError
            context.load_verify_locations(**{name: path})


async def presented_issuer(host: str, port: int, proxy: Proxy | None) -> str:
    """Connect only to read who issued the certificate of a server that is not trusted.

    Nothing is verified and no request is sent. "" if the proxy does not connect, or is itself
    reached over TLS: it is verified with the server's connections only.

    Raises:
        OSError, EOFError, asyncio.LimitOverrunError: there is no connection.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if proxy is not None and proxy.url.scheme == "https":
        return ""
    address = (proxy.url.host, proxy.url.port) if proxy else (host, port)
    reader, writer = await asyncio.open_connection(*address)
    try:
        if proxy is not None:
            target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
            lines += [f"{name}: {value}" for name, value in proxy.headers.items()]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            if b" 200 " not in (await reader.readuntil(b"\r\n\r\n")).partition(b"\r\n")[0]:
                return ""
        await writer.start_tls(context, server_hostname=host)
        return issuer_of(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
    finally:
        writer.transport.abort()


_COMMON_NAME, _ORGANIZATION = b"\x55\x04\x03", b"\x55\x04\x0a"  # OIDs 2.5.4.3 and 2.5.4.10


def issuer_of(certificate: bytes) -> str:
    """The name of who issued a certificate in DER (RFC 5280, 4.1); "" if it cannot be read.

    The standard library decodes only certificates that it trusts.
    """
    names: dict[bytes, str] = {}
    try:
        _, fields, _ = _der(_der(certificate)[1])
        for _ in range(1 if fields[0] != 0xA0 else 2):  # an optional version, the serial number
            fields = _der(fields)[2]
        _, issuer, _ = _der(_der(fields)[2])  # after the signature's algorithm
        while issuer:
            _, name, issuer = _der(issuer)
            _, kind, value = _der(_der(name)[1])
            names[kind] = _der(value)[1].decode("utf-8", "replace")
    except IndexError:
        return ""
    return clean_text(names.get(_COMMON_NAME) or names.get(_ORGANIZATION) or "", 80)


def _der(data: bytes) -> tuple[int, bytes, bytes]:
    """Split off the first value: its tag, its content, and what follows."""
    tag, size, start = data[0], data[1], 2
    if size & 0x80:
        start += size & 0x7F
        size = int.from_bytes(data[2:start])
    return tag, data[start : start + size], data[start + size :]
