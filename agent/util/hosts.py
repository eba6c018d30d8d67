"""Which hosts are this machine, in settings and in the headers of a request.

An address is loopback as `ipaddress` reads it; of names only `localhost` is. Nothing is resolved, so a name that
merely begins like an address, or one that a name server points here, is another machine.
"""

from __future__ import annotations

import ipaddress
import re

_AUTHORITY = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")
_SCHEMES = ("http://", "https://")


def is_loopback(host: str) -> bool:
    """Return whether a host, without its port, is this machine: `localhost`, 127.0.0.0/8, or ::1, in brackets or not.

    Other spellings that a resolver may read as such an address (`127.1`, `0x7f.1`, `localhost.`) are not.
    """
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        return host.lower() == "localhost"
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_loopback and not bracketed
    # Older Pythons do not look into an IPv4-mapped address; with a zone (`::1%eth0`) it is none of a header.
    return address.scope_id is None and (address.ipv4_mapped or address).is_loopback


def read_host(header: str) -> str | None:
    """Return the host that a `Host` header names, without its port, or None where it is not `host[:port]`."""
    found = _AUTHORITY.fullmatch(header)
    if found is None or int(found["port"] or 0) > 65535:
        return None
    return found["name"]


def is_loopback_origin(header: str) -> bool:
    """Return whether an `Origin` header names a page of this machine; `null` and what cannot be read do not."""
    scheme = next((one for one in _SCHEMES if header.lower().startswith(one)), None)
    host = None if scheme is None else read_host(header[len(scheme) :])
    return host is not None and is_loopback(host)
