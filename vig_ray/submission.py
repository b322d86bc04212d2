"""`vig submit STAGE`: the same stage as a job of a Ray cluster, from any machine that reaches its dashboard.

The job's name comes from the stage's options, so the same work submitted twice is one job: while it runs the second
submission follows it, and after it a further attempt goes on where the last one stopped, as stages do.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from pydantic import Field, create_model, field_validator

import vig_ray
from vig_ray.compat.ray import hide_uploads
from vig_ray.dataset.spec import in_full
from vig_ray.errors import StageError
from vig_ray.model.checkpoint import is_local
from vig_ray.stage import StageConfig
from vig_ray.storage import absolute, one_line

log = logging.getLogger("vig_ray.submission")

PATHS = (
    "images", "out", "samples", "scores", "selection", "measures", "counts", "exclude", "synonyms", "lmms_include",
    "server_key",
)  # fmt: skip
_BY_TASK = ("data", "images", "task_options")  # of `vig eval`, whose values are by task
MODELS = ("model", "reference_model", "embedding_model", "clip_model", "language_model", "vision_tower")
_OPTIONS_FILE = "job.yaml"
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
_LOST_CONNECTIONS = 10
_TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


class SubmitOptions(StageConfig):
    """Submit a stage as a job to a Ray cluster, and follow it."""

    address: str = Field(description="the cluster's dashboard, http://HEAD:8265")
    follow: bool = Field(True, description="print the job's log until it ends; its end is then this command's")
    env: tuple[str, ...] = Field(
        (),
        description="environment variable for the job: NAME=VALUE, or NAME for its value here",
        json_schema_extra={"metavar": "NAME[=VALUE]", "repeated": True},
    )
    submission_id: str | None = Field(None, description="the job's name, instead of one made from its options")

    @field_validator("address")
    @classmethod
    def _http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("needs the dashboard's address, as in http://HEAD:8265")
        return value.rstrip("/")

    @field_validator("env")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for each in value:
            if "=" not in each and each not in os.environ:
                raise ValueError(f"{each} isn't set here; give {each}=VALUE")
        return value


def config_of(stage: type[StageConfig]) -> type[StageConfig]:
    """The options of a submission of `stage`: the stage's own, all but its address, and `SubmitOptions`."""
    options: Any = {name: (field.annotation, field) for name, field in SubmitOptions.model_fields.items()}
    bases: Any = (SubmitOptions, stage)
    make: Any = create_model
    made: type[StageConfig] = make(f"Submit{stage.__name__}", __base__=bases, __doc__=SubmitOptions.__doc__, **options)
    return made


def stage_options(config: StageConfig) -> dict[str, Any]:
    """What was given of the stage's own options, in JSON's types; paths of this machine in full."""
    stage_options = config.model_fields_set - set(SubmitOptions.model_fields)
    values = config.model_dump(mode="json", include=stage_options)
    return {name: option_in_full(name, value) for name, value in sorted(values.items())}


def option_in_full(name: str, value: Any) -> Any:
    """A local path by its whole name: the job runs in another folder. A model may be a hub id, so it must be here."""
    if isinstance(value, dict) and name in _BY_TASK:
        return {task: _there(each) if name == "task_options" else _in_full(each) for task, each in value.items()}
    if isinstance(value, list) and name == "model":
        return [_model_in_full(each) for each in value]
    if name == "data":
        return in_full(value) if isinstance(value, str) else [in_full(each) for each in value]
    if isinstance(value, list) and name == "measures":
        return value  # what `vig measure` measures; to `vig select` it is a folder
    if isinstance(value, list) and name in PATHS:
        return [option_in_full(name, each) for each in value]
    local = isinstance(value, str) and "://" not in value
    if local and (name in PATHS or (name in MODELS and is_local(value))):
        return absolute(value)
    return value


def _in_full(path: str) -> str:
    """A path by its whole name; a URI as it is, whose store this machine may not reach."""
    return path if "://" in path else absolute(path)


def _there(value: str) -> str:
    """An option's value that is a path of this machine by its whole name, any other as it is."""
    return absolute(value) if "://" not in value and "/" in value and os.path.exists(value) else value


def _model_in_full(text: str) -> str:
    """MODEL or NAME=MODEL, as `vig eval` takes it."""
    if is_local(text):
        return absolute(text)
    name, equals, model = text.rpartition("=")
    return f"{name}{equals}{absolute(model) if is_local(model) else model}"


def name_of(stage: str, options: dict[str, Any]) -> str:
    """The job's name, the same for the same options."""
    canonical = json.dumps(options, sort_keys=True).encode()
    return f"vig-{stage}-{hashlib.blake2b(canonical, digest_size=6).hexdigest()}"


def pack(folder: Path, options: dict[str, Any], files: Mapping[str, str]) -> None:
    """Write the job's working directory: this very vig_ray, the options, and texts by their files' names."""
    package = Path(vig_ray.__file__).parent
    shutil.copytree(package, folder / package.name, ignore=_LEFT_OUT)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / _OPTIONS_FILE).write_text(yaml.safe_dump(options), encoding="utf-8")


def run(stage: str, config: Any) -> int:
    """Submit, or find the job that does this work already; follow it. Raises StageError where it doesn't succeed."""
    return submit(stage, config, stage_options(config))


def submit(
    stage: str,
    config: Any,
    options: dict[str, Any],
    *,
    words: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
) -> int:
    """`run` with these options of the job's. `words`: of its command line besides; `files`: texts that go along, by
    names in the folder that it runs in."""
    from ray.job_submission import JobSubmissionClient

    hide_uploads()
    try:
        client = JobSubmissionClient(config.address)
        jobs = {job.submission_id: str(job.status) for job in client.list_jobs() if job.submission_id}
    except (ConnectionError, RuntimeError, OSError, ValueError) as error:
        raise StageError(f"--address {config.address}: no Ray dashboard answers: {one_line(error)[:200]}") from error
    files = files or {}
    base = config.submission_id or name_of(stage, {**options, "files": dict(files)} if files else options)
    last, following = attempts(base, jobs)
    if last is not None and jobs[last] not in _TERMINAL:
        name = last
        log.info("%s does this already, and is %s", name, jobs[last].lower())
    else:
        name = following
        if last is not None:
            log.info("%s was %s; this attempt goes on from there", last, jobs[last].lower())
        _submit(client, stage, name, options, config, words, files)
        log.info("submitted %s", name)
    if not config.follow:
        print(name)
        return 0
    try:
        status, message = asyncio.run(_followed(client, name))
    except KeyboardInterrupt:
        log.info(
            "%s goes on; the same command follows it again, `ray job stop --address %s %s` stops it",
            name, config.address, name,
        )  # fmt: skip
        raise
    if status != "SUCCEEDED":
        raise StageError(f"{name} {status}: {_reason(message)}")
    log.info("%s SUCCEEDED", name)
    return 0


def attempts(base: str, jobs: Iterable[str]) -> tuple[str | None, str]:
    """The last attempt at a job among the cluster's jobs, and the name of the next one.

    Attempts are called BASE, BASE-2, BASE-3, ...; any of them may have been deleted (`ray job delete`).
    """
    pattern = re.compile(rf"{re.escape(base)}(?:-([1-9]\d*))?")
    numbers = {int(match[1] or 1): name for name in jobs if (match := pattern.fullmatch(name))}
    if not numbers:
        return None, base
    return numbers[max(numbers)], f"{base}-{max(numbers) + 1}"


def _submit(
    client: Any, stage: str, name: str, options: dict[str, Any], config: Any, more: Sequence[str],
    files: Mapping[str, str],
) -> None:  # fmt: skip
    variables = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    for each in config.env:
        key, given, value = each.partition("=")
        variables[key] = value if given else os.environ[key]
    words = ["python", "-m", "vig_ray.cli", stage, *more, "--address", "auto", "--config", _OPTIONS_FILE]
    with tempfile.TemporaryDirectory(prefix="vig-submit-") as folder:
        pack(Path(folder), options, files)
        try:
            client.submit_job(
                entrypoint=shlex.join(words),
                submission_id=name,
                runtime_env={"working_dir": folder, "env_vars": variables},
                metadata={"stage": stage, "vig_ray": vig_ray.__version__},
            )
        except RuntimeError as error:
            raise StageError(f"{name}: the cluster refuses it: {one_line(error)[:300]}") from error
        except OSError as error:
            raise StageError(f"{config.address}: the connection was lost: {one_line(error)[:200]}") from error


async def _followed(client: Any, name: str) -> tuple[str, str]:
    """Print the job's log until it ends; its status and message."""
    printed = lost = 0
    while True:
        try:
            seen = 0
            async for lines in client.tail_job_logs(name):  # from the start, after a lost connection again
                new = lines[max(0, printed - seen) :]
                seen += len(lines)
                if new:
                    print(new, end="", flush=True)
                    printed = seen
            info = client.get_job_info(name)
            if str(info.status) in _TERMINAL:
                return str(info.status), info.message or ""
            lost = 0
        except (RuntimeError, OSError, aiohttp.ClientError) as error:
            lost += 1
            if lost > _LOST_CONNECTIONS:
                raise StageError(
                    f"{name}: the connection to its dashboard is lost ({one_line(error)[:100]}); the job goes on, and "
                    "the same command follows it again"
                ) from error
            log.info("the connection was lost (%s); trying again", one_line(error)[:100])
        time.sleep(1 + lost)


def _reason(message: str) -> str:
    """The last line that the job printed, which says why where vig ended it."""
    lines = [line for line in message.splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("vig: ")]
    return (ours or lines or ["no reason given"])[-1].removeprefix("vig: ")
