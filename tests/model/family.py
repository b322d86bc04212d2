"""A family of models under test: a tiny checkpoint, by vig-ray and by transformers alone, and the samples for it.

The oracle is transformers' alone: `apply_chat_template(tokenize=True)`, then `model(**inputs)`.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.model import families
from tests.oracle import blurred
from vig_ray.dataset.schema import IMAGE_MARK, Turn
from vig_ray.model.load import load_formatter
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.scoring.engines.load import load_engine

# Refused at the start: with which words.
NO_TEMPLATE = "the checkpoint has no chat template"
NOT_SCORED = {
    "blip_2": NO_TEMPLATE,
    "florence2": NO_TEMPLATE,
    "fuyu": NO_TEMPLATE,
    "got_ocr2": NO_TEMPLATE,
    "instructblip": NO_TEMPLATE,
    "kosmos2": "its config names no image token",
    "paligemma": "its attention looks ahead",
}
NAMES = [each.name for each in pkgutil.iter_modules(families.__path__) if each.name not in ("base", *NOT_SCORED)]
TOLERANCE = 1e-5  # or of a log-prob below -10, 1e-6 of it: float32 has steps of 1e-6 there
# Whose samples go through their processor as a whole, and whose are run one by one; all others must be scored from
# parts, in batches.
WHOLE = (
    "ernie4_5_vl_moe",
    "gemma3n",
    "idefics2",
    "lfm2_vl",
    "llava_onevision",
    "minicpmv4_6",
    "mllama",
    "perception_lm",
)
ONE_BY_ONE = ("llama4", "minicpmv4_6", "perception_lm")
TRAINED = [name for name in NAMES if name != "llama4"]
FROM_PARTS = [name for name in NAMES if name not in WHOLE]
IN_BATCHES = [name for name in FROM_PARTS if name not in ONE_BY_ONE]
# Samples that a family's own processor refuses: images of different numbers of tiles.
REFUSES = {"perception_lm": ("two images",)}
# Where images are read beside the text, no position can be hidden.
NO_BLIND = ("mllama",)


class Sample(NamedTuple):
    """Turns, the first a question, and the sizes of the images (width, height) at its marks."""

    turns: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]


I = IMAGE_MARK  # noqa: E741
SAMPLES = {
    "one image": Sample((f"{I}\nWhat is on the left?", "A red circle."), ((100, 80),)),
    "two turns": Sample((f"{I}\nWhat?", "12 beans.", "And on the right?", "Où est le café? 红色 😀"), ((70, 90),)),
    "two images": Sample((f"{I} and {I}: which is red?", "The first."), ((100, 80), (60, 200))),
    "text": Sample(("What is red?", "The circle."), ()),
    "wide": Sample((f"{I}\nWhat?", "A line."), ((300, 60),)),
    "large": Sample((f"{I}\nWhat?", "A square."), ((640, 480),)),
    "tall": Sample((f"{I}\nWhat?", "A tower."), ((60, 200),)),
    "a later image": Sample((f"{I}\nWhat?", "One.", f"And {I}?", "Two."), ((64, 64), (90, 60))),
}


def picture(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def apart(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    return float((np.abs(ours - theirs) / np.maximum(1, np.abs(theirs) / 10)).max())


def asked(sample: Sample) -> Sample:
    """The sample without its last answer."""
    return sample._replace(turns=sample.turns[:-1])


class Family:
    """A checkpoint, by vig-ray and by transformers alone."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, str(folder)
        importlib.import_module(f"tests.model.families.{name}").make(str(folder))
        self.formatter: Any = load_formatter(str(folder))
        self.engine: Any = load_engine(
            "torch", model=str(folder), template="auto", max_length=None, dtype="float32", device="cpu"
        )
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        self.samples = {key: sample for key, sample in SAMPLES.items() if key not in REFUSES.get(name, ())}

    def pictures(self, sample: Sample) -> list[Image.Image]:
        return [picture(size, seed) for seed, size in enumerate(sample.sizes)]

    def prompt(self, name: str, sample: Sample) -> Prompt:
        """Of a sample without its last answer: the question that the answer would follow."""
        turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(sample.turns)]
        images = [
            PromptImage(f"{name} {i}", lambda p=p: np.asarray(p), self.formatter.preprocess)  # type: ignore[misc]
            for i, p in enumerate(self.pictures(sample))
        ]
        make = self.formatter.question if len(turns) % 2 else self.formatter.prompt
        made: Prompt = make(turns, images)
        return made

    def inputs(self, sample: Sample, *, blur: bool = False) -> Any:
        """What transformers' own processor makes of the sample, or, without its last answer, of the question."""
        messages = self.messages(sample, blur=blur)
        return self.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=len(messages) % 2 == 1
        )

    def messages(self, sample: Sample, *, blur: bool = False) -> list[dict[str, Any]]:
        """The sample with its pictures in its content lists."""
        pictures = iter(map(blurred, self.pictures(sample)) if blur else self.pictures(sample))
        messages = []
        for number, text in enumerate(sample.turns):
            content: list[dict[str, Any]] = []
            for index, piece in enumerate(text.split(I)):
                content += [{"type": "image", "image": next(pictures)}] if index else []
                content += [{"type": "text", "text": piece}] if piece else []
            messages.append({"role": ("user", "assistant")[number % 2], "content": content})
        return messages

    @torch.no_grad()
    def logprobs(
        self, inputs: Any, prompt: Prompt, *, hidden: bool = False, exact: bool = False
    ) -> np.ndarray[Any, Any]:
        """Of the answer tokens, by the model's own forward; `exact`: in float64."""
        dtype = torch.float64 if exact else torch.float32
        model = copy.deepcopy(self.model).double() if exact else self.model
        if exact and hasattr(model, "set_experts_implementation"):
            model.set_experts_implementation("eager")  # the grouped product takes no float64
        inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
        ids = inputs["input_ids"][0]
        if hidden:
            image = inputs["input_ids"] == self.model.config.image_token_id
            inputs["attention_mask"] = (~image).long()
            base = getattr(self.model, "model", self.model)
            if hasattr(base, "get_rope_index") and "image_grid_thw" in inputs:
                inputs["position_ids"] = base.get_rope_index(
                    inputs["input_ids"], mm_token_type_ids=image.int(), image_grid_thw=inputs["image_grid_thw"]
                )[0]
            else:
                inputs["position_ids"] = torch.arange(len(ids))[None]
        everything = model(**inputs, use_cache=False).logits[0].to(dtype).log_softmax(-1)
        return np.array([everything[p - 1, ids[p]].item() for p in prompt.answer_positions.tolist()])


def of(names: Sequence[str]) -> pytest.MarkDecorator:
    """A test of these families."""
    return pytest.mark.parametrize("family", names, indirect=True, scope="module")
