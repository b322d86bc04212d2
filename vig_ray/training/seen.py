"""What objectives see of a forward pass beside its last states: the embeddings that the language model is given, and
the states after one of its layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from vig_ray.errors import StageError
from vig_ray.training.objective import Objective


class Seen:
    """Keeps what `objectives` ask for of each forward pass of `model` within `looking`, with its gradient.

    The embeddings are what transformers hands to the language model in `inputs_embeds`: at an image's positions, what
    the model has put there of the image.
    """

    def __init__(self, model: Any, objectives: Sequence[Objective]) -> None:
        self._looking = False
        self._embeddings_BLD: torch.Tensor | None = None
        self._states: dict[int, torch.Tensor] = {}
        self._name = type(model).__name__
        decoder = model.get_decoder()
        if any(objective.embeddings for objective in objectives):
            decoder.register_forward_pre_hook(self._keep_embeddings, with_kwargs=True)
        for layer in {objective.layer for objective in objectives if objective.layer is not None}:
            decoder.layers[layer - 1].register_forward_hook(self._keeper(layer))

    @contextmanager
    def looking(self) -> Iterator[Seen]:
        """Keep what passes by; nothing is kept behind it, nor when layers run once more in a backward pass."""
        self._looking = True
        try:
            yield self
        finally:
            self._looking, self._embeddings_BLD, self._states = False, None, {}

    def states(self, layer: int) -> torch.Tensor:
        """The states after decoder layer `layer`, counted from 1, [B, L, D]."""
        return self._states[layer]

    @property
    def embeddings(self) -> torch.Tensor:
        """What the language model was given, [B, L, D]. Raises StageError where it wasn't given embeddings."""
        if self._embeddings_BLD is None:
            raise StageError(f"{self._name}: doesn't hand embeddings to its language model, so they can't be predicted")
        return self._embeddings_BLD

    def _keep_embeddings(self, _: Any, __: Any, options: dict[str, Any]) -> None:
        if self._looking:
            self._embeddings_BLD = options.get("inputs_embeds")

    def _keeper(self, layer: int) -> Any:
        def keep(_: Any, __: Any, output: Any) -> None:
            if self._looking:
                self._states[layer] = output[0] if isinstance(output, tuple) else output

        return keep
