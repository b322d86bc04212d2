"""A model repository: a checkpoint that `vig train` or `vig export` wrote, and a card that says how it was trained."""

from __future__ import annotations

import json
import os
from typing import Any

import pyarrow.fs as pafs

from vig_ray.errors import StageError
from vig_ray.push.model_card import model_card
from vig_ray.push.paths import cleaned, folders_of, hub_id, model_name, without_paths
from vig_ray.push.repository import CARD, FACTS, Part, Repository, size_of
from vig_ray.stage import read_stage
from vig_ray.storage import exists, filesystem, join, list_files, read_bytes
from vig_ray.tables.directories import samples_beside
from vig_ray.training.config import VDEP_OPTIONS
from vig_ray.training.export import ADAPTER, MODEL, training_directory

Json = dict[str, Any]

_ADAPTER_CONFIG = "adapter_config.json"
# What transformers and peft write the folder into that a checkpoint was loaded from.
_CONFIGS = frozenset(
    {
        "config.json", _ADAPTER_CONFIG, "tokenizer_config.json", "processor_config.json", "preprocessor_config.json",
        "generation_config.json", "special_tokens_map.json",
    }
)  # fmt: skip
# Where things were, how many worked on it, and what isn't the result's business.
_NOT_SHOWN = {
    "model", "samples", "selection", "out", "address", "name", "watch", "workers", "loaders", "dry_run", "overwrite",
    "save_every", "keep", "max_failures", "resize_every", "device", "trust_remote_code", "batch_tokens", "micro_batch",
    "gradient_sync", "activation_checkpointing", "eval_every", "export_at", "vdep_norms_every",
}  # fmt: skip


def _shown(options: Json) -> Json:
    """The options of a run that say what came of it."""
    without = _NOT_SHOWN if options.get("objective") == "vdep" else _NOT_SHOWN.union(VDEP_OPTIONS)
    return {name: value for name, value in options.items() if name not in without}


def is_checkpoint(folder: str) -> bool:
    """Whether a folder holds a model's or an adapter's config."""
    return any(exists(join(folder, name)) == pafs.FileType.File for name in ("config.json", _ADAPTER_CONFIG))


def model_folder(run: str) -> str | None:
    """The checkpoint that RUN is, or that a training run left in it."""
    if is_checkpoint(run):
        return run
    folder = join(run, MODEL)
    return folder if is_checkpoint(folder) else None


def model_repository(folder: str, *, to: str, license: str | None, base: str | None) -> Repository:
    """The repository `to` of the checkpoint in `folder`.

    `license`: the base model's and the data's, as the user says it is. `base`: the hub id of the model that was
    trained, where the record has a folder. Raises StageError where nothing tells how it was trained, or that isn't
    finished.
    """
    record, exported = _record(folder)
    prompts = record.get("prompts", {})
    base = base or hub_id(prompts.get("model"))
    samples = _imported(record)
    folders = [*folders_of(record, samples, exported), folder]
    facts: Json = cleaned(
        {
            "training": {
                "base_model": base or model_name(prompts.get("model")),
                "base_model_on_hub": base,
                "base_model_fingerprint": record.get("identity", {}).get("model"),
                "template": prompts.get("template"),
                "template_fingerprint": record.get("identity", {}).get("template"),
                "options": _shown(record["config"]),
                "dtype": exported.get("config", {}).get("dtype") or record.get("dtype"),
                "workers": record.get("workers"),
                "data": {name: samples.get(name) for name in ("name", "format", "counts")},
                "selection": ((record.get("identity", {}).get("selection") or {}).get("selection")),
                "result": _result(record),
                "versions": record.get("versions", {}),
            }
        },
        folders,
    )
    fs, root = filesystem(folder)
    names = [name for name in list_files(folder) if not _left_out(name)]
    if _ADAPTER_CONFIG in names and base is None:
        raise StageError(
            f"{folder}: an adapter, whose base model is a folder here; name it on the hub with --base-model"
        )
    small = {name: _config(folder, name, folders, base) for name in names if os.path.basename(name) in _CONFIGS}
    parts = tuple(_part(fs, root, name) for name in names if name not in small)
    return Repository("model", model_card(to, facts["training"], license), {"kind": "model", **facts}, parts, small)


def _record(folder: str) -> tuple[Json, Json]:
    """The record of the training that a checkpoint came of, and that of its export, {} where it had none."""
    exported = read_stage(folder) or {}
    if exported.get("stage") == "export":
        _, record = training_directory(exported["config"]["run"])
        return _of_images(folder, record), exported
    parent, _, name = folder.rstrip("/").rpartition("/")
    if name in (MODEL, ADAPTER):
        _, record = training_directory(parent or ".")
        if not record.get("complete"):
            raise StageError(f"{folder}: its training isn't finished; the same `vig train` command goes on with it")
        return _of_images(folder, record), {}
    raise StageError(f"{folder}: nothing tells how it was trained; give what `vig train` or `vig export` wrote")


def _of_images(folder: str, record: Json) -> Json:
    """The record itself. Raises StageError where it is of a language model, which the card doesn't describe."""
    if record["stage"] == "train-text":
        raise StageError(
            f"{folder}: a language model of `vig train-text`, for which there is no card; `hf upload` takes it as it is"
        )
    return record


def _imported(record: Json) -> Json:
    """The record of the samples that were trained on, {} where they are gone."""
    try:
        samples = samples_beside(record["config"]["samples"], record["config"]["samples"], {})
    except StageError:
        return {"name": (record.get("identity", {}).get("samples") or {}).get("name")}
    return read_stage(samples or "") or {}


def _result(record: Json) -> Json:
    result = record.get("result") or {}
    found = {name: result.get(name) for name in ("steps", "samples", "loss", "held_out")}
    return found | {"unusable": len(result.get("unusable") or {})}


def _left_out(name: str) -> bool:
    """What isn't of the model: hidden files, a card of before, what this writes itself."""
    return name in (CARD, FACTS) or any(part.startswith(".") for part in name.split("/"))


def _config(folder: str, name: str, folders: list[str], base: str | None) -> bytes:
    """A config without the paths of this machine."""
    content = read_bytes(join(folder, name))
    try:
        values = json.loads(content)
    except ValueError as error:
        raise StageError(f"{join(folder, name)}: not valid JSON; export the model again") from error
    changed = _without_folders(values, folders, base)
    if os.path.basename(name) == _ADAPTER_CONFIG:
        changed["base_model_name_or_path"] = base
    return content if changed == values else (json.dumps(changed, indent=2, ensure_ascii=False) + "\n").encode()


def _without_folders(value: Any, folders: list[str], base: str | None) -> Any:
    """A JSON value with the last part of each text that is a path as a whole: templates and tokens stay as they are.

    What says where the model was loaded from says `base`, where that was a folder.
    """
    if isinstance(value, dict):
        return {
            name: (hub_id(inner) or base or model_name(inner))
            if name.endswith("name_or_path") and isinstance(inner, str) and inner
            else _without_folders(inner, folders, base)
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_without_folders(inner, folders, base) for inner in value]
    if isinstance(value, str) and "\n" not in value and len(value) > 1 and os.path.isabs(os.path.expanduser(value)):
        return without_paths(value, folders)
    return value


def _part(fs: pafs.FileSystem, root: str, name: str) -> Part:
    path = f"{root.rstrip('/')}/{name}"
    size = fs.get_file_info(path).size

    def at(target: str) -> str:
        if isinstance(fs, pafs.LocalFileSystem):
            return path
        pafs.copy_files(path, target, source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem())
        return target

    return Part(name, size_of(size), at)
