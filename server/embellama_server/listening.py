"""Sockets to listen on for a host: all addresses of a name, and both families where they mean the same.

``::``           IPv6 and IPv4, on one socket
``localhost``    127.0.0.1 and ::1, whatever the machine's table says: clients ask for either
``[::1]``        ::1, as it is written in addresses of pages
"""

import contextlib
import errno
import socket
from typing import Any

import click

# An address that the machine does not have, or a family that it does not speak, is left out if there are others.
ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)

# A free port of one address may be taken on another: how often to look for one that is free on all.
PORT_TRIES = 20

BACKLOG = 2048


def listen(host: str, port: int) -> list[socket.socket]:
    """Listen on every address of a host, on the same port; 0 takes one that is free on all.

    Raises:
        click.ClickException: That cannot be done.
    """
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    tries = 1 if port else PORT_TRIES
    while True:
        tries -= 1
        try:
            return _listen_on_all(_addresses(host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE and tries:
                continue
            reason = error.strerror or str(error)
            raise click.ClickException(f"cannot listen on {host} port {port}: {reason}") from None


def _addresses(host: str, port: int) -> dict[Any, socket.AddressFamily]:
    """Return the addresses of a host with their families, each once."""
    names = ("127.0.0.1", "::1") if host.lower().rstrip(".") == "localhost" else (host,)
    found = (entry for name in names for entry in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
    return {address: family for family, _, _, _, address in found}


def _listen_on_all(addresses: dict[Any, socket.AddressFamily]) -> list[socket.socket]:
    with contextlib.ExitStack() as stack:
        sockets: list[socket.socket] = []
        absent: OSError | None = None
        for (host, port, *rest), family in addresses.items():
            both = host == "::" and socket.has_dualstack_ipv6()
            same_port = sockets[0].getsockname()[1] if sockets else port
            try:
                made = socket.create_server(
                    (host, same_port, *rest), family=family, backlog=BACKLOG, dualstack_ipv6=both
                )
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                absent = error
                continue
            sockets.append(stack.enter_context(made))
        if absent and not sockets:
            raise absent
        stack.pop_all()
        return sockets
