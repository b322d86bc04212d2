"""Configs and splits of a dataset in the hub's layout, on the hub or in a local folder.

What they are is told by README.md, or else by the names of the files, as `datasets` does both. Only where `datasets`
would take archives of images for the data, the tables beside them are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from vig_ray.compat.datasets import CARD, CARD_YAML, configs_of, splits_of
from vig_ray.dataset.chosen import Chosen, choose_split, listed, pick
from vig_ray.dataset.folder import Folder
from vig_ray.dataset.kinds import Format, data_and_archives, of_kind, suffix, suffixes
from vig_ray.errors import StageError
from vig_ray.storage import one_line

_ONLY_CONFIG = "default"  # as `datasets` calls it


def is_repository(folder: Folder) -> bool:
    """Whether a local folder is a dataset of the hub that was downloaded: its README.md has the header of a card."""
    return CARD in folder.infos and (folder.text(CARD) or "").startswith("---")


def files_of(folder: Folder, config: str | None, split: str | None, kind: Format) -> Chosen:
    """The files of the configs and splits that are asked for, in the order in which `datasets` reads them.

    None asked for: all configs, and of each its only split or `train`. Raises StageError where one isn't there, or
    splits are to be chosen from, listing them.
    """
    try:
        configs = configs_of(folder.text(CARD), folder.text(CARD_YAML)) or {_ONLY_CONFIG: {}}
    except ValueError as error:
        raise StageError(f"{folder.uri(CARD)}: what it says of its configs can't be read: {one_line(error)}") from error
    asked = list(configs) if config is None else pick(configs, config, "config", folder.root)
    rows, archives, about = data_and_archives(folder.visible, kind)
    taken: dict[str, None] = {}
    left_out, splits_left = [], Counter[str]()
    seen = set[str]()
    for name in asked:
        where = folder.root if len(configs) == 1 else f"{folder.root}:{name}"
        splits = _splits(folder, where, configs[name], rows, kind)
        if not splits:
            if config is not None or len(configs) == 1:
                raise StageError(
                    f"{where}: none of its {len(folder.infos):,} files ends in {', '.join(suffixes(kind))}"
                )
            left_out.append(f"config {name}: no files of a known format")
            continue
        if split is None:
            ours = [choose_split(list(splits), f"{where}:")]
            splits_left.update({each: len(files) for each, files in splits.items() if each not in ours})
        else:
            ours = pick(splits, split, "split", where)
        seen.update(each for files in splits.values() for each in files)
        taken.update(dict.fromkeys(each for each_split in ours for each in splits[each_split]))
    left_out += [f"split {each}: {count:,} files" for each, count in splits_left.items()]
    left_out += about
    if config is None and (rest := [name for name in rows if name not in seen]):
        left_out.append(f"in no split: {listed(rest)}")
    return Chosen(list(taken), [name for name in archives if name not in taken], left_out)


def _splits(
    folder: Folder, where: str, config: Mapping[str, Any], rows: list[str], kind: Format
) -> dict[str, list[str]]:
    """For each split of a config the names of its files that hold rows."""
    declared = config.get("data_files") is not None
    # Where splits are told by names, those of archives must not tell them.
    known = suffixes(kind) if declared else sorted({suffix(name) for name in rows})
    short = sorted({f".{each.split('.')[1]}" for each in known})  # `datasets` looks at each part of a name
    try:
        splits = splits_of(folder.root, config, short) if short else {}
    except ValueError as error:
        raise StageError(f"{where}: {one_line(error)}") from error
    start = f"{folder.root}/"
    outside = next((file for files in splits.values() for file in files if not file.startswith(start)), None)
    if outside is not None:
        raise StageError(f"{where}: names {outside}, which lies outside of it; give that as --data")
    named = {split: [file.removeprefix(start) for file in files] for split, files in splits.items()}
    ours, *_ = data_and_archives([file for files in named.values() for file in files if of_kind(file, kind)], kind)
    kept = set(ours)
    chosen = {split: [file for file in files if file in kept] for split, files in named.items()}
    return {split: files for split, files in chosen.items() if files}
