"""How `datasets` finds a repository's configs, splits and files. tests/compat/test_datasets.py fails where it changes.

Its builders decide by the most common suffix which files are data, and take the images' archives for it where there
are many; so only the steps before that are used, each with the suffixes that we read.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

CARD, CARD_YAML = "README.md", ".huggingface.yaml"


def configs_of(card: str | None, card_yaml: str | None) -> dict[str, Mapping[str, Any]]:
    """The configs that a repository's README.md and .huggingface.yaml declare, by name; {} where they declare none.

    Raises ValueError where they are broken. Checked against datasets 5.2.0.
    """
    import yaml
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard, DatasetCardData

    try:
        data = DatasetCard(card).data if card and card.startswith("---") else DatasetCardData()
        if more := yaml.safe_load(card_yaml or ""):
            data = DatasetCardData(**(data.to_dict() | more))  # type: ignore[no-untyped-call]
        return dict(MetadataConfigs.from_dataset_card_data(data))
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error


def splits_of(base: str, config: Mapping[str, Any], suffixes: Sequence[str]) -> dict[str, list[str]]:
    """The files of each split of a config, in the order in which `datasets` reads them; {} where there are none.

    `base`: the repository, a local folder in full or hf://datasets/ORG/NAME@SHA. `config`: what is declared of it, {}
    for one that is told by the names of its files. `suffixes`: only files with one of these count. Raises ValueError
    where what is declared is wrong. Checked against datasets 5.2.0.
    """
    from datasets.data_files import _get_data_files_patterns, resolve_pattern, sanitize_patterns

    base = posixpath.join(base, config["data_dir"]) if config.get("data_dir") else base
    resolve = partial(resolve_pattern, base_path=base, allowed_extensions=list(suffixes))
    declared = config.get("data_files")
    try:
        patterns = sanitize_patterns(declared) if declared is not None else _get_data_files_patterns(resolve)
    except FileNotFoundError:
        return {}
    splits = {}
    for split, of_split in patterns.items():
        files: dict[str, None] = {}  # each once, in order
        for pattern in of_split:
            try:
                files.update(dict.fromkeys(resolve(pattern)))
            except FileNotFoundError:
                _check_there(pattern, base)
        if files:
            splits[str(split)] = list(files)
    return splits


def _check_there(pattern: str, base: str) -> None:
    """Raise ValueError where a file is named that isn't there; patterns may match nothing."""
    from datasets.data_files import contains_wildcards, resolve_pattern

    if not contains_wildcards(pattern):
        try:
            resolve_pattern(pattern, base_path=base)
        except FileNotFoundError as error:
            raise ValueError(f"its data_files name {pattern}, which isn't there") from error
