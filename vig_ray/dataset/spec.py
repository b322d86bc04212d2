"""What a value of `--data` says: SPEC or SPEC=WEIGHT, a SPEC being a path, a URI, a pattern or a dataset of the hub.

llava.json=0.7     shards/{000..012}.tar     data/**/train-*.parquet     folder:CONFIG:SPLIT
hf://datasets/ORG/NAME[@REVISION][:CONFIG[:SPLIT]]     hf://datasets/ORG/NAME[@REVISION]/path/or/pattern
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass

from vig_ray.errors import StageError
from vig_ray.storage import absolute, one_line, scheme_of

_WEIGHT = re.compile(r"(.+)=([0-9]*\.?[0-9]+(?:[eE][-+]?[0-9]+)?)", re.DOTALL)


@dataclass(frozen=True)
class DataSpec:
    """A value of `--data`, taken apart.

    `location`: a path, URI or pattern; of a dataset of the hub the part within it, "" for all of it. `repository`:
    ORG/NAME of such a dataset, `revision` as given. `config`, `split`: as given, None where they aren't.
    """

    text: str
    location: str
    weight: float | None
    repository: str | None = None
    revision: str | None = None
    config: str | None = None
    split: str | None = None


def parse(text: str) -> DataSpec:
    """Take a value of `--data` apart. A local name that is there is taken as it is, whatever signs it holds.

    Raises StageError where it is no name of a dataset of the hub, or its weight no weight.
    """
    there = not scheme_of(text) and os.path.lexists(os.path.expanduser(text))
    match = None if there else _WEIGHT.fullmatch(text)
    location, weight = (match[1], float(match[2])) if match else (text, None)
    if weight is not None and not (weight > 0 and math.isfinite(weight)):
        raise StageError(f"--data {text}: a weight is a number above 0")
    if location.startswith("hf://"):
        return _of_hub(text, location, weight)
    if scheme_of(location) or os.path.lexists(os.path.expanduser(location)):
        return DataSpec(text, location, weight)
    for colon in re.finditer(":", location):
        folder = location[: colon.start()]
        if os.path.isdir(os.path.expanduser(folder)):
            config, _, split = location[colon.end() :].partition(":")
            return DataSpec(text, folder, weight, config=config or None, split=split or None)
    return DataSpec(text, location, weight)


def in_full(text: str) -> str:
    """The same value for somebody with another working directory."""
    if scheme_of(text):
        return text
    full = absolute(text)
    # Without its last slash, the folder year=2024/ would be the folder "year" with a weight.
    return f"{full}/" if text.endswith("/") and _WEIGHT.fullmatch(full) else full


def _of_hub(text: str, location: str, weight: float | None) -> DataSpec:
    from huggingface_hub.errors import HfUriError
    from huggingface_hub.utils import parse_hf_uri  # type: ignore[attr-defined]

    name, colon, rest = location.rstrip("/").partition(":")[2].partition(":")
    try:
        uri = parse_hf_uri(f"hf:{name}")
        if colon and uri.path_in_repo:  # a path may have colons
            uri, rest = parse_hf_uri(location), ""
    except HfUriError as error:
        raise StageError(
            f"--data {text}: not hf://datasets/ORG/NAME[@REVISION][:CONFIG[:SPLIT]]: {one_line(error)[:200]}"
        ) from error
    if uri.type != "dataset":
        if uri.type == "model" and not uri.path_in_repo:
            raise StageError(f"--data {text}: a model; a dataset is hf://datasets/{uri.id}")
        return DataSpec(text, location, weight)
    config, _, split = rest.partition(":")
    return DataSpec(text, uri.path_in_repo, weight, uri.id, uri.revision, config or None, split or None)
