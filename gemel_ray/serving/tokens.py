"""Who may call: bearer tokens by role. Only hashes of tokens are kept, and only this machine calls without one."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args
from urllib.parse import urlsplit

from fastapi import HTTPException, Request
from pydantic import model_validator

from gemel_ray.spec.errors import InputError
from gemel_ray.spec.strict import Strict

# infer: send frames. read: status, results, metrics. admin: everything, and whatever changes the service.
Role = Literal["infer", "read", "admin"]

# One hash is enough for tokens that nobody can guess, and for no others.
_SHORTEST = 16
# RFC 6750's characters of a token.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")


class TokenSource(Strict):
    """Where a role's tokens are: a file, or an environment variable. Several, on lines of their own, while one takes
    another's place."""

    file: str | None = None
    env: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> TokenSource:
        if (self.file is None) == (self.env is None):
            raise ValueError(
                "name either a 'file' or an environment variable as 'env', such as {env: GEMEL_TOKEN}, never a token"
            )
        return self


def without_tokens(given: object) -> object:
    """Sources as they were written, without what may be a token itself: errors quote what is wrong, logs keep it."""
    if not isinstance(given, Mapping):
        return {"infer": {}}
    return {role: source if isinstance(source, Mapping | TokenSource) else {} for role, source in given.items()}


def token_sources(files: Iterable[str], variables: Iterable[str]) -> dict[Role, TokenSource]:
    """Sources as a command line gives them, ROLE=FILE and ROLE=VARIABLE. InputError for anything else.

    What follows the role may be a token, by mistake, so that it is never quoted.
    """
    found: dict[Role, TokenSource] = {}
    roles: dict[str, Role] = {role: role for role in get_args(Role)}
    for option, kind, given in (("--token", "file", files), ("--token-env", "env", variables)):
        for each in given:
            name, equals, where = each.partition("=")
            if name not in roles or not equals or not where:
                said = name if equals else "something without a role"
                raise InputError(
                    f"{option}: {said!r} is given; write ROLE={kind.upper()}, the role one of {list(roles)}"
                )
            if roles[name] in found:
                raise InputError(f"{option} {name}: two sources are given; put all tokens of a role into one file")
            found[roles[name]] = TokenSource(**{kind: where})
    return found


@dataclass(frozen=True, slots=True)
class Tokens:
    """SHA-256 hashes of the tokens that are taken, each with its role."""

    hashes: tuple[tuple[str, Role], ...] = ()

    @classmethod
    def of(cls, **tokens: Iterable[str]) -> Tokens:
        """From the tokens themselves, by role."""
        roles: dict[str, Role] = {role: role for role in get_args(Role)}
        return cls(tuple((_hash(token), roles[role]) for role, given in tokens.items() for token in given))

    def role_of(self, token: str) -> Role | None:
        """The role of a token, None for one that is not known; the time taken tells nothing about either."""
        given = _hash(token)
        found: Role | None = None
        for known, role in self.hashes:
            if hmac.compare_digest(given, known):
                found = role
        return found

    def with_role(self, role: Role, tokens: Tokens) -> Tokens:
        """The same with other tokens of one role. InputError for one that another role has."""
        others = tuple(known for known in self.hashes if known[1] != role)
        return _each_once(others + tokens.hashes)


def read_tokens(sources: Mapping[Role, TokenSource]) -> Tokens:
    """Read and hash the tokens. InputError for a source that is not there or holds no token that is long enough."""
    return _each_once(
        tuple((_hash(token), role) for role, source in sources.items() for token in _tokens(role, source))
    )


def _each_once(hashes: tuple[tuple[str, Role], ...]) -> Tokens:
    if len({name for name, _ in hashes}) < len(hashes):
        raise InputError("tokens: the same token is given twice; make a new one for each role: openssl rand -hex 32")
    # In one order, so that equal ones are equal.
    return Tokens(tuple(sorted(hashes)))


def _tokens(role: Role, source: TokenSource) -> list[str]:
    where = f"tokens.{role}: {f'file {source.file}' if source.file else f'environment variable {source.env}'}"
    tokens = _text(where, source).split()
    if not tokens:
        raise InputError(f"{where} is empty; write a token into it: openssl rand -hex 32")
    for place, token in enumerate(tokens):
        # The token itself must not end up in a log.
        if len(token) < _SHORTEST or not _TOKEN.fullmatch(token):
            raise InputError(
                f"{where}: token {place} has {len(token)} characters; it needs {_SHORTEST} or more, letters, digits "
                "and ._~+/- only: openssl rand -hex 32"
            )
    return tokens


def _text(where: str, source: TokenSource) -> str:
    if source.env is not None:
        if source.env not in os.environ:
            raise InputError(f"{where} is not set where the service is started; set it, or name a 'file'")
        return os.environ[source.env]
    try:
        return Path(str(source.file)).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where} cannot be read ({error}); correct the path or its permissions") from error


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


class Guard:
    """Lets a request pass or answers 401 or 403. Without tokens, callers from other machines are refused."""

    def __init__(self, tokens: Tokens | Callable[[], Tokens] | None = None, *, allow_anonymous: bool = False) -> None:
        """`tokens` that may change are asked for with every request. `allow_anonymous` lets everybody in who can reach
        the service; where tokens are given, it means nothing."""
        self._tokens = tokens if callable(tokens) else lambda: tokens or Tokens()
        self._allow_anonymous = allow_anonymous

    def needs(self, *roles: Role) -> Callable[[Request], Awaitable[None]]:
        """A dependency of routes: the caller has one of the roles. An admin has all of them."""

        async def check(request: Request) -> None:
            if (tokens := self._tokens()).hashes:
                _check_token(tokens, request, roles)
            elif not self._allow_anonymous:
                _check_local(request)

        return check

    def needs_admin_token(self) -> Callable[[Request], Awaitable[None]]:
        """A dependency of routes that change the service: an admin's token, wherever the caller is."""

        async def check(request: Request) -> None:
            if not (tokens := self._tokens()).hashes:
                raise HTTPException(
                    403, "changing the service takes an admin's token, and none is set; give it 'tokens' with 'admin'"
                )
            _check_token(tokens, request, ("admin",))

        return check


def _check_token(tokens: Tokens, request: Request, roles: tuple[Role, ...]) -> None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _unknown("no bearer token came with the request; send the header Authorization: Bearer TOKEN", "")
    role = tokens.role_of(token.strip())
    if role is None:
        raise _unknown("the bearer token is not known here; ask whoever runs the service", ' error="invalid_token"')
    if role != "admin" and role not in roles:
        wanted = " or ".join(dict.fromkeys((*roles, "admin")))
        raise HTTPException(403, f"a token for {role!r} may not do this; send one for {wanted}")


def _unknown(reason: str, more: str) -> HTTPException:
    return HTTPException(401, reason, headers={"WWW-Authenticate": f'Bearer realm="gemel_ray"{more and ","}{more}'})


def _check_local(request: Request) -> None:
    if request.client is None or not is_loopback(request.client.host):
        raise HTTPException(
            403, "callers from other machines need a token; give the service 'tokens', or set allow_anonymous: true"
        )
    # A web page read on this machine may send its browser here under its own name, and would read the answers.
    if (name := _host_named(request)) is not None and not is_loopback(name):
        raise HTTPException(
            403,
            f"the request was meant for {name!r}; without tokens, ask for localhost or 127.0.0.1, or give the service "
            "'tokens'",
        )


def _host_named(request: Request) -> str | None:
    """The host that a caller says it asks for, '' for one that makes no sense; None for a caller that says nothing."""
    given = request.headers.get("host")
    try:
        return None if given is None else urlsplit(f"//{given}").hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether an address, or 'localhost', is this machine's own and reachable from it alone."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # An IPv6 socket tells callers over IPv4 by such addresses.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def check_host(host: str, *, has_tokens: bool, allow_anonymous: bool) -> None:
    """Raise InputError for an address that others can reach while nobody is asked for a token."""
    if not (has_tokens or allow_anonymous or is_loopback(host)):
        raise InputError(
            f"host {host!r} can be reached from other machines, and no tokens are given; give 'tokens', listen at "
            "127.0.0.1, or set allow_anonymous: true"
        )
