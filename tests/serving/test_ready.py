"""A server is called ready when it answers, not when its processes are there."""

from __future__ import annotations

import pytest

from serve_app.ready import wait_until_ready
from tests import web_server
from tests.end_to_end.server import free_port
from vig_ray.errors import StageError


def test_an_answer_that_is_not_200_is_waited_out() -> None:
    with web_server.web_server() as server:
        server.answers["/readyz"] = [web_server.status(404), web_server.status(503), web_server.status(200)]
        wait_until_ready("127.0.0.1", int(server.url.rpartition(":")[2]))
        assert len(server.asked["/readyz"]) == 3


def test_a_server_that_never_answers_is_an_error() -> None:
    with pytest.raises(StageError, match="no answer"):
        wait_until_ready("0.0.0.0", free_port(), seconds=0.2)
