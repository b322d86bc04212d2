"""Prompts run as a tree: row by row, with the keys and values of what later rows still see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from vig_ray.model.packing import Branch, ImageNumbers, Kept, Run, Tree, Units, branch, tree
from vig_ray.model.positions import position_ids
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.model.row import Stored, row_of
from vig_ray.scoring.engines import LogProbs

_KEPT_TOKENS = 2048  # 1 GB for a LLaVA-1.5 7B in half precision
_OFTEN = 32  # a prefix of more than one in so many prompts is kept
_AT_LEAST = 8
FEWEST_TOKENS = 32
"""Of a row: fewer save no memory to speak of."""


class Runs(Protocol):
    """What a tree needs of the engine that it is run by; see there."""

    model: Any
    device: torch.device
    max_batch_tokens: int
    image_token: int
    type_ids: str | None
    spares_last_mlp: bool

    def to_device(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        """An array on the engine's device."""

    def vision_arguments(
        self, images: Sequence[PromptImage], tokens: int, ahead: Iterable[PromptImage] = ()
    ) -> dict[str, Any]:
        """Of the forward, for these images."""

    def forget_images(self, keys: Iterable[str]) -> None:
        """Forget the features of these images."""

    def head_logprobs(
        self, hidden_KD: torch.Tensor, target_N: torch.Tensor, state_N: np.ndarray[Any, Any] | None = None
    ) -> torch.Tensor:
        """log q of targets, float32 [N]."""

    def halve_batches(self, tokens: int) -> bool:
        """After want of memory."""


class Prefixes:
    """Prefixes that prompts keep beginning with, such as a system prompt, or that and the one image of a constant
    reference: their keys and values are kept from call to call, up to `most` tokens, those last used."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: list[Kept] = []
        self._calls = 0
        self.numbers = ImageNumbers()

    def tree(self, branches: Sequence[Branch]) -> Tree:
        """The tree of these branches, with what is kept."""
        self._calls += 1
        often = max(_AT_LEAST, len(branches) // _OFTEN)
        made = tree(branches, kept=self._kept, often=often)
        if any((places < 0).any() for places in made.places):  # a state in a kept prefix predicts: it is computed
            made = tree(branches, often=often)
        for run in made.kept:
            run.kept.last_used = self._calls
        return made

    def keep(self, prefix: Kept, keys_values: Stored) -> None:
        """Keep a prefix, whose own keys and values these are, unless there is one like it, or what it builds on isn't
        kept."""
        if len(prefix) > self._most or self._has(prefix.units):
            return
        if prefix.first and not self._has(prefix.units[: prefix.first]):
            return
        prefix.keys_values, prefix.last_used = keys_values, self._calls
        self._kept.append(prefix)

    def _has(self, units: Units) -> bool:
        return any(np.array_equal(units, kept.units) for kept in self._kept)

    def tidy(self) -> None:
        """Drop those used longest ago, and with them what builds on them, and forget the images of no kept one."""
        newest_first = sorted(self._kept, key=lambda kept: (-kept.last_used, kept.first))
        chosen: list[Kept] = []
        for kept in newest_first:
            before = kept.units[: kept.first]
            whole = not len(before) or any(np.array_equal(each.units, before) for each in chosen)
            if whole and sum(map(len, chosen)) + len(kept) <= self._most:
                chosen.append(kept)
        self._kept = sorted(chosen, key=lambda kept: kept.first)
        self.numbers.forget_all_but({key for kept in self._kept for key in kept.images})


class TreeRunner:
    """Runs prompts of one engine as a tree. `share`: whether they share their prefixes."""

    def __init__(self, engine: Runs, *, share: bool) -> None:
        self._engine, self._share = engine, share
        self._prefixes = Prefixes(_KEPT_TOKENS)

    @torch.inference_mode()
    def run(self, prompts: Sequence[Prompt]) -> list[LogProbs]:
        """The log-probs of each prompt's answer tokens; each has one at least. Whatever the model raises is raised."""
        model, prefixes = self._engine.model, self._prefixes
        positions = [position_ids(model, prompt).numpy() for prompt in prompts]
        branches = [branch(*each, prefixes.numbers) for each in zip(prompts, positions, strict=True)]
        whole = prefixes.tree(branches) if self._share else tree(branches, share=False)
        place_N = np.concatenate(whole.places)
        target_N = np.concatenate([one.answers for one in branches])
        order = np.argsort(place_N, kind="stable")
        rows = _Rows(self._engine, whole, prefixes if self._share else None)
        logp_N = np.empty(len(order), dtype=np.float32)
        try:
            logp_N[order] = rows.run(place_N[order], target_N[order])
        finally:
            prefixes.tidy()
        return np.split(logp_N, np.cumsum([len(one.places) for one in branches])[:-1])


class _Rows:
    """The rows of one tree, one after the other."""

    def __init__(self, engine: Runs, whole: Tree, prefixes: Prefixes | None) -> None:
        self._engine, self._tree, self._prefixes = engine, whole, prefixes
        self._stored: dict[int, Stored] = {}
        self._open: dict[int, Run] = {}
        self._needed = Counter(image.key for _, _, image in whole.images)
        self._images = list(whole.images)

    def run(self, place_N: np.ndarray[Any, Any], target_N: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """log q of the targets, float32 [N]; `place_N`: where the states lie that predict them, rising."""
        found = [torch.zeros(0, device=self._engine.device)]
        start, done = 0, 0
        while start < len(self._tree):
            end = self._cut(start)
            past = int(np.searchsorted(place_N, end))
            try:
                logp, later = self._row(start, end, place_N[done:past] - start, target_N[done:past])
            except Exception as error:
                if not out_of_memory(error) or not self._engine.halve_batches(end - start):
                    raise
                if self._cut(start) == end and end - start > self._engine.max_batch_tokens:  # an image isn't cut
                    raise
                continue
            found.append(logp)
            self._store(later, end)
            start, done = end, past
        return np.asarray(torch.cat(found).cpu())

    def _cut(self, start: int) -> int:
        return self._tree.cut(start, max(FEWEST_TOKENS, self._engine.max_batch_tokens))

    def _row(
        self, start: int, end: int, place_N: np.ndarray[Any, Any], target_N: np.ndarray[Any, Any]
    ) -> tuple[torch.Tensor, dict[int, Stored]]:
        """Tokens `start` to `end` of the tree: log q of the targets that they predict, and what is to be stored."""
        engine, whole = self._engine, self._tree
        later: dict[int, Stored] = {}
        state_K, state_N = np.unique(place_N, return_inverse=True)
        ids = whole.token_ids[start:end]
        inputs: dict[str, Any] = {
            "input_ids": engine.to_device(ids[None]),
            "position_ids": engine.to_device(whole.position_ids[..., None, start:end]),
            "row": row_of(whole, start, end, self._stored, later),
            "use_cache": False,
        }
        if engine.type_ids:
            inputs[engine.type_ids] = engine.to_device((ids == engine.image_token).astype(np.int64)[None])
        while self._images and self._images[0][0] < start:
            self._images.pop(0)
        here = [image for first, _, image in self._images if first < end]
        if here:
            first, past, _ = self._images[0]
            ahead = islice((image for _, _, image in self._images), len(here), None)
            inputs |= engine.vision_arguments(here, past - first, ahead)
        state = engine.to_device(state_K)
        if engine.spares_last_mlp:
            inputs["unique_state_index_K"] = state
        hidden_ND = engine.model.model(**inputs).last_hidden_state[0]
        logp_N = engine.head_logprobs(hidden_ND[state], engine.to_device(target_N), state_N)
        for image in here:
            self._needed[image.key] -= 1
            if not self._needed[image.key]:
                engine.forget_images([image.key])
        return logp_N, later

    def _store(self, later: dict[int, Stored], end: int) -> None:
        """Keep what the rows behind `end` still see, and drop what they don't."""
        for number, stored in later.items():
            self._open[number] = self._tree.runs[number]
            earlier = self._stored.get(number)
            self._stored[number] = stored if earlier is None else _joined(earlier, stored)
        for number, run in list(self._open.items()):
            if run.end <= end and run.prefix is not None and self._prefixes is not None:
                self._prefixes.keep(run.prefix, self._stored[number])
            if run.past <= end:
                del self._open[number], self._stored[number]


def _joined(earlier: Stored, later: Stored) -> Stored:
    pairs = {layer: (earlier[layer], later[layer]) for layer in later}
    return {layer: (torch.cat([a[0], b[0]], dim=2), torch.cat([a[1], b[1]], dim=2)) for layer, (a, b) in pairs.items()}


def out_of_memory(error: Exception) -> bool:
    """Whether a device or the host ran out of memory; some of PyTorch's allocators raise a plain RuntimeError."""
    phrases = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "out of memory")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in phrases)
