"""A reader's folder with the files that the docs name, and the commands of a page run in it."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.docs.pages import ROOT, Block, commands, words
from tests.end_to_end.server import free_port
from tests.training.texts import write_llama
from vig_ray import cli
from vig_ray.demo import CHECKPOINT, HARD_CHECKPOINT, world

_SHELL = re.compile(r"[|&;<>$`*]")
_BLOCK_SECONDS = 1200  # only so that nothing hangs: two busy cores may take minutes for what takes seconds on eight
_STOP_SECONDS = 90
# Ray counts more CPUs than there are cores here, and every engine would load a model of its own.
_ONE_OF_EACH = {"VIG_SCORE_WORKERS": "1", "VIG_SCORE_PREPARE_WORKERS": "1", "VIG_MEASURE_WORKERS": "1"}


def furnish(folder: Path, samples: int) -> None:
    """Make what the pages take for granted, under the names they use, from the demo world and its model.

    `demo-out/data` as `make demo` leaves it, a LLaVA JSON beside the folder of its images, and checkpoints.
    """
    world.write(str(folder / "demo-out" / "data"), samples, seed=1)
    world.write(str(folder / "llava"), samples, seed=2)
    (folder / "llava" / "data.json").rename(folder / "llava_v1_5_mix665k.json")
    for name in ("vig_ray/demo/checkpoint", "llava-hf/llava-1.5-7b-hf", "models/aligned"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).symlink_to(CHECKPOINT)
    (folder / "vig_ray/demo/hard_checkpoint").symlink_to(HARD_CHECKPOINT)
    write_llama(folder / "models" / "llama")
    scene = world.Scene(world.Thing("green", "circle"), world.Thing("yellow", "triangle"), dot=False, seed=1)
    world.draw(scene).save(folder / "green-circle.png")
    _write_other_formats(folder)


def _write_other_formats(folder: Path) -> None:
    """Some of the LLaVA file's rows as messages, with ratings, as two WebDataset shards, and under columns of another
    name."""
    rows = json.loads((folder / "llava_v1_5_mix665k.json").read_text())
    rows = [row for row in rows if "image" in row][:8]
    roles = {"human": "user", "gpt": "assistant"}
    with (folder / "messages.jsonl").open("w") as file:
        for row in rows:
            turns = [{"role": roles[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
            file.write(json.dumps({"messages": turns, "images": [row["image"]]}) + "\n")
    with (folder / "rated.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            turns = [(number + turn) % 5 + 1 for turn in range(2)]
            ratings = {"relevance_min": 5, "visual_dependency_min": min(turns), "visual_dependency_ratings": turns}
            file.write(json.dumps(row | ratings) + "\n")
    (folder / "shards").mkdir()
    for number in range(2):
        with tarfile.open(folder / "shards" / f"llava-{number:06d}.tar", "w") as shard:
            for index, row in enumerate(rows[4 * number :][:4]):
                shard.add(folder / "llava" / row["image"], f"{index:04d}.png")
                text = json.dumps({"conversations": row["conversations"]}).encode()
                member = tarfile.TarInfo(f"{index:04d}.json")
                member.size = len(text)
                shard.addfile(member, io.BytesIO(text))
    columns = []
    for row in rows:
        question, answer = (turn["value"].replace("<image>\n", "") for turn in row["conversations"][:2])
        columns.append({"qa": {"ask": question, "reply": answer}, "picture": row["image"]})
    pq.write_table(pa.Table.from_pylist(columns), folder / "questions.parquet")


class Session:
    """One page's commands, one after the other, in one folder; what they started ends with `close`."""

    def __init__(self, folder: Path, *, forks: bool) -> None:
        """`forks`: Ray's workers start as the tests' do (`preforked`), not as a reader's."""
        self._folder = folder
        self._forks = forks
        self._port = str(free_port())
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._started: list[int] = []
        self._bin = folder / ".bin"
        self._bin.mkdir()
        for name, words_before in {"python": "", "vig": " -m vig_ray.cli"}.items():
            (self._bin / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words_before} "$@"\n')
            (self._bin / name).chmod(0o755)
        os.environ |= _ONE_OF_EACH

    def run(self, block: Block) -> str:
        """Run a block; returns what it printed. A command that fails raises AssertionError with what it printed."""
        with contextlib.chdir(self._folder):
            if block.language == "python":
                text = self._on_our_port(block.text) if block.mark == "cluster" else block.text
                with contextlib.redirect_stdout(io.StringIO()) as printed:
                    exec(compile(text, block.place, "exec"), self._names)
                return printed.getvalue()
            if block.mark == "cluster":
                return self._bash(block.text)
            return "".join(self._command(line) for line in commands(block.text))

    def close(self) -> None:
        """End what is still running: servers get a SIGTERM and the time they take to stop."""
        for name in _ONE_OF_EACH:
            os.environ.pop(name, None)
        for group in self._started:
            end = time.monotonic() + _STOP_SECONDS
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
                while time.monotonic() < end:
                    os.killpg(group, 0)
                    time.sleep(0.2)
                os.killpg(group, signal.SIGKILL)

    def _command(self, line: str) -> str:
        """A plain `vig ...` in this process, which spares the start of a program; anything else by bash."""
        said = words(line)
        return vig(said[1:]) if said[:1] == ["vig"] and not _SHELL.search(line.partition(" #")[0]) else self._bash(line)

    def _on_our_port(self, text: str) -> str:
        return re.sub(r"\b8000\b", self._port, text)

    def _bash(self, text: str) -> str:
        path = f"{self._bin}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
        if not self._forks:
            environment.pop("RAY_RUNTIME_ENV_HOOK", None)
        if "--server " in text:  # which refuses them
            environment = {name: value for name, value in environment.items() if name not in _ONE_OF_EACH}
        log = self._folder / ".log"
        with log.open("w") as printed:  # a file: a server in the background would keep a pipe open
            process = subprocess.Popen(
                ["bash", "-e", "-o", "pipefail", "-c", self._on_our_port(text)],
                env=environment, stdout=printed, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            self._started.append(process.pid)
            try:
                status = process.wait(_BLOCK_SECONDS)
            except subprocess.TimeoutExpired:
                status = -1
        assert status == 0, f"{text}\nstatus {status}\n{log.read_text()}"
        return log.read_text()


def vig(arguments: list[str]) -> str:
    """`vig ARGUMENTS` in this process; returns its standard output. Another status than 0 raises AssertionError."""
    logger = logging.getLogger("vig_ray")
    handlers = list(logger.handlers)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            cli.main(arguments)
        except SystemExit as end:
            status = end.code
        finally:
            logger.handlers[:] = handlers
    assert status in (0, None), f"vig {' '.join(arguments)}: status {status}\n{out.getvalue()}{err.getvalue()}"
    return out.getvalue()


def copy_of(folder: Path, to: Path) -> Path:
    """A copy of a furnished folder, for a page of its own."""
    shutil.copytree(folder, to, symlinks=True)
    return to
