"""An import, resolved: which files are read, where their images lie, which rows are taken and where samples go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vig_ray.dataset.fetch_cache import FetchOptions
from vig_ray.dataset.image_order import Spread
from vig_ray.dataset.image_source import ImageSource, find_images, folder_of
from vig_ray.dataset.inputs import DataFile, count_rows
from vig_ray.dataset.kinds import stem
from vig_ray.dataset.layouts.columns import named_layout
from vig_ray.dataset.layouts.layout import Layout
from vig_ray.dataset.listing import Listing, check_keys, find
from vig_ray.dataset.options import DataOptions
from vig_ray.dataset.sharing import common_folder
from vig_ray.dataset.spec import parse
from vig_ray.dataset.taking import Taking, shares_of
from vig_ray.errors import StageError
from vig_ray.storage import absolute, join

FETCHED_FOLDER = "fetched"
_COUNTED_AT_ONCE = 8


@dataclass(frozen=True)
class Plan:
    """What is read and where it goes. Workers get it pickled, without `files` and `listings`.

    `images`: where relative image paths lead. `directory`: samples/. `roots`: folders below which an image's path is
    the same wherever the dataset lies. `weights`: of each dataset, () where none is given.
    """

    files: list[DataFile]
    listings: list[Listing]
    images: ImageSource
    fetching: FetchOptions
    directory: str
    roots: tuple[str, ...]
    taking: Taking
    weights: tuple[float, ...]

    @property
    def names(self) -> list[str]:
        """The name of each dataset."""
        return [listing.name for listing in self.listings]

    @property
    def left_out(self) -> list[str]:
        """What is there and isn't read, in words."""
        return [f"{listing.root}: {what}" for listing in self.listings for what in listing.left_out]

    def identity(self) -> dict[str, Any]:
        """What decides which rows are read and what their keys are.

        Where it is no more than earlier versions could do, it is what they wrote: one dataset, of one kind, whose files
        lie in one folder.
        """
        kinds = list(dict.fromkeys(file.kind for file in self.files))
        one = len(self.listings) == 1
        roots = [listing.root for listing in self.listings]
        nested = any(file.key not in (name, f"{name}/{stem(file.uri)}") for name, file in self._named())
        return {
            "inputs": [{"path": file.uri, "size": file.size, "mtime_ns": file.mtime_ns} for file in self.files],
            "format": kinds[0] if len(kinds) == 1 else kinds,
            **self.images.identity(),
            "name": self.names[0] if one else self.names,
            **({"keys_from": roots[0] if one else roots} if nested else {}),
            **({} if one else {"files_of_each": [len(listing.files) for listing in self.listings]}),
            **({"keys": marked} if (marked := [key for each in self.listings for key in _marked_keys(each)]) else {}),
        }

    def _named(self) -> Iterable[tuple[str, DataFile]]:
        return ((listing.name, file) for listing in self.listings for file in listing.files)


def _marked_keys(listing: Listing) -> list[str]:
    """The key of a dataset's only file, where all else could be said of one with another key.

    Given by itself, a file has the dataset's name as its key; in a folder or by a pattern, its own name below that. Of
    the two, records of earlier versions say nothing: the one that is less likely to have the name is marked.
    """
    if len(listing.files) > 1:
        return []
    (file,) = listing.files
    folder = stem(file.uri.split("/")[-2].partition("@")[0])  # without the commit of a dataset of the hub
    usual_for_a_file = listing.name == stem(file.uri) != folder
    if file.key == listing.name:
        return [] if usual_for_a_file else [file.key]
    return [file.key] if usual_for_a_file and file.key == f"{listing.name}/{stem(file.uri)}" else []


def make_plan(options: DataOptions, directory: str) -> Plan:
    """Find the data. Raises StageError where it isn't there, or options don't go together."""
    specs = [parse(text) for text in options.data]
    weights = tuple(spec.weight for spec in specs if spec.weight is not None)
    if len(specs) == 1 and weights:
        raise StageError(f"--data {specs[0].text}: a weight is for several --data; leave it out")
    if weights and len(weights) < len(specs):
        without = next(spec.text for spec in specs if spec.weight is None)
        raise StageError(f"--data {without}: give each --data a weight, as in A=0.7 B=0.3, or none")
    if weights and options.limit is not None:
        raise StageError("--limit with weights would take only rows of the first --data; use --sample")
    if options.name is not None and len(specs) > 1:
        raise StageError(
            "--name names one dataset; several --data have the names of their files, folders or repositories"
        )
    listings = [find(spec, options.format, name=options.name, dataset=number) for number, spec in enumerate(specs)]
    _check_names(listings)
    files = [file for listing in listings for file in listing.files]
    check_keys(files)
    images = find_images(
        options.images, [(listing.files, listing.archives) for listing in listings], layout_of(options)
    )
    folders = [images.folder.root] if images.folder else [folder_of(file).root for file in files]
    out = directory.rpartition("/")[0]
    cache = absolute(options.fetch_cache or join(out, FETCHED_FOLDER))
    return Plan(
        files=files,
        listings=listings,
        images=images,
        fetching=FetchOptions(cache, options.fetch_private, options.fetch_connections),
        directory=directory,
        roots=(common_folder(folders), cache),
        taking=Taking(1.0 if options.sample is None else options.sample, options.seed),
        weights=weights,
    )


def layout_of(options: DataOptions) -> Layout | None:
    """The layout that --columns tells; None where a row's own keys do."""
    return None if options.columns is None else named_layout(options.columns)


def with_shares(plan: Plan, spread: Spread | None) -> tuple[Plan, list[dict[str, Any]]]:
    """The plan with the share of each dataset's rows that its weight gives; and for the record what these are.

    For this the rows are counted, by `spread` side by side.
    """
    if not plan.weights:
        return plan, []
    work = [partial(_counted, file) for file in plan.files]
    rows = [0] * len(plan.listings)
    if spread is not None:
        for dataset, count in spread(work):
            rows[dataset] += count
    else:
        with ThreadPoolExecutor(_COUNTED_AT_ONCE) as pool:
            for dataset, count in pool.map(_call, work):
                rows[dataset] += count
    shares = shares_of(rows, plan.weights, plan.names)
    mixture = [
        {"name": name, "weight": weight, "rows": count, "share": share}
        for name, weight, count, share in zip(plan.names, plan.weights, rows, shares, strict=True)
    ]
    return replace(plan, taking=replace(plan.taking, shares=shares)), mixture


def _counted(file: DataFile) -> tuple[int, int]:
    return file.dataset, count_rows(file)


def _call(work: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    return work()


def _check_names(listings: Sequence[Listing]) -> None:
    """Raise StageError where two datasets from different places have one name. Parts of one may have it."""
    first: dict[str, Listing] = {}
    for listing in listings:
        other = first.setdefault(listing.name, listing)
        if other.root != listing.root:
            raise StageError(
                f"two --data are called {listing.name} ({other.files[0].uri}, {listing.files[0].uri}), so their rows "
                "would share keys; rename one's file or folder, or import it by itself with --name"
            )
