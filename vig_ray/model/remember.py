"""What a check of a model found, kept on this machine, so that it is made once for a config, a template and versions.

In $VIG_RAY_CACHE, by default ~/.cache/vig-ray; a folder that can't be written costs the check at every start.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

import vig_ray
from vig_ray.model.checkpoint import code_of, config_of, local_folder
from vig_ray.model.prompt import Formatter
from vig_ray.storage import one_line

log = logging.getLogger(__name__)

Found = dict[str, Any] | None


def remembered(check: str, model: str, formatter: Formatter, make: Callable[[], Found]) -> Found:
    """What `make` finds of checkpoint `model`, from an earlier time where nothing that decides it has changed.

    `check`: its name. What `make` raises is raised each time; None isn't kept. Of several processes of a machine one
    makes it, and the others wait.
    """
    path = _path(check, model, formatter)
    with _alone(path):
        found = _read(path)
        if found is None:
            found = make()
            if found is not None:
                _keep(path, found)
    return found


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock beside `path`; nothing where the folder can't be written."""
    lock = filelock.FileLock(f"{path}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        log.info("%s: can't be written, so the check is made again next time: %s", path, one_line(error))
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _read(path: Path) -> Found:
    """What was kept; None where nothing is, or nothing that can be read."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.info("%s: can't be read, so it is made again: %s", path, one_line(error))
        return None
    return found if isinstance(found, dict) and "apart" in found else None


def _path(check: str, model: str, formatter: Formatter) -> Path:
    folder_of_model = local_folder(model, weights=False)
    config = config_of(folder_of_model).to_dict()
    config.pop("_name_or_path", None)
    decides = json.dumps(
        [check, config, formatter.identity(), _versions(), _code(), code_of(folder_of_model)],
        sort_keys=True,
        default=str,
    )
    return _folder() / "checks" / f"{hashlib.sha256(decides.encode()).hexdigest()[:32]}.json"


def _folder() -> Path:
    named = os.environ.get("VIG_RAY_CACHE")
    if named:
        return Path(named)
    try:
        return Path.home() / ".cache" / "vig-ray"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / f"vig-ray-{os.getuid()}"


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in ("torch", "transformers", "tokenizers", "torchvision", "pillow", "timm"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


@functools.cache
def _code() -> str:
    """A hash of vig-ray's own code that reads and runs models: an installation may change under its version."""
    digest = hashlib.sha256()
    for folder in ("model", "scoring/engines", "training", "evaluation", "compat"):
        for file in sorted((Path(vig_ray.__file__).parent / folder).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _keep(path: Path, found: dict[str, Any]) -> None:
    try:
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(found, file)
        os.chmod(name, 0o644)
        os.replace(name, path)  # several engines may begin at once
    except OSError as error:
        log.info("%s: can't be written, so the check is made again next time: %s", path, one_line(error))
