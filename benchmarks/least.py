"""The least that scoring takes, by arithmetic: FLOPs of a set of prompts, whatever engine runs them.

All prompts of all passes are one tree of tokens (an image's positions differ by image, hidden ones aren't there, and a
token is the same as another only at the same position id). Then

    - each node of the tree goes through the layers once, up to the last token that predicts: what prompts begin with,
      the system prompt or the system prompt and an image, is computed once for all of them
    - the last layer's MLP and the head run where an answer token is predicted, and nowhere else
    - the tower and the projector run once for each image that a prompt shows, up to the tower's layer that is read

A weight costs 2 FLOPs a token. Attention costs 4 a pair of a query and a key for each of the heads' dimensions, and a
layer: a query needs the keys before it, itself included (`pairs`). Kernels are counted by torch as whole rectangles,
causal or not, so beside what is counted the own block of a node is a full square (`rectangles`), and each query of it
is paired with all keys of the nodes before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from vig_ray.model.prompt import Prompt, PromptImage

Attention = Literal["rectangles", "pairs"]
Rows = npt.NDArray[np.int64]


class Flops(NamedTuple):
    """By what computes it: the linear layers of the decoder, of the head, and of tower and projector, then attention of
    both and the cutting into patches. `tokens`: how many go through the decoder; `unshared`: prompts by themselves."""

    layers: float
    head: float
    tower: float
    attention: float
    tokens: int
    unshared: int

    @property
    def total(self) -> float:
        return self.layers + self.head + self.tower + self.attention


def least_flops(config: Any, prompts: Sequence[Prompt], attention: Attention = "rectangles") -> Flops:
    """For `prompts` of all passes over a set, on a LLaVA with CLIP and Llama or a Qwen2.5-VL of this config."""
    text = config.get_text_config()
    width, layers = text.hidden_size, text.num_hidden_layers
    heads = text.num_attention_heads * (getattr(text, "head_dim", None) or width // text.num_attention_heads)
    keys = heads * text.num_key_value_heads // text.num_attention_heads
    projections, mlp = 2 * width * (heads + keys), 3 * width * text.intermediate_size
    tokens = pairs = predicting = 0
    for start, end, predicts in _nodes(prompts):
        own = end - start
        tokens += own
        pairs += own * end if attention == "rectangles" else own * start + own * (own + 1) // 2
        predicting += predicts
    shown = {image.key: image for prompt in prompts if not prompt.hide_images for image in prompt.images}
    towers = [image_flops(config, image) for image in shown.values()]
    return Flops(
        layers=2 * (tokens * (layers * projections + (layers - 1) * mlp) + predicting * mlp),
        head=2 * predicting * width * text.vocab_size,
        tower=sum(linear for linear, _ in towers),
        attention=4 * pairs * heads * layers + sum(others for _, others in towers),
        tokens=tokens,
        unshared=sum(len(_path(prompt, {})[0]) for prompt in prompts if len(prompt.answer_positions)),
    )


def _nodes(prompts: Sequence[Prompt]) -> Iterator[tuple[int, int, int]]:
    """Each node of the tree: its first position, the one past its last, and how many of them predict a token."""
    keys: dict[str, int] = {}
    paths, predicting = [], []
    for prompt in prompts:
        if len(prompt.answer_positions):
            path, places = _path(prompt, keys)
            paths.append(path.astype(">i8").tobytes())
            predicting.append(places)
    order = sorted(range(len(paths)), key=paths.__getitem__)
    waiting = [(0, order)] if order else []
    while waiting:
        start, members = waiting.pop()
        first, last = (np.frombuffer(paths[member], dtype=">i8") for member in (members[0], members[-1]))
        end = _common(first, last)  # sorted: what these two begin with, all between them do
        places = np.unique(np.concatenate([predicting[member] for member in members]))
        yield start, end, int(((places >= start) & (places < end)).sum())
        branches: dict[bytes, list[int]] = {}
        for member in members:
            if len(paths[member]) > 8 * end:
                branches.setdefault(paths[member][8 * end : 8 * end + 8], []).append(member)
        waiting.extend((end, branch) for branch in branches.values())


def _common(a: Rows, b: Rows) -> int:
    shorter = min(len(a), len(b))
    different = np.flatnonzero(a[:shorter] != b[:shorter])
    return int(different[0]) if len(different) else shorter


def _path(prompt: Prompt, keys: dict[str, int]) -> tuple[Rows, Rows]:
    """What is computed of a prompt: a number a token that tells it from others, int64 [n], and the places in it of the
    tokens that predict one."""
    ids = prompt.token_ids.astype(np.int64)
    if not prompt.hide_images:
        for image, (first, end) in zip(prompt.images, prompt.image_spans.tolist(), strict=True):
            ids[first:end] = (1 << 20) + keys.setdefault(image.key, len(keys))
    positions = np.arange(len(ids))
    kept = ~prompt.image_mask if prompt.hide_images else np.ones(len(ids), dtype=bool)
    kept[prompt.answer_positions[-1] :] = False
    places = (np.cumsum(kept) - 1)[prompt.answer_positions - 1]
    return (ids * (1 << 20) + positions)[kept], places


def image_flops(config: Any, image: PromptImage) -> tuple[float, float]:
    """One image through the tower, up to the layer that is read, and the projector: linear layers, and attention with
    the cutting into patches. Raises ValueError for a tower of another kind."""
    vision = config.vision_config
    width, mlp = vision.hidden_size, vision.intermediate_size
    if config.model_type == "llava":
        patches = (vision.image_size // vision.patch_size) ** 2
        places, out, read = patches + 1, config.get_text_config().hidden_size, config.vision_feature_layer
        layers = vision.num_hidden_layers + 1 + read if read < 0 else read
        linear = 2 * places * layers * (4 * width**2 + 2 * width * mlp) + 2 * patches * (width * out + out**2)
        return linear, 4 * layers * places**2 * width + 2 * patches * 3 * vision.patch_size**2 * width
    if config.model_type != "qwen2_5_vl":
        raise ValueError(f"{config.model_type}: no arithmetic for its tower")
    times, height, across = (int(n) for n in np.asarray(image.inputs["image_grid_thw"]).ravel())
    patches = times * height * across
    window = vision.window_size // vision.patch_size
    windows = times * sum(
        (min(window, height - top) * min(window, across - left)) ** 2
        for top in range(0, height, window)
        for left in range(0, across, window)
    )
    whole = len(vision.fullatt_block_indexes)
    pairs = whole * times * (height * across) ** 2 + (vision.depth - whole) * windows
    merged = vision.spatial_merge_size**2
    merger = (width * merged) ** 2 + width * merged * vision.out_hidden_size
    linear = 2 * patches * vision.depth * (4 * width**2 + 3 * width * mlp) + 2 * patches // merged * merger
    return linear, 4 * pairs * width + 2 * patches * 3 * vision.temporal_patch_size * vision.patch_size**2 * width
