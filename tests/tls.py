"""A server that speaks TLS."""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyramid_jobstate.embedded import EmbeddedServer


@contextlib.contextmanager
def tls_server(directory: Path) -> Iterator[str]:
    """Run a server with a certificate of its own, and give its URL."""
    # The embedded server does not support TLS.
    binary, openssl = shutil.which("valkey-server"), shutil.which("openssl")
    if binary is None or openssl is None:
        reason = "valkey-server or openssl is missing (Debian's packages)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    command += ["-subj", "/CN=localhost", "-addext", names]
    subprocess.run(command, check=True, capture_output=True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    arguments = ["--tls-port", str(port), "--tls-auth-clients", "no"]
    arguments += ["--tls-cert-file", str(certificate), "--tls-key-file", str(key)]
    with EmbeddedServer(binary=binary, arguments=arguments):
        yield f"rediss://127.0.0.1:{port}/0?ssl_ca_certs={certificate}"
