"""Samples ready to train on, made ahead of the step by worker processes: read, tokenised, decoded, checked."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from vig_ray.dataset.images import MAX_PIXELS, load_image
from vig_ray.dataset.schema import Turn
from vig_ray.errors import StageError
from vig_ray.model.load import Prompts
from vig_ray.model.prompt import Formatter, ImageInputs, Pixels, Prompt, PromptError, PromptImage
from vig_ray.storage import scheme_of
from vig_ray.tables.rows import Rows
from vig_ray.training.batch import TrainingSample
from vig_ray.training.carry import Aligner
from vig_ray.training.documents import Recipe, fitted, formatter_of
from vig_ray.training.index import Index
from vig_ray.training.objective import Weights
from vig_ray.training.sampler import Positions

SAMPLE_COLUMNS = ("sample_key", "images", "conversation", "error")
TEXT_COLUMNS = ("sample_key", "conversation", "error")  # samples/ may hold the images themselves
SELECTION_COLUMNS = ("sample_key", "token_ids", "token_weights")
_READERS = 16  # requests under way to a store of images, in each process that loads


class Mismatch(NamedTuple):
    """A sample whose tokens aren't those that its weights were made for: the run must not go on."""

    key: str
    cause: str


class Unusable(NamedTuple):
    """A sample that can't be trained on: it takes its place in the order, with no part in the loss."""

    key: str
    cause: str


Loaded = TrainingSample | Unusable | Mismatch


class SampleSource(torch.utils.data.Dataset[Loaded]):
    """Positions to samples: a map-style dataset for torch's DataLoader, cheap to pickle into its workers."""

    def __init__(
        self,
        index: Index,
        samples: str,
        selection: str | None,
        prompts: Recipe,
        *,
        images: bool = True,
        aligner: Aligner | None = None,
    ) -> None:
        """`images` False: leave their pixels unread, to look at tokens only (for models whose prompts don't depend on
        the image's size). `aligner`: carries the weights of a selection with other tokens over."""
        with_images = isinstance(prompts, Prompts)
        self._index, self._prompts, self._images = index, prompts, images and with_images
        self._aligner = aligner
        self._samples = Rows(samples, SAMPLE_COLUMNS if with_images else TEXT_COLUMNS)
        self._selection = Rows(selection, SELECTION_COLUMNS) if selection is not None else None
        self._formatter: Formatter | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        selection = self._selection.directory if self._selection else None
        return _remade, (self._index, self._samples.directory, selection, self._prompts, self._images, self._aligner)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, position: int) -> Loaded:
        return self.__getitems__([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Loaded]:
        """The samples at these positions; rows that lie together are read together."""
        rows, chosen = self._rows(positions)
        images = self._images_of(rows)
        return [self._loaded(*each) for each in zip(map(int, positions), rows, chosen, images, strict=True)]

    def _rows(self, positions: Sequence[int]) -> tuple[list[dict[str, Any]], Sequence[Mapping[str, Any] | None]]:
        """The rows of samples/ and of the selection, if there is one, at these positions."""
        at = np.asarray(positions, dtype=np.int64)
        rows = self._samples.get(self._index.sample_at[at])
        if self._selection is None or self._index.selection_at is None:
            return rows, [None] * len(rows)
        return rows, self._selection.get(self._index.selection_at[at])

    def exact_share(self, positions: Sequence[int]) -> float:
        """Of the answer tokens at these positions that weights are carried onto, the share that begin and end where
        those of the selection do; 1 where there are none. Samples that can't be trained on are passed over."""
        exact: list[Any] = [np.zeros(0, dtype=bool)]
        rows, chosen = self._rows(positions)
        for row, weighed, images in zip(rows, chosen, self._images_of(rows), strict=True):
            if self._aligner is None or weighed is None or weighed["token_weights"] is None or row["error"] is not None:
                continue
            try:
                exact.append(self._aligner(row, weighed, self._prompt(row, images)).exact_T)
            except Exception:  # which is told when it is to be trained on
                continue
        every = np.concatenate(exact)
        return float(every.mean()) if len(every) else 1.0

    def _images_of(self, rows: Sequence[Mapping[str, Any]]) -> Iterator[list[PromptImage]]:
        """Each row's images; where some lie in a store, those of the next rows are on their way already, since it takes
        long to answer and answers many at once."""
        preprocess = self.formatter.preprocess
        uris = (image["uri"] for row in rows for image in row.get("images") or ())
        if not self._images or all(scheme_of(uri or "") in ("", "file") for uri in uris):
            for row in rows:
                yield [PromptImage(key, partial(_pixels, image), preprocess) for key, image in _named(row)]
            return
        with ThreadPoolExecutor(_READERS) as readers:
            whole = not getattr(self.formatter, "by_parts", True)
            ahead: deque[list[PromptImage]] = deque()
            rest = iter(rows)
            while True:
                for row in itertools.islice(rest, 2 * _READERS - len(ahead)):
                    ahead.append(
                        [
                            _awaited_pixels(key, readers.submit(_pixels, image), preprocess)
                            if whole
                            else _awaited(key, readers.submit(lambda image: preprocess(_pixels(image)), image))
                            for key, image in _named(row)
                        ]
                    )
                if not ahead:
                    return
                yield ahead.popleft()

    def _loaded(
        self, position: int, row: Mapping[str, Any], chosen: Mapping[str, Any] | None, images: Sequence[PromptImage]
    ) -> Loaded:
        key = row["sample_key"]
        if chosen is not None and chosen["sample_key"] != key:
            return Mismatch(chosen["sample_key"], f"its hash is also that of {key}; leave one of them out")
        if row["error"] is not None:
            return Unusable(key, row["error"])
        try:
            prompt = self._prompt(row, images)
        except Exception as error:  # a processor or an image that fails on one row must not end the run
            kind = "" if isinstance(error, PromptError) else f"{type(error).__name__}: "
            return Unusable(key, f"{kind}{error}"[:500])
        weights = np.ones(len(prompt.answer_positions), dtype=np.float32)
        if chosen is not None:
            try:
                weights = self._weights(row, chosen, prompt)
            except StageError as error:
                return Mismatch(key, str(error))
        return TrainingSample(position, key, prompt, weights)

    def _weights(self, row: Mapping[str, Any], chosen: Mapping[str, Any], prompt: Prompt) -> Weights:
        """A sample's weights by its selection, float32 [T]. Raises StageError where they are for other tokens."""
        if chosen["token_weights"] is None:  # all its tokens, whatever they are
            return np.ones(len(prompt.answer_positions), dtype=np.float32)
        if self._aligner is not None:
            return self._aligner(row, chosen, prompt).weights_T
        different = _difference(prompt, chosen)
        if different:
            raise StageError(different)
        return np.asarray(chosen["token_weights"], dtype=np.float32)

    def _prompt(self, row: Mapping[str, Any], images: Sequence[PromptImage]) -> Prompt:
        formatter = self.formatter
        prompt = formatter.prompt([Turn(turn["role"], turn["text"]) for turn in row["conversation"]], images)
        if not len(prompt.answer_positions):
            raise PromptError("NoAnswer", "no answer token")
        prompt = fitted(prompt, self._prompts, formatter.max_length)
        if self._images:
            _ = prompt.whole and prompt.whole.arrays
            for image in prompt.images:
                _ = image.inputs
                image.release()
        return prompt

    @property
    def formatter(self) -> Formatter:
        """The model's, loaded at first use: in each worker by itself."""
        if self._formatter is None:
            self._formatter = formatter_of(self._prompts)
        return self._formatter


def _remade(
    index: Index, samples: str, selection: str | None, prompts: Recipe, images: bool, aligner: Aligner | None
) -> SampleSource:
    return SampleSource(index, samples, selection, prompts, images=images, aligner=aligner)


def _named(row: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """A row's images, each with a key of its own."""
    return [(f"{row['sample_key']}#{place}", image) for place, image in enumerate(row.get("images") or ())]


def _pixels(image: Mapping[str, Any]) -> Pixels:
    return load_image(image, max_pixels=MAX_PIXELS)


def _awaited(key: str, inputs: Future[ImageInputs]) -> PromptImage:
    """An image whose inputs are made by another thread, from pixels that stay there; both fail where `inputs` did."""
    return PromptImage(key, lambda: np.zeros((0, 0, 3), np.uint8), lambda _: inputs.result())


def _awaited_pixels(key: str, pixels: Future[Pixels], preprocess: Callable[[Pixels], ImageInputs]) -> PromptImage:
    """An image whose pixels are read by another thread, for a sample that needs them as a whole."""
    return PromptImage(key, pixels.result, preprocess)


def _difference(prompt: Prompt, chosen: Mapping[str, Any]) -> str | None:
    """Where a sample's answer tokens differ from those that its selection weighs; None where they don't."""
    now, then = prompt.answer_ids.tolist(), chosen["token_ids"]
    weights = chosen["token_weights"]
    if then is None:
        return None if len(weights) == len(now) else f"{len(now)} answer tokens, but {len(weights)} weights"
    if len(now) != len(then):
        return f"{len(now)} answer tokens, but the selection has {len(then)}"
    if len(weights) != len(then):
        return f"{len(then)} answer tokens, but {len(weights)} weights"
    for place, (ours, theirs) in enumerate(zip(now, then, strict=True)):
        if ours != theirs:
            return f"answer token {place} is {ours}, but the selection has {theirs}"
    return None


def load_steps(source: SampleSource, positions: Iterable[Positions], *, processes: int) -> Iterator[list[Loaded]]:
    """The samples at each group of positions, in order, made ahead of time by `processes` processes, or here."""
    lists = (part.tolist() for part in positions)
    if not processes:
        yield from (source.__getitems__(part) for part in lists)
        return
    # Not fork: this process may hold a GPU, and threads of Ray's.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    loader: torch.utils.data.DataLoader[Any] = torch.utils.data.DataLoader(
        source,
        batch_sampler=lists,
        num_workers=processes,
        collate_fn=_as_they_are,
        multiprocessing_context="spawn",
        prefetch_factor=2,
    )
    yield from loader


def _as_they_are(samples: list[Loaded]) -> list[Loaded]:
    return samples
