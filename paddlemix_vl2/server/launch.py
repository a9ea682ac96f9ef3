"""Listening, and a clean end."""

import asyncio
import logging
import signal
import socket
import sys

import uvicorn
from fastapi import FastAPI

from paddlemix_vl2.server.remote import LAST_PORT
from paddlemix_vl2.serving import ServingEngine

# Behind this many connections more have to wait for one to be accepted.
_BACKLOG = 128
# Seconds beyond those of the running answers in which their clients must have read them.
_READING_TIME = 5


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address, not yet listening; port 0 takes a free one.

    Raises:
        ValueError: there is no such port.
        OSError: the address is in use, or not one of this machine.
    """
    if not 0 <= port <= LAST_PORT:
        raise ValueError(f"port {port}: a port is a number from 0 to {LAST_PORT}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        raise OSError(f"{host}:{port}: {error.strerror or error}") from None
    return sock


class _Server(uvicorn.Server):
    """Closes the service when it begins to end, and not when it has: requests of open connections are
    refused, and answers that take too long get an end that their clients can read."""

    def __init__(self, config: uvicorn.Config, service: ServingEngine, stop_timeout: float):
        super().__init__(config)
        self._service, self._stop_timeout = service, stop_timeout

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        closing = asyncio.ensure_future(asyncio.to_thread(self._service.close, self._stop_timeout))
        await super().shutdown(sockets)
        await closing


def make_server(app: FastAPI, service: ServingEngine, stop_timeout: float) -> uvicorn.Server:
    """What listens; when it ends, answers that are under way or wait get ``stop_timeout`` seconds."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        backlog=_BACKLOG,
        server_header=False,
        timeout_graceful_shutdown=int(stop_timeout) + _READING_TIME,
    )
    return _Server(config, service, stop_timeout)


def run(app: FastAPI, service: ServingEngine, sock: socket.socket, stop_timeout: float) -> None:
    """Serve until SIGTERM or SIGINT; from then on no connection is accepted.

    Ends with SystemExit(0) after a signal.
    """
    # It would note every URL that a picture came from, and what is secret in it.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # uvicorn raises the signal again when it is done, which would look like a crash.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    make_server(app, service, stop_timeout).run(sockets=[sock])
