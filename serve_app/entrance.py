"""Entrances: processes that listen on one port, check, prepare and ask the scorers.

`vig serve` has them in the place of Ray Serve's proxy and ingress. A proxy takes every request apart and puts it
together again in another process, which costs several times what all else of a request does.
"""

from __future__ import annotations

import asyncio
import math
import socket
import sys
import threading
import time
from typing import Any

import ray
import uvicorn

from serve_app.access import Access
from serve_app.http import settings
from serve_app.options import AppConfig
from vig_ray.cluster import parse_range
from vig_ray.errors import StageError

_SWITCH_S = 5e-4  # the thread that prepares gives way so often: a refusal waits for it otherwise, 5 ms at a time
_GROW_AFTER_S = 5.0


class Listening:
    """A port that is this process's, and of those that it starts: others may not listen there meanwhile.

    Raises OSError where it is taken.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self._socket = _socket(host)
        try:
            # Bound alone, and shared only after that: two servers that begin at once would both have it otherwise.
            self._socket.bind((host, port))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()


def _socket(host: str) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    return made


class Entrance:
    """An actor of Ray's that listens, in a thread with an event loop of its own."""

    def __init__(
        self, config: dict[str, Any], access: Access, identities: dict[str, str], scorers: dict[str, Any],
        host: str, port: int,
    ) -> None:  # fmt: skip
        from serve_app.app import make_api
        from serve_app.routes import make_app

        sys.setswitchinterval(_SWITCH_S)
        self._api = make_api(AppConfig(**config), access, identities, scorers)
        app = make_app(self._api)
        listening = _socket(host)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind((host, port))
        http = settings(app, seconds=self._api.config.timeout)
        self._server = uvicorn.Server(http)
        self._thread = threading.Thread(target=self._serve, args=(http, listening), daemon=True)
        self._thread.start()

    def _serve(self, http: uvicorn.Config, listening: socket.socket) -> None:
        with asyncio.Runner(loop_factory=http.get_loop_factory()) as runner:
            runner.run(self._server.serve(sockets=[listening]))

    def under_way(self) -> int:
        """Samples that were asked for and not answered yet."""
        return self._api.places.taken

    def ready(self) -> bool:
        """Whether it listens."""
        return self._server.started

    def drain(self) -> None:
        """From now on refuse what comes."""
        self._api.draining = True

    def stop(self, seconds: float) -> None:
        """Listen no more, and answer what was accepted, for `seconds` at most; streams are told to end."""
        self._api.draining = True
        self._server.should_exit = True
        self._thread.join(seconds)


class Entrances:
    """Between `least` and `most` entrances to one port. One that dies is begun again by Ray."""

    def __init__(
        self, config: AppConfig, access: Access, identities: dict[str, str], scorers: dict[str, Any], *, at: Listening
    ) -> None:
        self._least, self._most = parse_range(config.prepare_workers)
        options = config.model_dump(include=set(AppConfig.model_fields))
        self._arguments = (options, access, identities, scorers, at.host, at.port)
        self._busy_at = max(2, config.queue // 4)
        self._shrink_after = config.shrink_after
        self._timeout = config.timeout + 10  # no request takes longer
        self._grown = self._shrunk = time.monotonic()
        self._actors = [self._begin() for _ in range(self._least)]
        self._leaving: dict[Any, Any] = {}  # what each is waited for by

    def _begin(self) -> Any:
        entrance = ray.remote(Entrance).options(num_cpus=1, max_restarts=-1, max_task_retries=0)
        return entrance.remote(*self._arguments)

    def wait_until_ready(self) -> None:
        """Until each listens. Raises StageError with the cause where one can't begin."""
        try:
            while not all(ray.get([actor.ready.remote() for actor in self._actors])):
                time.sleep(0.02)
        except ray.exceptions.RayError as error:
            raise StageError(f"no entrance could begin: {str(error).strip().splitlines()[-1][:300]}") from error

    def _asked(self, method: str, *arguments: Any) -> list[int]:
        """What the entrances that are there answer."""
        asked = [getattr(actor, method).remote(*arguments) for actor in self._actors]
        found, _ = ray.wait(asked, num_returns=len(asked), timeout=2)
        answers = []
        for each in found:
            try:
                answers.append(ray.get(each))
            except ray.exceptions.RayError:  # it has died, and is begun again
                continue
        return answers

    def follow_the_load(self) -> None:
        """To be called every second or so: another entrance where all have been busy for a while, one less where they
        have been idle for long."""
        if self._least == self._most:
            return
        self._part()
        now, answers = time.monotonic(), self._asked("under_way")
        if len(answers) < len(self._actors):  # one is being begun again: what it had under way isn't known
            return
        wanted = min(self._most, max(self._least, math.ceil(sum(answers) / self._busy_at)))
        if wanted <= len(self._actors):
            self._grown = now
        if wanted >= len(self._actors):
            self._shrunk = now
        if now - self._grown > _GROW_AFTER_S:
            self._actors += [self._begin() for _ in range(wanted - len(self._actors))]
            self._grown = now
        elif now - self._shrunk > self._shrink_after:
            last = self._actors.pop()
            self._leaving[last] = last.stop.remote(self._timeout)
            self._shrunk = now

    def _part(self) -> None:
        """End those that have answered all that they had accepted."""
        for actor, stopped in list(self._leaving.items()):
            if ray.wait([stopped], timeout=0)[0]:
                ray.kill(actor)
                del self._leaving[actor]

    def drain(self) -> None:
        """Refuse what comes, and wait until what was accepted is answered."""
        self._asked("drain")
        end = time.monotonic() + self._timeout
        while (sum(self._asked("under_way")) or self._leaving) and time.monotonic() < end:
            self._part()
            time.sleep(0.1)
        self._asked("stop", 1)
