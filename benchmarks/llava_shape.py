"""Samples of LLaVA-665K's shape and models at random weights to run them on; a module, no command.

A sample: 38 tokens that all begin with (the system prompt), its image, and several turns, 212 tokens on average of
which 94 are trained. There are 0.6 distinct images a sample; which samples share one is drawn at random. The spread of
the turns is assumed, a mixture of many short answers, conversations and long descriptions; the means are LLaVA-665K's,
however few samples are asked for. 40,688 of its 665,298 samples have no image (`text_only`).

A small family has an eighth of the widths and a ninth of the tokens, so that projections, attention, head and tower
stand to each other as in the large one. Nothing here needs Ray or a download.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from vig_ray.compat.transformers import unfilled
from vig_ray.model.arrays import tensors
from vig_ray.model.llava import LlavaFormatter
from vig_ray.model.prompt import ImageInputs, Pixels, Prompt, PromptImage
from vig_ray.scoring.reference import make_reference

PREFIX, REST, ANSWERS = 38, 212, 94  # tokens
DISTINCT = 0.6  # of the images
TEXT_ONLY = 40_688 / 665_298  # of the samples
PASSES = ("blur", "blind", "mean", "no-image")
_LONGEST = 1400  # tokens behind the image, within LLaVA-1.5's limit of 2048

Turns = list[tuple[int, int]]
"""Tokens of each turn: of the question with its role, of the answer with its end."""


@dataclass(frozen=True, eq=False)
class Family:
    """A model's architecture and what its prompts are made of.

    `size`: width and height of the images that are made, pixels. `image_tokens`: how many positions one takes.
    `around`: ids in front of an image and behind it. `shorter`: what LLaVA-665K's lengths are divided by.
    """

    name: str
    config: Any
    formatter: Any
    size: tuple[int, int]
    image_tokens: int
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    shorter: int = 1

    @property
    def lengths(self) -> tuple[int, int, int]:
        """Tokens in front of the image, and on average behind it and of those trained."""
        return tuple(max(1, round(length / self.shorter)) for length in (PREFIX, REST, ANSWERS))  # type: ignore[return-value]

    @property
    def image_token(self) -> int:
        return int(self.config.image_token_id)

    def model(self, device: str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
        """The model at random weights, made where it runs, in evaluation mode."""
        from transformers import AutoModelForImageTextToText

        with torch.device(device):
            make = partial(
                AutoModelForImageTextToText.from_config, self.config, dtype=dtype, attn_implementation="sdpa"
            )
            return _filled(unfilled(make), seed).eval()


@torch.no_grad()
def _filled(model: Any, seed: int) -> Any:
    """With weights as large as those of a trained model: an image then matters to what is said."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        elif name.endswith("bias"):
            parameter.zero_()
        else:
            parameter.fill_(1.0) if "norm" in name or "ln_q" in name else parameter.normal_(std=0.1)
    return model


def llava(size: str = "12x768") -> Family:
    """LLaVA-1.5's architecture: `7b`, `12x768` (12 layers of 768, a tower of 12 of 512), or `small`."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaImageProcessorPil

    # Layers, width, MLP, heads, vocabulary; the tower's layers, width, MLP, heads; image and patch, pixels.
    sizes: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
        "7b": ((32, 4096, 11008, 32, 32064), (24, 1024, 4096, 16), 336),
        "12x768": ((12, 768, 2048, 12, 32000), (12, 512, 2048, 8), 336),
        "small": ((12, 96, 256, 4, 4000), (12, 64, 256, 4), 112),
    }
    text, vision, side = sizes[size]
    patch = 14
    image_token = 32000 if size == "7b" else 3
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            num_hidden_layers=vision[0], hidden_size=vision[1], intermediate_size=vision[2],
            num_attention_heads=vision[3], image_size=side, patch_size=patch, projection_dim=vision[1],
        ),
        text_config=LlamaConfig(
            num_hidden_layers=text[0], hidden_size=text[1], intermediate_size=text[2], num_attention_heads=text[3],
            num_key_value_heads=text[3], vocab_size=text[4], max_position_embeddings=2048, pad_token_id=0,
            bos_token_id=1, eos_token_id=2,
        ),
        image_token_id=image_token,
        image_seq_length=(side // patch) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    formatter = LlavaFormatter(
        _NoText(),
        LlavaImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_pad=True),
        image_token_id=image_token,
        num_image_tokens=(side // patch) ** 2,
    )
    return Family(
        f"LLaVA-1.5 {size}", config, formatter, (side, side), (side // patch) ** 2, shorter=9 if size == "small" else 1
    )


def qwen(size: str = "7b") -> Family:
    """Qwen2.5-VL's architecture, `7b` or `small`, on images of COCO's usual size."""
    from transformers import Qwen2_5_VLConfig

    small = size == "small"
    width, pixels = (128, (112, 84)) if small else (3584, (640, 480))
    vocabulary = 4000 if small else 152064
    before, after, pad, video = (3, 4, 5, 6) if small else (151652, 151653, 151655, 151656)
    text: dict[str, Any] = {
        "hidden_size": width, "intermediate_size": 384 if small else 18944, "num_hidden_layers": 8 if small else 28,
        "num_attention_heads": 4 if small else 28, "num_key_value_heads": 2 if small else 4, "vocab_size": vocabulary,
        "max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6] if small else [16, 24, 24],
        },
    }  # fmt: skip
    vision = {
        "depth": 4 if small else 32, "hidden_size": 64 if small else 1280, "intermediate_size": 160 if small else 3420,
        "num_heads": 4 if small else 16, "out_hidden_size": width, "window_size": 56 if small else 112,
        "fullatt_block_indexes": [3] if small else [7, 15, 23, 31],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=pad, video_token_id=video,
        vision_start_token_id=before, vision_end_token_id=after,
    )  # fmt: skip
    formatter = _QwenImages()
    grid = formatter.preprocess(np.zeros((pixels[1], pixels[0], 3), np.uint8))["image_grid_thw"]
    return Family(
        f"Qwen2.5-VL {size}", config, formatter, pixels, int(np.prod(grid)) // 4, ((before,), (after,)),
        9 if small else 1,
    )  # fmt: skip


class _NoText:
    """Stands where `LlavaFormatter` wants a tokenizer; the prompts here are made of ids."""

    all_special_tokens: tuple[str, ...] = ()
    eos_token = "</s>"
    bos_token_id = 1
    eos_token_id = 2

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        return {"input_ids": [ord(character) for character in text]}


class _QwenImages:
    """Images as Qwen2.5-VL's processor makes them."""

    def __init__(self) -> None:
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        self._processor = Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=16384 * 28 * 28)
        self.mean = tuple(self._processor.image_mean)

    def preprocess(self, pixels: Pixels) -> ImageInputs:
        from PIL import Image

        arrays = self._processor(images=[Image.fromarray(pixels)], return_tensors="np")
        return {name: np.asarray(arrays[name]) for name in ("pixel_values", "image_grid_thw")}

    def collate(self, inputs: Sequence[ImageInputs], device: Any, dtype: Any) -> dict[str, Any]:
        return tensors(inputs, device, dtype)


class Plan(NamedTuple):
    """One sample in numbers: its image (None: text only) and its turns."""

    image: int | None
    turns: Turns


def plans(
    count: int, *, rest: int = REST, answers: int = ANSWERS, images: int | None = None, text_only: float = 0.0,
    seed: int = 0,
) -> list[Plan]:  # fmt: skip
    """`count` samples in numbers, on `images` distinct images, by default `DISTINCT` of the samples that have one.

    `rest`, `answers`: how many tokens behind the image, and how many of them trained, the samples have on average.
    """
    rng = np.random.default_rng(seed)
    without = round(text_only * count)
    pictured = count - without
    distinct = min(pictured, images or max(1, round(DISTINCT * pictured))) if pictured else 0
    of_sample: list[int | None] = [*range(distinct), *rng.integers(0, max(1, distinct), pictured - distinct).tolist()]
    of_sample += [None] * without
    drawn = [_turns(rng) for _ in range(count)]
    scaled = _to_means(drawn, rest - answers, answers)
    return [Plan(of_sample[place], scaled[place]) for place in rng.permutation(count).tolist()]


def _turns(rng: np.random.Generator) -> Turns:
    """A sample's turns before the means are set right: short answers, a conversation, or one long answer."""
    kind = rng.choice(3, p=(0.55, 0.30, 0.15))
    if kind == 0:
        return [(8 + int(rng.poisson(8)), 2 + int(rng.poisson(1.5))) for _ in range(1 + int(rng.poisson(5)))]
    if kind == 1:
        number = 2 + int(rng.poisson(2))
        return [(12 + int(rng.poisson(8)), 2 + int(rng.lognormal(3.6, 0.7))) for _ in range(number)]
    return [(12 + int(rng.poisson(12)), 40 + int(rng.lognormal(5.0, 0.5)))]


def _to_means(drawn: Sequence[Turns], questions: int, answers: int) -> list[Turns]:
    """The same turns, lengthened or shortened so that samples have these means, an answer two tokens at least."""
    scaled = list(drawn)
    for _ in range(8):  # what the least lengths and the limit take away is made up for by the others
        each = [np.sum(turns, axis=0) for turns in scaled]
        more = np.array([questions, answers]) / np.mean(each, axis=0)
        scaled = [
            [(max(1.0, question * more[0]), max(2.0, answer * more[1])) for question, answer in turns]  # type: ignore[misc]
            for turns in scaled
        ]
        scaled = [_within(turns) for turns in scaled]
    return [[(round(question), round(answer)) for question, answer in turns] for turns in scaled]


def _within(turns: Turns) -> Turns:
    most = _LONGEST / max(_LONGEST, np.sum(turns))
    return [(question * most, answer * most) for question, answer in turns]  # type: ignore[misc]


def samples(family: Family, count: int, *, seed: int = 0, **options: Any) -> list[Prompt]:
    """`count` clean prompts of random ids and random images; `options`: `images` and `text_only` of `plans`."""
    prefix, rest, answers = family.lengths
    rng = np.random.default_rng(seed)
    low, high = 10, min(family.config.get_text_config().vocab_size, 30_000)
    opening = rng.integers(low, high, prefix - len(family.around[0]))
    pictures: dict[int, PromptImage] = {}
    found = []
    for plan in plans(count, rest=rest, answers=answers, seed=seed, **options):
        if plan.image is not None and plan.image not in pictures:
            load = partial(picture, family.size, seed=1000 * seed + plan.image)
            pictures[plan.image] = PromptImage(f"image-{plan.image}", load, family.formatter.preprocess)
        found.append(_prompt(family, opening, plan, pictures, rng, (low, high)))
    return found


def _prompt(
    family: Family,
    opening: Any,
    plan: Plan,
    pictures: dict[int, PromptImage],
    rng: np.random.Generator,
    range_of_ids: tuple[int, int],
) -> Prompt:
    ids, turn_of = [*opening.tolist()], [-1] * len(opening)
    spans, images = [], []
    if plan.image is not None:
        images = [pictures[plan.image]]
        start = len(ids) + len(family.around[0])
        spans = [(start, start + family.image_tokens)]
        ids += [*family.around[0], *[family.image_token] * family.image_tokens, *family.around[1]]
    for number, (question, answer) in enumerate(plan.turns):
        turn_of += [-1] * (len(ids) + question - len(turn_of)) + [number] * answer
        ids += rng.integers(*range_of_ids, question + answer).tolist()
    token_ids = np.asarray(ids, dtype=np.int32)
    turns = np.asarray(turn_of, dtype=np.int32)
    positions = np.flatnonzero(turns >= 0).astype(np.int32)
    return Prompt(
        token_ids, positions, turns[positions], token_ids == family.image_token,
        np.asarray(spans, dtype=np.int32).reshape(-1, 2), tuple(images), np.zeros((len(positions), 2), np.int32),
    )  # fmt: skip


def picture(size: tuple[int, int], *, seed: int) -> Pixels:
    """Soft noise in colours, uint8 [H, W, 3]."""
    from PIL import Image

    rough = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return np.array(Image.fromarray(rough).resize(size, Image.Resampling.BICUBIC))


def reference(name: str, family: Family) -> Callable[[Prompt], Prompt]:
    """The reference called `name`, by the job's defaults."""
    return make_reference(name, formatter=family.formatter).without_image


def prepared(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The same prompts, their images preprocessed: what the CPU stage does is not what is measured."""
    for prompt in prompts:
        for image in prompt.images:
            _ = image.inputs
    return list(prompts)
