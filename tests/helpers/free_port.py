"""Where processes of one test can meet."""

import socket


def free_port() -> str:
    """A port of this machine on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return str(listener.getsockname()[1])
