"""Ports for servers that are programs of their own, and for those that are stopped and started again."""

from __future__ import annotations

import secrets
import socket


def own_port() -> int:
    """One that nobody has, below those that the kernel gives away: until its server listens, neither another
    program that asks for any free port nor a connection that goes out can take it."""
    while True:
        port = 10_000 + secrets.randbelow(20_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
