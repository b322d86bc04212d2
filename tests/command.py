"""The command line in this very process, which spares the start of a program."""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess

import pytest

from vig_ray import cli


def call(*words: str, status: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
    """`vig WORDS` with these environment variables added; another exit status than `status` fails the test.

    It joins the Ray of this process (the fixture `local_ray`), as a stage called from Python does.
    """
    logger = logging.getLogger("vig_ray")
    handlers, level = list(logger.handlers), logger.level
    ended: int | str | None = None
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        for name, value in environment.items():
            patch.setenv(name, value)
        try:
            cli.main(words)
        except SystemExit as end:
            ended = end.code
        finally:
            logger.handlers[:] = handlers
            logger.setLevel(level)
    done = subprocess.CompletedProcess(["vig", *words], int(ended or 0), out.getvalue(), err.getvalue())
    if done.returncode != status:
        pytest.fail(f"vig {' '.join(words)}: status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done


def refused(*words: str, **environment: str) -> str:
    """The one line with which `vig WORDS` refuses, exit status 2."""
    done = call(*words, status=2, **environment)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("vig: ")
    return line
