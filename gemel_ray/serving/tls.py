"""A certificate and its key, for a service that speaks HTTPS itself."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from gemel_ray.spec.errors import InputError


@dataclass(frozen=True, slots=True)
class Certificate:
    """Files in PEM; `cert` may hold the chain up to its authority."""

    cert: Path
    key: Path


def read_certificate(cert: Path | None, key: Path | None) -> Certificate | None:
    """The files, which can be used; None where neither is given. InputError for one alone, and for what is unusable."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        given, lacking = ("--tls-cert", "--tls-key") if key is None else ("--tls-key", "--tls-cert")
        raise InputError(f"{given} {cert or key} needs {lacking} beside it")
    try:
        # A key with a passphrase would have it asked for at a terminal that an edge box has not.
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(cert, key, password="")
    except (OSError, ValueError) as error:
        raise InputError(
            f"--tls-cert {cert}, --tls-key {key}: cannot be used ({error}); give a certificate and its own key in PEM, "
            "readable by this user and without a passphrase"
        ) from error
    return Certificate(cert.absolute(), key.absolute())


def without_verification() -> ssl.SSLContext:
    """For asking the service that this very process has started."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
