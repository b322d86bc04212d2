"""How much of its attention a token gives to image tokens, layer by layer, without a matrix of all attention.

The share of a query in one head is the sum of its probabilities over the image's keys,

    exp(lse(image) - lse(all))    with lse(keys) = log sum exp(score) over those keys that the query sees,

so nothing but the scores of the queries that are asked for is ever there, some queries at a time. What the layer gives
on is computed by PyTorch's own kernel, as without a watch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AttentionInterface, AttentionMaskInterface

from vig_ray.model.prompt import Prompt, PromptError

NAME = "vig_watched"
_SCORES_AT_ONCE = 1 << 22  # 16 MB of float32


class Watch:
    """What the layers of one forward over one sample are asked: `places_T`, int64 [T], whose attention; `is_image_L`,
    bool [L], on what."""

    def __init__(self, places_T: npt.NDArray[np.integer], is_image_L: npt.NDArray[np.bool_]) -> None:
        self._places = torch.from_numpy(places_T.astype(np.int64))
        self._image = torch.from_numpy(np.flatnonzero(is_image_L).astype(np.int64))
        self._length = len(is_image_L)
        self._layers: list[tuple[int, torch.Tensor]] = []

    def shares(self) -> npt.NDArray[np.float32]:
        """The mean over heads of each token's share, float32 [layers, T].

        Raises ValueError where no layer has told one: the model has attention of its own kind.
        """
        return np.stack([shares_HT.mean(axis=0) for shares_HT in self.by_head()])

    def by_head(self) -> list[npt.NDArray[np.float32]]:
        """Each token's share by layer and head, float32 [heads, T] a layer; raises ValueError as `shares` does."""
        if not self._layers:
            raise ValueError("the model's layers don't attend by transformers' AttentionInterface")
        return [np.asarray(shares_HT.float().cpu()) for _, shares_HT in self._layers]

    def layers(self) -> list[int]:
        """Which layers of the language model have told a share, from 0: of some families only a few attend."""
        return [number for number, _ in self._layers]

    def see(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
        *,
        causal: bool,
        layer: int | None = None,
    ) -> None:
        """One layer: query [1, heads, L, D], key [1, heads or fewer, L, D]; the mask as PyTorch's kernel takes it.

        `layer`: its number, by default the next. Raises ValueError where these aren't the tokens of the sample.
        """
        _, heads, length, width = query.shape
        _, key_heads, keys, _ = key.shape
        if len(query) != 1 or length != self._length or keys != self._length:
            raise ValueError("attention to image tokens is told of one whole sample, whose images are among its tokens")
        places, image = self._places.to(query.device), self._image.to(query.device)
        exact = torch.promote_types(query.dtype, torch.float32)
        key_HLD = key[0].to(exact)
        shares = [torch.zeros(heads, 0, device=query.device)]
        for part in torch.split(places, max(1, _SCORES_AT_ONCE // (heads * keys))):
            # Heads that share a key lie together.
            query_HND = (query[0, :, part].to(exact) * scale).reshape(key_heads, -1, width)
            scores = (query_HND @ key_HLD.transpose(1, 2)).view(heads, len(part), keys)
            if mask is not None:
                of_part = mask[0, :, part]
                is_bool = of_part.dtype == torch.bool
                scores = scores.masked_fill_(~of_part, -torch.inf) if is_bool else scores.add_(of_part)
            elif causal:
                scores = scores.masked_fill_(torch.arange(keys, device=query.device) > part[:, None], -torch.inf)
            seen = scores[..., image].logsumexp(-1) - scores.logsumexp(-1)
            shares.append(seen.exp())
        self._layers.append((len(self._layers) if layer is None else layer, torch.cat(shares, dim=1)))


_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)


def _watched_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What transformers calls in each layer; query [B, heads, L, D]. Raises ValueError for scores that are changed."""
    watch = _watch.get()
    if watch is not None:
        for change in ("softcap", "s_aux", "position_bias"):
            if arguments.get(change) is not None:
                raise ValueError(f"attention with {change} isn't told")
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        layer = getattr(module, "layer_idx", None)
        watch.see(query, key, attention_mask, scale, causal=causal, layer=layer)
    attend: Callable[..., tuple[torch.Tensor, None]] = AttentionInterface()["sdpa"]
    return attend(module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal, **arguments)


AttentionInterface.register(NAME, _watched_attention)
AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])


@contextmanager
def watched(model: Any, places_T: npt.NDArray[np.integer], is_image_L: npt.NDArray[np.bool_]) -> Iterator[Watch]:
    """Meanwhile one forward of `model` over one sample of L tokens tells the returned watch its attention.

    `places_T`: the T tokens that are asked about; `is_image_L`: which tokens hold image features.
    """
    before = getattr(model.config.get_text_config(), "_attn_implementation", None) or "sdpa"
    watch = Watch(places_T, is_image_L)
    model.set_attn_implementation({"text_config": NAME})
    token = _watch.set(watch)
    try:
        yield watch
    finally:
        _watch.reset(token)
        model.set_attn_implementation({"text_config": before})


def image_attention(
    model: Any, prompts: Sequence[Prompt], forward: Callable[[Prompt], Any]
) -> list[npt.NDArray[np.float32]]:
    """Each answer token's share of attention on image tokens, mean over heads, float32 [layers, T] a prompt.

    It is that of the state that predicts the token, one place before it. `forward`: runs `model` over one prompt alone,
    unpadded. Raises PromptError where the model's attention can't be told.
    """
    shares = []
    for prompt in prompts:
        try:
            with watched(model, prompt.answer_positions - 1, prompt.image_mask) as watch:
                forward(prompt)
            shares.append(watch.shares())
        except ValueError as error:
            raise PromptError("Attention", str(error)) from error
    return shares
