"""When a server that has just begun is there for its clients."""

from __future__ import annotations

import http.client
import time

from vig_ray.errors import StageError

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # listened on, but not asked


def wait_until_ready(host: str, port: int, *, seconds: float = 120) -> None:
    """Wait until GET /readyz is answered 200: Ray Serve's proxy hears of an application after its replicas are there,
    and until then answers 404 to everyone.

    `host`, `port`: what the server listens on. Raises StageError, with the last answer, after `seconds`.
    """
    end = time.monotonic() + seconds
    while (said := _asked(_EVERY_ADDRESS.get(host, host), port)) != "200":
        if time.monotonic() > end:
            raise StageError(f"GET /readyz on {host}, port {port}: {said}, {seconds:g} seconds after the server began")
        time.sleep(0.05)


def _asked(host: str, port: int) -> str:
    """The status of the answer, or what went wrong."""
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", "/readyz")
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return f"no answer ({type(error).__name__})"
    finally:
        connection.close()
