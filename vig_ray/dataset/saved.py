"""Folders that `datasets` wrote with save_to_disk: a Dataset, or a DatasetDict with a folder a split."""

from __future__ import annotations

import json
from typing import Any

from vig_ray.dataset.chosen import Chosen, choose_split, pick
from vig_ray.dataset.folder import Folder
from vig_ray.errors import StageError
from vig_ray.storage import one_line

_DICT, _STATE, _INFO = "dataset_dict.json", "state.json", "dataset_info.json"


def is_saved(folder: Folder) -> bool:
    """Whether save_to_disk wrote this folder."""
    return _DICT in folder.infos or (_STATE in folder.infos and _INFO in folder.infos)


def files_of(folder: Folder, config: str | None, split: str | None) -> Chosen:
    """The files of the splits that are asked for, in the order of their rows.

    `config`: what stands in a config's place, which here names a split, too. Raises StageError.
    """
    if split and config:
        raise StageError(
            f"{folder.root}: a folder of save_to_disk has no configs, so {config!r} and {split!r} can't both be asked "
            f"for; name its split as {folder.root}:{split}"
        )
    asked = split or config
    if _DICT not in folder.infos:
        if asked is not None:
            raise StageError(f"{folder.root}: a Dataset that was saved by itself has no splits to choose from: {asked}")
        return Chosen(_files(folder, ""))
    splits = _json(folder, _DICT)["splits"]
    taken = [choose_split(splits, folder.root)] if asked is None else pick(splits, asked, "split", folder.root)
    rest = [f"split {each}" for each in splits if each not in taken and asked is None]
    return Chosen([name for each in taken for name in _files(folder, f"{each}/")], left_out=rest)


def _files(folder: Folder, prefix: str) -> list[str]:
    state = _json(folder, prefix + _STATE)
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise StageError(
            f"{folder.uri(prefix + _STATE)}: an old `datasets` saved these rows with an index to them; load and save "
            "them with a newer one"
        )
    names = [prefix + each["filename"] for each in state["_data_files"]]
    missing = next((name for name in names if name not in folder.infos), None)
    if missing is not None:
        raise StageError(f"{folder.uri(missing)}: no such file, though {_STATE} names it")
    return names


def _json(folder: Folder, name: str) -> Any:
    try:
        return json.loads(folder.text(name) or "")
    except ValueError as error:
        raise StageError(f"{folder.uri(name)}: not valid JSON: {one_line(error)}") from error
