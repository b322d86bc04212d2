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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import vig_ray
from vig_ray.model.checkpoint import code_of, local_folder, read_config
from vig_ray.model.prompt import Formatter
from vig_ray.storage import one_line

log = logging.getLogger(__name__)

Found = dict[str, Any] | None


def remembered(check: str, model: str, formatter: Formatter, make: Callable[[], Found]) -> Found:
    """What `make` finds of checkpoint `model`, from an earlier time where nothing that decides it has changed.

    `check`: its name. What `make` raises is raised each time; None isn't kept.
    """
    path = _path(check, model, formatter)
    try:
        found: Found = json.loads(path.read_text())
        return found
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        log.info("%s: can't be read, so it is made again: %s", path, one_line(error))
    found = make()
    if found is not None:
        _keep(path, found)
    return found


def _path(check: str, model: str, formatter: Formatter) -> Path:
    folder_of_model = local_folder(model, weights=False)
    config = read_config(folder_of_model).to_dict()
    config.pop("_name_or_path", None)
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "tokenizers")}
    decides = json.dumps(
        [check, config, formatter.identity(), versions, _code(), code_of(folder_of_model)], sort_keys=True, default=str
    )
    folder = Path(os.environ.get("VIG_RAY_CACHE") or Path.home() / ".cache" / "vig-ray")
    return folder / "checks" / f"{hashlib.sha256(decides.encode()).hexdigest()[:32]}.json"


@functools.cache
def _code() -> str:
    """A hash of vig-ray's own code that reads and runs models: an installation may change under its version."""
    digest = hashlib.sha256()
    for folder in ("model", "scoring/engines", "training", "compat"):
        for file in sorted((Path(vig_ray.__file__).parent / folder).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _keep(path: Path, found: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w") as file:
            json.dump(found, file)
        os.replace(name, path)  # several engines may begin at once
    except OSError as error:
        log.info("%s: can't be written, so the check is made again next time: %s", path, one_line(error))
