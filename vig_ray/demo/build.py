"""Train the demo model: `python -m vig_ray.demo.build --out DIR`, and with `--look hard` that of the harder look.

A `LlavaForConditionalGeneration` of about a million parameters, built like LLaVA-1.5: CLIP tower (56 pixels, patches of
14), two-layer projector, Llama, the vicuna_v1 template. First the tower learns which shape and color covers each patch
and on which side, then the whole model learns to answer; trained from scratch as a whole it learns colors but not
places. It takes about ten minutes on two CPU cores. The harder look's model is built in the same way, but for its
images of 42 pixels, a patch for each cell of the grid.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaImageProcessorPil,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vig_ray.dataset.schema import Turn
from vig_ray.demo import CHECKPOINT, HARD_CHECKPOINT, hard, world
from vig_ray.demo.knobs import Exchange, Sample
from vig_ray.model.chat_template import LLAVA_V1
from vig_ray.model.llava import SYSTEM, LlavaFormatter
from vig_ray.model.prompt import Prompt, PromptImage
from vig_ray.scoring.blur import blur_opencv

PATCH = 14
TOWER_BATCH = 128
THINGS = [world.Thing(color, shape) for color in world.COLORS for shape in world.SHAPES]
GROUND, DOT = 2 * len(THINGS), 2 * len(THINGS) + 1
"""Classes of a patch: each thing on the left, each thing on the right, then the background and the dot."""

Labels = np.ndarray[Any, np.dtype[np.int64]]


class Recipe(NamedTuple):
    """`tower_steps`: optimizer steps for the tower alone, 128 images each; `steps`: for the whole model, of `batch`
    samples each, out of `pool` different ones. `stop`: how many of the steps are made; the learning rate falls as if
    all were."""

    tower_steps: int
    steps: int
    batch: int
    pool: int
    stop: int | None = None


class Look(NamedTuple):
    """What a model of one look of the world learns from.

    `side`: of its images, pixels. `draw`: a scene as an image. `scene`: a scene by chance. `shown`: so many for the
    tower. `classes`: how many of each kind a patch has; `labels`: those of a scene's P patches, int64 [P, kinds].
    `lesson`: a scene for the whole model, with one or more true exchanges about it. `exchanges`: many, for the
    tokenizer. `checkpoint`: where its model is packaged, and the `recipe` that makes it. `start`: the checkpoint whose
    language model and projector it begins with, by default random ones.
    """

    side: int
    draw: Callable[[Any], Any]
    scene: Callable[[random.Random], Any]
    shown: Callable[[random.Random, int], list[Any]]
    classes: tuple[int, ...]
    labels: Callable[[Any], Labels]
    lesson: Callable[[random.Random], tuple[Any, list[Exchange]]]
    exchanges: Callable[[], Iterable[Exchange]]
    checkpoint: str
    recipe: Recipe
    start: str | None = None


def build_tokenizer(look: Look | None = None) -> PreTrainedTokenizerFast:
    """SentencePiece-like BPE (Metaspace, byte fallback) in which every word of the world is one token."""
    corpus = [SYSTEM, "USER: ASSISTANT:\n"]
    for exchange in (look or FIRST).exchanges():
        corpus += [f"USER: \n{exchange.question} ASSISTANT: {exchange.answer}", f"x {exchange.answer}"]
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="first"), pre_tokenizers.Punctuation()]
    )
    learner.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=2000, show_progress=False))
    # Rebuilt with byte tokens, which the trainer doesn't place.
    learned = json.loads(learner.to_str())["model"]
    specials = ["<unk>", "<s>", "</s>", "<image>"]
    pieces = specials + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [piece for piece in learned["vocab"] if piece not in pieces]
    merges = [tuple(pair) for pair in learned["merges"]]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = learner.pre_tokenizer
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        model_max_length=2048,
        extra_special_tokens={"image_token": "<image>"},
    )


def build_processor(look: Look | None = None) -> LlavaProcessor:
    """The processor that goes with the model of a look: padding on, vicuna_v1 as its chat template."""
    side = (look or FIRST).side
    images = LlavaImageProcessorPil(
        size={"shortest_edge": side}, crop_size={"height": side, "width": side}, do_pad=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(look),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_V1,
    )


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """Random weights: tower 4 x 96 (its third layer's output is used), language model 3 x 128."""
    tokenizer = processor.tokenizer
    side = processor.image_processor.crop_size["height"]
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=side,
        patch_size=PATCH,
        projection_dim=96,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(side // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model: LlavaForConditionalGeneration = LlavaForConditionalGeneration(config)
    # With the usual 0.02 a model this narrow needs many more steps to learn to use the image.
    for part in (model.model.language_model, model.model.multi_modal_projector, model.lm_head):
        for parameter in part.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.05)
    return model


def patch_labels(scene: world.Scene) -> Labels:
    """The class of each of the 16 patches, int64 [16, 1]: what covers it and on which side, or the background."""
    labels = np.asarray(world.draw(scene, labels=True))
    height, width = labels.shape
    side = max(height, width)
    square = np.zeros((side, side), dtype=np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = labels
    pixels_of_model = FIRST.side
    grid = (np.arange(pixels_of_model) + 0.5) * side / pixels_of_model
    pixels = square[np.ix_(grid.astype(int), grid.astype(int))]
    across = pixels_of_model // PATCH
    patches = pixels.reshape(across, PATCH, across, PATCH).swapaxes(1, 2).reshape(-1, PATCH * PATCH)
    classes = [GROUND, THINGS.index(scene.left), len(THINGS) + THINGS.index(scene.right), DOT]
    of_patches = []
    for patch in patches:
        counts = np.bincount(patch, minlength=4)
        best = int(counts[1:].argmax()) + 1
        of_patches.append(classes[best] if counts[best] >= 0.05 * PATCH * PATCH else GROUND)
    return np.asarray(of_patches, dtype=np.int64)[:, None]


@torch.no_grad()
def take_over(model: Any, tokenizer: Any, checkpoint: str) -> None:
    """Give `model` the language model and projector of another of its shape; a token by its piece, so that words which
    that one doesn't know keep what they have."""
    other: Any = LlavaForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32)
    known: dict[str, int] = AutoTokenizer.from_pretrained(checkpoint).get_vocab()
    pairs = [(own, known[piece]) for piece, own in tokenizer.get_vocab().items() if piece in known]
    own_ids, other_ids = map(list, zip(*pairs, strict=True))
    there = other.state_dict()
    for name, weight in model.state_dict().items():
        if name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
            weight[own_ids] = there[name][other_ids]
        elif "vision_tower" not in name:
            weight.copy_(there[name])


def _schedule(step: int, steps: int, peak: float) -> float:
    warm = max(1, int(0.05 * steps))
    if step < warm:
        return peak * (step + 1) / warm
    return float(peak * 0.5 * (1 + np.cos(np.pi * (step - warm) / max(1, steps - warm))))


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor, parameters: list[nn.Parameter], rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()


def train_tower(
    model: Any, formatter: LlavaFormatter, *, steps: int, batch: int, rng: random.Random, look: Look | None = None
) -> float:
    """Teach the tower which thing covers each patch, and what else `look` knows of it; returns the last loss."""
    look = look or FIRST
    head = nn.Linear(96, sum(look.classes))
    tower = model.model.vision_tower
    parameters = [*tower.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    loss = torch.zeros(())
    for step in range(steps):
        scenes = look.shown(rng, batch)
        inputs = [formatter.preprocess(np.asarray(look.draw(scene))) for scene in scenes]
        hidden = tower(**formatter.collate(inputs, "cpu", torch.float32), output_hidden_states=True).hidden_states[-2]
        target = torch.from_numpy(np.stack([look.labels(scene) for scene in scenes]))
        told = head(hidden[:, 1:]).flatten(0, 1).split(look.classes, dim=1)
        kinds = zip(told, target.flatten(0, 1).T, strict=True)
        loss = torch.stack([nn.functional.cross_entropy(*kind) for kind in kinds]).sum()
        _step(optimizer, loss, parameters, _schedule(step, steps, 2e-3))
        if step % 100 == 0:
            print(f"tower {step:5d}/{steps}  loss {loss.item():.4f}", flush=True)
    return loss.item()


def _lessons(formatter: LlavaFormatter, count: int, rng: random.Random, *, unsharp: bool, look: Look) -> list[Prompt]:
    """Training prompts: several exchanges about one image.

    One in sixteen has no image, and one in eight an unsharp picture of something else. With nothing to see, the model
    learns to answer what is usual, as a model that was aligned on web data does. Otherwise it would be as sure of a
    guess as of what it sees, and one guess in four or five would be right. Without `unsharp` pictures it is taught that
    by the prompts that have no image alone.
    """
    prompts = []
    for number in range(count):
        scene, turns = look.lesson(rng)
        text_only, out_of_focus = number % 16 == 0, unsharp and number % 8 == 1
        row = world.llava_row(Sample("", None if text_only else scene, turns), "", "", rng)
        turns_of_prompt = [
            Turn("user" if t["from"] == "human" else "assistant", t["value"]) for t in row["conversations"]
        ]
        images = []
        if not text_only:
            pixels = np.asarray(look.draw(look.scene(rng) if out_of_focus else scene))
            if out_of_focus:
                pixels = blur_opencv(pixels)
            images = [PromptImage(str(number), lambda p=pixels: p, formatter.preprocess)]  # type: ignore[misc]
        prompts.append(formatter.prompt(turns_of_prompt, images))
    return prompts


def _batches(prompts: list[Prompt], batch: int, rng: random.Random) -> Iterator[list[Prompt]]:
    """Endless batches of prompts of similar length, so that little is padded."""
    while True:
        order = rng.sample(prompts, len(prompts))
        for start in range(0, len(order), 16 * batch):
            nearby = sorted(order[start : start + 16 * batch], key=lambda prompt: len(prompt.token_ids))
            batches = [nearby[i : i + batch] for i in range(0, len(nearby), batch)]
            yield from rng.sample(batches, len(batches))


def train_whole(
    model: Any,
    formatter: LlavaFormatter,
    *,
    steps: int,
    batch: int,
    pool: int,
    rng: random.Random,
    unsharp: bool = True,
    look: Look | None = None,
    stop: int | None = None,
) -> float:
    """Teach the whole model to answer, loss on the answer tokens; returns the last loss. `stop`: how many of the steps
    are made, by default all."""
    batches = _batches(_lessons(formatter, pool, rng, unsharp=unsharp, look=look or FIRST), batch, rng)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    loss, began = torch.zeros(()), time.monotonic()
    recent: list[float] = []
    made = steps if stop is None else min(stop, steps)
    for step in range(made):
        prompts = next(batches)
        length = max(len(prompt.token_ids) for prompt in prompts)
        ids = torch.zeros((len(prompts), length), dtype=torch.long)
        targets = torch.full(ids.shape, -100)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt.token_ids)] = torch.from_numpy(prompt.token_ids)
            positions = torch.from_numpy(prompt.answer_positions).long()
            targets[row, positions - 1] = ids[row, positions]
        images = [image.inputs for prompt in prompts for image in prompt.images]
        pixels = formatter.collate(images, "cpu", torch.float32) if images else {}
        hidden = model.model(input_ids=ids, **pixels).last_hidden_state
        trained = targets >= 0
        loss = nn.functional.cross_entropy(model.lm_head(hidden[trained]), targets[trained])
        _step(optimizer, loss, parameters, _schedule(step, steps, 1.5e-3))
        recent.append(loss.item())
        if step % 50 == 49 or step == made - 1:
            mean = sum(recent) / len(recent)
            print(f"whole {step + 1:5d}/{made}  loss {mean:.4f}  {time.monotonic() - began:.0f} s", flush=True)
            recent = []
    return loss.item()


def _first_lesson(rng: random.Random) -> tuple[world.Scene, list[Exchange]]:
    scene = world.random_scene(rng)
    return scene, world.lesson(scene, rng)


def _first_shown(rng: random.Random, count: int) -> list[world.Scene]:
    scenes = [world.random_scene(rng) for _ in range(count)]
    return [dataclasses.replace(scene, dot=rng.random() < 0.5) for scene in scenes]


def _first_exchanges() -> Iterator[Exchange]:
    for _, sample in world.samples(4000, seed=0, kinds=world.KINDS):
        yield from sample.turns


FIRST = Look(
    side=56,
    draw=world.draw,
    scene=world.random_scene,
    shown=_first_shown,
    classes=(2 * len(THINGS) + 2,),
    labels=patch_labels,
    lesson=_first_lesson,
    exchanges=_first_exchanges,
    checkpoint=CHECKPOINT,
    recipe=Recipe(tower_steps=600, steps=1600, batch=64, pool=30_000),
)

HARD_CLASSES = (len(hard.RADII) + 1, len(world.COLORS) + 1, len(world.SHAPES) + 1, hard.GRID, hard.GRID)
"""Of a patch of the harder look: the thing's size, color and shape, the last class being none; its row, its column."""


def cell_labels(scene: hard.Scene) -> Labels:
    """What is in each of the nine patches of the harder look, and which patch it is, int64 [9, 5], as `HARD_CLASSES`
    has it. Each by itself: learned as one class they are no easier to tell apart than any two things, and the language
    model doesn't learn to ask for one color."""
    labels: Labels = np.empty((hard.GRID**2, len(HARD_CLASSES)), np.int64)
    labels[:, :3] = np.asarray(HARD_CLASSES[:3]) - 1
    cells = np.arange(hard.GRID**2)
    labels[:, 3], labels[:, 4] = cells // hard.GRID, cells % hard.GRID
    for thing in scene.things:
        names = (sorted(hard.RADII), sorted(world.COLORS), world.SHAPES)
        told = (thing.size, thing.color, thing.shape)
        labels[thing.cell, :3] = [of.index(name) for of, name in zip(names, told, strict=True)]
    return labels


def _hard_exchanges() -> Iterator[Exchange]:
    for _, sample in hard.samples(6000, seed=0):
        yield from sample.turns


def _hard_shown(rng: random.Random, count: int) -> list[hard.Scene]:
    return [hard.random_scene(rng) for _ in range(count)]


HARD = Look(
    side=hard.GRID * PATCH,
    draw=hard.draw,
    scene=hard.random_scene,
    shown=_hard_shown,
    classes=HARD_CLASSES,
    labels=cell_labels,
    lesson=hard.lesson,
    exchanges=_hard_exchanges,
    checkpoint=HARD_CHECKPOINT,
    # Stopped where it sees colors and things but hardly counts yet, so that instruction tuning has something to teach.
    recipe=Recipe(tower_steps=200, steps=2000, batch=32, pool=64_000, stop=650),
    start=CHECKPOINT,
)
LOOKS = {"first": FIRST, "hard": HARD}


def build(out: str, *, seed: int, look: Look, recipe: Recipe) -> None:
    """Train from `seed` and write the checkpoint to `out`, in the hub's layout."""
    from vig_ray.model.export import save_checkpoint

    torch.manual_seed(seed)
    processor = build_processor(look)
    model: Any = build_model(processor)
    if look.start:
        take_over(model, processor.tokenizer, look.start)
    formatter = LlavaFormatter(
        processor.tokenizer,
        processor.image_processor,
        image_token_id=model.config.image_token_id,
        num_image_tokens=(look.side // PATCH) ** 2,
    )
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(processor.tokenizer)} tokens", flush=True)
    model.train()
    train_tower(
        model, formatter, steps=recipe.tower_steps, batch=TOWER_BATCH, rng=random.Random(seed), look=look
    )  # fmt: skip
    train_whole(
        model, formatter, steps=recipe.steps, batch=recipe.batch, pool=recipe.pool, rng=random.Random(seed + 1),
        look=look, stop=recipe.stop,
    )  # fmt: skip
    model.eval()
    shutil.rmtree(out, ignore_errors=True)
    save_checkpoint(model, processor, out)
    size = sum(os.path.getsize(os.path.join(out, name)) for name in os.listdir(out))
    print(f"{out}: {size / 1e6:.2f} MB")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--look", choices=sorted(LOOKS), default="first")
    parser.add_argument("--out", help="folder of the checkpoint (default: inside the package)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, help="optimizer steps for the tower alone")
    parser.add_argument("--steps", type=int, help="optimizer steps for the whole model")
    parser.add_argument("--batch", type=int, help="samples a step")
    parser.add_argument("--pool", type=int, help="different training samples")
    parser.add_argument("--stop", type=int, help="how many of the steps are made")
    options = vars(parser.parse_args())
    look = LOOKS[options["look"]]
    given = {name: options[name] for name in Recipe._fields if options[name] is not None}
    recipe = look.recipe._replace(**given)
    build(options["out"] or look.checkpoint, seed=options["seed"], look=look, recipe=recipe)


if __name__ == "__main__":
    main()
