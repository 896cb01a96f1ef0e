"""Finds the proxy for a request from the environment, by the rules of Go's net/http."""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

from sluice.errors import ValidationError

_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy, and the headers by which the client logs in to it."""

    host: str
    port: int
    headers: dict[str, str] = field(default_factory=dict)

    @staticmethod
    def of(url: str, environment: Mapping[str, str]) -> Proxy | None:
        """Returns the proxy for the URL; None for a direct connection. Raises ValidationError."""
        variable = urlsplit(url).scheme.upper() + "_PROXY"
        text = proxy_for(url, environment)
        if text is None:
            return None
        try:
            parts = urlsplit(text)
            port = parts.port or 80
        except ValueError:
            raise ValidationError(variable, "is no URL") from None
        if parts.scheme != "http" or not parts.hostname:
            raise ValidationError(variable, "must be such as http://proxy.example:3128")
        headers = {}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
            headers["Proxy-Authorization"] = "Basic " + base64.b64encode(login).decode()
        return Proxy(parts.hostname, port, headers)


def proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """Returns the proxy's URL for a request to the URL; None for a direct connection."""
    parts = urlsplit(url)
    scheme = parts.scheme
    # In a CGI script, HTTP_PROXY is the request's Proxy header, which must not be trusted.
    if scheme == "http" and environment.get("REQUEST_METHOD"):
        return None
    proxy = _variable(environment, scheme + "_proxy")
    host = (parts.hostname or "").rstrip(".")
    port = parts.port or _PORTS[scheme]
    if not proxy or not _is_proxied(host, port, _variable(environment, "no_proxy")):
        return None
    return proxy if "://" in proxy else "http://" + proxy


def _variable(environment: Mapping[str, str], name: str) -> str:
    return environment.get(name.upper()) or environment.get(name) or ""


def _is_proxied(host: str, port: int, no_proxy: str) -> bool:
    address = _address(host)
    if host == "localhost" or (address is not None and address.is_loopback):
        return False
    for entry in no_proxy.split(","):
        entry = entry.strip().lower()
        if entry == "*":
            return False
        if entry and _matches(host, address, port, entry):
            return False
    return True


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _matches(host: str, address: _Address | None, port: int, entry: str) -> bool:
    if "/" in entry:
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:
            pass
        else:
            return address is not None and address in network
    name, number = entry, ""
    if _address(entry) is None:
        before, colon, after = entry.rpartition(":")
        if colon and after.isdigit():
            name, number = before, after
    if number and int(number) != port:
        return False
    excluded = _address(name)
    if excluded is not None:
        return address == excluded
    if name.startswith("*."):
        name = name[1:]
    if not name:
        return False
    if name.startswith("."):
        return host.endswith(name)
    return host == name or host.endswith("." + name)


def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None
