"""Images drawn from a dataset by a seed: the same ones however its rows are cut into files.

A sample's place in the draw is a hash of its key under the seed. `blur-mean`, `marginal` and `swap` take what is drawn.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vig_ray.dataset.images import MAX_PIXELS, ImageError, load_image
from vig_ray.errors import StageError
from vig_ray.model.shared_images import image_key
from vig_ray.scoring.references.other_images import Drawn
from vig_ray.stage import parquet_files
from vig_ray.storage import filesystem
from vig_ray.tables.order import hashes

log = logging.getLogger(__name__)

SPARE = 8
"""Images that marginal draws beside its K, for samples whose own are among them."""
OF_SOURCE = 16
"""Images that swap draws of each source."""
_LOOKED_AT = 4  # times as many samples, since some name the same image


class _Place(NamedTuple):
    """Where a sample lies, in the order in which samples are taken: by a hash of their keys."""

    hash: int
    path: str
    group: int
    row: int


def draw_for_all(directory: str, images: int, seed: int, *, max_pixels: int = MAX_PIXELS) -> Drawn:
    """Of `marginal`: so many images and `SPARE` more, as far as there are, of all samples.

    Raises StageError where there are no more than `images`: a sample needs as many that aren't its own.
    """
    wanted = images + SPARE
    found = _readable(distinct_images(directory, wanted, seed), wanted, max_pixels)
    if len(found) <= images:
        raise StageError(
            f"--reference marginal: {directory} has {len(found):,} images that can be read, and a sample needs "
            f"{images} that aren't its own; --marginal-images takes at most {max(0, len(found) - 1)} here"
        )
    return Drawn({None: found}, seed, by_source=False)


def draw_by_source(directory: str, seed: int, *, max_pixels: int = MAX_PIXELS) -> Drawn:
    """Of `swap`: up to `OF_SOURCE` images of each source. Raises StageError where no source has two."""
    found = {
        source: _readable(images, OF_SOURCE, max_pixels)
        for source, images in _images_of(directory, _places_by_source(directory, OF_SOURCE * _LOOKED_AT, seed)).items()
    }
    if not any(len(images) > 1 for images in found.values()):
        raise StageError(f"--reference swap: no source of {directory} has two images that can be read")
    return Drawn(found, seed, by_source=True)


def distinct_images(directory: str, n: int, seed: int | str) -> Iterator[Mapping[str, Any]]:
    """Distinct images as the samples table has them, each sample's first one, in the order of their samples' hashes;
    `n`: how many are likely to be asked for."""
    fs, _ = filesystem(directory)
    seen = set()
    many = n
    last: _Place | None = None
    while True:
        # Few samples have what is needed as a rule; where most are text, four times as many are looked at next.
        places = _places(directory, fs, seed)
        chosen = heapq.nsmallest(many, (place for place in places if last is None or place > last))
        (images,) = _images_of(directory, {None: chosen}).values()
        for image in images:
            key = image_key(image)
            if key not in seen:
                seen.add(key)
                yield image
        if len(chosen) < many:
            return
        last, many = chosen[-1], 4 * many


def _readable(images: Iterable[Mapping[str, Any]], n: int, max_pixels: int) -> tuple[Mapping[str, Any], ...]:
    """The first `n` distinct ones that can be read; how many can't is logged."""
    found, seen, bad, cause = [], set(), 0, ""
    for image in images:
        key = image_key(image)
        if key in seen:
            continue
        seen.add(key)
        try:
            load_image(image, max_pixels=max_pixels)
        except ImageError as error:
            bad, cause = bad + 1, cause or str(error)
            continue
        found.append(image)
        if len(found) == n:
            break
    if bad:
        log.warning("%d of the images that were drawn can't be read and were left out, such as %s", bad, cause)
    return tuple(found)


def _images_of(directory: str, places: Mapping[str | None, list[_Place]]) -> dict[str | None, list[Mapping[str, Any]]]:
    """The first image of the sample at each place that has one, by the names and in the order of `places`."""
    fs, _ = filesystem(directory)
    every = sorted({(place.path, place.group) for of_name in places.values() for place in of_name})
    images: dict[tuple[str, int, int], Mapping[str, Any]] = {}
    wanted: dict[tuple[str, int], set[int]] = {}
    for of_name in places.values():
        for place in of_name:
            wanted.setdefault((place.path, place.group), set()).add(place.row)
    for path, group in every:
        with pq.ParquetFile(path, filesystem=fs) as file:
            column = file.read_row_group(group, columns=["images"])["images"]
        for row in wanted[path, group]:
            if first := (column[row].as_py() or [None])[0]:
                images[path, group, row] = first
    return {name: [images[at[1:]] for at in of_name if at[1:] in images] for name, of_name in places.items()}


def _places(directory: str, fs: Any, seed: int | str) -> Iterator[_Place]:
    for path in parquet_files(directory):
        with pq.ParquetFile(path, filesystem=fs) as file:
            for group in range(file.num_row_groups):
                keys = file.read_row_group(group, columns=["sample_key"])["sample_key"]
                for row, value in enumerate(hashes(keys, seed).tolist()):
                    yield _Place(value, path, group, row)


def _places_by_source(directory: str, n: int, seed: int) -> dict[str | None, list[_Place]]:
    """The first `n` samples with an image of each source, in the order of their hashes."""
    fs, _ = filesystem(directory)
    found: dict[str | None, list[_Place]] = {}
    for path in parquet_files(directory):
        with pq.ParquetFile(path, filesystem=fs) as file:
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["sample_key", "source", "images.list.element.uri"])
                has_image = pc.greater(pc.fill_null(pc.list_value_length(table["images"]), 0), 0).to_numpy()
                of_rows = hashes(table["sample_key"], seed)
                sources = table["source"].combine_chunks().dictionary_encode()
                names = [*sources.dictionary.to_pylist(), None]
                codes = sources.indices.fill_null(len(names) - 1).cast(pa.int64()).to_numpy(zero_copy_only=False)
                for code in np.unique(codes[has_image]):
                    (rows,) = np.nonzero(has_image & (codes == code))
                    rows = rows[np.argsort(of_rows[rows], kind="stable")[:n]]
                    places = [_Place(int(of_rows[row]), path, group, int(row)) for row in rows]
                    found[names[code]] = heapq.nsmallest(n, [*found.get(names[code], ()), *places])
    return found
