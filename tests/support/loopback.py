"""Ports for servers that the tests start."""

import socket


def free_ports(count: int) -> list[int]:
    """Different TCP ports of this machine that nobody listens on now."""
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
